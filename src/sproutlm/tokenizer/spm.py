"""SentencePiece models as ``tokenizer.json``: the same ids from the ``tokenizers`` library, without remote code."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

from ..errors import SproutError
from .locate import config_beside, read_bytes
from .merges import merge_of
from .spelling import SPACE_MARK
from .spm_model import (
    BPE,
    CONTROL,
    KINDS,
    NORMAL,
    UNIGRAM,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    SentencePieceModel,
    read_model,
)  # fmt: skip
from .spm_train import train_sentencepiece as train_sentencepiece
from .text_only import BYTE_NAME_CUT, Data, is_control
from .tokenizer import Tokenizer


def from_sentencepiece(file: str | os.PathLike[str] | bytes, *, where: str | None = None) -> Tokenizer:
    """A tokenizer from a SentencePiece model (BPE or unigram): a file, or its bytes.

    Ids are those of the ``sentencepiece`` library. Control pieces become control tokens; user-defined pieces are text
    unless they look like marks (``<start_of_turn>``). ``notes`` say where the conversion cannot be exact.
    ``tokenizer_config.json`` beside the file is read, with the tokens that it adds.
    """
    if isinstance(file, bytes):
        where, data, config = where or "a SentencePiece model", file, {}
    else:
        where = where or str(file)
        data, config = read_bytes(Path(file)), config_beside(Path(file))
    model = read_model(data, where)
    _check_kind(model, where)
    converted = convert(model)
    _add_later_tokens(converted, config)
    tokenizer = Tokenizer(json.dumps(converted, ensure_ascii=False), _config(model, config), where=where)
    tokenizer.notes += [f"{where}: {sentence}" for sentence in _inexact(model)]
    return tokenizer


def _check_kind(model: SentencePieceModel, where: str) -> None:
    if model.kind not in (BPE, UNIGRAM):
        raise SproutError(
            f"{where}: this SentencePiece model is of kind {KINDS.get(model.kind, model.kind)!r}; only bpe and unigram "
            "can be converted"
        )
    if model.whitespace_as_suffix or model.denormalizes:
        what = "puts blanks at the end of words" if model.whitespace_as_suffix else "rewrites text when decoding"
        raise SproutError(f"{where}: this SentencePiece model {what}, which tokenizer.json cannot express")


def convert(model: SentencePieceModel, *, blank: str = SPACE_MARK) -> Data:
    """``tokenizer.json`` of a model, as parsed. With ``blank=" "`` pieces hold real blanks, and "▁" is a letter like
    any other (for models that we train; it needs a model without whitespace rules of its own).
    """
    pieces = [(_written(text, kind, model, blank), score, kind) for text, score, kind in model.pieces]
    added = [
        _added(text, id_, special=kind in (CONTROL, UNKNOWN))
        for id_, (text, _, kind) in enumerate(pieces)
        if kind in (CONTROL, UNKNOWN) or (kind == USER_DEFINED and (model.kind == BPE or is_control(_added(text, id_))))
    ]
    real = blank != SPACE_MARK
    backend = _unigram(pieces, model) if model.kind == UNIGRAM else _bpe(pieces, model)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None if real else _normalizer(model),
        "pre_tokenizer": BYTE_NAME_CUT if model.kind == UNIGRAM and model.byte_fallback else None,
        "post_processor": None,
        "decoder": _decoder(model, real),
        "model": backend,
    }


def _written(text: str, kind: int, model: SentencePieceModel, blank: str) -> str:
    """A piece as the vocabulary has it. User-defined ones are found in the text as it stands, with its real blanks."""
    if kind == USER_DEFINED and model.kind == BPE and model.escape_whitespaces:
        return text.replace(SPACE_MARK, " ")
    return text.replace(SPACE_MARK, blank) if kind == NORMAL else text


def _added(text: str, id_: int, special: bool = False) -> Data:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": id_, "content": text, **flags, "special": special}


def _bpe(pieces: list[tuple[str, float, int]], model: SentencePieceModel) -> Data:
    """Merges from scores: each piece is put together in the way that the library does when it stands alone."""
    scores = {text: score for text, score, kind in pieces if kind in (NORMAL, UNUSED)}
    order = sorted((text for text in scores if len(text) > 1), key=lambda text: -scores[text])  # stable: ties by id
    rank = {text: place for place, text in enumerate(order)}
    merges = [
        list(pair) for text in order if (pair := merge_of(text, rank)) and pair[0] in scores and pair[1] in scores
    ]
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": pieces[model.unk_id][0],
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": model.byte_fallback,
        "ignore_merges": False,
        "vocab": {text: id_ for id_, (text, _, _) in enumerate(pieces)},
        "merges": merges,
    }


def _unigram(pieces: list[tuple[str, float, int]], model: SentencePieceModel) -> Data:
    normal = [score for _, score, kind in pieces if kind == NORMAL] or [0.0]
    # As in sentencepiece's own code: its best score begins at 0, and trained ones, being log-probabilities, lie below.
    best = max(0.0, *normal)
    least = min(normal)  # both libraries rank unknown letters 10 below the least score

    def score_of(text: str, score: float, kind: int) -> float:
        if kind == USER_DEFINED:  # a bonus, by which such a piece is always chosen
            return len(text.encode()) * best - 0.1
        return score if kind == NORMAL else least

    return {
        "type": "Unigram",
        "unk_id": model.unk_id,
        "vocab": [[text, score_of(text, score, kind)] for text, score, kind in pieces],
        "byte_fallback": model.byte_fallback,
    }


def _normalizer(model: SentencePieceModel) -> Data | None:
    steps: list[Data] = []
    if model.charsmap:
        import base64

        charsmap = base64.b64encode(model.charsmap).decode()
        steps.append({"type": "Precompiled", "precompiled_charsmap": charsmap})
    if model.remove_extra_whitespaces:
        steps.append({"type": "Replace", "pattern": {"Regex": r"\A +| +\z"}, "content": ""})
        steps.append({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "})
    blank = SPACE_MARK if model.escape_whitespaces else " "
    if model.add_dummy_prefix:
        steps.append({"type": "Prepend", "prepend": blank})
    if model.escape_whitespaces:
        steps.append({"type": "Replace", "pattern": {"String": " "}, "content": SPACE_MARK})
    return {"type": "Sequence", "normalizers": steps} if steps else None


def _decoder(model: SentencePieceModel, real_blanks: bool) -> Data:
    steps: list[Data] = []
    if model.escape_whitespaces and not real_blanks:
        steps.append({"type": "Replace", "pattern": {"String": SPACE_MARK}, "content": " "})
    steps += [{"type": "ByteFallback"}, {"type": "Fuse"}]
    if model.add_dummy_prefix and not real_blanks:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {"type": "Sequence", "decoders": steps}


def _config(model: SentencePieceModel, beside: dict[str, Any]) -> dict[str, Any]:
    """``tokenizer_config.json``: names from the model where the file beside it does not give them; no remote code."""
    named = {
        f"{name}_token": model.pieces[id_][0] if 0 <= id_ < len(model.pieces) else None
        for name, id_ in (("bos", model.bos_id), ("eos", model.eos_id), ("pad", model.pad_id), ("unk", model.unk_id))
    }
    named = {key: text for key, text in named.items() if text is not None and key not in beside}
    # The class that reads tokenizer.json as it stands; a family's own class would build another one from its pieces.
    config = {**beside, **named, "tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    for key in ("auto_map", "add_bos_token", "add_eos_token", "legacy", "sp_model_kwargs", "use_default_system_prompt"):
        config.pop(key, None)
    return config


def _add_later_tokens(converted: Data, config: dict[str, Any]) -> None:
    """Tokens that ``tokenizer_config.json`` adds to the model's: control tokens of chat models, mostly."""
    known = {token["id"]: token for token in converted["added_tokens"]}
    for id_, token in sorted((config.get("added_tokens_decoder") or {}).items(), key=lambda item: int(item[0])):
        if int(id_) in known:
            known[int(id_)].update({key: token[key] for key in ("lstrip", "rstrip", "special") if key in token})
        elif isinstance(token, dict) and "content" in token:
            converted["added_tokens"].append({**_added(token["content"], int(id_)), **token, "id": int(id_)})


