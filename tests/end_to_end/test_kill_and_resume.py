"""A run that is killed and started again by the same command ends as if nothing had happened (pitfalls 26, 27, 28).

Real processes, real signals. Each test proves its kills: they hit a process that was alive, some of them in the middle
of a save (its hidden folder is left behind) or of an accumulation (the count of micro-batches is odd), and the run went
on past step 0.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sproutlm.train.checkpoint import verify
from sproutlm.train.metrics import MetricsLog, read_metrics
from sproutlm.verify.processes import Process, last_step, launcher, log_of, start_fresh

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals of POSIX systems")

STEPS, MICRO_BATCHES = 40, 4

RECIPE = f"""
name: killed
seed: 3
data:
  train: text.jsonl
  validation: {{rows: 4}}
  seq_len: 32
  workers: 1
tokenizer: {{vocab_size: 300}}
model: {{dim: 32, n_layers: 2, n_heads: 2, ffn_dim: 64, max_seq_len: 64, dropout: 0.1}}
objective: counted:next_token
schedule: {{warmup: 3}}
train:
  steps: {STEPS}
  batch_tokens: 256
  micro_batch: 2
  compute: COMPUTE
  device: cpu
  log_every: 1
  validate_every: 8
  save_every: 2
sample: {{prompts: ["the "], max_tokens: 4}}
"""

# Next-token prediction that leaves a byte in a file for each micro-batch it begins.
COUNTED = """
import os
from sproutlm.objectives.next_token import next_token as plain

def next_token(model, batch):
    if model.training:
        descriptor = os.open("micro-batches", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(descriptor, b".")
        os.close(descriptor)
    return plain(model, batch)
"""


def write_inputs(folder: Path, compute: str = "float32") -> Path:
    """The recipe, its objective and its text, in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(0)
    words = "the tree river stone bird house sings grows falls runs near under and a 树 河 石 鸟 在 旁边 。".split()
    with open(folder / "text.jsonl", "w", encoding="utf-8") as f:
        for _ in range(60):
            text = " ".join(rng.choice(words) for _ in range(rng.randint(4, 40)))
            f.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
    (folder / "recipe.yaml").write_text(RECIPE.replace("COMPUTE", compute), encoding="utf-8")
    (folder / "counted.py").write_text(COUNTED, encoding="utf-8")
    return folder


Start = Callable[..., Process]


@pytest.fixture(scope="module")
def start() -> Iterator[Start]:
    """Starts ``sprout train`` in a folder, as a process forked from one that has imported torch already."""
    with launcher() as made:
        yield made.train


def start_python(folder: Path, *arguments: str) -> Process:
    """The same through ``python -m sproutlm``, as a person starts it."""
    return start_fresh(folder, "train", "recipe.yaml", "run=run", *arguments)


def micro_batches(folder: Path) -> int:
    file = folder / "micro-batches"
    return file.stat().st_size if file.exists() else 0


def results(folder: Path) -> dict[str, Any]:
    """What must be equal: the last checkpoint's tensors, the final model, the metrics but for times and memory."""
    run = folder / "run"
    last = run / "checkpoints" / f"step-{last_step(folder / 'run'):08d}"
    assert verify(last) is None
    files = [last / "model.safetensors", last / "optimizer.safetensors", *sorted((run / "model").iterdir())]
    rows = [
        {k: v for k, v in r.items() if k not in MetricsLog.CLOCK_FIELDS} for r in read_metrics(run / "metrics.jsonl")
    ]
    return {"step": last_step(folder / "run"), "metrics": rows} | {f.name: f.read_bytes() for f in files}


def assert_equal(got: dict[str, Any], expected: dict[str, Any]) -> None:
    assert got["step"] == expected["step"] == STEPS
    assert got["metrics"] == expected["metrics"]
    assert got.keys() == expected.keys()
    for name in expected:
        assert got[name] == expected[name], f"{name} differs"


@pytest.fixture(scope="module")
def uninterrupted(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Any]]:
    """Results of the run that nobody disturbed, made once for each compute type."""
    known: dict[str, dict[str, Any]] = {}

    def of(compute: str) -> dict[str, Any]:
        if compute not in known:
            folder = write_inputs(tmp_path_factory.mktemp(f"whole-{compute}"), compute)
            assert start(folder).wait() == 0, log_of(folder)
            known[compute] = results(folder)
        return known[compute]

    return of


# --- kill -9 ------------------------------------------------------------------------------------------------------------


def kill_in_a_save(process: Process, rng: random.Random) -> bool:
    """Kill as soon as the hidden folder of a save is seen, not the first; True when it is left behind: unfinished."""
    before = process.step()
    if not process.until(lambda: process.step() > before and process.saving(), pause=0.0):
        return False
    time.sleep(rng.random() * 0.002)
    hit = process.send(signal.SIGKILL)
    process.wait()
    return hit and process.saving()


