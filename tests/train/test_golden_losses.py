"""The losses of thirty steps of the tiny recipe, to the digit: a change of numbers anywhere on the main path shows here.

World, tokenizer, packing, order of rows, first weights, model, loss, optimizer and schedule all enter. When such a change
is wanted, the file is written anew, and so the change is part of the commit that made it:

    OMP_NUM_THREADS=1 PYTHONPATH=src python tests/train/test_golden_losses.py
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

GOLDEN = Path(__file__).with_name("golden_losses.json")
# Other vector widths add in another order, and training amplifies it. Measured against AVX-512: the first ten steps
# differ by 7e-7 relative, all thirty by 5e-5 with AVX2 and by 1.8e-4 without vectors.
TOLERANCES = [1e-5] * 10 + [5e-4] * 20


def losses(folder: Path) -> list[float]:
    """Mean training loss of each of the first thirty steps, in nats a token: float32, CPU, one thread."""
    import torch

    from sproutlm.config.load import load_recipe, shipped_recipes
    from sproutlm.pipeline.train import train
    from sproutlm.train.metrics import read_metrics

    settings = [
        f"run={folder / 'run'}",
        "train.steps=30",
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


def test_thirty_steps_have_the_losses_that_are_written_down(tmp_path: Path) -> None:
    expected = json.loads(GOLDEN.read_text())
    got = losses(tmp_path)
    assert len(got) == len(expected) == 30
    off = [
        f"step {step}: {loss:.6f} instead of {golden:.6f}"
        for step, (loss, golden, tolerance) in enumerate(zip(got, expected, TOLERANCES, strict=True), 1)
        if abs(loss / golden - 1) > tolerance
    ]
    assert not off, f"{'; '.join(off[:3])}. If the numbers were meant to change, write the file anew (see above)"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        values = losses(Path(folder))
    text = json.dumps([round(v, 7) for v in values], indent=1) + "\n"
    if "--print" in sys.argv:
        print(text)
    else:
        GOLDEN.write_text(text)
