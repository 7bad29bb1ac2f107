"""Formats: each turns one schema of rows that people have into records at the door, and back into rows.

A new schema is one ``Format`` added to ``FORMATS`` (or named as ``package.module:attribute``); nothing else changes.
"""

from __future__ import annotations

from ..fields import EmptyRow, RowError
from .detect import Detected, detect, format_of, import_module_here, other_schema, resolve_format
from .format import Format
from .known import FORMATS

__all__ = ["FORMATS", "Detected", "EmptyRow", "Format", "RowError", "detect", "format_of", "import_module_here",
           "other_schema", "resolve_format"]  # fmt: skip
