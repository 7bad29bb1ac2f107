"""Downloads from ModelScope through its own library, against a server that speaks its interface."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hub_server import FakeHub, sha256

from sproutlm.hub.checksums import RECEIPT

pytest.importorskip("modelscope_hub", reason="ModelScope's library is in the extra 'data'")

SPROUT = Callable[..., Any]
ROWS = b"".join(b'{"text": "row %d"}\n' % number for number in range(9_000))


@pytest.fixture
def tiny(fake_hub: FakeHub) -> FakeHub:
    fake_hub.repositories["datasets/acme/tiny"] = {"README.md": b"# tiny\n", "rows.jsonl": ROWS}
    fake_hub.repositories["acme/model"] = {"config.json": b"{}", "model.safetensors": b"w" * 500, "m.bin": b"p"}
    return fake_hub


def test_data_and_models_come_whole_and_a_second_run_fetches_nothing(tiny: FakeHub, sprout: SPROUT) -> None:
    ran = sprout("data", "download", "modelscope://datasets/acme/tiny")
    assert ran.code == 0, ran.err
    assert Path("data/tiny/rows.jsonl").read_bytes() == ROWS
    assert json.loads(Path("data/tiny", RECEIPT).read_text())["files"]["rows.jsonl"]["sha256"] == sha256(ROWS)
    assert {path.name for path in Path("data/tiny").iterdir()} == {RECEIPT, "README.md", "rows.jsonl"}
    again = sprout("data", "download", "modelscope://datasets/acme/tiny")
    assert again.code == 0 and "nothing to fetch" in again.out
    ran = sprout("download", "model", "modelscope://acme/model")
    assert ran.code == 0 and "1 pickle" in ran.err and not Path("models/model/m.bin").exists()


def test_a_damaged_file_is_fetched_again(tiny: FakeHub, sprout: SPROUT) -> None:
    sprout("data", "download", "modelscope://datasets/acme/tiny")
    Path("data/tiny/rows.jsonl").write_bytes(ROWS[:-3])
    ran = sprout("data", "download", "modelscope://datasets/acme/tiny")
    assert ran.code == 0 and "rows.jsonl: has" in ran.err and Path("data/tiny/rows.jsonl").read_bytes() == ROWS


def test_what_is_not_there_is_one_sentence(tiny: FakeHub, sprout: SPROUT, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = sprout("data", "download", "modelscope://datasets/acme/none")
    assert ran.code == 1 and "not found at http" in ran.err and len(ran.err.strip().splitlines()) == 1, ran.err
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", "http://127.0.0.1:9")
    began = time.monotonic()
    ran = sprout("data", "download", "modelscope://datasets/acme/tiny")
    assert ran.code == 1 and "cannot reach http://127.0.0.1:9" in ran.err and time.monotonic() - began < 7


def test_the_library_draws_no_bars_of_its_own(tiny: FakeHub, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sproutlm", "data", "download", "modelscope://datasets/acme/tiny"]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=dict(os.environ), check=True)
    (line,) = ran.stderr.splitlines()
    assert line.startswith("modelscope://datasets/acme/tiny at master: 2 files") and "\r" not in ran.stderr


def test_half_a_file_of_a_killed_run_is_completed(tiny: FakeHub, tmp_path: Path) -> None:
    """Killed while the rest does not come; the next run asks for the rest only."""
    tiny.repositories["datasets/acme/big"] = {"rows.jsonl": ROWS * 20}
    tiny.stall["rows.jsonl"] = 2_000_000
    command = [sys.executable, "-m", "sproutlm", "data", "download", "modelscope://datasets/acme/big"]
    running = subprocess.Popen(command, cwd=tmp_path, env=dict(os.environ), stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 20
    parts = Path("data/big/.download")
    while not sum(path.stat().st_size for path in parts.rglob("*") if path.is_file()) and time.monotonic() < deadline:
        time.sleep(0.02)
    running.kill()
    running.wait()
    tiny.stall.clear()
    tiny.requests.clear()
    ran = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=dict(os.environ), check=True)
    assert "1 fetched" in ran.stdout and Path("data/big/rows.jsonl").read_bytes() == ROWS * 20
    wanted = [int(start[6:].split("-")[0]) for start in tiny.gets("/repo") if start is not None]
    assert any(start > 0 for start in wanted), tiny.requests
