"""The hardware table: what was measured is marked and kept, the rest is today's plan, and one command writes both."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from sproutlm.errors import OutOfMemory
from sproutlm.plan.places import Place, place_of

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "hardware.py"
GB = 2**30


@pytest.fixture
def hardware(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script with two models and two cards, on a machine that is not there."""
    spec = importlib.util.spec_from_file_location("hardware", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "hardware", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "MODELS", {"3M": 3, "26M": "llama-26m", "8B": "qwen3-8b"})
    monkeypatch.setattr(module, "CARDS", (("4GB", "4 GB: some card"), ("h100", "80 GB: H100")))
    place = Place("CPU 8 GB", 8 * GB, "cpu")
    monkeypatch.setattr(module, "this_machine", lambda: ("CPU: a test's", place, "bf16"))
    return module


def run(hardware: ModuleType, folder: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[dict, str]:
    files = ["--json", str(folder / "h.json"), "--page", str(folder / "h.md")]
    monkeypatch.setattr(sys, "argv", ["hardware.py", *files, *arguments])
    hardware.main()
    return json.loads((folder / "h.json").read_text()), (folder / "h.md").read_text()


def rows_of(page: str, device: str) -> dict[str, list[str]]:
    section = page.split(f"## {device}\n")[1].split("\n## ")[0]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if "|" in line]
    return {row[0]: row[1:] for row in cells[2:]}


def test_measured_rows_are_medians_and_stay_and_others_are_planned(
    hardware: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = iter([2.0, 1.0, 4.0])
    asked: list[Any] = []

    def probe(recipe: Any, config: Any, setting: Any) -> dict[str, Any]:
        asked.append((recipe.train.batch_tokens, setting.compute, setting.device))
        return {"seconds": next(seconds), "peak_bytes": GB + len(asked)}

    monkeypatch.setattr(hardware, "probe", probe)
    report, page = run(hardware, tmp_path, monkeypatch, "--measure", "--only", "3M")
    assert asked == [(4096, "bf16", "cpu")] * 3
    row = report["machines"]["CPU: a test's"]["rows"]["3M"]
    assert row["tokens_per_second"] == 2048 and row["peak_bytes"] == GB + 3 and len(row["rates"]) == 3
    shown = rows_of(page, "CPU: a test's")
    assert shown["3M"][3:] == ["2,048", "1 GB", "5.7 days", "**measured**"]
    assert shown["26M"][-1] == "*plan*" and shown["8B"][2] == "does not fit"
    share = 2048 * row["flops_per_token"] / hardware.planned("26M", place_of("4GB"))["flops_per_token"]
    assert shown["26M"][3] == f"{share:,.0f}", "as many FLOPs a second as the measured one"
    again, written = run(hardware, tmp_path, monkeypatch)  # another machine's later run
    assert again == report and written == page


def test_cards_are_planned_with_settings_that_fit_them(
    hardware: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, page = run(hardware, tmp_path, monkeypatch)
    assert "**measured** |" not in page
    small, large = rows_of(page, "4 GB: some card"), rows_of(page, "80 GB: H100")
    assert small["26M"][3] == "n/a" and small["8B"][2] == "does not fit", "a size says nothing of speed"
    assert float(large["26M"][3].replace(",", "")) > 1e5
    assert small["26M"][2] != large["26M"][2], "fewer rows at once"
    for model in ("3M", "26M"):
        row = hardware.planned(model, place_of("4GB"))
        assert row["peak_bytes"] <= place_of("4GB").room
        assert row["rows"] * row["seq_len"] * row["accumulation"] >= row["batch_tokens"]


def test_what_cannot_be_measured_is_said_and_the_rest_goes_on(
    hardware: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def probe(recipe: Any, config: Any, setting: Any) -> dict[str, Any]:
        raise OutOfMemory("the probe was ended by the kernel")

    monkeypatch.setattr(hardware, "probe", probe)
    report, _ = run(hardware, tmp_path, monkeypatch, "--measure")
    said = capsys.readouterr().out
    assert report["machines"]["CPU: a test's"]["rows"] == {}
    assert "3M: not measured: the probe was ended" in said and "8B: above --largest 400 M" in said
    with pytest.raises(SystemExit, match="'9M' is no row"):
        run(hardware, tmp_path, monkeypatch, "--measure", "--only", "9M")
