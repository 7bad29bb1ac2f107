"""Where a family stores tensors otherwise than by one name each: GPT-2's transposed, fused matrices, experts one by one.

A ``Layout`` shows a file's tensors under plain names, one per parameter of ours, and reads each only when it is asked
for; the other way round it gives back the tensors of the file.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config.model import ModelConfig
from ..errors import SproutError
from .lazy import Lazy, State, own, reader as _as_is


@dataclass(frozen=True)
class Layout:
    """``plain(config, state)``: a file's tensors by plain names; ``stored(config, state)``: the way back.

    Both are applied to headers as well (tensors without values), so they choose by names and shapes alone.
    """

    plain: Callable[[ModelConfig, State], State]
    stored: Callable[[ModelConfig, State], State]


# --- GPT-2 --------------------------------------------------------------------------------------------------------------

_CONV1D = re.compile(r"\.(attn\.(q|k|v)_proj|attn\.c_proj|mlp\.c_fc|mlp\.c_proj)\.weight$")
_FUSED = re.compile(r"(.*\.attn)\.c_attn\.(weight|bias)$")


def _gpt2_plain(config: ModelConfig, state: State) -> State:
    """Conv1D weights are (in, out), and q, k and v lie side by side in one; OpenAI's own files lack the prefix."""
    makers: dict[str, Callable[[], Tensor]] = {}
    wholes = _Fused(state)
    for name in state:
        if re.search(r"\.attn\.(bias|masked_bias)$", name):
            continue  # the causal mask as a buffer, in old files
        full = name if name.startswith(("transformer.", "lm_head.")) else f"transformer.{name}"
        fused = _FUSED.match(full)
        if full != name and full in state:
            makers[name] = _as_is(state, name)  # stored under both names: the check of names reports this one
        elif fused:
            for number, part in enumerate("qkv"):
                makers[f"{fused[1]}.{part}_proj.{fused[2]}"] = _third(wholes, name, number)
        elif _CONV1D.search(full):
            makers[full] = _transposed(state, name)
        else:
            makers[full] = _as_is(state, name)
    return Lazy(makers)


class _Fused:
    """Tensors of q, k and v side by side. The one read last stays, per kind: its parts are asked for one after another."""

    def __init__(self, state: State) -> None:
        self._state, self._lock = state, threading.Lock()
        self._last: dict[str, tuple[str, Tensor]] = {}

    def part(self, name: str, number: int) -> Tensor:
        kind = name.rsplit(".", 1)[1]
        with self._lock:
            if self._last.get(kind, ("",))[0] != name:
                self._last[kind] = (name, own(self._state, name))
            whole = self._last[kind][1]
        if whole.ndim == 0 or whole.shape[-1] % 3:
            raise SproutError(f"{name} is {list(whole.shape)}; expected q, k and v side by side in its last dimension")
        part = whole.chunk(3, dim=-1)[number]
        return (part.T if part.ndim == 2 else part).clone(memory_format=torch.contiguous_format)


def _third(fused: _Fused, name: str, number: int) -> Callable[[], Tensor]:
    return lambda: fused.part(name, number)


def _transposed(state: State, name: str) -> Callable[[], Tensor]:
    return lambda: _turned(own(state, name))


def _turned(tensor: Tensor) -> Tensor:
    """A matrix transposed; a bias as it is."""
    return (tensor.T if tensor.ndim == 2 else tensor).contiguous()


def _gpt2_stored(config: ModelConfig, state: State) -> State:
    makers: dict[str, Callable[[], Tensor]] = {}
    for name in state:
        split = re.match(r"(.*\.attn)\.([qkv])_proj\.(weight|bias)$", name)
        if split:
            makers[f"{split[1]}.c_attn.{split[3]}"] = _joined(state, split[1], split[3])
        else:
            makers[name] = _transposed(state, name) if _CONV1D.search(name) else _as_is(state, name)
    return Lazy(makers)


def _joined(state: State, prefix: str, kind: str) -> Callable[[], Tensor]:
    return lambda: torch.cat([_turned(state[f"{prefix}.{part}_proj.{kind}"]) for part in "qkv"], dim=-1)


GPT2_LAYOUT = Layout(_gpt2_plain, _gpt2_stored)


