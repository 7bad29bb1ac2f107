"""Proof that the model computes what it should: every family beside transformers and beside itself, and the experts."""

from __future__ import annotations

from .dist import verify_dist
from .model import verify_model
from .moe import verify_moe
from .report import print_report
from .resume import verify_resume

__all__ = ["print_report", "verify_dist", "verify_model", "verify_moe", "verify_resume"]
