"""A process that saves checkpoint after checkpoint, is killed at a random moment, and is begun again where it was; run by
``test_kill_during_saves.py``.

    python saving_process.py FOLDER sync|async KILLS SEED

The first process loads torch; each one that saves is a fork of it, which costs milliseconds where a start costs seconds. After
each kill one line of JSON says what was on the disk.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from sproutlm.train.checkpoint import Checkpoint, Checkpointer, verify
from sproutlm.train.saver import BackgroundSaver

ENTRIES = 200_000  # of a tensor: 2.4 MB a checkpoint, half of whose time goes into writing them
KEEP = 2


def save_on_and_on(folder: Path, background: bool, durable: int) -> None:
    """Count the weights up as training would, from the newest checkpoint; write each step that is durable to ``durable``."""
    checkpointer = Checkpointer(folder, KEEP, say=lambda sentence: None)
    saver = BackgroundSaver(checkpointer)
    newest = checkpointer.latest()
    step = 0 if newest is None else newest.step
    weight, averages = torch.full((ENTRIES,), float(step)), torch.full((2 * ENTRIES,), float(step))
    while True:
        if background:
            saver.wait_for_copy()
        step += 1
        weight += 1  # in place: what a save under way copies, if it were still under way
        averages += 1
        parts = (step, {"w": weight}, {"w/avg": averages}, {"step": step}, {"recipe.yaml": f"step: {step}\n"})
        if background:
            saver.save(*parts)  # which waits for the one before
            os.write(durable, f"{step - 1}\n".encode())
        else:
            checkpointer.save(*parts)
            os.write(durable, f"{step}\n".encode())


def whole(checkpoint: Checkpoint) -> bool:
    """All of it is of its step."""
    tensors = [*checkpoint.model_tensors().values(), *checkpoint.optimizer_tensors().values()]
    return checkpoint.state() == {"step": checkpoint.step} and all(bool((t == checkpoint.step).all()) for t in tensors)


def found_on_disk(folder: Path) -> dict[str, object]:
    said: list[str] = []
    checkpointer = Checkpointer(folder, KEEP, said.append)
    hidden = sorted(p.name for p in folder.glob(".step-*.tmp"))
    newest = checkpointer.latest()
    named = folder / "latest"
    return {
        "step": newest.step if newest else 0,
        "whole": newest is None or whole(newest),
        "said": said,
        "steps": checkpointer.steps(),
        "named": verify(folder / named.read_text().strip()) if named.exists() else None,
        "hidden": hidden,
    }


def main() -> None:
    folder, background, kills = Path(sys.argv[1]), sys.argv[2] == "async", int(sys.argv[3])
    chance = random.Random(int(sys.argv[4]))
    torch.set_num_threads(1)  # a fork has no threads of its parent's
    folder.mkdir()
    for _ in range(kills):
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            save_on_and_on(folder, background, writing)
        os.close(writing)
        time.sleep(chance.uniform(0.02, 0.25))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        with os.fdopen(reading) as pipe:
            durable = [int(line) for line in pipe.read().split()]
        print(json.dumps({"durable": durable, **found_on_disk(folder)}), flush=True)


if __name__ == "__main__":
    main()
