"""``sprout launch``: a recipe looked at whole, then started in several processes by torchrun, or the lines that start it elsewhere."""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..config.parallel import parallel_faults
from ..errors import Interrupted, RankLost, SproutError

if TYPE_CHECKING:
    from ..config.load import Loaded
    from ..config.schema import Recipe
    from ..distributed.dims import ParallelDims

Say = Callable[[str], None]
GRACE = 600  # seconds for the save that a stopped run makes; torchrun's own 30 are too few for a large model
PORT = 29400  # where the nodes meet; torchrun's own


@dataclass(frozen=True)
class Job:
    """``per_node`` processes on each of ``nodes`` hosts; ``host`` is the one that the others meet at."""

    recipe: str
    settings: list[str]
    nodes: int
    per_node: int
    gpus: bool
    host: str = ""
    port: int = PORT
    max_restarts: int = 0
    name: str = "run"
    changes: list[str] = field(default_factory=list)

    @property
    def world(self) -> int:
        return self.nodes * self.per_node

    def train(self) -> list[str]:
        """The command that every process runs, as a module of Python."""
        changes = [word for change in self.changes for word in ("--change", change)]
        return ["-m", "sproutlm", "train", self.recipe, *self.settings, *changes]

    def arguments(self) -> list[str]:
        """What torchrun is given, the same on every node."""
        if self.nodes == 1:
            meet = ["--standalone"]
        else:
            meet = [f"--nnodes={self.nodes}", *self.meeting(f"{self.host}:{self.port}", self.name)]
        return [*meet, *self.of_node(), *self.train()]

    def of_node(self) -> list[str]:
        return [
            f"--nproc-per-node={self.per_node}",
            f"--max-restarts={self.max_restarts}",
            f"--shutdown-timeout={GRACE}",
        ]

    @staticmethod
    def meeting(endpoint: str, identity: str) -> list[str]:
        """``endpoint``: HOST:PORT."""
        return ["--rdzv-backend=c10d", f"--rdzv-endpoint={endpoint}", f"--rdzv-id={identity}"]

    def environment(self, cores: int) -> dict[str, str]:
        """Threads of each process; where there is to be no GPU, none is seen, whatever the host has."""
        threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, cores // self.per_node))
        return ({} if self.gpus else {"CUDA_VISIBLE_DEVICES": ""}) | {"OMP_NUM_THREADS": threads}

    def line(self) -> str:
        """For a shell."""
        settings = [f"{name}={value}" for name, value in self.environment(usable_cores()).items()]
        return " ".join([*settings, "torchrun", shlex.join(self.arguments())])


def usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def job_name(name: str) -> str:
    """As Slurm, Kubernetes and a rendezvous take it: small letters, digits and hyphens, at most 50."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:50].strip("-") or "run"


def refuse_impossible(recipe: Recipe, job: Job) -> ParallelDims:
    """How the processes would share the run; a ``SproutError`` where they cannot, before any of them is started."""
    from ..distributed.dims import ParallelDims

    if recipe.train.device == "cuda" and not job.gpus:
        raise SproutError("train.device=cuda, but --processes starts processes without a GPU; use --gpus")
    if recipe.train.device == "cpu" and job.gpus:
        raise SproutError("train.device=cpu, but --gpus starts a process for each GPU; use --processes")
    dims = ParallelDims.of(recipe.parallel, job.world)
    dp = dims.replicate * dims.outer * dims.inner
    counted = recipe.parallel.model_copy(update={"dp": dp, "shard": dims.shard})
    faults = parallel_faults(recipe.model_copy(update={"parallel": counted}))
    if faults:
        sentences = "; ".join(f"{fault.keys[0]}: {fault.message}" for fault in faults)
        raise SproutError(f"{job.world} processes: {sentences}")
    return dims


def launch(loaded: Loaded, job: Job, say: Say) -> None:
    """Run ``job`` on this host to its end. SproutError with the exit code of the run where it fails."""
    dims = refuse_impossible(loaded.recipe, job)  # type: ignore[arg-type]
    if job.gpus:
        import torch

        if torch.cuda.device_count() < job.per_node:
            raise SproutError(
                f"--gpus {job.per_node}, but torch sees {torch.cuda.device_count()} here; give at most as many, or use "
                "--processes for processes without a GPU (sprout doctor says what torch sees)"
            )
    cores = usable_cores()
    settings = job.environment(cores)
    threads = settings["OMP_NUM_THREADS"]
    why = "as it was set" if os.environ.get("OMP_NUM_THREADS") else f"{cores} cores / {job.per_node} processes"
    say(f"{job.world} processes: {dims.words() or 'one'}; OMP_NUM_THREADS={threads} ({why})")
    say(job.line())
    with environment_of(settings), signals_put_back():
        run_elastic(job.arguments())


@contextmanager
def environment_of(settings: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def signals_put_back() -> Iterator[None]:
    """torchrun takes these and keeps them."""
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT") if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_elastic(arguments: list[str]) -> None:
    """torchrun in this process: it starts the ranks in sessions of their own, hands on each signal once, restarts them, and ends
    those that are left. In place of its traceback a sentence, with the exit code of the rank that failed first."""
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError

    try:
        torchrun.run(torchrun.parse_args(arguments))
    except SignalException as error:
        raise Interrupted(f"{signal.Signals(error.sigval).name} was handed on to every process of the run") from error
    except ChildFailedError as error:
        raise _failed(error.failures) from error
    except RendezvousError as error:
        raise SproutError(f"the nodes did not meet ({error}); start the line on every node, and see --host") from error


def _failed(failures: dict[int, Any]) -> SproutError:
    """The failure that came first, as an error with its exit code; a rank that a signal ended was lost."""
    rank, failure = min(failures.items(), key=lambda found: found[1].timestamp)
    whose = f"rank {rank} (process {failure.pid} on {socket.gethostname()})"
    if failure.exitcode < 0:
        name = signal.Signals(-failure.exitcode).name
        return RankLost(
            f"{whose} was ended by {name}; the same command continues from the newest checkpoint "
            "(--max-restarts N does so by itself)"
        )
    ended = SproutError(f"{whose} ended with exit code {failure.exitcode}; its message stands above")
    ended.exit_code = failure.exitcode
    return ended
