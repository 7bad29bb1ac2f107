"""Filter, deduplicate and decontaminate text at scale."""

from __future__ import annotations

import typer


def add_to(group: typer.Typer) -> None:
    """Add the verbs of this file to ``sprout data``."""
