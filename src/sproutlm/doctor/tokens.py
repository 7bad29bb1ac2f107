"""What shows only in tokens: stop tokens that are trained (pitfall 1), answers that are cut (2), sides wrapped unlike (6)."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ..config.data import DataConfig, TemplateConfig
from ..data.records import Chat, Preference, Text, texts_of
from ..errors import SproutError
from .finding import Examination, counted, do, share
from .scan import PLACES, Scan

if TYPE_CHECKING:
    from ..tokenizer.template import ChatTemplate
    from ..tokenizer.tokenizer import Tokenizer

LONG_SHARE = 0.05
STOP_SHARE = 0.99
USEFUL_SHARE = 0.7
LONG_TEXT = 200_000  # characters of one text that are tokenised
SPLIT_HELPS = 0.5  # of what is lost by cutting, below which splitting is proposed
CUT_CHATS = 100  # long conversations that are cut, to see what is lost
PAIRS = 200
THROW_AWAY_BYTES, THROW_AWAY_VOCAB = 1_000_000, 2048
DEFAULT_SEQ_LEN = DataConfig.model_fields["seq_len"].default


@dataclass
class Context:
    """What the data is for, where another path on the command line, or a recipe, tells."""

    tokenizer_dir: Path | None = None
    seq_len: int | None = None
    stage: str | None = None  # pretrain | sft
    template: TemplateConfig | None = None
    on_long: str = "auto"
    packing: str = "best_fit"
    new_tokens: Sequence[str] = ()
    on_bad_row: str | None = None  # None where no recipe tells


@dataclass
class Figures:
    """Sums over the records that were kept."""

    lengths: list[int] = field(default_factory=list)
    long_chats: list[Chat] = field(default_factory=list)
    chats: int = 0
    trained: int = 0
    stopping: int = 0
    refused: list[str] = field(default_factory=list)
    shortened: int = 0  # texts of which only the beginning was tokenised


def token_faults(found: Examination, scan: Scan, context: Context) -> None:
    """Tokenise the records that the scan kept, and say what would be lost in training on them."""
    cure = "give another tokenizer, or mend it (see: sprout doctor TOKENIZER)"
    read, made = found.attempt("tokens", cure, 1, lambda: writer(found, scan, context))
    if not read:
        return
    tokenizer, template = made
    seq_len = context.seq_len or DEFAULT_SEQ_LEN
    figures = measured(scan, tokenizer, template, seq_len)
    if len(scan.kept) < scan.counts.records_out:
        found.notes.append(f"tokens are those of the first {counted(len(scan.kept), 'record')}")
    if figures.shortened:
        found.notes.append(f"of texts with more than {LONG_TEXT:,} characters only these were tokenised")
    refusals(found, figures)
    if figures.lengths:
        stops(found, figures)
        lengths(found, figures, seq_len, context, template)
        padding(found, figures, seq_len, context)
    pairs = [(where, record) for where, record in scan.kept if isinstance(record, Preference)]
    if pairs:
        wrappers(found, pairs[:PAIRS], template)


def writer(found: Examination, scan: Scan, context: Context) -> tuple[Tokenizer, ChatTemplate]:
    """The tokenizer and template that training would use; without one, a small tokenizer trained on these rows."""
    from ..tokenizer.extend import extend
    from ..tokenizer.library import template_of
    from ..tokenizer.tokenizer import Tokenizer
    from ..tokenizer.train import train_tokenizer

    if context.tokenizer_dir is not None:
        tokenizer = Tokenizer.load(context.tokenizer_dir)
    else:
        texts = itertools.chain.from_iterable(texts_of(record) for _, record in scan.kept)
        tokenizer = train_tokenizer(texts, THROW_AWAY_VOCAB, max_bytes=THROW_AWAY_BYTES, sample="first")
        found.notes.append(
            f"no tokenizer was given: one of {tokenizer.vocab_size:,} ids was trained on the first megabyte of the text, "
            "so token counts will differ with the real one (to name it: sprout doctor FILE TOKENIZER)"
        )
    if context.new_tokens:
        tokenizer = extend(tokenizer, list(context.new_tokens))
    return tokenizer, template_of(context.template or TemplateConfig(), tokenizer, check=False)


def measured(scan: Scan, tokenizer: Tokenizer, template: ChatTemplate, seq_len: int) -> Figures:
    from ..data.encode import encode

    figures = Figures()
    for where, record in scan.kept:
        if not isinstance(record, Text | Chat):
            continue
        if isinstance(record, Text) and len(record.text) > LONG_TEXT:
            record = Text(record.text[:LONG_TEXT])
            figures.shortened += 1
        figures.chats += isinstance(record, Chat)
        try:
            ids, trained = encode(record, tokenizer, template)
        except SproutError as error:
            figures.refused.append(f"{where}: {error}")
            continue
        stops = {tokenizer.eos_id} if isinstance(record, Text) else set(template.stop_ids)
        figures.lengths.append(len(ids))
        figures.trained += sum(trained[1:])
        figures.stopping += any(t and i in stops for i, t in zip(ids, trained, strict=True))
        if isinstance(record, Chat) and len(ids) > seq_len:
            figures.long_chats.append(record)
    return figures


def refusals(found: Examination, figures: Figures) -> None:
    """Records that the tokenizer or the template refuses."""
    n, tried = len(figures.refused), len(figures.refused) + len(figures.lengths)
    if not n:
        return
    what = f"{n:,} of {counted(tried, 'record')} cannot be written as tokens; first: {figures.refused[0]}"
    cure = "name a template that can write them (template: {use: chatml} in the recipe), or set data.on_bad_row: skip"
    if n == tried:
        found.fail("written as tokens", what, cure, 14)
    else:
        found.warn("written as tokens", what, cure, 13)


def stops(found: Examination, figures: Figures) -> None:
    """pitfall 1: an answer, or a text, whose end is never a target teaches no stopping."""
    n = len(figures.lengths)
    what = f"{share(figures.stopping, n)} of the records train a stop token; {share(figures.trained, sum(figures.lengths))} of all tokens are trained"
    if not figures.trained or not figures.stopping:
        found.fail("stop token", what, "without one the model never stops: repair the chat template", 1)
    elif figures.stopping < STOP_SHARE * n:
        found.warn("stop token", what, "look at the others: sprout data inspect FILE", 1)
    else:
        found.ok("stop token", what, 1)


def lengths(found: Examination, figures: Figures, seq_len: int, context: Context, template: ChatTemplate) -> None:
    """pitfall 2: what a row is too short for, and what is lost by that."""
    n, most = len(figures.lengths), max(figures.lengths)
    long = sum(length > seq_len for length in figures.lengths)
    assumed = "" if context.seq_len else ", the default of data.seq_len"
    at_least = "at least " if figures.shortened else ""
    what = (
        f"{share(long, n)} of the records have more than {seq_len:,} tokens{assumed}; median "
        f"{statistics.median(figures.lengths):,.0f}, most {at_least}{most:,}"
    )
    long_texts = long - len(figures.long_chats)
    if context.on_long == "error" and long:
        cure = f"raise data.seq_len (longest: {most:,}), or set data.on_long to truncate, split or drop"
        found.fail("long records", f"{what}; data.on_long: error stops at the first of them", cure, 2)
    elif context.on_long == "drop" and long > LONG_SHARE * n:
        cure = f"raise data.seq_len (longest: {most:,}), or set data.on_long to truncate or split"
        found.warn("long records", f"{what}; data.on_long: drop leaves them out", cure, 2)
    elif len(figures.long_chats) > LONG_SHARE * n and context.on_long != "drop":
        whole, lost = trained_and_lost(figures.long_chats, seq_len, context.on_long, template)
        how = "split between their turns" if context.on_long == "split" else "cut"
        cure = f"raise data.seq_len (longest: {most:,})"
        if context.on_long != "split":
            _, less = trained_and_lost(figures.long_chats, seq_len, "split", template)
            if less < SPLIT_HELPS * lost:  # not where one answer alone is too long
                cure += f", or set data.on_long: split, which loses {share(less, whole)}"
        found.warn(
            "long records",
            f"{what}; these are {how} and lose {share(lost, whole)} of what their answers would train",
            cure,
            2,
        )
    else:
        pieces = "; long texts are cut into pieces, nothing is lost" if long_texts or not figures.chats else ""
        found.ok("long records", what + pieces, 2)


def padding(found: Examination, figures: Figures, seq_len: int, context: Context) -> None:
    """pitfall 11: rows of one short document each are mostly padding."""
    if context.packing != "none":
        return
    useful = sum(-(-length // seq_len) * seq_len for length in figures.lengths)
    what = f"data.packing: none: {share(sum(figures.lengths), useful)} of the places in its rows hold a token"
    if sum(figures.lengths) < USEFUL_SHARE * useful:
        cure = "remove data.packing (best_fit shares a row among documents, which do not see each other), or lower data.seq_len"
        found.warn("padding", f"{what}, the rest is computed for nothing", cure, 11)
    else:
        found.ok("padding", what, 11)


def trained_and_lost(chats: Sequence[Chat], seq_len: int, on_long: str, template: ChatTemplate) -> tuple[int, int]:
    """(trained tokens, those that are lost) where conversations are cut to ``seq_len``, of the first few of them."""
    from ..data.long_rows import rendered, split_chat, truncate_chat

    whole = kept = 0
    for chat in chats[:CUT_CHATS]:
        whole += int(rendered(chat, template).trained[1:].sum())
        if on_long == "split":
            left = split_chat(chat, seq_len, template).documents
        else:
            left = [document for document in [truncate_chat(chat, seq_len, template)] if document is not None]
        kept += sum(int(document.trained[1:].sum()) for document in left)
    return whole, max(whole - kept, 0)


def wrappers(found: Examination, pairs: Sequence[tuple[str, Preference]], template: ChatTemplate) -> None:
    """pitfall 6: a difference between two sides that the template makes, and not what was said."""
    from ..tokenizer.parity import pair_parity

    unlike: list[tuple[str, str]] = []
    for where, pair in pairs:
        try:
            said = pair_parity(template, pair.prompt, pair.chosen, pair.rejected, pair.tools)
        except SproutError as error:
            said = str(error)
        if said and "empty think block" not in said:  # told from the rows themselves
            unlike.append((where, said))
    if unlike:
        places = ", ".join(where for where, _ in unlike[:PLACES])
        what = f"{len(unlike):,} of {counted(len(pairs), 'pair')} {do(len(unlike), 'differ', 'differs')} in more than what was said: {unlike[0][1]} ({places})"
        found.warn("sides through the template", what, "use a template that writes both sides alike, such as chatml", 6)
    else:
        found.ok("sides through the template", "the two sides differ in what was said alone", 6)
