"""The decoder: one ``Transformer`` from small parts, single-device code."""

from .kv_cache import KVCache
from .transformer import Transformer

__all__ = ["KVCache", "Transformer"]
