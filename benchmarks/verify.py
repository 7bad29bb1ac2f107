"""The page of what is proved: runs both verifications and writes docs/results/verify.md and benchmarks/results/verify.json.

python benchmarks/verify.py
"""

from __future__ import annotations

import datetime
import json
import sys
from pathlib import Path

from sproutlm.verify import verify_model, verify_moe
from sproutlm.verify.report import markdown

ROOT = Path(__file__).resolve().parents[1]


def say(line: str) -> None:
    print(line, flush=True)


def main() -> int:
    reports = {"model": verify_model(say=say), "moe": verify_moe(say=say)}
    (ROOT / "benchmarks/results/verify.json").write_text(json.dumps(reports, indent=1, ensure_ascii=False) + "\n")
    page = markdown(reports["model"], reports["moe"], datetime.date.today().isoformat())
    (ROOT / "docs/results/verify.md").write_text(page, encoding="utf-8")
    return 0 if all(report["ok"] for report in reports.values()) else 2


if __name__ == "__main__":
    sys.exit(main())
