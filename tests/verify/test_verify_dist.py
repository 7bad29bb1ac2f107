"""``sprout verify dist``: every way of sharing a run holds, and the faults that it is there for are noticed."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from sproutlm.errors import SproutError
from sproutlm.verify import verify_dist
from sproutlm.verify.ranks_cases import FORMS

pytestmark = pytest.mark.skipif(os.name == "nt", reason="gloo between processes of a POSIX system")


def test_every_form_computes_what_one_process_computes() -> None:
    said: list[str] = []
    report = verify_dist(say=said.append)
    assert [line for line in said if "FAIL" in line] == []
    assert report["ok"] and {check["family"] for check in report["checks"]} == {form.name for form in FORMS}
    assert len(report["checks"]) > 9 * len(FORMS)


def test_a_form_that_is_not_known_is_a_sentence() -> None:
    with pytest.raises(SproutError, match=r"--form nonsense: no form's name holds it; known are DDP; FSDP2"):
        verify_dist("nonsense")


# What goes wrong in systems that people use, each put in on purpose: (form, what it is, promises that must fail).
FAULTS = """
import json, sys
from unittest.mock import patch
import torch
from sproutlm.config.parallel import ParallelConfig
from sproutlm.distributed import Layout, Piece, Ranks
from sproutlm.distributed import expert_parallel, tensor_parallel
from sproutlm.verify import ranks_worker
from sproutlm.verify.ranks_cases import FORMS

def means(self, masters, plain=Layout.sum_gradients):
    plain(self, masters)
    for master in masters.values():
        master.grad /= self.ranks.data_size

def experts_twice(self, masters, plain=Layout.sum_gradients):
    plain(self, masters)
    for name, master in masters.items():
        if ".experts." in name:
            master.grad *= 2

def not_over_tp(self, masters, plain=Layout.sum_gradients):
    kept = {n: m.grad.clone() for n, m in masters.items() if n.endswith("norm.weight")}
    plain(self, masters)
    for name, grad in kept.items():
        masters[name].grad = self.ranks.sum_(grad, ("outer",))

def own_norm(self, names, norms, plain=Layout.sum_of_squares):
    return torch.stack(list(norms)).double().square().sum()

def own_losses(self, *values):
    return list(values)

def from_the_start(self):
    return 0

def lost_tail(self, batch, plain=ranks_worker.run_of.__globals__["Trainer"]._parts):
    return plain(self, batch)[:1]

Trainer = ranks_worker.run_of.__globals__["Trainer"]
faults = [
    ("DDP", "means in place of sums", (Layout, "sum_gradients", means)),
    ("experts on 2 ranks, two copies", "experts counted twice", (Layout, "sum_gradients", experts_twice)),
    ("FSDP2 and tensor parallel", "norms not summed over tp", (Layout, "sum_gradients", not_over_tp)),
    ("HSDP, 2 copies", "norm of more than the whole", (Layout, "sum_of_squares", own_norm)),
    ("HSDP, 2 copies", "every rank with the rows of the first", (Ranks, "data_rank", property(from_the_start))),
    ("DDP", "the tail of an accumulation lost", (Trainer, "_parts", lost_tail)),
]
torch.set_num_threads(1)
ranks_worker.AFTER_STEPS = {"adamw": 2, "muon": 2}
world = None
for form_name, words, (owner, name, fault) in faults:
    form = next(f for f in FORMS if f.name == form_name)
    asked = ParallelConfig(**form.parallel, timeout=240)
    world = Ranks.join(asked, torch.device("cpu")) if world is None else world.arranged(asked)
    ranks_worker.reference(form.model, "adamw", torch.float32, 1)
    ranks_worker.reference(form.model, "adamw", torch.float64, 1)
    for optimizer in ("adamw", "muon"):
        ranks_worker.reference(form.model, optimizer, torch.float64, 2)
        ranks_worker.reference(form.model, optimizer, torch.float64, 1)
    with patch.object(owner, name, fault):
        found = ranks_worker.checks_of(form, world)
    if world.rank == 0:
        print(json.dumps([words, [promise for promise, measure in found if not measure.ok]]), flush=True)
world.close()
"""

NOTICED = {
    "means in place of sums": "every gradient, float64, a partial tail",
    "experts counted twice": "gradients of experts, ratio to one process, one micro-batch",
    "norms not summed over tp": "every gradient, float64, a partial tail",
    "norm of more than the whole": "gradient norm, one micro-batch",
    "every rank with the rows of the first": "the same rows in the step",
    "the tail of an accumulation lost": "every gradient, accumulated",
}


def test_faults_that_leave_the_loss_falling_are_noticed(tmp_path: Path) -> None:
    (tmp_path / "faults.py").write_text(FAULTS)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "4"}
    shared |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).resolve().parents[2] / "src")}
    workers = [
        subprocess.Popen(
            [sys.executable, "faults.py"],
            cwd=tmp_path,
            env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(4)
    ]
    try:
        lines = workers[0].communicate(timeout=300)[0].splitlines()
        assert [worker.wait(60) for worker in workers] == [0] * 4
    finally:
        for worker in workers:
            worker.kill()
    found = dict(json.loads(line) for line in lines)
    assert {words: promise in found[words] for words, promise in NOTICED.items()} == dict.fromkeys(NOTICED, True), found
