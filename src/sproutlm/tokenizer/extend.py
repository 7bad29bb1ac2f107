"""New tokens for an existing tokenizer; every id that it had keeps its meaning."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from ..errors import SproutError
from .text_only import is_control, model_ids
from .tokenizer import Tokenizer

RESERVED = "<|reserved_"


def extend(
    tokenizer: Tokenizer,
    new_tokens: Iterable[str],
    *,
    text_tokens: Iterable[str] = (),
    take_reserved: bool = False,
) -> Tokenizer:
    """A tokenizer with ``new_tokens`` as control tokens and ``text_tokens`` as tokens that texts are cut into.

    Ids follow the last one, in the order given; with ``take_reserved``, control tokens first take the ids of
    ``<|reserved_0|>`` and on, whose rows a model already has. What is a control token already stays as it is. A text
    token is found wherever a text holds it, inside words too. SproutError for a name that cannot become a token.
    """
    wanted = [(name, True) for name in dict.fromkeys(new_tokens)] + [
        (name, False) for name in dict.fromkeys(text_tokens)
    ]
    data = tokenizer.backend_json
    config = json.loads(json.dumps(tokenizer.config))
    free = _reserved(tokenizer) if take_reserved else []
    next_id = tokenizer.vocab_size
    for name, control in wanted:
        if control and name in tokenizer.control_tokens:
            continue
        _possible(tokenizer, data, name, control)
        if control and free:
            old, id_ = free.pop(0)
            _rename(data, old, name)
        else:
            id_, next_id = next_id, next_id + 1
            data["added_tokens"].append(_added(id_, name, control))
        if isinstance(config.get("added_tokens_decoder"), dict):
            entry = {key: value for key, value in _added(id_, name, control).items() if key != "id"}
            config["added_tokens_decoder"][str(id_)] = entry
    extended = Tokenizer(json.dumps(data, ensure_ascii=False), config, where=tokenizer.where)
    _check(tokenizer, extended, wanted)
    return extended


def new_ids(old: Tokenizer, new: Tokenizer) -> dict[int, str]:
    """Ids that mean something else, or something at all, only in ``new``: id -> the token's name.

    SproutError where ``new`` is not ``old`` with tokens added, so that rows of a model would change their meaning.
    """
    before, after = names_of(old), names_of(new)
    added = {id_: name for id_, name in sorted(after.items()) if before.get(id_) != name}
    wrong = [id_ for id_ in added if id_ in before and not before[id_].startswith(RESERVED)]
    wrong += sorted(set(before) - set(after))
    if wrong:
        id_ = wrong[0]
        raise SproutError(
            f"{new.where} is not {old.where} with tokens added: id {id_} is {before[id_]!r} in one and "
            f"{after.get(id_)!r} in the other; extend the model's own tokenizer: sprout tokenizer extend"
        )
    return added


def names_of(tokenizer: Tokenizer) -> dict[int, str]:
    """Each id's token as it is spelt in tokenizer.json."""
    data = tokenizer.backend_json
    names = {id_: token for token, id_ in model_ids(data).items()}
    return names | {token["id"]: token["content"] for token in data["added_tokens"]}


def _reserved(tokenizer: Tokenizer) -> list[tuple[str, int]]:
    found = [(name, id_) for name, id_ in tokenizer.control_tokens.items() if name.startswith(RESERVED)]
    return sorted(found, key=lambda pair: pair[1])


def _possible(tokenizer: Tokenizer, data: dict[str, Any], name: str, control: bool) -> None:
    """Refuse a name that would not become a token of its own."""
    if not name or name != name.strip() or not name.isprintable():
        raise SproutError(f"new token {name!r}: expected printable text without blanks at its ends; write another name")
    if control:
        taken = name in model_ids(data) or any(token["content"] == name for token in data["added_tokens"])
        if taken:
            raise SproutError(
                f"new token {name!r}: {tokenizer.where} has it as a piece of ordinary text, so texts would hold control "
                f"tokens; write it as a mark, such as <|{name}|>"
            )
        return
    if is_control({"content": name}):
        raise SproutError(f"text token {name!r} looks like a mark, and a mark is a control token; add it as one")
    if name in tokenizer.control_tokens or len(tokenizer.encode(name)) == 1:
        raise SproutError(f"text token {name!r}: {tokenizer.where} has it as one token already; leave it out")
    if name in model_ids(data):
        raise SproutError(
            f"text token {name!r}: {tokenizer.where} has a piece of that spelling with another meaning; write another one"
        )


def _added(id_: int, name: str, control: bool) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": id_, "content": name, **flags, "special": control}


def _rename(data: dict[str, Any], old: str, name: str) -> None:
    for token in data["added_tokens"]:
        if token["content"] == old:
            token["content"] = name
    vocabulary = data["model"].get("vocab")
    if isinstance(vocabulary, dict) and old in vocabulary:
        data["model"]["vocab"] = {name if token == old else token: id_ for token, id_ in vocabulary.items()}
    elif isinstance(vocabulary, list):
        data["model"]["vocab"] = [[name if token == old else token, score] for token, score in vocabulary]


def _check(old: Tokenizer, new: Tokenizer, wanted: Sequence[tuple[str, bool]]) -> None:
    """What was promised holds for the tokenizer as it loads."""
    new_ids(old, new)
    for name, control in wanted:
        ids = new.encode(name)
        if control and (name not in new.control_tokens or new.control_tokens[name] in ids):
            raise SproutError(f"new token {name!r} did not become a control token of {old.where}; write another name")
        if not control and len(ids) != 1:
            raise SproutError(f"text token {name!r} did not become one token of {old.where}; write another name")
