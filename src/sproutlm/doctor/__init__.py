"""``sprout doctor``: name the silent faults of an environment, a data file, a tokenizer, a checkpoint, a run, with their cure."""

from .report import examine, print_report

__all__ = ["examine", "print_report"]
