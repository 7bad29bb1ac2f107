"""An encoder for text alone: whatever a text says, no control token comes out of it (pitfall 4)."""

from __future__ import annotations

import copy
import json
import re
import secrets
from typing import Any

import tokenizers

from ..errors import SproutError
from .cuts import in_one_step

BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
# What a token that stands for itself looks like: "<think>", "</tool_call>", "[INST]", "<|im_end|>", DeepSeek's "<｜User｜>".
_MARK = re.compile(r"<[^\s<>]+>|\[[^\s\[\]]+\]|.*(<[|｜]|[|｜]>).*", re.DOTALL)
# A Unigram model finds its byte tokens in a text that says "<0x41>", too; this cut keeps it from doing so.
BYTE_NAME_CUT = {
    "type": "Split",
    "pattern": {"Regex": r"<(?=0x[0-9A-F]{2}>)"},
    "behavior": "Isolated",
    "invert": False,
}

Data = dict[str, Any]


MOST_IDS = 10_000_000  # a table with a place for every id is made


def check_shape(data: Data, where: str) -> None:
    """A sentence unless ``data`` has the parts that every ``tokenizer.json`` has, each of its kind."""
    model = data.get("model")
    if not isinstance(model, dict):
        raise SproutError(f"{where}: this JSON is no tokenizer: it has no model; expected a tokenizer.json")
    if data.get("added_tokens") is None:
        data["added_tokens"] = []
    added, vocabulary, merges = data["added_tokens"], model.get("vocab") or {}, model.get("merges") or []
    wrong = None
    if not isinstance(added, list) or not all(
        isinstance(it, dict) and isinstance(it.get("content"), str) and _is_id(it.get("id")) for it in added
    ):
        wrong = "added_tokens: expected objects with content, a text, and id"
    elif isinstance(vocabulary, dict) and not all(map(_is_id, vocabulary.values())):
        wrong = "model.vocab: expected an id for each token"
    elif isinstance(vocabulary, list) and not all(_is_pair(it) and isinstance(it[0], str) for it in vocabulary):
        wrong = "model.vocab: expected pairs of a piece and its score"
    elif not isinstance(vocabulary, dict | list):
        wrong = "model.vocab: expected an object or a list"
    elif not isinstance(merges, list) or not all(
        " " in it if isinstance(it, str) else _is_pair(it) and all(isinstance(x, str) for x in it) for it in merges
    ):
        wrong = "model.merges: expected pairs of pieces"
    if wrong:
        raise SproutError(f"{where}: {wrong} (ids from 0 to {MOST_IDS:,}); the file is damaged, copy it again")


def _is_id(value: Any) -> bool:
    # What is negative is left to the library, which names the line.
    return isinstance(value, int) and not isinstance(value, bool) and value <= MOST_IDS


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2


def steps(part: Any) -> list[Data]:
    """The steps of a normalizer, pre-tokenizer or decoder in their order, sequences laid flat."""
    if not isinstance(part, dict):
        return []
    inner = part.get("normalizers") or part.get("pretokenizers") or part.get("decoders")
    return [step for item in inner for step in steps(item)] if isinstance(inner, list) else [part]


def is_control(token: Data) -> bool:
    """Whether an added token is a mark and no text: special, or ``<think>``-like. Words and runs of blanks are text."""
    return bool(token.get("special")) or _MARK.fullmatch(token["content"]) is not None


def model_ids(data: Data) -> dict[str, int]:
    """Token -> id of the model alone, without added tokens."""
    vocabulary = data["model"].get("vocab") or {}
    if isinstance(vocabulary, dict):
        return vocabulary
    return {piece: id_ for id_, (piece, _) in enumerate(vocabulary)}


