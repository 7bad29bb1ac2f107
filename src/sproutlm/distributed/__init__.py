"""How one run is shared among processes. The model knows nothing of it: ``parallelize`` changes it from outside."""

from __future__ import annotations

from .layout import Layout, Piece
from .parallelize import parallelize
from .ranks import ALONE, Ranks

__all__ = ["ALONE", "Layout", "Piece", "Ranks", "parallelize"]
