"""A ``Transformer`` with shapes and no values, made in milliseconds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ..config.model import ModelConfig
from .transformer import Transformer

_DRAWS = {nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_, nn.init.trunc_normal_}


class _NothingDrawn(TorchFunctionMode):
    """Leaves out the drawing of first values. There are none on the meta device, and torch, asked to draw them there, first
    imports its compiler, which takes longer than all the rest of loading a model."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func in _DRAWS:
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


def on_meta(config: ModelConfig) -> Transformer:
    """A model whose parameters lie on torch's meta device: ``load_state_dict(..., assign=True)`` gives it its weights."""
    with torch.device("meta"), _NothingDrawn():
        return Transformer(config)
