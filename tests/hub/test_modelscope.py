"""Downloads from ModelScope through its own library, against a server that speaks its interface."""

from __future__ import annotations

import json
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
    assert ran.err.count("\n") == 1, ran.err  # no bars of the library
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
