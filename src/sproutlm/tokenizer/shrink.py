"""A smaller vocabulary: the tokens that a person's texts use, and what those are made of; the rest becomes their pieces.

Only for byte-level BPE. A kept token keeps every merge that makes it and the parts of those merges, and merges keep their
order. So a text whose tokens are all kept is encoded into the same pieces: each merge that made them is still there, and
the one that comes first among all is also first among those that are left. Bytes stay, so any text still round-trips.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from ..errors import SproutError
from .spelling import BYTE_OF_CHARACTER, Spelling
from .text_only import model_ids
from .tokenizer import Tokenizer

if TYPE_CHECKING:
    import numpy as np

BATCH, SAY_EVERY = 256, 5.0  # texts encoded at once; seconds


def refuse_other_kinds(tokenizer: Tokenizer) -> None:
    """SproutError for a tokenizer whose tokens are not made by merges of bytes."""
    data = tokenizer.backend_json
    spelling, kind = Spelling.of(data), data["model"].get("type")
    if kind != "BPE" or not spelling.byte_level or spelling.prefix or spelling.suffix:
        what = f"{kind}, not byte-level" if kind == "BPE" else str(kind)
        raise SproutError(
            f"{tokenizer.where}: only byte-level BPE can be shrunk, and this tokenizer is {what}; train a small one "
            "(sprout tokenizer train) and give it to the model with: sprout tokenizer remap"
        )


def count_ids(
    tokenizer: Tokenizer, texts: Iterable[str], say: Callable[[str], None] = lambda sentence: None
) -> np.ndarray:
    """(vocab,) int64: how often each id stands in ``texts``."""
    import numpy as np

    counts = np.zeros(tokenizer.vocab_size, dtype=np.int64)
    coming, done, began, told = iter(texts), 0, time.monotonic(), time.monotonic()
    while some := list(islice(coming, BATCH)):
        ids = [id_ for row in tokenizer.encode_batch(some) for id_ in row]
        counts += np.bincount(np.asarray(ids, dtype=np.int64), minlength=tokenizer.vocab_size)
        done += sum(map(len, some))
        if time.monotonic() - told > SAY_EVERY:
            told = time.monotonic()
            say(f"{done / 1e6:,.0f} million characters counted, {done / 1e6 / (told - began):.1f} million a second")
    return counts


def always_kept(tokenizer: Tokenizer) -> set[int]:
    """Ids that every vocabulary needs: control and other added tokens, the 256 bytes, and what a chat template writes."""
    data = tokenizer.backend_json
    model, added = model_ids(data), data["added_tokens"]
    kept = {token["id"] for token in added} | {model[t["content"]] for t in added if t["content"] in model}
    kept |= set(tokenizer.control_tokens.values()) | {tokenizer.eos_id, tokenizer.pad_id, tokenizer.unk_id}
    kept |= {id_ for token, id_ in model.items() if len(token) == 1 and token in BYTE_OF_CHARACTER}
    if (unknown := data["model"].get("unk_token")) in model:
        kept.add(model[unknown])
    return kept | set(_template_ids(tokenizer))


def _template_ids(tokenizer: Tokenizer) -> list[int]:
    """Ids of a conversation that says next to nothing: the names of roles and the line breaks between them."""
    if tokenizer.chat_template is None:
        return []
    from .template import ChatTemplate

    turns = [{"role": role, "content": "."} for role in ("system", "user", "assistant", "user")]
    for shown in (turns, turns[1:]):
        try:
            return ChatTemplate.of(tokenizer).render(shown, add_generation_prompt=True).ids
        except SproutError:  # a template without system messages, say
            continue
    return []


def choose(tokenizer: Tokenizer, counts: Sequence[int], *, keep: int | None = None, min_count: int = 1) -> list[int]:
    """The ids to keep, rising: those always kept, then the most used ones with all that they are made of.

    ``keep``: how many ids at most; ``min_count``: a token that stands less often is dropped. SproutError where ``keep``
    is less than what every vocabulary needs.
    """
    parts = _parts(tokenizer)
    chosen: set[int] = set()
    for id_ in always_kept(tokenizer):
        chosen |= _with_parts(id_, parts, chosen)
    if keep is not None and keep < len(chosen):
        raise SproutError(
            f"--keep {keep}: control tokens, the 256 bytes and what the chat template writes are {len(chosen)} ids already; "
            f"give {len(chosen)} or more"
        )
    most_used = sorted((id_ for id_, n in enumerate(counts) if n >= max(min_count, 1)), key=lambda i: (-counts[i], i))
    for id_ in most_used:
        more = _with_parts(id_, parts, chosen)
        if keep is None or len(chosen) + len(more) <= keep:
            chosen |= more
    return sorted(chosen)


def _parts(tokenizer: Tokenizer) -> dict[int, list[tuple[int, int]]]:
    """For each id the pairs that merges make it of; more than one where the file lists several."""
    data = tokenizer.backend_json
    ids = model_ids(data)
    parts: dict[int, list[tuple[int, int]]] = {}
    for left, right in map(_pair, data["model"].get("merges") or []):
        if left in ids and right in ids and left + right in ids:
            parts.setdefault(ids[left + right], []).append((ids[left], ids[right]))
    return parts


def _pair(merge: Any) -> tuple[str, str]:
    left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
    return left, right


def _with_parts(id_: int, parts: Mapping[int, list[tuple[int, int]]], have: set[int]) -> set[int]:
    """``id_`` and everything it is made of, without what is there already."""
    found: set[int] = set()
    waiting = [id_]
    while waiting:
        one = waiting.pop()
        if one not in have and one not in found:
            found.add(one)
            waiting += [part for pair in parts.get(one, ()) for part in pair]
    return found


def shrink(tokenizer: Tokenizer, kept: Sequence[int]) -> Tokenizer:
    """A tokenizer of the ids ``kept`` (from ``choose``), numbered anew from 0 in their order."""
    refuse_other_kinds(tokenizer)
    to = {old: new for new, old in enumerate(kept)}
    data = tokenizer.backend_json
    model = data["model"]
    model["vocab"] = {token: to[id_] for token, id_ in model["vocab"].items() if id_ in to}
    names = model["vocab"].keys()
    model["merges"] = [m for m in model.get("merges") or [] if {(p := _pair(m))[0], p[1], p[0] + p[1]} <= names]
    for token in data["added_tokens"]:
        token["id"] = to[token["id"]]
    data["added_tokens"].sort(key=lambda token: token["id"])
    data["post_processor"] = _renumbered(data.get("post_processor"), to)
    config = json.loads(json.dumps(tokenizer.config))
    if isinstance(decoder := config.get("added_tokens_decoder"), dict):
        numbers = {str(old): str(new) for old, new in to.items()}
        config["added_tokens_decoder"] = {numbers[id_]: it for id_, it in decoder.items() if id_ in numbers}
    made = Tokenizer(json.dumps(data, ensure_ascii=False), config, where=tokenizer.where)
    if made.vocab_size != len(kept) or any(made.piece(new) != tokenizer.piece(old) for old, new in to.items()):
        raise SproutError(
            f"{tokenizer.where}: its tokens would not keep their meaning under new numbers; shrink another tokenizer, or train "
            "one (sprout tokenizer train)"
        )
    return made


def _renumbered(part: Any, to: Mapping[int, int]) -> Any:
    """A post-processor with new ids: ``{"ids": [1], "tokens": [...]}`` and ``"sep": ["</s>", 2]``."""
    if isinstance(part, dict):
        return {
            name: [to[id_] for id_ in it] if name == "ids" and isinstance(it, list) else _renumbered(it, to)
            for name, it in part.items()
        }
    if isinstance(part, list):
        if len(part) == 2 and isinstance(part[0], str) and isinstance(part[1], int) and not isinstance(part[1], bool):
            return [part[0], to[part[1]]]
        return [_renumbered(it, to) for it in part]
    return part