def keep_gaps(data: Data) -> list[str]:
    """Put added tokens with an id beyond a gap into the model's vocabulary, where the library honours the id (pitfall 9).

    The ``tokenizers`` library numbers added tokens that the model lacks one after another, whatever the file says.
    Changes ``data``; returns the tokens that would have got another id.
    """
    vocabulary = data["model"].get("vocab")
    if not isinstance(vocabulary, dict):
        return []
    size, last, last_new, moved = len(vocabulary), -1, -1, []
    for token in data.get("added_tokens", []):
        content, id_ = token["content"], token["id"]
        # Versions of the library differ in whether numbering goes on after all added tokens or after new ones only.
        after_all, after_new = max(last + 1, size), max(last_new + 1, size)
        if content in vocabulary:
            given = {vocabulary[content]}
        else:
            given = {after_all, after_new}
            last_new = max(last_new, after_new)
        last = max(last, *given)
        if given != {id_}:
            moved.append(content)
    if moved:
        for token in data["added_tokens"]:
            vocabulary[token["content"]] = token["id"]
    return moved


def text_encoders(data: Data, control: dict[str, int], where: str) -> tuple[tokenizers.Tokenizer, tokenizers.Tokenizer]:
    """(encoder for the start of a text, encoder for a text after a control token); often the same one.

    Control tokens are taken out of the added tokens and, in the model, get names that no text can hold: a Unigram model
    would else find ``</s>`` in its own vocabulary. Post-processors go: they add a first token (pitfall 7) and trim the
    offsets that masks are made from.
    """
    plain = {**data, "post_processor": None, "truncation": None, "padding": None}
    plain["added_tokens"] = [t for t in data.get("added_tokens", []) if t["content"] not in control]
    plain["model"] = _without_control(data["model"], control, plain["added_tokens"])
    if data["model"].get("type") == "Unigram" and data["model"].get("byte_fallback"):
        before = [step for step in steps(data.get("pre_tokenizer")) if step != BYTE_NAME_CUT]
        plain["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [*before, BYTE_NAME_CUT]}
    plain["pre_tokenizer"] = in_one_step(plain.get("pre_tokenizer"))
    encoder = _load(plain, where)
    if not any(step.get("prepend_scheme") == "first" for step in steps(data.get("pre_tokenizer"))):
        return encoder, encoder
    inside = {**plain, "pre_tokenizer": copy.deepcopy(plain["pre_tokenizer"])}
    for step in steps(inside["pre_tokenizer"]):
        if step.get("prepend_scheme") == "first":
            step["prepend_scheme"] = "never"
    return encoder, _load(inside, where)


def _without_control(model: Data, control: dict[str, int], added_text: list[Data]) -> Data:
    secret = secrets.token_hex(16)  # a text cannot hold a name that it cannot guess

    def hide(token: str) -> str:
        return f"{secret}:{token}" if token in control else token

    model = dict(model)
    if isinstance(model.get("unk_token"), str):
        model["unk_token"] = hide(model["unk_token"])
    vocabulary = model.get("vocab") or {}
    if isinstance(vocabulary, list):  # Unigram: [[piece, score], ...], the id is the place
        pieces = [[hide(piece), score] for piece, score in vocabulary]
        known = {piece for piece, _ in pieces}
        least = min((score for _, score in pieces), default=0.0)
        for token in sorted(added_text, key=lambda t: t["id"]):
            if token["content"] not in known:
                pieces += [[f"{secret}#{i}", least] for i in range(len(pieces), token["id"])]
                pieces.append([token["content"], least])
        model["vocab"] = pieces
        return model
    if not control.keys().isdisjoint(vocabulary) and model.get("merges"):
        prefix = model.get("continuing_subword_prefix") or ""
        model["merges"] = [m for m in model["merges"] if control.keys().isdisjoint(_parts(m, prefix))]
    model["vocab"] = {hide(token): id_ for token, id_ in vocabulary.items()}
    for token in added_text:
        model["vocab"].setdefault(token["content"], token["id"])
    return model


def _parts(merge: Any, prefix: str) -> tuple[str, str, str]:
    left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
    return left, right, left + right.removeprefix(prefix)


def _load(data: Data, where: str) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_str(json.dumps(data, ensure_ascii=False))
    except BaseException as error:  # the library raises bare Exception, and where its Rust code panics, not even that
        if isinstance(error, KeyboardInterrupt | SystemExit | MemoryError):
            raise
        raise SproutError(f"{where}: the tokenizers library cannot read this file ({error})") from None
