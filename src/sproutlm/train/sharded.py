"""Master weights where FSDP2 shares one copy among ranks: the sharded float32 parameters themselves."""

from __future__ import annotations

import torch

from ..distributed.parallelize import local_part
from ..model import Transformer
from .precision import MasterWeights


class ShardedWeights(MasterWeights):
    """``masters`` are this rank's parts, sharing memory with the parameters, which FSDP2 gathers block by block in the compute
    type. Gradients are added over micro-batches and ranks in float32; the last micro-batch of a step brings them here."""

    def __init__(self, model: Transformer, compute: torch.dtype) -> None:
        self.model, self.compute = model, compute
        self.masters = {name: local_part(parameter) for name, parameter in model.named_parameters()}
        self._pairs = [(self.masters[name], parameter) for name, parameter in model.named_parameters()]

    @property
    def separate(self) -> bool:
        return False

    def begin(self, last: bool) -> None:
        """Before a micro-batch: only the ``last`` one of a step adds over ranks."""
        self.model.set_requires_gradient_sync(last)  # type: ignore[operator]

    def collect_gradients(self) -> None:
        for master, parameter in self._pairs:
            master.grad = None if parameter.grad is None else local_part(parameter.grad)

    def free_gradients(self) -> None:
        for master, parameter in self._pairs:
            master.grad = parameter.grad = None
