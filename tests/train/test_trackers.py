"""Trackers: each gets every step once, also after a kill, and none of them ends a run."""

from __future__ import annotations

import json
import resource
import signal
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from sproutlm.config.schema import TrainConfig
from sproutlm.train import trackers as trackers_module
from sproutlm.train.metrics import MetricsLog, read_metrics
from sproutlm.train.trackers import FAILURES_IN_A_ROW, About, Trackers, make, numbers

ROWS = [{"step": step, "tokens": 10 * step, "loss": 3.0 - step / 10} for step in range(1, 8)]


@pytest.fixture(autouse=True)
def _no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No account, no settings of this machine, no network."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("WANDB_API_KEY", "WANDB_MODE", "SWANLAB_API_KEY", "SWANLAB_MODE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")


def about(run: Path) -> About:
    run.mkdir(parents=True, exist_ok=True)
    return About(run, "try", "sproutlm", {"seed": 1})


# --- metrics.jsonl on a full disk -----------------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_full_disk_for_logs_is_said_once_and_rows_wait_for_room(tmp_path: Path) -> None:
    said: list[str] = []
    log = MetricsLog(tmp_path / "metrics.jsonl", said.append)
    log.path.symlink_to("/dev/full")
    for row in ROWS[:3]:
        log.write(row)
    assert len(said) == 1 and "No space left" in said[0] and "training goes on" in said[0]
    log.path.unlink()  # room again
    log.write(ROWS[3])
    assert read_metrics(log.path) == ROWS[:4]
    log.close()
    assert len(said) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_training_goes_to_its_end_on_a_full_disk_and_the_lost_rows_are_counted(make_trainer, tmp_path: Path) -> None:
    trainer = make_trainer(steps=4)
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    said: list[str] = []
    trainer.metrics.say = said.append
    trainer.metrics.rewind = lambda step: None  # reading /dev/full has no end
    assert trainer.fit().step == 4
    trainer.close()
    assert [s for s in said if "4 rows of metrics could not be written" in s] and len(said) == 2


def test_no_half_line_stays_behind_when_the_disk_fills_in_the_middle_of_it(tmp_path: Path) -> None:
    said: list[str] = []
    log = MetricsLog(tmp_path / "metrics.jsonl", said.append)
    log.write(ROWS[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (log.path.stat().st_size + 10, hard))
    try:
        log.write(ROWS[1])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(log.path.read_bytes().splitlines()) == 1 and len(said) == 1
    log.write(ROWS[2])
    assert [json.loads(line) for line in log.path.read_text().splitlines()] == ROWS[:3]


# --- a tracker that fails -------------------------------------------------------------------------------------------------


class Failing:
    """Takes the first ``good`` rows, then none."""

    def __init__(self, good: int = 0) -> None:
        self.good, self.taken, self.asked, self.closed = good, 0, 0, 0

    def rewind(self, step: int) -> None: ...

    def write(self, row: dict[str, Any]) -> None:
        self.asked += 1
        if self.taken >= self.good:
            raise ConnectionError("the network is gone\nsecond line")
        self.taken += 1

    def close(self) -> None:
        self.closed += 1


def test_a_tracker_that_fails_is_left_and_the_run_goes_on(make_trainer, tmp_path: Path) -> None:
    said: list[str] = []
    failing, well = Failing(good=2), Failing(good=100)
    trainer = make_trainer(steps=8)
    trainer.metrics = Trackers(trainer.metrics, {"bad": failing, "good": well}, said.append)
    assert trainer.fit().step == 8
    trainer.close()
    assert failing.asked == 2 + FAILURES_IN_A_ROW and failing.closed == 1
    assert well.taken == 8 and well.closed == 1
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 8
    assert sum("the network is gone" in s for s in said) == 1
    assert f"bad: {FAILURES_IN_A_ROW} rows were not taken; metrics.jsonl has them" in said


def test_a_tracker_that_stumbles_now_and_then_is_kept(tmp_path: Path) -> None:
    class Stumbling(Failing):
        def write(self, row: dict[str, Any]) -> None:
            self.asked += 1
            if self.asked % 3:
                raise ConnectionError("for a moment")
            self.taken += 1

    said: list[str] = []
    stumbling = Stumbling()
    trackers = Trackers(MetricsLog(tmp_path / "metrics.jsonl"), {"now and then": stumbling}, said.append)
    for step in range(12):
        trackers.write({"step": step})
    trackers.close()
    assert (stumbling.asked, stumbling.taken) == (12, 4)
    assert len(said) == 2 and "8 rows were not taken" in said[1]


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "swanlab"])
def test_a_library_that_is_not_there_is_said_with_the_line_that_adds_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (name, "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, module, None)
    said: list[str] = []
    trackers = make([name], about(tmp_path), said.append)
    trackers.rewind(-1)
    for row in ROWS:
        trackers.write(row)
    trackers.close()
    assert len(said) == 1 and "pip install" in said[0] and said[0].startswith(f"warning: {name}: its library")
    assert read_metrics(tmp_path / "metrics.jsonl") == ROWS


# --- each one, as it is ---------------------------------------------------------------------------------------------------


def write_twice(name: str, run: Path, say: Any) -> None:
    """Steps 1 to 5, a kill after the checkpoint of step 3, and the rest from there."""
    for after, last in ((-1, 5), (3, 7)):
        trackers = make([name], about(run), say)
        trackers.rewind(after)
        for row in ROWS[max(after, 0) : last]:
            trackers.write(row)
            trackers.write({"step": row["step"], "tokens": 0, "val_loss": row["loss"] + 1})
        trackers.write({"step": last, "tokens": 0, "sample": "</script># 春\nsecond"})
        trackers.write({"step": last, "tokens": 0, "sample": "another"})
        trackers.close()


def test_tensorboard_shows_each_step_once_after_a_kill(tmp_path: Path) -> None:
    reader = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="needs sproutlm[track]"
    )
    write_twice("tensorboard", tmp_path, print)
    found = reader.EventAccumulator(str(tmp_path / "tensorboard"), size_guidance=reader.STORE_EVERYTHING_SIZE_GUIDANCE)
    found.Reload()
    for tag in ("loss", "val_loss"):
        assert [event.step for event in found.Scalars(tag)] == [1, 2, 3, 4, 5, 6, 7]
    assert found.Scalars("loss")[-1].value == pytest.approx(ROWS[-1]["loss"])
    (text,) = [e.tensor_proto.string_val[0].decode() for e in found.Tensors("sample/0/text_summary") if e.step == 7]
    assert all(line.startswith("    ") for line in text.splitlines()), "shown as it is, not as Markdown"
    assert found.Tensors("sample/1/text_summary")


