"""Keys and values of the tokens already seen, in one buffer allocated once."""

from __future__ import annotations

import torch
from torch import Tensor

from ..config.model import ModelConfig


class KVCache:
    """Preallocated cache. Rows are left-padded: row ``b``'s first real token sits in slot ``start[b]``.

    All rows share the write position ``length``, so one slice writes the whole batch; positions and masks follow from
    ``length`` and ``start``.
    """

    def __init__(
        self,
        config: ModelConfig,
        batch: int,
        max_len: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        shape = (config.n_layers, batch, config.n_kv_heads, max_len, config.head_dim)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        # What smear reads of the token before; by slot, so that a cache may be cut back to any length.
        smears = "smear" in config.research
        self.tokens = torch.zeros(batch, max_len, dtype=torch.int64, device=device) if smears else None
        self.start = torch.zeros(batch, dtype=torch.int64, device=device)
        self.length = 0
        self.max_len = max_len
        self._padded = False

    def set_start(self, start: Tensor) -> None:
        """Give each row's number of left-padding slots, (batch,) int64, before the first forward pass."""
        self.start.copy_(start)
        self._padded = bool((start > 0).any())  # asked once: the answer decides whether a mask is needed at all

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append ``k`` and ``v`` (batch, kv_heads, seq, head_dim); return all of this layer's so far."""
        end = self._end(k.shape[2])
        self.keys[layer, :, :, self.length : end] = k
        self.values[layer, :, :, self.length : end] = v
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def _end(self, seq: int) -> int:
        """Slot behind the next ``seq`` tokens; ValueError where there is no room for them."""
        end = self.length + seq
        if end > self.max_len:
            raise ValueError(f"KV cache holds {self.max_len} tokens; {end} were asked for: allocate a longer one")
        return end

    def before(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Note the next ``tokens`` (batch, seq); return the id before each, and whether there is one, both (batch, seq)."""
        assert self.tokens is not None
        end = self._end(tokens.shape[1])
        self.tokens[:, self.length : end] = tokens
        slots = torch.arange(self.length, end, device=self.start.device)
        return self.tokens[:, (slots - 1).clamp_min(0)], slots > self.start[:, None]

    def advance(self, seq: int) -> None:
        """Count ``seq`` more tokens as seen: called once per forward pass, after the last layer."""
        self.length += seq

    def positions(self, seq: int) -> Tensor:
        """Positions of the next ``seq`` tokens, (batch, seq); padding slots count as position 0."""
        slots = torch.arange(self.length, self.length + seq, device=self.start.device)
        return (slots[None, :] - self.start[:, None]).clamp_min(0)

    def mask(self, seq: int, window: int = 0) -> Tensor | None:
        """What the next ``seq`` queries may see, (batch or 1, 1, seq, length + seq) bool; None where nothing is hidden.

        ``window``: keys that a query sees at most, its own included; 0 = all.
        """
        windowed = 0 < window < self.length + seq
        if seq == 1 and not self._padded and not windowed:
            return None
        keys = torch.arange(self.length + seq, device=self.start.device)
        queries = keys[self.length :]
        visible = keys[None, :] <= queries[:, None]  # (seq, keys): causal
        if windowed:
            visible &= keys[None, :] > queries[:, None] - window
        if not self._padded:
            return visible[None, None]
        visible = visible[None] & (keys[None, None, :] >= self.start[:, None, None])
        # A padding query would see nothing, and a softmax over nothing is NaN: let it see itself.
        visible |= (keys[None, :] == queries[:, None])[None]
        return visible[:, None]

    def keep(self, rows: Tensor) -> None:
        """Drop every row but ``rows`` (int64 indices), so that finished requests cost nothing more."""
        self.keys = self.keys[:, rows].contiguous()
        self.values = self.values[:, rows].contiguous()
        self.tokens = None if self.tokens is None else self.tokens[rows]
        self.start = self.start[rows]
        self._padded = bool((self.start > 0).any())