# --- experts ------------------------------------------------------------------------------------------------------------

_EXPERT = re.compile(r"(.*\.experts)\.(\d+)\.(\w+)\.weight$")


def _experts_plain(config: ModelConfig, state: State) -> State:
    """One file entry per expert and matrix -> one stacked tensor (experts, out, in) named ``…experts.MATRIX.weight``."""
    makers: dict[str, Callable[[], Tensor]] = {}
    assert config.moe is not None
    stacked: dict[str, dict[int, str]] = {}
    for name in state:
        found = _EXPERT.match(name)
        if found:
            stacked.setdefault(f"{found[1]}.{found[3]}.weight", {})[int(found[2])] = name
        else:
            makers[name] = _as_is(state, name)
    numbers, faults = range(config.moe.n_experts), list[str]()
    for target, parts in stacked.items():
        if sorted(parts) == list(numbers):
            makers[target] = _stack(state, [parts[i] for i in numbers])
        else:
            path, matrix, _ = target.rsplit(".", 2)
            faults += [f"{path}.{i}.{matrix}.weight is missing" for i in numbers if i not in parts]
            faults += [f"{name} is one expert too many" for i, name in sorted(parts.items()) if i not in numbers]
    if faults:
        more = f"; and {len(faults) - 8} more" if len(faults) > 8 else ""
        n = config.moe.n_experts
        raise SproutError(f"config.json says {n} experts, and the weights differ: {'; '.join(faults[:8])}{more}")
    return Lazy(makers)


def _stack(state: State, names: list[str]) -> Callable[[], Tensor]:
    def make() -> Tensor:
        first = own(state, names[0])
        out = torch.empty((len(names), *first.shape), dtype=first.dtype, device=first.device)
        for i, name in enumerate(names):
            one = first if i == 0 else own(state, name)
            if one.shape != first.shape or one.dtype != first.dtype:
                raise SproutError(f"{name} is {_described(one)}, but {names[0]} is {_described(first)}")
            out[i] = one
        return out

    return make


def _described(tensor: Tensor) -> str:
    return f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def _experts_stored(config: ModelConfig, state: State) -> State:
    makers: dict[str, Callable[[], Tensor]] = {}
    for name in state:
        found = re.match(r"(.*\.experts)\.(\w+)\.weight$", name)
        if not found:
            makers[name] = _as_is(state, name)
            continue
        assert config.moe is not None
        for i in range(config.moe.n_experts):
            makers[f"{found[1]}.{i}.{found[2]}.weight"] = _slice(state, name, i)
    return Lazy(makers)


def _slice(state: State, name: str, index: int) -> Callable[[], Tensor]:
    return lambda: state[name][index]


EXPERTS_LAYOUT = Layout(_experts_plain, _experts_stored)


# --- shared experts one by one --------------------------------------------------------------------------------------------

_SHARED = re.compile(r"(.*\.shared_experts)\.(\d+)\.(\w+)\.weight$")


def _shared_plain(config: ModelConfig, state: State) -> State:
    """Experts stacked; several shared experts become one that is as wide as all of them, which computes their sum."""
    names: dict[str, dict[int, str]] = {}
    makers: dict[str, Callable[[], Tensor]] = {}
    for name in state:
        found = _SHARED.match(name)
        if found:
            names.setdefault(f"{found[1]}.{found[3]}.weight", {})[int(found[2])] = name
        else:
            makers[name] = _as_is(state, name)
    for target, parts in names.items():
        if sorted(parts) == list(range(len(parts))):
            makers[target] = _beside(state, [parts[i] for i in range(len(parts))], 1 if "down_proj" in target else 0)
        else:
            makers |= {name: _as_is(state, name) for name in parts.values()}
    return _experts_plain(config, Lazy(makers))


def _beside(state: State, names: list[str], dim: int) -> Callable[[], Tensor]:
    def make() -> Tensor:
        parts = [own(state, name) for name in names]
        for name, part in zip(names, parts, strict=True):
            if part.shape != parts[0].shape or part.dtype != parts[0].dtype:
                raise SproutError(f"{name} is {_described(part)}, but {names[0]} is {_described(parts[0])}")
        return torch.cat(parts, dim)

    return make


SHARED_LAYOUT = Layout(_shared_plain, _experts_stored)
