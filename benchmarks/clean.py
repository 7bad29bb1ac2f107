"""MinHash deduplication: ours beside datatrove's own, on the same documents, in one run; and its recall against theory.

    python benchmarks/clean.py --data poems.jsonl.gz --data c4_en.jsonl --equations equations_nested_text.jsonl --out benchmarks/results/clean.json

Speed: documents per second of one core (processor time), all stages of deduplication: signatures, matching, choosing,
and which documents go. datatrove runs as its documentation shows (jieba words for Chinese, spaCy for English), with the
same bands, rows and n; each side takes its turn first, medians of --rounds. Reading and writing are left out on both
sides. Without files a corpus is made up. Recall: copies of known Jaccard similarity among the documents.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import platform
import random
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import datatrove.pipeline.dedup.minhash as minhash
import numpy as np
from datatrove.data import Document
from datatrove.pipeline.dedup import MinhashConfig, MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupSignature
from loguru import logger

from sproutlm.config.clean import MinhashStep
from sproutlm.config.data import SourceConfig
from sproutlm.data.clean.duplicates import near_duplicates
from sproutlm.data.clean.minhash import expected_recall, jaccard
from sproutlm.data.sources import Counts, read_records

STEP = MinhashStep()


def ours(texts: list[str], language: str) -> int:
    return len(near_duplicates(texts, STEP))


def datatrove(texts: list[str], language: str) -> int:
    config = MinhashConfig(n_grams=STEP.ngram, num_buckets=STEP.bands, hashes_per_bucket=STEP.rows)
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        documents = (Document(text=text, id=str(number)) for number, text in enumerate(texts))
        MinhashDedupSignature(f"{folder}/sigs", config, language=language).run(documents, 0, 1)
        for bucket in range(STEP.bands):
            MinhashDedupBuckets(f"{folder}/sigs", f"{folder}/buckets", config=config).run(None, bucket, STEP.bands)
        MinhashDedupCluster(f"{folder}/buckets", f"{folder}/remove", config).run(None, 0, 1)
        removed = Path(folder, "remove", "000000.remove")
        return removed.stat().st_size // 4 if removed.exists() else 0


class PlainSplitter:
    """Characters or space-parted words: what datatrove would cost if its word splitter cost nothing."""

    def __init__(self, language: str) -> None:
        self.by_character = language == "zh"

    def word_tokenize(self, text: str) -> list[str]:
        return [one for one in text if not one.isspace()] if self.by_character else text.split()


def datatrove_plain_split(texts: list[str], language: str) -> int:
    real = minhash.load_word_tokenizer
    minhash.load_word_tokenizer = PlainSplitter
    try:
        return datatrove(texts, language)
    finally:
        minhash.load_word_tokenizer = real


def timed(side: Callable[[list[str], str], int], texts: list[str], language: str) -> tuple[float, int]:
    start = time.process_time()
    found = side(texts, language)
    return time.process_time() - start, found


def speed(texts: list[str], language: str, rounds: int) -> dict[str, Any]:
    sides = {"ours": ours, "datatrove": datatrove, "datatrove_plain_split": datatrove_plain_split}
    for side in sides.values():
        side(texts[:200], language)  # dictionaries and tables are loaded
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    found = {}
    for number in range(rounds):
        for name in sorted(sides, reverse=bool(number % 2)):
            taken, found[name] = timed(sides[name], texts, language)
            seconds[name].append(taken)
    rates = {name: len(texts) / statistics.median(taken) for name, taken in seconds.items()}
    return {
        "language": language,
        "documents": len(texts),
        "characters": sum(map(len, texts)),
        "documents_per_second_per_core": {name: round(rate) for name, rate in rates.items()},
        "ratio": round(rates["ours"] / rates["datatrove"], 2),
        "ratio_without_its_word_splitter": round(rates["ours"] / rates["datatrove_plain_split"], 2),
        "seconds": {name: [round(one, 3) for one in taken] for name, taken in seconds.items()},
        "duplicates_found": found,
    }


def near(text: str, similarity: float, rng: random.Random, filler: str) -> str:
    """``text`` with its end replaced, so that its five-character runs have about this Jaccard similarity with it."""
    shared = round(2 * (len(text) - 4) * similarity / (1 + similarity)) + 4
    return text[:shared] + "".join(rng.choices(filler, k=len(text) - shared))


def recall(texts: list[str], copies: int) -> list[dict[str, Any]]:
    rng = random.Random(1)
    filler = [chr(code) for code in range(0x4E00, 0x9FA5)]
    long = [text for text in dict.fromkeys(texts) if len(text) >= 60]
    alone = set(near_duplicates(texts, STEP))
    rows = []
    for similarity in (0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95):
        originals = rng.sample(long, min(copies, len(long)))
        made = [near(text, similarity, rng, filler) for text in originals]
        removed = near_duplicates([*texts, *made], STEP)
        expected = [expected_recall(jaccard(*pair, STEP), STEP) for pair in zip(originals, made, strict=True)]
        rows.append(
            {
                "similarity": similarity,
                "copies": len(made),
                "found": round(sum(one >= len(texts) for one in removed) / len(made), 4),
                "theory": round(float(np.mean(expected)), 4),
                "originals_lost_to_copies": len({one for one in removed if one < len(texts)} - alone),
            }
        )
    return rows


def equations(path: Path) -> dict[str, Any]:
    """How many of different equations of a few forms each side takes for duplicates."""

    def strings(value: Any) -> list[str]:
        if isinstance(value, dict | list):
            return [text for child in (value.values() if isinstance(value, dict) else value) for text in strings(child)]
        return [str(value)]

    texts = ["\n".join(strings(json.loads(line))) for line in path.read_text(encoding="utf-8").splitlines()]
    merged = len(near_duplicates(texts, STEP.model_copy(update={"numbers": "merge"})))
    return {
        "documents": len(texts),
        "different": len(set(texts)),
        "removed": {"ours": ours(texts, "en"), "ours_numbers_merge": merged, "datatrove": datatrove(texts, "en")},
    }


def whole_runs(texts: list[str], copies: int) -> dict[str, Any]:
    """The command itself over the documents and their copies: 1 and 8 tasks, and killed twice; the same bytes?"""
    rng = random.Random(2)
    filler = [chr(code) for code in range(0x4E00, 0x9FA5)]
    long = [text for text in dict.fromkeys(texts) if len(text) >= 60]
    exact = rng.choices(texts, k=copies)
    close = [near(text, 0.9, rng, filler) for text in rng.choices(long, k=copies)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = (json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in [*texts, *exact, *close])
        (folder / "corpus.jsonl").write_text("".join(rows), encoding="utf-8")
        (folder / "clean.yaml").write_text(
            "name: c\nclean: {sources: corpus.jsonl, out: out, block_mb: 1, exact: {}, minhash: {}, language: {keep: [zh, en], min_score: 0}}\n"
        )
        runs: dict[str, Any] = {"documents": len(texts) + 2 * copies}
        digests = {}
        for tasks, workers in ((1, 1), (8, 2)):
            out = folder / f"tasks-{tasks}"
            start = time.perf_counter()
            _command(folder, out, tasks, workers).wait()
            runs[f"seconds_{tasks}_tasks_{workers}_workers"] = round(time.perf_counter() - start, 1)
            digests[out.name] = digest(out)
        out = folder / "killed"
        runs["killed_at"] = [_kill(folder, out, stage, units) for stage, units in (("judge", 3), ("write", 5))]
        _command(folder, out, 8, 2).wait()
        digests["killed"] = digest(out)
        report = json.loads((folder / "tasks-1" / "report.json").read_text())
        runs["same_bytes"] = len(set(digests.values())) == 1
        runs["sha256"] = digests
        runs["reasons"] = {row["step"]: row["reasons"] for row in report["funnel"]}
    return runs


def _command(folder: Path, out: Path, tasks: int, workers: int) -> subprocess.Popen[bytes]:
    settings = [f"clean.out={out}", f"clean.executor.tasks={tasks}", f"clean.executor.workers={workers}"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    command = [sys.executable, "-m", "sproutlm", "data", "clean", str(folder / "clean.yaml"), *settings]
    return subprocess.Popen(command, start_new_session=True, **quiet)  # type: ignore[call-overload]


def _kill(folder: Path, out: Path, stage: str, units: int) -> str:
    """Kill a run, its processes included, once so many units of a stage are done."""
    process = _command(folder, out, 8, 2)
    notes = out / "work" / "notes" / stage
    while process.poll() is None and len(list(notes.glob("*.json"))) < units:
        time.sleep(0.005)
    done = len(list(notes.glob("*.json")))
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it was finished before it could be killed"
    return f"{stage}: {done} units done"


def digest(out: Path) -> str:
    """sha256 over the names and bytes of all that a person gets."""
    total = hashlib.sha256()
    for path in sorted(out.rglob("*")):
        if path.is_file() and "work" not in path.relative_to(out).parts and path.name != ".lock":
            total.update(str(path.relative_to(out)).encode() + path.read_bytes())
    return total.hexdigest()


def documents(paths: list[str], limit: int) -> dict[str, list[str]]:
    sets = {}
    for path in paths:
        records = read_records([SourceConfig(path=path)], "skip", Counts())
        sets[Path(path).name] = [record.text for record, _ in zip(records, range(limit), strict=False)]  # type: ignore[union-attr]
    if not sets:
        rng = random.Random(0)
        sets["made-up"] = ["".join(rng.choices([chr(0x4E00 + n) for n in range(3000)], k=80)) for _ in range(limit)]
    return sets


def machine() -> dict[str, Any]:
    model = ""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    return {"cpu": model, "cores": os.cpu_count(), "system": platform.system(), "python": platform.python_version()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", action="append", default=[], help="a file of texts; may be repeated")
    parser.add_argument("--documents", type=int, default=5000, help="of each file, for speed")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--copies", type=int, default=2000, help="injected at each similarity")
    parser.add_argument("--equations", type=Path, help="a .jsonl file of worked equations, all different")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    logger.remove()
    sets = documents(arguments.data, 1 << 60 if arguments.data else arguments.documents)
    result: dict[str, Any] = {
        "command": shlex.join(["python", "benchmarks/clean.py", *_named(sys.argv[1:])]),
        "commit": subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip(),
        "machine": machine(),
        "settings": {"bands": STEP.bands, "rows": STEP.rows, "n": STEP.ngram},
        "speed": {},
    }
    for name, texts in sets.items():
        chinese = sum("\u4e00" <= one <= "\u9fff" for one in "".join(texts[:50])) > 500
        result["speed"][name] = speed(texts[: arguments.documents], "zh" if chinese else "en", arguments.rounds)
        print(name, json.dumps(result["speed"][name], ensure_ascii=False), flush=True)
    name, texts = next(iter(sets.items()))
    result["recall"] = {"of": name, "documents": len(texts), "levels": recall(texts, arguments.copies)}
    for row in result["recall"]["levels"]:
        print(json.dumps(row))
    if arguments.equations is not None:
        result["equations"] = equations(arguments.equations)
        print(json.dumps(result["equations"]))
    result["whole_runs"] = whole_runs(texts, arguments.copies)
    print(json.dumps(result["whole_runs"], ensure_ascii=False))
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(result, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _named(arguments: list[str]) -> list[str]:
    """The command as a person elsewhere would type it: files by their names."""
    return [Path(one).name if one.endswith((".gz", ".jsonl", ".txt")) else one for one in arguments]


if __name__ == "__main__":
    main()
