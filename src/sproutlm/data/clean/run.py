"""``sprout data clean``: plan, run the stages (or submit them), report."""

from __future__ import annotations

import fcntl
import hashlib
import itertools
import json
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ... import __version__
from ...config.clean import CleanConfig, CleanRecipe
from ...errors import DataError, SproutError
from ..files import find_files
from ..sources import Counts, no_records, open_source
from .work import Work, read_json, write_json

if TYPE_CHECKING:
    from .stages import Plan, Stage

Say = Callable[[str], None]
LAYOUT = 1  # goes up when the same recipe would give other output


def clean(recipe: CleanRecipe, *, dry_run: bool = False, say: Say = print) -> dict[str, Any]:
    """Clean what the recipe names; a killed run goes on where it was. Gives the report, or the plan of a dry run.

    Writes ``clean/*.jsonl.gz`` (rows ``{"id", "text"}``), ``rejects/REASON/*.jsonl.gz``, ``report.json``,
    ``report.md`` and ``funnel.png`` below ``clean.out``. Raises ``SproutError`` for what a person can mend.
    """
    _need_extra()
    from . import executors, report as reports

    config = recipe.clean
    work = Work(Path(config.out))
    plan = make_plan(config, say)
    if dry_run:
        return {"dry_run": True, "out": config.out, "executor": config.executor.kind, "inputs": _inputs(plan),
                "stages": executors.describe(plan)}  # fmt: skip
    executors.check_executor(config.executor)
    with _alone(work):
        if _finished(plan, work):
            say(f"{work.out} is finished and its inputs are unchanged; nothing to do")
            return read_json(work.report)
        _index(plan, say)
        if config.executor.kind == "slurm":
            return _submit(plan, say)
        for number, stage in enumerate(executors.make_stages(plan), 1):
            with _progress(plan, stage, f"{number}/5 {stage.name}"):
                executors.make_executor(plan, stage).run()
            if number == 1:
                _need_documents(plan)
        report = reports.write_report(plan)
        if not config.keep_work:
            for name in ("blocks", "filtered", "keys", "groups", "removed"):
                shutil.rmtree(work.folder / name, ignore_errors=True)
    for line in Counts.from_dict(report["rows"]).lines():
        say(line)
    return report


def _need_documents(plan: Plan) -> None:
    """Refuse a source that gives no document at all, as every reader of sources does."""
    for number, source in enumerate(plan.config.sources):
        counts = Counts()
        for unit, part in enumerate(plan.units):
            if part.source == number:
                counts.merge(Counts.from_dict(read_json(plan.work.note("read", f"{unit:05d}"))["counts"]))
        if not counts.records_out:
            raise no_records(source, counts.dropped, counts.examples)


def _need_extra() -> None:
    import importlib.util

    missing = [name for name in ("datatrove", "orjson", "xxhash") if importlib.util.find_spec(name) is None]
    if missing:
        raise SproutError(f'cleaning needs {", ".join(missing)}; install with: pip install "sproutlm[clean]"')


# --- the plan -------------------------------------------------------------------------------------------------------------


def make_plan(config: CleanConfig, say: Say) -> Plan:
    """Find the files, decide their formats, and cut the input into units."""
    from .stages import Plan, Unit

    doors, found = [], []
    for source in config.sources:
        folder = Path(source.path).absolute()
        if folder.is_dir() and Path(config.out).absolute().is_relative_to(folder):
            raise SproutError(
                f"clean.out: {config.out} lies in the folder {source.path} that is read, and would be read with it; "
                "give a folder elsewhere"
            )
        counts = Counts()
        doors.append(open_source(source, counts).door)
        found.append(find_files(source.path).paths)
        if counts.ignored_files:
            say(f"{source.path}: {counts.ignored_files:,} files ignored: their suffix is not known")
    names = _names([path.absolute() for paths in found for path in paths])
    units: list[Unit] = []
    for number, (source, paths) in enumerate(zip(config.sources, found, strict=True)):
        # A limit on rows counts through a source's files one after another.
        parts = [paths] if source.max_rows is not None else [(path,) for path in paths]
        units += [
            Unit(number, tuple(str(path.absolute()) for path in part), tuple(names[path.absolute()] for path in part))
            for part in parts
        ]
    if config.decontaminate is not None:
        for source in config.decontaminate.against:
            find_files(source.path)
    if config.tokenizer is not None and not Path(config.tokenizer).exists():
        raise DataError(f"clean.tokenizer: {config.tokenizer}: no such folder; give a tokenizer's folder")
    return Plan(config, str(Path(config.out).absolute()), tuple(units), tuple(doors))


def _names(paths: list[Path]) -> dict[Path, str]:
    """Names for document ids: paths from the folder that all inputs share, the same wherever that folder lies."""
    shared = Path(os.path.commonpath([path.parent for path in paths]))
    return {path: path.relative_to(shared).as_posix() for path in paths}


def _inputs(plan: Plan) -> list[dict[str, Any]]:
    """Every input file with its size; what the output depends on besides the recipe."""
    paths = [(name, path) for unit in plan.units for name, path in zip(unit.names, unit.paths, strict=True)]
    if plan.config.decontaminate is not None:
        against = itertools.chain.from_iterable(find_files(s.path).paths for s in plan.config.decontaminate.against)
        paths += [(path.name, str(path)) for path in against]
    stats = [(name, os.stat(path)) for name, path in paths]
    return [{"name": name, "bytes": stat.st_size, "modified_ns": stat.st_mtime_ns} for name, stat in stats]