def _inexact(model: SentencePieceModel) -> list[str]:
    """Where ``tokenizers`` cannot do exactly what ``sentencepiece`` does."""
    notes = []
    if model.charsmap:
        notes.append(
            f"its normaliser ({model.normalizer}) rewrites text before encoding (full-width punctuation and digits become "
            "ASCII), so such text can never be written; and the tokenizers library applies it grapheme by grapheme, so "
            "ids of rare combining marks may differ from sentencepiece's"
        )
    unused = sum(kind == UNUSED for _, _, kind in model.pieces)
    if unused:
        notes.append(f"{unused} pieces are marked unused; sentencepiece splits them again, tokenizers may write them")
    text_pieces = [t for t, _, kind in model.pieces if kind == USER_DEFINED and not is_control(_added(t, 0))]
    if text_pieces and model.kind == BPE and (model.add_dummy_prefix or model.remove_extra_whitespaces):
        notes.append(
            f"beside one of its {len(text_pieces)} user-defined pieces (first: {text_pieces[0]!r}) inside a text, blanks "
            "are written otherwise than by sentencepiece"
        )
    if model.kind == BPE:
        normal = [(t, s) for t, s, kind in model.pieces if kind == NORMAL]
        single = {t for t, _ in normal if len(t) == 1}
        ties = sum(n - 1 for n in Counter(s for t, s in normal if len(t) > 1).values())
        if ties:
            notes.append(f"{ties} pieces share a score with another, so the order of their merges is a guess")
        foreign = [t for t, _ in normal if not single.issuperset(t)]
        if foreign:
            notes.append(
                f"{len(foreign)} pieces (first: {foreign[0]!r}) hold letters that are no pieces, and are never used"
            )
    return notes
