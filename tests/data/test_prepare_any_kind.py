"""``sprout data prepare`` end to end on what is not plain text: tool calls, and ready-made streams of every layout."""

from __future__ import annotations

import json

import pytest
import yaml
from token_streams import datatrove, flat, llm_c, megatron

from sproutlm.config.load import load_recipe
from sproutlm.data.shards import TokenDataset
from sproutlm.errors import DataError
from sproutlm.pipeline.prepare import loader_of, prepare_data
from sproutlm.tokenizer import Tokenizer, train_tokenizer

TEXTS = [f"The answer to question {i} is {i * i}." for i in range(12)]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(TEXTS * 3, 380)


@pytest.fixture
def recipe(tmp_path, tokenizer):
    tokenizer.save(tmp_path / "tokenizer")

    def load(source: dict, **data):
        settings = {
            "name": "any",
            "data": {"train": [source], "validation": {"rows": 2}, "seq_len": 64, **data},
            "tokenizer": {"path": str(tmp_path / "tokenizer")},
            "model": {"dim": 32, "n_layers": 1, "n_heads": 2},
            "train": {"steps": 1, "batch_tokens": 512},
            "run": str(tmp_path / "run"),
        }
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(settings))
        return load_recipe(tmp_path / "recipe.yaml")

    return load


KINDS = {
    "flat": lambda folder, *a: flat(folder / "train.bin", *a),
    "llm.c": lambda folder, *a: llm_c(folder / "train.bin", *a),
    "Megatron": lambda folder, *a: megatron(folder / "corpus", *a),
    "datatrove": lambda folder, *a: datatrove(folder / "ds", *a),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_is_prepared_packed_and_given_in_batches(tmp_path, recipe, tokenizer, kind):
    path = KINDS[kind](tmp_path, [tokenizer.encode(text) for text in TEXTS], tokenizer.eos_id)
    loaded = recipe({"path": str(path)}, packing="stream", stride=32)
    said: list[str] = []
    report = prepare_data(loaded, said.append)
    assert report["train"]["documents"] == len(TEXTS) - 2 and report["validation"]["documents"] == 2
    assert report["packing"]["rows"] > 1 and any(line.startswith("packing (stream)") for line in said)
    dataset = TokenDataset(tmp_path / "run" / "data" / "train")
    assert tokenizer.decode(dataset.document(3)[0].tolist()) == TEXTS[3]
    assert loader_of(loaded.recipe, dataset, tokenizer.pad_id).batch(0).trained
    assert json.dumps(report)


def test_a_tool_call_set_is_prepared(tmp_path, recipe, tokenizer):
    tools = [{"name": "weather", "description": "", "parameters": {"type": "object", "properties": {}}}]
    turns = [
        {"from": "human", "value": "Weather in Beijing?"},
        {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Beijing"}}'},
        {"from": "observation", "value": '{"sky": "clear"}'},
        {"from": "gpt", "value": "Clear."},
    ]
    rows = tmp_path / "tools.jsonl"
    rows.write_text((json.dumps({"conversations": turns, "tools": json.dumps(tools)}) + "\n") * 4)
    report = prepare_data(recipe({"path": str(rows)}, seq_len=512), lambda _: None)
    assert report["counts"]["rows_in"] == report["counts"]["records_out"] == 4
    ids, trained = TokenDataset(tmp_path / "run" / "data" / "train").document(0)
    learnt = tokenizer.decode(ids[trained].tolist(), keep_control=True)
    assert "Clear.<|im_end|>" in learnt and '"city"' in learnt and '"sky"' not in learnt


def test_a_stream_without_the_tokenizer_it_belongs_to_is_refused(tmp_path, recipe, tokenizer):
    path = flat(tmp_path / "x.bin", [tokenizer.encode(text) for text in TEXTS], tokenizer.eos_id)
    loaded = recipe({"path": str(path)})
    loaded.recipe.tokenizer.path = None
    with pytest.raises(DataError, match=r"x\.bin: holds the token ids of a tokenizer .*tokenizer\.path"):
        prepare_data(loaded, lambda _: None)


def test_columns_of_a_token_file_may_be_numbers_in_yaml(tmp_path, recipe, tokenizer):
    path = flat(tmp_path / "x.bin", [tokenizer.encode(text) for text in TEXTS], 7)
    loaded = recipe({"path": str(path), "format": "tokens", "columns": {"eos": 7, "dtype": "uint16"}})
    assert prepare_data(loaded, lambda _: None)["train"]["documents"] >= len(TEXTS) - 2
