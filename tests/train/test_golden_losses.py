"""The losses of a hundred steps of the tiny recipe, to the last digit: a change of numbers anywhere on the main path shows.

World, tokenizer, packing, order of rows, first weights, model, loss, optimizer and schedule all enter. The file keeps the
losses by torch version, instruction set and maker of the processor (its kernels add in another order, and training amplifies
that). Where these three are known, every loss must be the same float; elsewhere it must lie within ``TOLERANCES`` of them.
When such a change is wanted, the file is written anew, and so the change is part of the commit that made it:

    OMP_NUM_THREADS=1 PYTHONPATH=src python tests/train/test_golden_losses.py
    ATEN_CPU_CAPABILITY=default OMP_NUM_THREADS=1 PYTHONPATH=src python tests/train/test_golden_losses.py
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

GOLDEN = Path(__file__).with_name("golden_losses.json")
STEPS = 100
# Ten times and more what was measured between AVX2 and no vectors at all: 1e-7 in the first ten steps, 1e-5 in thirty, 6e-5
# in all hundred (relative).
TOLERANCES = [1e-5] * 10 + [1e-4] * 20 + [1e-3] * 70


def key() -> str:
    """What the last digit depends on: ``2.13.0+cpu, AVX2, AuthenticAMD``."""
    import torch

    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        maker = next(line.split(":")[1].strip() for line in lines if line.startswith("vendor_id"))
    except (OSError, StopIteration):
        maker = platform.machine()
    return f"{torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, {maker}"


def losses(folder: Path) -> list[float]:
    """Mean training loss of each step, in nats a token: float32, CPU, one thread; four rows a step, so that it takes seconds."""
    import torch

    from sproutlm.config.load import load_recipe, shipped_recipes
    from sproutlm.pipeline.train import train
    from sproutlm.train.metrics import read_metrics

    settings = [
        f"run={folder / 'run'}",
        f"train.steps={STEPS}",
        "train.batch_tokens=512",
        "train.compute=float32",
        "train.device=cpu",
        "train.log_every=1",
        "data.validation=null",
        "data.workers=1",
        "sample.prompts=[]",
    ]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        train(load_recipe(shipped_recipes() / "tiny.yaml", settings), say=lambda sentence: None)
    finally:
        torch.set_num_threads(threads)
    return [row["loss"] for row in read_metrics(folder / "run" / "metrics.jsonl")]


def faults(got: list[float], golden: dict[str, list[float]], here: str) -> list[str]:
    """A sentence for each step whose loss is not that of ``here``, or too far from those of all others."""
    found = []
    for name in [here] if here in golden else sorted(golden):
        exact = name == here
        for step, (loss, expected, tolerance) in enumerate(zip(got, golden[name], TOLERANCES, strict=True), 1):
            if loss != expected if exact else abs(loss / expected - 1) > tolerance:
                found.append(f"step {step}: {loss!r} instead of {expected!r} ({name})")
    return found


def test_a_hundred_steps_have_the_losses_that_are_written_down(tmp_path: Path) -> None:
    wrong = faults(losses(tmp_path), json.loads(GOLDEN.read_text()), key())
    assert not wrong, f"{'; '.join(wrong[:3])}. If the numbers were meant to change, write the file anew (see above)"


def test_the_comparison_is_exact_where_the_machine_is_known_and_near_elsewhere() -> None:
    golden = {"one": [2.0] * STEPS}
    for step, change, wrong_here, wrong_elsewhere in (
        (0, 1e-16, False, False),  # less than half a unit in the last place
        (0, 1e-15, True, False),
        (0, 2e-5, True, True),
        (50, 2e-4, True, False),
        (99, 2e-3, True, True),
    ):
        got = [2.0] * STEPS
        got[step] *= 1 + change
        assert bool(faults(got, golden, "one")) == wrong_here
        assert bool(faults(got, golden, "another")) == wrong_elsewhere


@pytest.mark.slow
def test_without_vectors_the_losses_are_near_and_those_of_their_own_line() -> None:
    """The same steps in a process whose torch uses no vector instructions: the tolerances are tried, too."""
    environment = os.environ | {"ATEN_CPU_CAPABILITY": "default", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, __file__, "--print"], env=environment, capture_output=True, text=True)
    ((here, got),) = json.loads(done.stdout.splitlines()[-1]).items()
    golden = json.loads(GOLDEN.read_text())
    assert "DEFAULT" in here or "AVX" not in key()
    assert not faults(got, golden, here)
    others = {name: values for name, values in golden.items() if name != here}
    assert others and not faults(got, others, here)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        made = {key(): losses(Path(folder))}
    if "--print" in sys.argv:
        print(json.dumps(made))
    else:
        known = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
        known = {name: values for name, values in known.items() if name.split(",")[0] == key().split(",")[0]} | made
        # A loss is a double: its shortest decimal that reads back the same is written, one line for each ten.
        lines = [
            f'"{name}": [\n'
            + ",\n".join(" " + ", ".join(map(repr, values[i : i + 10])) for i in range(0, STEPS, 10))
            + "\n]"
            for name, values in sorted(known.items())
        ]
        GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n")