def _fingerprint(plan: Plan) -> dict[str, Any]:
    """What decides the output: the recipe but for where it runs, and the inputs."""
    settings = plan.config.model_dump(mode="json", exclude={"executor", "out", "keep_work"})
    text = json.dumps([LAYOUT, settings, _inputs(plan)], sort_keys=True)
    return {"fingerprint": hashlib.sha256(text.encode()).hexdigest(), "settings": settings, "inputs": _inputs(plan),
            "version": __version__}  # fmt: skip


def _finished(plan: Plan, work: Work) -> bool:
    """Whether the folder holds this very run, finished. Another run's folder is a ``SproutError``; a new one is begun."""
    now = _fingerprint(plan)
    if work.plan.exists():
        before = read_json(work.plan)
        changed = before["fingerprint"] != now["fingerprint"]
        if changed and not work.done("judge"):
            shutil.rmtree(work.folder)  # nothing was done yet: the recipe was mended after its first try
            write_json(work.plan, now)
            return False
        if changed:
            what = [name for name in ("settings", "inputs") if before[name] != now[name]]
            raise SproutError(
                f"{work.out}: holds the output of another run ({' and '.join(what) or 'version'} changed); "
                "give another clean.out, or remove the folder"
            )
        return work.report.exists()
    if work.out.exists() and any(path.name != ".lock" for path in work.out.iterdir()):
        raise SproutError(f"{work.out}: not empty, and no cleaning run made it; give a new folder as clean.out")
    write_json(work.plan, now)
    return False


@contextmanager
def _alone(work: Work) -> Iterator[None]:
    """Refuse a second process in the same folder. The lock dies with its process, also under kill -9."""
    try:
        work.out.mkdir(parents=True, exist_ok=True)
        lock = open(work.out / ".lock", "w")  # noqa: SIM115
    except OSError as error:
        raise SproutError(f"clean.out: {work.out}: cannot be written: {error.strerror}") from None
    with lock:
        try:
            # lockf, not flock: a child that outlives a killed run must not hold on to the lock.
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise SproutError(
                f"{work.out}: another process cleans into this folder; wait for it, or give another clean.out"
            ) from None
        yield


def _index(plan: Plan, say: Say) -> None:
    """Index the evaluation sets, once."""
    step = plan.config.decontaminate
    if step is None or plan.work.index.exists():
        return
    from .decontaminate import build_index

    counts = Counts()
    index = build_index(step, counts)
    if not index.hashes:
        raise DataError(
            f"clean.decontaminate: no text of {counts.rows_in:,} rows is long enough to be told; lower min_ngram"
        )
    temporary = plan.work.index.with_suffix(".tmp")
    index.save(temporary)
    os.replace(temporary, plan.work.index)
    grams = sum(map(len, index.hashes.values()))
    say(f"evaluation sets: {counts.rows_in:,} rows, {counts.records_out:,} of them searched for, {grams:,} n-grams")
    for reason, n in counts.dropped.most_common():
        say(f"  {n:,} rows left out: {reason}")


def _submit(plan: Plan, say: Say) -> dict[str, Any]:
    from . import executors

    executor: Any = None
    submitted = []
    for stage in executors.make_stages(plan):
        executor = executors.make_executor(plan, stage, executor)
        submitted.append(stage.name)
    executor.run()  # launches what it depends on first
    say(f"submitted: {' -> '.join(submitted)}; the report will be in {plan.work.report}")
    return {"submitted": submitted, "out": plan.out}


# --- progress -------------------------------------------------------------------------------------------------------------


@contextmanager
def _progress(plan: Plan, stage: Stage, label: str) -> Iterator[None]:
    """A bar with the time left, from the notes that tasks leave, wherever they run; nothing without a terminal."""
    if not sys.stderr.isatty():
        with nullcontext():
            yield
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    ended = threading.Event()
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:,.0f} of {task.total:,.0f}"),
               TimeElapsedColumn(), TextColumn("ETA"), TimeRemainingColumn())  # fmt: skip
    with Progress(*columns, console=Console(file=sys.__stderr__), transient=True) as bar:
        total = max(1, len(stage.units()))
        task = bar.add_task(label, total=total)

        def watch() -> None:
            while not ended.wait(0.5):
                bar.update(task, completed=min(total, plan.work.done(stage.name)))

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            ended.set()
            watcher.join()


def render(report: dict[str, Any]) -> None:
    """Print the funnel, or the plan of a dry run, on the terminal."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if "stages" in report:
        total = sum(one["bytes"] for one in report["inputs"])
        console.print(f"{len(report['inputs'])} input files, {total / 1e6:,.1f} MB -> {report['out']}", highlight=False)
        for stage in report["stages"]:
            console.print(f"{stage['stage']}: {stage['tasks']} tasks ({report['executor']})", highlight=False)
            if "script" in stage:
                console.print(stage["script"], markup=False, highlight=False)
        return
    if "funnel" not in report:
        return
    from .report import table

    head, rows = table(report)
    shown = Table(box=None, pad_edge=False)
    for name in head:
        shown.add_column(name, justify="left" if name in (head[0], head[-1]) else "right", overflow="fold")
    for row in rows:
        shown.add_row(*row)
    console.print(shown)
