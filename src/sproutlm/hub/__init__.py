"""Data sets and models by name: the catalogue, and downloads through the hubs' own libraries or from a local copy."""

from __future__ import annotations

__all__: list[str] = []
