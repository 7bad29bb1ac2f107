"""The stages on datatrove's executors: processes here, an array of Slurm jobs, or Ray."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import threading
from collections.abc import Sequence
from typing import Any

import multiprocess
from datatrove.executor import LocalPipelineExecutor, RayPipelineExecutor, SlurmPipelineExecutor

from ...config.clean import ExecutorConfig
from ...errors import SproutError
from .stages import Choose, Judge, Match, Plan, Read, Stage, Write

_RUNNING = threading.Event()
_NOWHERE = open(os.devnull, "w")  # noqa: SIM115  (open as long as the process: loguru holds on to it)


class QuietLocalExecutor(LocalPipelineExecutor):
    """datatrove's local executor with its log in files alone: a person sees our progress instead."""

    def _launch_run_for_rank(self, *arguments: Any, **named: Any) -> Any:
        _end_with_parent()
        with contextlib.redirect_stderr(_NOWHERE):
            return super()._launch_run_for_rank(*arguments, **named)

    def run(self) -> Any:
        with contextlib.redirect_stderr(_NOWHERE):
            _log_nowhere()
            if self.workers == 1:  # one task after another needs neither a pool nor its manager
                for rank in range(self.tasks):
                    self._run_for_rank(rank)
                return None
            # Imports are made once, in the server that workers are forked from, and not by each worker of each stage.
            multiprocess.set_forkserver_preload(["__main__", __name__])
            _RUNNING.set()
            try:
                return super().run()
            finally:
                _RUNNING.clear()


def _end_with_parent() -> None:
    """In a child process: end when the parent is killed, which else leaves workers at work and their manager for ever."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1: PR_SET_PDEATHSIG, of Linux


# The manager is forked deep inside datatrove.
os.register_at_fork(after_in_child=lambda: _end_with_parent() if _RUNNING.is_set() else None)


def _log_nowhere() -> None:
    from loguru import logger

    logger.remove()
    logger.add(_NOWHERE)


class Finish(Stage):
    """The last job on a cluster: write the report."""

    name = "finish"

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Any:
        from .report import write_report

        write_report(self.plan)
        yield from ()


def workers_of(config: ExecutorConfig) -> int:
    """Tasks at a time."""
    return config.workers or (os.cpu_count() or 1)


def tasks_of(config: ExecutorConfig, stage: Stage) -> int:
    """How many tasks a stage is cut into: no more than it has units, where that is known before it runs."""
    tasks = config.tasks or workers_of(config)
    if isinstance(stage, Read | Match):
        return max(1, min(tasks, len(stage.units())))
    return 1 if isinstance(stage, Choose | Finish) else tasks


def make_stages(plan: Plan) -> list[Stage]:
    """What has to run, in order."""
    stages: list[Stage] = [kind(plan) for kind in (Read, Judge, Match, Choose, Write)]
    return [*stages, Finish(plan)] if plan.config.executor.kind == "slurm" else stages


def make_executor(plan: Plan, stage: Stage, after: Any = None) -> Any:
    """datatrove's executor for one stage; on Slurm it waits for the jobs of ``after``."""
    config = plan.config.executor
    tasks = tasks_of(config, stage)
    common: dict[str, Any] = {
        "pipeline": [stage],
        "tasks": tasks,
        # Which units are done is told by their notes, whatever the number of tasks was when they were made.
        "skip_completed": False,
        "logging_dir": str(plan.work.folder / "logs" / f"{stage.name}-{tasks:05d}"),
    }
    if config.kind == "local":
        return QuietLocalExecutor(**common, workers=min(workers_of(config), tasks))
    common |= {"cpus_per_task": config.cpus_per_task, "mem_per_cpu_gb": config.mem_per_cpu_gb}
    common["workers"] = config.workers or -1
    if config.kind == "ray":
        return RayPipelineExecutor(**common)
    return SlurmPipelineExecutor(
        **common,
        time=config.time,
        partition=config.partition or "",
        qos=config.qos,  # type: ignore[arg-type]
        env_command=config.env_command,  # type: ignore[arg-type]
        sbatch_args=dict(config.sbatch_args),
        job_name=f"sprout-clean-{stage.name}",
        depends=after,
        run_on_dependency_fail=False,
    )


def check_executor(config: ExecutorConfig) -> None:
    """Refuse an executor whose system is not here, before anything is read."""
    if config.kind == "slurm" and shutil.which("sbatch") is None:
        raise SproutError(
            "clean.executor.kind is slurm, and there is no sbatch on this machine; run it on a login node, "
            "look at the jobs with --dry-run, or set clean.executor.kind=local"
        )
    if config.kind == "ray":
        import importlib.util

        if importlib.util.find_spec("ray") is None:
            raise SproutError(
                "clean.executor.kind is ray, and ray is not installed; install it with: pip install ray, "
                "or set clean.executor.kind=local"
            )


def describe(plan: Plan) -> list[dict[str, Any]]:
    """What would run: each stage with its tasks, and on Slurm the script that would be submitted. Writes nothing."""
    config = plan.config.executor
    described: list[dict[str, Any]] = []
    for stage in make_stages(plan):
        one: dict[str, Any] = {"stage": stage.name, "tasks": tasks_of(config, stage)}
        if config.kind == "slurm":
            one["script"] = slurm_script(make_executor(plan, stage))
        elif config.kind == "ray":
            make_executor(plan, stage)
        described.append(one)
    return described


def slurm_script(executor: SlurmPipelineExecutor) -> str:
    """The text that ``executor.run()`` would hand to sbatch."""
    folder = str(executor.slurm_logs_folder)
    made = _missing_parents(folder)
    arguments = executor.get_sbatch_args(executor.tasks)  # datatrove makes the log folder here
    for path in made:
        os.rmdir(path)
    command = f"srun -l -n 1 launch_pickled_pipeline {executor.logging_dir.resolve_paths('executor.pik')}"
    return executor.get_launch_file_contents(arguments, command)


def _missing_parents(folder: str) -> Sequence[str]:
    missing = []
    while folder and not os.path.isdir(folder):
        missing.append(folder)
        folder = os.path.dirname(folder)
    return missing
