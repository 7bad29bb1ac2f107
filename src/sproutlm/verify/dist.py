"""``sprout verify dist``: every way of sharing a run among processes computes what one process computes.

Four processes on this machine (gloo), float32 and float64, rows of unequal weight that they cannot share evenly, accumulated and
not. What is compared, with which tolerance, stands in ``ranks_worker``.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..errors import SproutError
from .measure import Measure
from .model import Say, line_of, result, summary
from .ranks_cases import FORMS

RANKS = 4
PATIENCE = 1800.0  # seconds for all forms on a machine that is busy with other work


def verify_dist(form: str | None = None, say: Say = lambda line: None) -> dict[str, Any]:
    """Every check of every form, or of those whose name holds ``form``; the report of ``verify_model``'s kind."""
    forms = [one for one in FORMS if form is None or form.lower() in one.name.lower()]
    if not forms:
        raise SproutError(f"--form {form}: no form's name holds it; known are {'; '.join(one.name for one in FORMS)}")
    started, checks, name = time.perf_counter(), list[dict[str, Any]](), ""
    for found in _found([one.name for one in forms]):
        if found["form"] != name:
            name = found["form"]
            say(name)
        checks.append(result(name, found["promise"], [(name, Measure(**found["measure"]))]))
        say(line_of(checks[-1]))
    return summary(checks, started)


def _found(names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """What rank 0 finds, as it is found. SproutError where a process fails: the others are then ended."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = os.environ | {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(RANKS), "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).resolve().parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }  # fmt: skip
    for name in [key for key in shared if key.startswith("TORCHELASTIC_")]:
        del shared[name]
    command = [sys.executable, "-m", "sproutlm.verify.ranks_worker", *names]
    words = tempfile.TemporaryFile("w+")  # not a pipe: a rank that says much would wait for its reader
    workers = [
        subprocess.Popen(
            command,
            env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE if rank == 0 else subprocess.DEVNULL,
            stderr=words if rank == 0 else subprocess.DEVNULL,
            text=True,
        )
        for rank in range(RANKS)
    ]
    try:
        assert workers[0].stdout is not None
        for line in workers[0].stdout:
            yield json.loads(line)
        codes = [worker.wait(PATIENCE) for worker in workers]
        if any(codes):
            words.seek(0)
            last = next((line for line in reversed(words.read().splitlines()) if line.strip()), "no word")
            raise SproutError(f"verify dist: the processes ended with {codes}; rank 0's last line: {last}")
    finally:
        for worker in workers:
            if worker.poll() is None:
                worker.kill()
            worker.wait()
        words.close()
