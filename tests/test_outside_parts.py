"""A person's own record format and objective, named in a recipe, train without an edit to the trainer or the loader."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from sproutlm.config.load import load_recipe
from sproutlm.data.prepare import prepare
from sproutlm.data.shards import TokenDataset
from sproutlm.errors import DataError
from sproutlm.pipeline.train import train
from sproutlm.tokenizer import ChatTemplate, Tokenizer

PARTS = '''
"""Written by a person who has only installed the package."""

from sproutlm.data.formats import Format, RowError
from sproutlm.data.records import Text

calls = []


def parse(value, columns):
    if not value["strophe"]:
        raise RowError("a poem without verses", reason="no verses")
    return Text(value["name"] + "\\n" + "\\n".join(value["strophe"]))


poem_format = Format("poem", lambda value: "strophe" in value, parse)


def my_objective(model, batch):
    """Cross-entropy plus a small penalty on log Z, over full logits: another loss than the package's own."""
    trained = batch.targets != -100
    logits = model(batch.tokens, batch.positions, batch.document_ids)[trained].float()
    log_z = logits.logsumexp(-1)
    chosen = logits.gather(1, batch.targets[trained][:, None])[:, 0]
    calls.append((batch.trained, int(trained.sum())))
    return (log_z - chosen + 1e-4 * log_z**2).sum(), batch.trained, {}
'''

RECIPE = """
name: outside
data:
  train: {path: poems.jsonl, format: "my_parts:poem_format"}
  seq_len: 32
  on_bad_row: skip
tokenizer: {vocab_size: 400}
model: {dim: 32, n_layers: 1, n_heads: 2, max_seq_len: 32}
objective: my_parts:my_objective
schedule: {warmup: 1}
train: {steps: 10, batch_tokens: 256, micro_batch: 4, compute: float32, device: cpu, log_every: 1}
sample: {prompts: []}
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of a person's own: a recipe, poems, and the package ``my_parts`` on the path."""
    package = tmp_path / "site" / "my_parts"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(PARTS)
    poems = [{"name": f"poem {i}", "strophe": ["the moon is bright", f"verse {i % 7}"]} for i in range(60)]
    poems.insert(30, {"name": "empty", "strophe": []})
    (tmp_path / "poems.jsonl").write_text("".join(json.dumps(poem) + "\n" for poem in poems))
    (tmp_path / "outside.yaml").write_text(RECIPE)
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.delitem(sys.modules, "my_parts", raising=False)
    yield tmp_path
    sys.modules.pop("my_parts", None)


def test_format_and_objective_from_outside_train_a_model(project):
    said: list[str] = []
    run = project / "run"
    report = train(load_recipe(project / "outside.yaml", [f"run={run}"]), say=said.append)

    import my_parts

    assert len(my_parts.calls) == 20, "10 steps of two micro-batches each"
    assert all(counted == trained > 0 for counted, trained in my_parts.calls)
    losses = [row["loss"] for row in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if "loss" in row]
    assert report["steps"] == len(losses) == 10
    assert losses[-1] < losses[0] - 1

    dataset, tokenizer = TokenDataset(run / "data" / "train"), Tokenizer.load(run)
    assert tokenizer.decode(dataset.document(0)[0]) == "poem 0\nthe moon is bright\nverse 0"
    assert dataset.manifest["counts"]["dropped"] == {"no verses": 1}
    assert any("no verses" in line for line in said)


def test_such_rows_are_refused_without_the_format_that_reads_them(project):
    """The format is what makes poems of them: nothing is guessed."""
    with pytest.raises(DataError, match="strophe"):
        train(load_recipe(project / "outside.yaml", [f"run={project / 'run'}", "data.train.0.format=auto"]))


def test_an_edited_format_is_not_trained_from_the_old_shards(project):
    """Pitfall 12, the other way round: what is reused must be what would be made now."""
    recipe = load_recipe(project / "outside.yaml").recipe
    from sproutlm.pipeline.prepare import prepare_tokenizer

    tokenizer = prepare_tokenizer(recipe, recipe.data.train, project, lambda line: None)

    def first_document() -> str:
        dataset = prepare(
            recipe.data.train,
            tokenizer,
            ChatTemplate.of(tokenizer),
            project / "shards",
            seq_len=32,
            on_bad_row="skip",
            say=lambda line: None,
        )
        return tokenizer.decode(dataset.document(0)[0])

    assert first_document().startswith("poem 0\n")
    module = project / "site" / "my_parts" / "__init__.py"
    module.write_text(PARTS.replace('value["name"] + "\\n"', '"A poem.\\n"'))
    del sys.modules["my_parts"]
    assert first_document().startswith("A poem.\n")
