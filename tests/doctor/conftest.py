"""A tokenizer, a model, a run and a data file, small and healthy; each test spoils its own copy."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from sproutlm.config import ModelConfig, Recipe, SourceConfig, dump_recipe
from sproutlm.data.prepare import prepare
from sproutlm.doctor.finding import Examination, Finding
from sproutlm.export.huggingface import save
from sproutlm.model import Transformer
from sproutlm.tokenizer import ChatTemplate, Tokenizer, check as tokenizer_check, train_tokenizer
from sproutlm.train.checkpoint import Checkpointer
from sproutlm.train.schedule import multiplier

STEPS = 40
CHATS = [
    [{"role": "user", "content": f"{i} + 1 = ?"}, {"role": "assistant", "content": f"{i + 1}。"}] for i in range(30)
]


@pytest.fixture(autouse=True)
def _without_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Importing transformers takes longer than all of these tests; the comparison has tests of its own."""
    skipped = tokenizer_check._result("same ids as transformers", None, "skipped")
    monkeypatch.setattr(tokenizer_check, "_against_transformers", lambda tokenizer, folder: skipped)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["春眠不觉晓，处处闻啼鸟。", "the river and the hill and the river. "] * 3, 300)


@pytest.fixture(scope="session")
def model(tokenizer: Tokenizer) -> Transformer:
    config = ModelConfig(vocab_size=tokenizer.vocab_size, dim=16, n_layers=2, n_heads=2, ffn_dim=24, max_seq_len=64)
    made = Transformer(config).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(0, 0.3, generator=generator)
    return made


def write_rows(path: Path, rows: Iterable[Any]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def recipe(model: Transformer) -> Recipe:
    fields: dict[str, Any] = {
        "name": "small",
        "data": {"train": [{"path": "synth:tiny/sft"}], "seq_len": 64, "workers": 1},
        "model": model.config.model_dump(),
        "schedule": {"warmup": 4},
        "train": {"steps": STEPS, "batch_tokens": 256, "log_every": 2},
    }
    return Recipe.model_validate(fields)


def healthy_metrics(recipe: Recipe) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for step in range(2, STEPS + 1, 2):
        rate = multiplier(recipe.schedule, step - 1, STEPS)
        rows.append({"step": step, "tokens": 200 * step, "loss": 2 + 3 / step, "lr_multiplier": rate,
                     "lr": rate * recipe.optimizer.lr, "grad_norm": 1.0 + 1 / step})  # fmt: skip
        if step % 10 == 0:
            rows.append({"step": step, "tokens": 200 * step, "val_loss": 2.5 + 3 / step})
    return rows


@pytest.fixture(scope="session")
def healthy_run(
    tmp_path_factory: pytest.TempPathFactory, recipe: Recipe, model: Transformer, tokenizer: Tokenizer
) -> Path:
    run = tmp_path_factory.mktemp("healthy") / "run"
    data = write_rows(run.parent / "chats.jsonl", [{"messages": chat} for chat in CHATS])
    prepare([SourceConfig(path=str(data))], tokenizer, ChatTemplate.of(tokenizer), run / "data" / "train", seq_len=64,
            on_bad_row="error", on_long="auto", shard_tokens=10_000, workers=1, say=lambda text: None)  # fmt: skip
    (run / "recipe.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
    write_rows(run / "metrics.jsonl", healthy_metrics(recipe))
    files = {"recipe.yaml": dump_recipe(recipe), "model_config.json": model.config.model_dump_json()}
    saver = Checkpointer(run / "checkpoints", keep_last=5)
    for step in (STEPS // 2, STEPS):
        saver.save(
            step, model.state_dict(), {"x": torch.zeros(1)}, {"state": {"step": step}}, files | tokenizer.files()
        )
    save(model, tokenizer, run / "model")
    return run


@pytest.fixture
def run(healthy_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(healthy_run, tmp_path / "run"))


@pytest.fixture
def checkpoint(run: Path) -> Path:
    return run / "checkpoints" / f"step-{STEPS:08d}"


@pytest.fixture
def hf(run: Path) -> Path:
    return run / "model"


@pytest.fixture
def tokenizer_folder(tokenizer: Tokenizer, tmp_path: Path) -> Path:
    tokenizer.save(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


@pytest.fixture
def rows_file(tmp_path: Path) -> Callable[..., Path]:
    """Write rows as JSON lines; the file's path."""
    return lambda rows, name="rows.jsonl": write_rows(tmp_path / name, rows)


@pytest.fixture
def finding() -> Callable[[Examination, str], Finding]:
    """The one finding of a check; a failure shows what was found instead."""

    def one(found: Examination, check: str) -> Finding:
        matching = [f for f in found.findings if f.check == check]
        assert len(matching) == 1, f"{check}: {[(f.check, f.status, f.what) for f in found.findings]}"
        return matching[0]

    return one


@pytest.fixture
def assert_healthy() -> Callable[..., None]:
    """No warning and no failure: a doctor who cries wolf is not listened to."""

    def check(*examinations: Examination) -> None:
        wrong = [(f.check, f.status, f.what) for e in examinations for f in e.findings if f.status != "ok"]
        assert not wrong
        assert all(e.findings for e in examinations)

    return check
