"""This process among those of its run: who it is, and how they add, tell and wait. One process alone does none of it."""

from __future__ import annotations

import contextlib
import datetime
import os
import socket
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from ..config.parallel import ParallelConfig
from ..errors import SproutError
from .dims import AXES, DATA, ParallelDims

PREPARING = datetime.timedelta(days=7)  # others wait while one rank tokenises; no collective waits meanwhile

MEETING = datetime.timedelta(minutes=5)  # at least; others may still be reading Python's modules


def started_by_torchrun() -> bool:
    """Whether this process was started as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


@dataclass
class Ranks:
    """``rank`` of ``dims.world``; ``mesh`` holds the axes that have more than one rank. Alone, every method is the identity."""

    rank: int = 0
    dims: ParallelDims = field(default_factory=ParallelDims)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    local_rank: int = 0
    mesh: DeviceMesh | None = None
    store: Any = None
    at: int = 0  # the step that this rank is in, for its pulse
    _groups: dict[tuple[str, ...], Any] = field(default_factory=dict)
    _turns: int = 0

    @classmethod
    def join(cls, asked: ParallelConfig, device: torch.device) -> Ranks:
        """Meet the other processes that torchrun started. Whether the recipe fits their number is looked at before."""
        world, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
        dims = ParallelDims.of(asked, world)
        if world == 1:
            return cls(device=device)
        local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        if device.type == "cuda":
            if local_rank >= torch.cuda.device_count():
                raise SproutError(
                    f"rank {rank} is process {local_rank} of this host, which has {torch.cuda.device_count()} GPUs; start "
                    "as many processes per host as it has GPUs (--gpus), or set train.device=cpu"
                )
            device = torch.device("cuda", local_rank)
            torch.cuda.set_device(device)
        # A card's exchanges end the process without a word: the heartbeat, which has one, comes before.
        timeout = datetime.timedelta(seconds=asked.timeout * (1.5 if device.type == "cuda" else 1))
        try:
            store, rank, world = next(dist.rendezvous("env://", timeout=timeout))
            store.set_timeout(timeout)
            store = dist.PrefixStore(_this_start(store, rank, world, max(timeout, MEETING)), store)
            backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
            dist.init_process_group(
                backend, store=dist.PrefixStore("group", store), rank=rank, world_size=world, timeout=timeout
            )
        except (RuntimeError, ValueError) as error:
            where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
            raise SproutError(
                f"rank {rank} on {socket.gethostname()} could not meet the other {world - 1} at {where} ({first_line(error)}); "
                "check that this host reaches that address and that every node was started"
            ) from error
        return cls(rank, dims, device, local_rank, mesh_for(dims, device), store)

    def arranged(self, asked: ParallelConfig) -> Ranks:
        """The same processes, sharing a run in another way."""
        dims = ParallelDims.of(asked, self.size)
        return Ranks(self.rank, dims, self.device, self.local_rank, mesh_for(dims, self.device), self.store)

    # --- who ----------------------------------------------------------------------------------------------------------

    @property
    def size(self) -> int:
        return self.dims.world

    @property
    def first(self) -> bool:
        """Whether this rank writes what is written once."""
        return self.rank == 0

    @property
    def data_rank(self) -> int:
        return self.index(DATA)

    @property
    def data_size(self) -> int:
        return self.dims.size(DATA)

    def index(self, axes: tuple[str, ...]) -> int:
        return self.dims.index(self.rank, axes)

    def mesh_of(self, axes: tuple[str, ...]) -> DeviceMesh | None:
        """The part of the mesh along ``axes``, as one dimension; None where that is this rank alone."""
        present = tuple(axis for axis in AXES if axis in axes and getattr(self.dims, axis) > 1)
        if not present or self.mesh is None:
            return None
        # Several axes as one: torch has no public name for it yet (2.13); it is what its own trainers call.
        return self.mesh[present[0]] if len(present) == 1 else self.mesh[present]._flatten("_".join(present))

    def group(self, axes: tuple[str, ...]) -> Any:
        """The process group along ``axes``; None where that is this rank alone. Every rank must ask in the same order."""
        present = tuple(axis for axis in AXES if axis in axes and getattr(self.dims, axis) > 1)
        if present not in self._groups:
            mesh = self.mesh_of(present)
            self._groups[present] = None if mesh is None else mesh.get_group()
        return self._groups[present]

    # --- adding -------------------------------------------------------------------------------------------------------

    def sum_(self, tensor: Tensor, axes: tuple[str, ...] = AXES) -> Tensor:
        """Add ``tensor`` over the ranks along ``axes``, in place."""
        group = self.group(axes)
        if group is not None:
            dist.all_reduce(tensor, group=group)
        return tensor

    def sum(self, *values: float) -> list[float]:
        """Each value added over all ranks, in float64, without waiting for a GPU."""
        if self.size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total)
        return total.tolist()

    def most(self, value: int) -> int:
        """The largest of the ranks' values."""
        if self.size == 1:
            return value
        largest = torch.tensor(value)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return int(largest)

    # --- telling and waiting ------------------------------------------------------------------------------------------

    def told(self, value: Any) -> Any:
        """What rank 0 says."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def gathered(self, value: Any) -> list[Any]:
        """Every rank's value, in the order of ranks."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()

    @property
    def host(self) -> str:
        return socket.gethostname()

    @contextlib.contextmanager
    def in_turn(self) -> Iterator[None]:
        """Rank 0 goes first, then one rank of each further host, then all others, who find what those have made.

        Nobody waits in a collective, whose time limit a long preparation would exceed. Whoever fails lets nobody wait.
        """
        if self.size == 1:
            yield
            return
        self._turns += 1
        host = os.environ.get("GROUP_RANK", "0")
        mine = f"turn/{self._turns}/" + (host if self.local_rank == 0 else f"rank-{self.rank}")
        for before in [] if self.first else ["0"] if self.local_rank == 0 else ["0", host]:
            key = f"turn/{self._turns}/{before}"
            self.store.wait([key], PREPARING)
            if self.store.get(key) != b"done":
                raise SproutError(f"rank {self.rank}: the rank that goes before it failed; its message says why")
        try:
            yield
        except BaseException:
            self.store.set(mine, "failed")
            raise
        self.store.set(mine, "done")

    def close(self) -> None:
        """Leave the group. After a fault nobody is waited for."""
        if self.size > 1 and dist.is_initialized():
            with contextlib.suppress(RuntimeError):
                dist.destroy_process_group()


