"""Where the figures of a run go: ``metrics.jsonl`` always; TensorBoard, Weights & Biases and SwanLab where a recipe asks.

A tracker never ends a run. What it lacks (its library, an account, a network, room on the disk) is said once, with the
line that mends it; rows it could not take are counted. A run that continues goes on in the same place of each tracker:
``trackers.json`` in the run folder holds its name there and the last step it was given.
"""

from __future__ import annotations

import json
import math
import os
import signal
import threading
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from .metrics import MetricsLog, read_metrics

FAILURES_IN_A_ROW = 3  # after which a tracker is left alone
START_SECONDS = 30  # that an account on the network may take to answer
END_SECONDS = 60  # that sending the rest may take at the end

INSTALL = 'pip install "sproutlm[track]"'


class Tracker(Protocol):
    """What the trainer writes its rows to. A row holds ``step``, ``tokens`` and figures, or ``sample`` (text)."""

    def rewind(self, step: int) -> None:
        """Called once, before the first row: forget what is past ``step``; -1 = a run that begins."""

    def write(self, row: dict[str, Any]) -> None: ...

    def close(self) -> None: ...


class Unwatched:
    """A tracker that takes nothing down: of ranks other than 0, and of proofs."""

    def rewind(self, step: int) -> None: ...

    def write(self, row: dict[str, Any]) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class About:
    """The run, as a tracker names it. ``settings`` are its recipe's, as plain values."""

    run: Path
    name: str
    project: str
    settings: dict[str, Any] = field(default_factory=dict)


def numbers(row: dict[str, Any]) -> dict[str, float]:
    """The figures of a row that can be drawn."""
    return {
        key: float(value)
        for key, value in row.items()
        if key != "step" and isinstance(value, int | float) and math.isfinite(value)
    }


class Trackers:
    """``metrics.jsonl`` and every other tracker as one; a fault of one never reaches the run or the others."""

    CLOCK_FIELDS = MetricsLog.CLOCK_FIELDS

    def __init__(self, log: MetricsLog, others: dict[str, Tracker], say: Callable[[str], None] = print) -> None:
        self.log, self.others, self.say = log, others, say
        self.path = log.path
        self.failed: dict[str, int] = dict.fromkeys(others, 0)  # rows that a tracker did not take
        self._in_a_row: dict[str, int] = dict.fromkeys(others, 0)

    def rewind(self, step: int) -> None:
        self.log.rewind(step)
        for name, tracker in list(self.others.items()):
            try:
                tracker.rewind(step)
            except ImportError as error:
                self._leave(name, f"{error}; the run goes on without it")
            except Exception as error:
                self._leave(name, f"it does not start ({_short(error)}); the run goes on without it")

    def write(self, row: dict[str, Any]) -> None:
        self.log.write(row)
        for name, tracker in list(self.others.items()):
            try:
                tracker.write(row)
                self._in_a_row[name] = 0
            except Exception as error:
                self.failed[name] += 1
                self._in_a_row[name] += 1
                if self.failed[name] == 1:
                    self.say(f"warning: {name}: a row was not taken ({_short(error)}); the run goes on")
                if self._in_a_row[name] == FAILURES_IN_A_ROW:
                    self._leave(name, f"{FAILURES_IN_A_ROW} rows in a row were not taken; it gets no more of this run")

    def close(self) -> None:
        self.log.close()
        for name, tracker in self.others.items():
            try:
                tracker.close()
            except Exception as error:
                self.say(f"warning: {name}: it did not end well ({_short(error)})")
        for name, count in self.failed.items():
            if count:
                self.say(f"{name}: {count:,} rows were not taken; metrics.jsonl has them")

    def _leave(self, name: str, why: str) -> None:
        self.say(f"warning: {name}: {why}")
        tracker = self.others.pop(name)
        try:
            tracker.close()
        except Exception:  # it has failed already, and that was said
            return


def _short(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}{': ' + lines[0][:200] if lines else ''}"


