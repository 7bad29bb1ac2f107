"""A run outlives the reader of its output, and a disk that takes no logs: it trains to the end and says so once."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sproutlm.cli.unread import LEFT, Unread, goes_on_unread

RECIPE = """
name: small
data: {train: text.txt, seq_len: 32, workers: 1}
tokenizer: {vocab_size: 280}
model: {dim: 16, n_layers: 1, n_heads: 2, max_seq_len: 32}
schedule: {warmup: 1}
train: {steps: 3, batch_tokens: 64, compute: float32, device: cpu, log_every: 1, streams: 1}
sample: {prompts: []}
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    (tmp_path / "text.txt").write_text("\n\n".join(f"The tree number {i} is by the river." for i in range(60)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_reader_that_goes_away_does_not_end_the_run(project: Path) -> None:
    """As ``sprout train ... | head -0``: a real process whose pipe nobody reads any more."""
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "sproutlm", "train", "recipe.yaml"]
    ran = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(write)
    assert ran.returncode == 0, ran.stderr
    assert (project / "runs/small/model/model.safetensors").is_file()
    assert ran.stderr.count(LEFT) == 1 and "Traceback" not in ran.stderr


def test_a_command_without_any_stream_does_its_work(tmp_path: Path) -> None:
    """As ``sprout schema --out FILE >&- 2>&-``: what is printed goes nowhere."""
    code = "import os, sys; os.close(1); os.close(2); sys.stdout = sys.stderr = None\n"
    code += "from sproutlm.cli import main; print('lost'); sys.exit(main(['schema', '--out', 'schema.json']))"
    ran = subprocess.run([sys.executable, "-c", code], timeout=60, cwd=tmp_path)
    assert ran.returncode == 0 and (tmp_path / "schema.json").is_file()


def test_logs_that_cannot_be_written_do_not_end_the_run(project: Path, sprout: Callable) -> None:
    """Neither the metrics nor the plot has a place: a folder stands there (root may write anywhere else)."""
    for name in ("metrics.jsonl", "loss.png"):
        (project / "runs/small" / name).mkdir(parents=True)
    ran = sprout("train", "recipe.yaml")
    assert ran.code == 0, ran.err
    assert (project / "runs/small/model/model.safetensors").is_file()
    assert ran.out.count("metrics.jsonl cannot be written") == 1
    assert "rows of metrics could not be written and are lost" in ran.out


def test_a_plot_that_finds_no_room_is_said(project: Path, sprout: Callable) -> None:
    (project / "runs/small/loss.png").mkdir(parents=True)
    ran = sprout("train", "recipe.yaml", "train.trackers=[tensorboard]")
    assert ran.code == 0 and "loss.png cannot be drawn" in ran.out, ran.err
    assert not list((project / "runs/small").glob(".loss*"))


def test_other_faults_of_a_stream_are_not_hidden(capsys: Any) -> None:
    class Full:
        def write(self, text: str) -> int:
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        Unread(Full()).write("x")  # type: ignore[arg-type]
    before = sys.stdout
    with goes_on_unread():
        print("seen")
        assert sys.stdout is not before
    assert sys.stdout is before and capsys.readouterr().out == "seen\n"