def kill_in_an_accumulation(process: Process, rng: random.Random) -> bool:
    """Kill between two micro-batches of one step; True when the number begun is not that of whole steps."""
    begun = micro_batches(process.folder) + MICRO_BATCHES + rng.randint(1, MICRO_BATCHES - 1)
    if not process.until(lambda: micro_batches(process.folder) >= begun):
        return False
    hit = process.send(signal.SIGKILL)
    process.wait()
    whole = micro_batches(process.folder)
    (process.folder / "micro-batches").write_bytes(b"." * (-(-whole // MICRO_BATCHES) * MICRO_BATCHES))
    return hit and whole % MICRO_BATCHES != 0


def kill_anywhere(process: Process, rng: random.Random) -> bool:
    time.sleep(rng.random() * 0.3)
    hit = process.send(signal.SIGKILL)
    process.wait()
    return hit


def run_through_kills(start: Start, folder: Path, rng: random.Random, wanted: int) -> dict[str, int]:
    """Start, kill, start again by the same command, until each kind of kill hit ``wanted`` times; then to the end.

    The length of the run is fixed, so each process may go only a little further before it is killed; a moment that was
    missed is tried again, unless the run would end.
    """
    kinds = {"save": kill_in_a_save, "accumulation": kill_in_an_accumulation, "anywhere": kill_anywhere}
    hits = dict.fromkeys(kinds, 0)
    for attempt in range(12 * wanted):
        missing = [name for name in kinds if hits[name] < wanted]
        if not missing or last_step(folder / "run") >= STEPS - 3:
            break
        name = missing[attempt % len(missing)]
        hits[name] += kinds[name](start(folder), rng)
        latest = folder / "run" / "checkpoints" / "latest"
        if latest.exists():  # after each kill: what `latest` names is whole
            assert verify(latest.parent / latest.read_text().strip()) is None
    assert start(folder).wait() == 0, log_of(folder)
    hits["attempts"] = attempt
    hits["resumed"] = len(set(re.findall(rf"continuing from step (\d+) of {STEPS}", log_of(folder))))
    return hits


@pytest.mark.parametrize("compute", ["float32", "bf16"])
def test_killed_and_started_again_is_bit_identical(
    start: Start, uninterrupted: Callable[[str], dict[str, Any]], tmp_path: Path, compute: str
) -> None:
    """Pitfalls 26 and 27: dropout on, several micro-batches a step; killed inside saves, inside steps, anywhere."""
    folder = write_inputs(tmp_path / "killed", compute)
    hits = run_through_kills(start, folder, random.Random(compute), wanted=2)
    assert hits["save"] >= 1 and hits["accumulation"] >= 1 and hits["anywhere"] >= 1, hits
    assert hits["resumed"] >= 1, f"the runs went on from steps past 0: {hits}"
    assert "damaged" not in log_of(folder)
    assert_equal(results(folder), uninterrupted(compute))


@pytest.mark.slow
@pytest.mark.parametrize("compute", ["float32", "bf16"])
def test_the_command_killed_and_typed_again_is_bit_identical(
    uninterrupted: Callable[[str], dict[str, Any]], tmp_path: Path, compute: str
) -> None:
    """The same with fresh processes of ``python -m sproutlm``."""
    folder = write_inputs(tmp_path / "killed", compute)
    hits = run_through_kills(start_python, folder, random.Random(compute), wanted=2)
    assert hits["save"] >= 1 and hits["accumulation"] >= 1 and hits["resumed"] >= 1, hits
    assert_equal(results(folder), uninterrupted(compute))


# --- SIGTERM and SIGINT -------------------------------------------------------------------------------------------------


def test_stopped_by_sigterm_saves_exits_130_and_continues(
    start: Start, uninterrupted: Callable[[str], dict[str, Any]], tmp_path: Path
) -> None:
    """Pitfall 28, through ``python -m sproutlm``; stopped in the middle of a step, at an odd one: not a regular save."""
    folder = write_inputs(tmp_path / "stopped")
    process = start_python(folder)
    assert process.until(lambda: micro_batches(folder) >= 8 * MICRO_BATCHES + 2)
    assert process.send(signal.SIGTERM)
    assert process.wait() == 130
    stopped_at = last_step(folder / "run")
    assert 8 < stopped_at < STEPS
    assert f"SIGTERM: saved at step {stopped_at} of {STEPS}; the same command continues it" in log_of(folder)
    assert "Traceback" not in log_of(folder)
    assert start(folder).wait() == 0
    assert f"continuing from step {stopped_at} of {STEPS}" in log_of(folder)
    assert_equal(results(folder), uninterrupted("float32"))


def test_stopped_by_ctrl_c_saves_exits_130_and_continues(
    start: Start, uninterrupted: Callable[[str], dict[str, Any]], tmp_path: Path
) -> None:
    folder = write_inputs(tmp_path / "stopped", "bf16")
    stops = []
    for _ in range(2):
        process = start(folder)
        begun = micro_batches(folder)
        assert process.until(lambda begun=begun: micro_batches(folder) >= begun + 2 * MICRO_BATCHES + 1)
        assert process.send(signal.SIGINT)
        assert process.wait() == 130
        stops.append(last_step(folder / "run"))
    assert 0 < stops[0] < stops[1] < STEPS, stops
    assert start(folder).wait() == 0
    assert_equal(results(folder), uninterrupted("bf16"))


# --- one process at a time ----------------------------------------------------------------------------------------------


def test_a_second_process_on_the_same_folder_is_refused(
    start: Start, tmp_path: Path, sprout: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two writers would mix their checkpoints; the lock dies with its process, also under kill -9."""
    folder = write_inputs(tmp_path / "shared")
    monkeypatch.chdir(folder)
    process = start(folder, "train.steps=100000")
    assert process.until(lambda: micro_batches(folder) > 0)
    os.kill(process.pid, signal.SIGSTOP)
    refused = sprout("train", "recipe.yaml", "run=run")
    assert refused.code == 1 and "another process trains in this folder" in refused.err
    assert process.send(signal.SIGKILL)
    process.wait()
    from sproutlm.pipeline.continuation import run_lock

    with run_lock(folder / "run"):
        pass