def _this_start(store: dist.Store, rank: int, world: int, patience: datetime.timedelta) -> str:
    """A name for this start of the run, once all ranks of it are there.

    torchrun keeps one store for all its restarts, where what earlier ranks wrote still stands: addresses that nobody listens
    at any more, among others. Rank 0 names the start; each other rank greets by a number of its own, and takes a name as
    today's only when that number comes back. (TORCHELASTIC_RESTART_COUNT is no such name: it differs between nodes.)
    """
    own = uuid.uuid4().hex
    if rank == 0:
        store.set("start", own)
        for other in range(1, world):
            store.wait([f"{own}/greeting/{other}"], patience)
            store.set(f"{own}/answer/{other}", store.get(f"{own}/greeting/{other}").decode())
        return own
    store.wait(["start"], patience)
    end = time.monotonic() + patience.total_seconds()
    while time.monotonic() < end:
        name = store.get("start").decode()
        store.set(f"{name}/greeting/{rank}", own)
        if store.check([f"{name}/answer/{rank}"]) and store.get(f"{name}/answer/{rank}").decode() == own:
            return name
        time.sleep(0.05)
    raise RuntimeError("rank 0 did not answer")


def mesh_for(dims: ParallelDims, device: torch.device) -> DeviceMesh:
    """One mesh with every axis along which there is more than one rank; FSDP2 also asks for ``outer`` alone."""
    sizes = {axis: size for axis, size in dims.sizes.items() if size > 1 or (axis == "outer" and dims.shard > 1)}
    return init_device_mesh(device.type, tuple(sizes.values()), mesh_dim_names=tuple(sizes))


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


ALONE = Ranks()