class Place:
    """Where a run stands with one tracker, kept in ``trackers.json``: its ``id`` there, the last ``step`` given to it, the
    step that it had at its last proper end (``ended``), and the ``folder`` of a recording offline that has not ended."""

    def __init__(self, run: Path, tracker: str) -> None:
        self.path, self.tracker = run / "trackers.json", tracker
        self.id, self.step, self.ended, self.folder = "", -1, -1, ""

    def _all(self) -> dict[str, Any]:
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def open(self, fresh: bool) -> bool:
        """Take up the id that is there, or, for a run that begins, a new one. Whether it was there."""
        known = self._all().get(self.tracker)
        if fresh or not isinstance(known, dict) or not {"id", "step", "ended", "folder"} <= known.keys():
            self.id, self.step, self.ended, self.folder = uuid.uuid4().hex[:12], -1, -1, ""
            self.save()
            return False
        self.id, self.folder = str(known["id"]), str(known["folder"])
        self.step, self.ended = int(known["step"]), int(known["ended"])
        return True

    def save(self) -> None:
        temporary = self.path.with_name(f".{self.path.name}.{self.tracker}.tmp")
        here = {"id": self.id, "step": self.step, "ended": self.ended, "folder": self.folder}
        temporary.write_text(json.dumps({**self._all(), self.tracker: here}, indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, self.path)


class TensorBoard:
    """Event files in ``<run>/tensorboard``, by torch's own writer: ``tensorboard --logdir RUN``. No TensorFlow."""

    def __init__(self, about: About) -> None:
        self.folder = about.run / "tensorboard"
        self._writer: Any = None
        self._samples: tuple[int, int] = (-1, 0)  # step, how many of it
        self._hook: Callable[[Any], Any] | None = None

    def rewind(self, step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError(f"its library is not installed ({INSTALL})") from error

        self._hook, threading.excepthook = threading.excepthook, self._of_a_thread
        # A reader drops the events of earlier files from this step on: nothing is drawn twice.
        self._writer = SummaryWriter(str(self.folder), purge_step=step + 1)

    def write(self, row: dict[str, Any]) -> None:
        step = row["step"]
        if "sample" in row:
            count = self._samples[1] + 1 if self._samples[0] == step else 0
            self._samples = (step, count)
            # Four spaces in front: shown as it is, and not as Markdown or HTML.
            text = "\n".join(f"    {line}" for line in row["sample"].splitlines())
            self._writer.add_text(f"sample/{count}", text, step)
        else:
            for key, value in numbers(row).items():
                self._writer.add_scalar(key, value, step)
        self._writer.flush()  # a run that is killed keeps what it had shown

    def close(self) -> None:
        try:
            if self._writer is not None:
                self._writer.close()
        finally:
            if self._hook is not None:
                threading.excepthook, self._hook = self._hook, None

    def _of_a_thread(self, error: Any) -> None:
        """What fails in the writer's own thread (a full disk) is raised again at the next row: it is said there, once."""
        if self._hook is not None and not type(error.thread).__module__.startswith("tensorboard"):
            self._hook(error)


class Online:
    """What Weights & Biases and SwanLab have in common: an account or none, and one run that is continued by its id."""

    name, variable, sync = "", "", ""

    def __init__(self, about: About, say: Callable[[str], None]) -> None:
        self.about, self.say = about, say
        self.place = Place(about.run, self.name)
        self._run: Any = None

    def rewind(self, step: int) -> None:
        library = self._import()
        continued = self.place.open(fresh=step < 0)
        cut_off = continued and self.place.folder != ""
        if cut_off:
            self._set_aside()
        folders = self._folders()
        mode = os.environ.get(self.variable)
        if mode:  # the person has said how
            self._run = self._start(library, None, continued)
        else:
            mode = "online"
            try:
                self._run = self._start(library, mode, continued)
            except Exception as error:
                self.say(
                    f"{self.name}: no account or no network ({_short(error)}); the run goes on and is recorded in "
                    f"{self.about.run / self.name}; to send it later: {self.sync}"
                )
                mode = "offline"
                folders = self._folders()
                self._run = self._start(library, mode, continued)
        new = self._folders() - folders
        self.place.folder = max(new) if new and mode != "online" else ""
        self.place.save()
        if cut_off:
            for row in read_metrics(self.about.run / "metrics.jsonl"):
                if row["step"] <= step:
                    self.write(row)

    def _folders(self) -> set[str]:
        """Names of the folders that the tracker made for this run's id."""
        return {path.name for path in (self.about.run / self.name).glob(f"*{self.place.id}*") if path.is_dir()}

    def _set_aside(self) -> None:
        """A recording offline that was killed holds an unknown part of its steps: it is renamed, so that nothing is sent
        twice, and its steps are given again from metrics.jsonl."""
        folder = self.about.run / self.name / self.place.folder
        with suppress(OSError):
            folder.rename(folder.with_name(f"cut-off-{folder.name}"))
        self.place.step = self.place.ended

    def write(self, row: dict[str, Any]) -> None:
        step = row["step"]
        if step < self.place.step or (step == self.place.step and not self._open_step(step)):
            return  # written before the run was stopped; a run that continues makes the same rows again
        self._step = step
        figures: dict[str, Any] = numbers(row)
        if "sample" in row:
            self._sample_number = self._sample_number + 1 if self._sample_step == step else 0
            self._sample_step = step
            figures = {f"sample/{self._sample_number}": self._text(row["sample"])}
        self._log(figures, step)
        self.place.step = step
        self.place.save()

    _step, _sample_step, _sample_number = -1, -1, 0

    def _open_step(self, step: int) -> bool:
        """Whether this process has begun the step: a step has several rows (figures, validation, samples)."""
        return self._step == step

    def _import(self) -> Any:
        raise NotImplementedError

    def _start(self, library: Any, mode: str | None, continued: bool) -> Any:
        raise NotImplementedError

    def _log(self, figures: dict[str, Any], step: int) -> None:
        self._run.log(figures, step=step)

    def _text(self, text: str) -> Any:
        return text

    def close(self) -> None:
        """Send what is left, for at most ``END_SECONDS``: a network that went away must not hold up what comes next."""
        if self._run is None:
            return
        errors: list[Exception] = []

        def end() -> None:
            try:
                self._finish()
            except Exception as error:
                errors.append(error)

        thread = threading.Thread(target=end, name=f"{self.name}-end", daemon=True)
        thread.start()
        thread.join(END_SECONDS)
        if thread.is_alive():
            self.say(
                f"warning: {self.name}: not everything was sent within {END_SECONDS} s; {self.about.run / self.name} has it, "
                f"to send it later: {self.sync}"
            )
        if errors:
            raise errors[0]
        self.place.ended, self.place.folder = self.place.step, ""
        self.place.save()

    def _finish(self) -> None:
        self._run.finish()


class WeightsAndBiases(Online):
    name, variable, sync = "wandb", "WANDB_MODE", "wandb login, then wandb sync RUN/wandb/offline-run-*"

    def _import(self) -> Any:
        try:
            import wandb
        except ImportError as error:
            raise ImportError(f"its library is not installed ({INSTALL})") from error
        return wandb

    def _start(self, library: Any, mode: str | None, continued: bool) -> Any:
        # Silent: it neither asks for an account nor prints; the console and the code stay here.
        wanted = dict(silent=True, console="off", disable_git=True, save_code=False, init_timeout=START_SECONDS)
        if "finish_timeout" in getattr(library.Settings, "model_fields", ()):  # also at the interpreter's own end
            wanted["finish_timeout"] = END_SECONDS
        settings = library.Settings(**wanted)
        about = self.about
        return library.init(
            project=about.project, name=about.name, id=self.place.id, resume="allow" if continued else None,
            mode=mode, dir=str(about.run), config=about.settings, settings=settings,
        )  # fmt: skip


class SwanLab(Online):
    name, variable, sync = "swanlab", "SWANLAB_MODE", "swanlab login, then swanlab sync RUN/swanlab/run-*"

    def _import(self) -> Any:
        try:
            import swanlab
        except ImportError as error:
            raise ImportError("its library is not installed (pip install swanlab)") from error
        self._library = swanlab
        return swanlab

    def _start(self, library: Any, mode: str | None, continued: bool) -> Any:
        about = self.about
        (about.run / self.name).mkdir(parents=True, exist_ok=True)
        before = signal.getsignal(signal.SIGINT)
        try:
            return library.init(
                project=about.project, name=about.name, id=self.place.id, resume="allow", mode=mode,
                log_dir=str(about.run / self.name), config=about.settings, settings=library.Settings(interactive=False),
            )  # fmt: skip
        finally:  # it takes Ctrl-C for itself; here that is the trainer's, which saves first
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGINT, before)

    def _finish(self) -> None:
        with suppress(ValueError):  # its last deed is to give Ctrl-C back, which only the main thread may
            self._run.finish()

    def _text(self, text: str) -> Any:
        return self._library.Text(text)


def make(names: Sequence[str], about: About, say: Callable[[str], None] = print) -> Trackers:
    """The trackers that a recipe names, beside ``metrics.jsonl``."""
    makers: dict[str, Callable[[], Tracker]] = {
        "tensorboard": lambda: TensorBoard(about),
        "wandb": lambda: WeightsAndBiases(about, say),
        "swanlab": lambda: SwanLab(about, say),
    }
    return Trackers(MetricsLog(about.run / "metrics.jsonl", say), {name: makers[name]() for name in names}, say)
