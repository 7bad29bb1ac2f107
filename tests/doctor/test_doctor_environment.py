"""A machine with a fault is named with it; figures are handed in, so that no such machine is needed."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sproutlm.doctor import environment
from sproutlm.doctor.environment import GB
from sproutlm.doctor.finding import Examination
from sproutlm.plan.limits import Limit
from sproutlm.train import precision

Check = Callable[[Examination], Any]
PLACE = Path("runs")
FAULTS: dict[str, tuple[Check, str, str, str]] = {
    # name: (check, finding, status, what cure or sentence names)
    "old Python": (lambda e: environment.versions(e, (3, 10), "2.12.0"), "Python", "fail", "3.11"),
    "old torch": (lambda e: environment.versions(e, (3, 12), "2.4.1+cu121"), "torch", "fail", "torch>=2.11,<2.14"),
    "new torch": (lambda e: environment.versions(e, (3, 12), "2.14.0"), "torch", "fail", "torch>=2.11,<2.14"),
    "missing library": (lambda e: environment.libraries(e, ["yaml"]), "libraries", "fail", "pip install"),
    "oversubscribed": (
        lambda e: environment.threads(e, 16, 2, {"OMP_NUM_THREADS": "16"}), "threads", "warn", "OMP_NUM_THREADS=2",
    ),
    "idle": (lambda e: environment.threads(e, 2, 16, {}), "threads", "warn", "OMP_NUM_THREADS=16"),
    "no memory": (lambda e: environment.memory(e, int(0.3 * GB), None), "memory", "fail", "0.3 GB"),
    "a container's limit": (lambda e: environment.memory(e, int(64 * GB), Limit(int(1 * GB), "the control group x")), "memory", "warn", "control group x"),
    "full disk": (lambda e: environment.disk(e, PLACE, 10**7), "disk", "fail", "make room"),
    "nearly full disk": (lambda e: environment.disk(e, PLACE, 10**9), "disk", "warn", "make room"),
    "GPU, torch for CPU": (lambda e: environment.gpu_without_torch(e, "nvidia-smi", None, "2.12+cpu"), "GPU", "warn", "CUDA"),
    "GPU that torch does not see": (
        lambda e: environment.gpu_without_torch(e, "nvidia-smi", "12.8", "2.12"), "GPU", "warn", "CUDA_VISIBLE_DEVICES",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_of_a_machine_is_named(name: str, finding: Any) -> None:
    check, of, status, words = FAULTS[name]
    found = Examination(None, "environment")
    check(found)
    outcome = finding(found, of)
    assert outcome.status == status
    assert words in outcome.what + outcome.cure


SOUND: dict[str, Check] = {
    "versions": lambda e: environment.versions(e, (3, 13), "2.13.1+cu130"),
    "one thread each": lambda e: environment.threads(e, 8, 8, {}),
    "one thread a core": lambda e: environment.threads(e, 8, 16, {}),
    "few on purpose": lambda e: environment.threads(e, 1, 16, {"OMP_NUM_THREADS": "1"}),
    "memory": lambda e: environment.memory(e, int(8 * GB), None),
    "disk": lambda e: environment.disk(e, PLACE, int(9 * GB)),
    "no GPU": lambda e: environment.gpu_without_torch(e, None, None, "2.12"),
    "no extras": lambda e: environment.extras(e, set(environment.EXTRAS)),
}


@pytest.mark.parametrize("name", SOUND)
def test_a_sound_machine_raises_no_alarm(name: str, assert_healthy: Any) -> None:
    found = Examination(None, "environment")
    SOUND[name](found)
    assert_healthy(found)


def test_missing_extras_come_with_the_line_that_installs_them(finding: Any) -> None:
    found = Examination(None, "environment")
    environment.extras(found, {"pyarrow"})
    assert finding(found, "extra: pyarrow").cure == 'pip install "sproutlm[data]"'
    assert not finding(found, "extra: zstandard").cure


def test_a_folder_that_cannot_be_written_is_named(
    open_folder: Path, ordinary_user: Any, finding: Any, assert_healthy: Any
) -> None:
    found = Examination(None, "environment")
    environment.writable(found, "run folder", open_folder, "choose another")
    assert_healthy(found)
    closed = open_folder / "closed"
    closed.mkdir(mode=0o555)
    found = Examination(None, "environment")
    with ordinary_user():
        environment.writable(found, "run folder", closed, "choose another")
    assert finding(found, "run folder").status == "fail"


def test_the_nearest_folder_that_is_there_is_tried(tmp_path: Path) -> None:
    assert environment.existing_parent(tmp_path / "runs" / "deep") == tmp_path


@pytest.mark.parametrize(
    ("files", "cores", "memory"),
    [
        ({"cpu.max": "200000 100000", "memory.max": "1000", "memory.current": "400"}, 2, 600),
        ({"cpu.max": "50000 100000", "memory.max": "max", "memory.current": "400"}, 1, None),
        ({"cpu.max": "max 100000"}, None, None),
        (
            {"cpu/cpu.cfs_quota_us": "400000", "cpu/cpu.cfs_period_us": "100000",
             "memory/memory.limit_in_bytes": "9000", "memory/memory.usage_in_bytes": "1000"}, 4, 8000,
        ),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None, None),
        ({}, None, None),
    ],
    ids=["v2", "v2 half a core", "v2 no limit", "v1", "v1 no limit", "none"],
)  # fmt: skip
def test_a_containers_limits_are_read(
    files: dict[str, str], cores: int | None, memory: int | None, tmp_path: Path
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    assert environment.cgroup_cores(tmp_path) == cores
    left = environment.memory_limit(100, 10**6, tmp_path, tmp_path / "none")
    assert (left.room if left is not None else None) == memory


def test_the_limit_is_the_one_that_a_run_is_held_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPROUT_MEMORY_LIMIT", "5000")
    left = environment.memory_limit(100, 10**6, tmp_path, tmp_path / "none")
    assert left is not None and left.room == 4900 and "SPROUT_MEMORY_LIMIT" in left.what


def test_the_versions_asked_for_are_those_of_the_package() -> None:
    project = tomllib.loads((Path(__file__).resolve().parents[2] / "pyproject.toml").read_text())["project"]
    low, high = (".".join(map(str, version)) for version in environment.TORCH)
    assert f"torch>={low},<{high}" in project["dependencies"]
    assert project["requires-python"] == ">=" + ".".join(map(str, environment.LEAST_PYTHON))


def test_this_environment_is_examined_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finding: Any) -> None:
    chosen = (torch.float32, "a bf16 product takes 2.0 ms, a float32 one 1.0 ms (0.5x)")
    monkeypatch.setattr(precision, "choose_compute", lambda device: chosen)
    found = environment.examine_environment(tmp_path / "runs")
    assert "float32 on the CPU: a bf16 product takes" in finding(found, "compute type").what
    for check in ("Python", "torch", "libraries", "threads", "memory", "disk", "run folder", "temporary folder", "GPU"):
        finding(found, check)
    assert not list(tmp_path.iterdir())