def test_tensorboard_on_a_full_disk_is_said_once_and_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its writer has a thread of its own, whose death is no traceback on the screen."""
    records = pytest.importorskip("tensorboard.summary.writer.record_writer", reason="needs sproutlm[track]")
    shown: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", before := lambda error: shown.append(error))
    said: list[str] = []
    trackers = make(["tensorboard"], about(tmp_path), said.append)
    trackers.rewind(-1)

    def full(self: Any, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(records.RecordWriter, "write", full)
    for step in range(5):
        trackers.write({"step": step, "loss": 1.0})
    trackers.close()
    assert sum("No space left" in s for s in said) == 1 and "tensorboard: 3 rows were not taken" in said[-1]
    assert not shown and threading.excepthook is before
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 5


def ids(run: Path) -> dict[str, Any]:
    return json.loads((run / "trackers.json").read_text())


@pytest.mark.parametrize(
    ("name", "files"), [("wandb", "wandb/offline-run-*/run-*.wandb"), ("swanlab", "swanlab/run-*/run-*.swanlab")]
)
def test_without_an_account_a_run_is_recorded_offline_and_continued_under_its_id(
    name: str, files: str, tmp_path: Path
) -> None:
    pytest.importorskip(name, reason=f"needs {'sproutlm[track]' if name == 'wandb' else 'pip install swanlab'}")
    said: list[str] = []
    write_twice(name, tmp_path, said.append)
    ours = [s for s in said if s.startswith(name)]
    assert len(ours) == 2 and all("no account or no network" in s and "sync" in s for s in ours), "once in each start"
    assert ids(tmp_path)[name]["step"] == 7
    recorded = sorted(tmp_path.glob(files))
    assert len(recorded) == 2 and all(ids(tmp_path)[name]["id"] in path.name for path in recorded)
    end = time.perf_counter() + 30  # wandb writes from a process of its own, the second time a moment after finish()
    while not all(word in path.read_bytes() for path in recorded for word in (b"val_loss", b"sample/1")):
        assert time.perf_counter() < end, [path.stat().st_size for path in recorded]
        time.sleep(0.1)


class Library:
    """What wandb and swanlab look like from here, with an account: keeps what it was given."""

    def __init__(self, online: bool = True) -> None:
        self.online, self.starts, self.rows = online, list[dict[str, Any]](), list[tuple[int, dict]]()

    def Settings(self, **given: Any) -> Any:  # noqa: N802
        return SimpleNamespace(**given)

    def init(self, **given: Any) -> Any:
        self.starts.append(given)
        if given["mode"] == "online" and not self.online:
            raise TimeoutError("no answer")
        return self

    def log(self, figures: dict[str, Any], step: int) -> None:
        self.rows.append((step, figures))

    def finish(self) -> None: ...


def test_a_run_that_continues_gives_each_step_once_and_a_new_one_gets_a_new_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = Library()
    monkeypatch.setitem(sys.modules, "wandb", library)  # type: ignore[arg-type]
    write_twice("wandb", tmp_path, print)
    assert [step for step, row in library.rows if "loss" in row] == [1, 2, 3, 4, 5, 6, 7]
    assert [step for step, row in library.rows if "val_loss" in row] == [1, 2, 3, 4, 5, 6, 7]
    assert {key for _, row in library.rows for key in row if "sample" in key} == {"sample/0", "sample/1"}
    first, second = library.starts
    assert first["id"] == second["id"] and (first["resume"], second["resume"]) == (None, "allow")
    make(["wandb"], about(tmp_path), print).rewind(-1)
    assert library.starts[-1]["id"] != first["id"]


def test_a_recording_offline_that_was_killed_is_set_aside_and_its_steps_are_given_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a killed process had written of its recording is not known: wandb 0.31 keeps up to all of it in memory."""

    class Recording(Library):
        def init(self, **given: Any) -> Any:
            started = super().init(**given)
            (tmp_path / "wandb" / f"offline-run-{len(self.starts)}-{given['id']}").mkdir(parents=True)
            return started

    library = Recording(online=False)
    monkeypatch.setitem(sys.modules, "wandb", library)  # type: ignore[arg-type]
    for after, last, killed in ((-1, 2, False), (2, 5, True), (3, 7, False)):
        library.rows.clear()
        trackers = make(["wandb"], about(tmp_path), lambda text: None)
        trackers.rewind(after)
        for row in ROWS[max(after, 0) : last]:
            trackers.write(row)
        if not killed:
            trackers.close()
    assert [step for step, _ in library.rows] == [3, 4, 5, 6, 7], "steps 1 and 2 were recorded to the end before"
    names = sorted(path.name.rpartition("-")[0] for path in (tmp_path / "wandb").iterdir())
    assert names == ["cut-off-offline-run-4", "offline-run-2", "offline-run-6"]


