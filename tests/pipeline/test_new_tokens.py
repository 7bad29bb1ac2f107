"""A recipe that adds tokens to the model it starts from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sproutlm.config.load import load_recipe
from sproutlm.errors import SproutError
from sproutlm.export.load import load, load_state
from sproutlm.pipeline.extend import extend_folder
from sproutlm.pipeline.train import train
from sproutlm.tokenizer import Tokenizer

NEW = ["<|river|>", "<|stone|>"]


def silent(sentence: str) -> None:
    pass


def run(folder: str, *changes: str) -> dict:
    return train(load_recipe(Path("recipe.yaml"), [f"run={folder}", *changes]), say=silent)


def test_a_run_adds_tokens_trains_and_continues(finished: Path) -> None:
    """Pitfall 9: tokenizer, model and shards agree on the larger vocabulary, also when the run goes on."""
    changes = ["init_from=run", f"tokenizer.new_tokens={json.dumps(NEW)}"]
    figures = run("longer", *changes, "train.steps=1")
    before, after = Tokenizer.load("run"), Tokenizer.load("longer")
    assert after.vocab_size == before.vocab_size + 2
    assert list(after.control_tokens)[-2:] == NEW
    config, state, _ = load_state("longer")
    assert config.vocab_size == state["embed_tokens.weight"].shape[0] == after.vocab_size
    assert 0 < figures["changed_share"] <= 1
    assert run("longer", *changes, "train.steps=1")["resumed_from"] == 1
    # A second run from it with the same recipe key adds nothing twice.
    run("again", "init_from=longer", f"tokenizer.new_tokens={json.dumps(NEW)}", "train.steps=1")
    assert Tokenizer.load("again").fingerprint == after.fingerprint


def test_new_rows_start_as_the_mean_of_what_was_written(finished: Path) -> None:
    from sproutlm.pipeline.prepare import prepare
    from sproutlm.pipeline.train import build_model, start_of

    recipe = load_recipe(
        Path("recipe.yaml"), ["run=longer", "init_from=run", f"tokenizer.new_tokens={json.dumps(NEW)}"]
    ).recipe
    said: list[str] = []
    prepared = prepare(recipe, Path("longer"), silent)  # type: ignore[arg-type]
    start = start_of(recipe, prepared.tokenizer.vocab_size, said.append, prepared.tokenizer)  # type: ignore[arg-type]
    model = build_model(*start, 1)
    _, state, old = load_state("run")
    assert old is not None
    for name in NEW:
        expected = state["embed_tokens.weight"][old.encode(name)].mean(0)
        assert torch.equal(model.embed_tokens.weight[prepared.tokenizer.token_id(name)], expected)
    assert any("2 new tokens (<|river|>, <|stone|>)" in sentence for sentence in said)


def test_a_tokenizer_of_another_text_is_refused(finished: Path) -> None:
    from sproutlm.tokenizer import train_tokenizer

    train_tokenizer(["other words altogether " * 20], 300).save("other")
    with pytest.raises(SproutError, match="not .* with tokens added"):
        run("longer", "init_from=run", "tokenizer.path=other", f"tokenizer.new_tokens={json.dumps(NEW)}")


def test_a_tokenizer_trained_with_new_tokens_has_the_size_that_was_asked(project: Path) -> None:
    run("own", f"tokenizer.new_tokens={json.dumps(NEW)}", "train.steps=1")
    tokenizer = Tokenizer.load("own")
    assert tokenizer.vocab_size == 300
    assert [tokenizer.token_id(name) for name in NEW] == [298, 299]


def test_options_of_the_recipe_reach_the_tokenizer_and_are_asked_again(project: Path) -> None:
    run("own", "tokenizer.digits=groups", "train.steps=1")
    assert "{1,3}" in json.dumps(Tokenizer.load("own").backend_json["pre_tokenizer"])
    with pytest.raises(SproutError, match="digits='groups' then, 'single' now"):
        run("own", "train.steps=1")


def test_extend_writes_tokenizer_and_model_or_nothing(finished: Path, sprout: Callable) -> None:
    figures = extend_folder(Path("run"), Path("out"), NEW, model=Path("run"), say=silent)
    model, tokenizer = load("out")
    assert tokenizer is not None
    assert model.config.vocab_size == tokenizer.vocab_size == figures["vocab_size"]
    assert figures["tokens"] == {name: tokenizer.token_id(name) for name in NEW}
    for arguments, words in (
        (("run", "out", "--tokens", "<|x|>"), "not empty"),
        (("run", "new", "--tokens", "a\tb"), "printable"),
        (("run", "new", "--tokens", "<think>"), "already"),
        (("run", "new"), "--tokens"),
    ):
        ran = sprout("tokenizer", "extend", *arguments)
        assert ran.code == 1
        assert words in ran.err
    assert not [path for path in Path().iterdir() if path.name == "new" or path.name.startswith((".new", ".out"))]
    Path("names.txt").write_text("<|one|>\n\n<|two|>\n", "utf-8")
    ran = sprout("tokenizer", "extend", "run", "new", "--tokens-file", "names.txt", "--reserved", "--json", "r.json")
    assert ran.code == 0
    assert json.loads(Path("r.json").read_text())["tokens"] == {"<|one|>": 11, "<|two|>": 12}
    assert sprout("tokenizer", "extend", "out", "third", "--tokens", "<|x|>", "--model", "run").code == 1
