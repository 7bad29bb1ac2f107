"""A tokenizer.json that is JSON and no tokenizer: each fault is a sentence, never a traceback or a table without end."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from sproutlm.errors import SproutError
from sproutlm.tokenizer import Tokenizer


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda t: t.update(added_tokens="x"), "added_tokens: expected objects"),
        (lambda t: t.update(added_tokens=[1]), "added_tokens: expected objects"),
        (lambda t: t["added_tokens"][0].pop("id"), "added_tokens: expected objects"),
        (lambda t: t["added_tokens"][0].update(id="0"), "added_tokens: expected objects"),
        (lambda t: t["added_tokens"][0].update(id=10**12), "ids from 0 to 10,000,000"),
        (lambda t: t["added_tokens"][0].update(content=5), "added_tokens: expected objects"),
        (lambda t: t["model"].update(vocab=[1, 2]), "model.vocab: expected pairs"),
        (lambda t: t["model"].update(vocab="x"), "model.vocab: expected an object or a list"),
        (lambda t: t["model"].update(vocab={"a": "0"}), "model.vocab: expected an id"),
        (lambda t: t["model"]["vocab"].update(z=10**12), "model.vocab: expected an id"),
        (lambda t: t["model"].update(merges="x"), "model.merges: expected pairs"),
        (lambda t: t["model"].update(merges=[["a", "b", "c"]]), "model.merges: expected pairs"),
        (lambda t: t["model"].update(merges=["ab"]), "model.merges: expected pairs"),
        (lambda t: t.update(model="x"), "it has no model"),
    ],
)
def test_a_part_of_another_kind_is_named(change: Callable[[dict], Any], sentence: str, tokenizer: Tokenizer) -> None:
    data = tokenizer.backend_json
    change(data)
    with pytest.raises(SproutError, match=f"damaged.json: .*{sentence}"):
        Tokenizer(json.dumps(data), tokenizer.config, where="damaged.json")


def test_json_nested_without_end_is_a_sentence(tokenizer: Tokenizer) -> None:
    with pytest.raises(SproutError, match="nested deeper"):
        Tokenizer("[" * 100_000, tokenizer.config, where="deep.json")