def test_an_account_without_a_network_is_tried_once_and_a_mode_that_was_set_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library, said = Library(online=False), list[str]()
    monkeypatch.setitem(sys.modules, "wandb", library)  # type: ignore[arg-type]
    make(["wandb"], about(tmp_path), said.append).rewind(-1)
    assert [start["mode"] for start in library.starts] == ["online", "offline"]
    assert len(said) == 1 and "no answer" in said[0]
    monkeypatch.setenv("WANDB_MODE", "disabled")
    make(["wandb"], about(tmp_path), said.append).rewind(-1)
    assert library.starts[-1]["mode"] is None and len(library.starts) == 3


def test_a_network_that_went_away_does_not_hold_up_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library, said, sent = Library(), list[str](), threading.Event()
    monkeypatch.setattr(library, "finish", lambda: sent.wait(20))
    monkeypatch.setitem(sys.modules, "wandb", library)  # type: ignore[arg-type]
    monkeypatch.setattr(trackers_module, "END_SECONDS", 0.1)
    trackers = make(["wandb"], about(tmp_path), said.append)
    trackers.rewind(-1)
    started = time.perf_counter()
    trackers.close()
    sent.set()
    assert time.perf_counter() - started < 5
    assert len(said) == 1 and "not everything was sent" in said[0] and "wandb sync" in said[0]


def test_ctrl_c_stays_the_trainers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library, before = Library(), signal.getsignal(signal.SIGINT)

    def greedy(**given: Any) -> Any:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        return library

    monkeypatch.setattr(library, "init", greedy)
    monkeypatch.setitem(sys.modules, "swanlab", library)  # type: ignore[arg-type]
    try:
        make(["swanlab"], about(tmp_path), print).rewind(-1)
        assert signal.getsignal(signal.SIGINT) is before
    finally:
        signal.signal(signal.SIGINT, before)


def test_figures_that_cannot_be_drawn_are_left_out() -> None:
    row = {"step": 1, "loss": float("nan"), "mfu": None, "lr/mlp": 0.5, "sample": "x", "tokens": 3}
    assert numbers(row) == {"lr/mlp": 0.5, "tokens": 3.0}


@pytest.mark.parametrize(
    "wrong", [{"trackers": ["tensorboard", "tensorboard"]}, {"trackers": ["visdom"]}, {"tracker_project": "a/b"}]
)
def test_a_recipe_that_names_a_tracker_wrongly_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="tracker"):
        TrainConfig(steps=1, **wrong)
