"""kill -9 at random moments of saves, of real processes: what was durable before is there, whole, and nothing half counts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

KILLS = 20


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked here")
@pytest.mark.parametrize("how", ["sync", "async"])
def test_a_process_killed_while_it_saves_loses_no_durable_checkpoint(tmp_path: Path, how: str) -> None:
    """Pitfall 27. Each of the 20 processes goes on from what the one before it left."""
    script = Path(__file__).with_name("saving_process.py")
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "checkpoints"), how, str(KILLS), "7"],
        capture_output=True, text=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    kills = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(kills) == KILLS
    durable = 0
    for number, kill in enumerate(kills):
        durable = max([durable, *kill["durable"]])
        # At most the save that was cut off is there beyond what was reported: the report itself may have been cut off.
        assert durable <= kill["step"] <= durable + 2, (number, kill)
        assert kill["whole"] and kill["said"] == [] and kill["named"] is None, (number, kill)
        # Two are kept; a kill between the rename and the pruning leaves the third. No half is among them.
        assert set(kill["steps"]) <= {kill["step"] - i for i in range(3)}, (number, kill)
        durable = kill["step"]
    assert durable > KILLS, "the processes saved something between the kills"
    assert sum(bool(kill["hidden"]) for kill in kills) > KILLS / 4, "kills fell into the middle of saves"
