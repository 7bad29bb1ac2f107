"""Training tokenizers: how fast, on how much memory, and what each rule does to the length of texts.

    python benchmarks/tokenizer.py --data ../shared/data --out benchmarks/results [--part speed|options|memory|all]

speed: byte-level BPE against the defaults of the ``tokenizers`` library (ByteLevel and BpeTrainer as they come) on the
same texts, in memory, to the same vocabulary size, in turns within one run; ratios are medians of the pairs.
options: bytes per token of held-out text by language for each rule. memory: an even sample of a stream that is read once.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from sproutlm.tokenizer.compare import figures
from sproutlm.tokenizer.train import train_tokenizer

OPTIONS: dict[str, dict[str, str]] = {
    "default": {},
    "digits groups": {"digits": "groups"},
    "digits free": {"digits": "free"},
    "spaces runs": {"spaces": "runs"},
    "cjk single": {"cjk": "single"},
    "cjk free": {"cjk": "free"},
    "SentencePiece BPE": {"kind": "sentencepiece_bpe"},
    "SentencePiece unigram": {"kind": "sentencepiece_unigram"},
}


def rows(file: Path) -> Iterator[dict[str, Any]]:
    with (gzip.open if file.suffix == ".gz" else open)(file, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def texts(data: Path) -> dict[str, list[str]]:
    """Texts by language: zh, en, code (the standard library), digits (answers of GSM8K and plain sums)."""
    fields = ("instruction", "input", "output")
    zh = [r[f] for r in rows(data / "sft/alpaca_zh.jsonl.gz") for f in fields if r.get(f)]
    zh += [r["text"] for r in rows(data / "pretrain/tang_poems_zh.jsonl.gz")]
    en = [r[f] for r in rows(data / "sft/alpaca_en.jsonl.gz") for f in fields if r.get(f)]
    en += (data / "pretrain/wiki_en.txt").read_text(encoding="utf-8").splitlines()
    library = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    code = [path.read_text(encoding="utf-8", errors="replace") for path in library]
    digits = [
        f"{a} + {b * 37} = {a + b * 37}\n{a * b} / {b} = {a}" for a in range(1, 4000, 7) for b in range(3, 300, 23)
    ]
    return {"zh": zh, "en": en, "code": code, "digits": digits}


def split(parts: dict[str, list[str]], every: int) -> tuple[list[str], dict[str, str]]:
    """Every tenth text is held out: (one in ``every`` of the others, held-out text by language, a megabyte each at most)."""
    train = [text for part in parts.values() for i, text in enumerate(part) if i % 10][::every]
    held = {name: "\n".join(part[::10]) for name, part in parts.items()}
    return train, {name: text.encode()[:1_000_000].decode(errors="ignore") for name, text in held.items()}


def library_defaults(train: list[str], size: int) -> None:
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel()
    backend.train_from_iterator(train, trainers.BpeTrainer(vocab_size=size, show_progress=False))


def speed(train: list[str], size: int, rounds: int) -> dict[str, Any]:
    sides = {"sproutlm": lambda: train_tokenizer(train, size), "tokenizers": lambda: library_defaults(train, size)}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    cpu: dict[str, list[float]] = {name: [] for name in sides}  # what other programs on the machine disturb less
    for number in range(rounds):
        for name in sides if number % 2 == 0 else reversed(sides):
            begin, used = time.perf_counter(), time.process_time()
            sides[name]()
            seconds[name].append(round(time.perf_counter() - begin, 3))
            cpu[name].append(round(time.process_time() - used, 3))
            print(f"  {name}: {seconds[name][-1]:.1f} s, {cpu[name][-1]:.1f} s of CPU", flush=True)

    def ratio(times: dict[str, list[float]]) -> float:
        pairs = zip(times["sproutlm"], times["tokenizers"], strict=True)
        return round(statistics.median(theirs / ours for ours, theirs in pairs), 3)

    return {
        "bytes": sum(len(text.encode()) for text in train),
        "texts": len(train),
        "vocab_size": size,
        "seconds": seconds,
        "medians": {name: statistics.median(values) for name, values in seconds.items()},
        "cpu_seconds": cpu,
        "cpu_medians": {name: statistics.median(values) for name, values in cpu.items()},
        "times_as_fast": ratio(seconds),
        "times_as_fast_by_cpu": ratio(cpu),
    }


def options(train: list[str], held: dict[str, str], sizes: list[int]) -> list[dict[str, Any]]:
    measured = []
    for size in sizes:
        for name, chosen in OPTIONS.items():
            tokenizer = train_tokenizer(train, size, **chosen)  # type: ignore[arg-type]
            row = {language: figures(tokenizer, text) for language, text in held.items()}
            short = {language: round(figure["bytes_per_token"], 3) for language, figure in row.items()}
            print(f"  {size:,} {name}: {short}", flush=True)
            measured.append({"vocab_size": size, "rule": name, "options": chosen, "bytes_per_token": short})
    return measured


MEMORY = """
import json, resource, sys, tracemalloc
from sproutlm.tokenizer.reading import Used, read
def stream(megabytes):
    line = "The lighthouse keeper wrote one line in his book every evening, number {}: 风，潮水，船名。\\n" * 4
    made, number = 0, 0
    while made < megabytes * 1_000_000:
        text = line.replace("{}", str(number)); made += len(text.encode()); number += 1
        yield text
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
used = Used("spread", int(sys.argv[2]) * 1_000_000)
for piece in read(stream(int(sys.argv[1])), used): pass
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"read_mb": used.total / 1e6, "used_mb": used.used / 1e6, "blocks": used.blocks,
                  "blocks_used": used.blocks_used, "peak_growth_mb": (after - before) / 1024}))
"""


def memory(megabytes: int, limits: list[int]) -> list[dict[str, Any]]:
    """Growth of the peak resident size while a stream is sampled, for several values of max_bytes."""
    found = []
    for limit in limits:
        begin = time.perf_counter()
        ran = subprocess.run(
            [sys.executable, "-c", MEMORY, str(megabytes), str(limit)], capture_output=True, check=True
        )
        found.append({"max_mb": limit, **json.loads(ran.stdout), "seconds": round(time.perf_counter() - begin, 1)})
        print(f"  {found[-1]}", flush=True)
    return found


def write(path: Path, report: dict[str, Any]) -> None:
    machine = {"cores": os.cpu_count(), "python": platform.python_version(), "tokenizers": tokenizers.__version__}
    peak = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**report, "machine": machine, "peak_mb": peak}, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--part", choices=("speed", "options", "memory", "all"), default="all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--every", type=int, default=1, help="Train on one text in N.")
    parser.add_argument("--sizes", type=int, nargs="+", default=[6400, 16000])
    arguments = parser.parse_args()
    if arguments.part in ("speed", "memory", "all"):
        report: dict[str, Any] = {}
        target = arguments.out / "tokenizer_training.json"
        if target.exists():
            report = {k: v for k, v in json.loads(target.read_text()).items() if k in ("speed", "memory")}
        if arguments.part != "memory":
            train, _ = split(texts(arguments.data), arguments.every)
            report["speed"] = speed(train, arguments.sizes[0], arguments.rounds)
        if arguments.part != "speed":
            report["memory"] = memory(300, [10, 50, 200])
        write(target, report)
    if arguments.part in ("options", "all"):
        train, held = split(texts(arguments.data), arguments.every)
        sizes = {name: len(text.encode()) for name, text in held.items()}
        report = {"trained_on_bytes": sum(len(text.encode()) for text in train), "held_out_bytes": sizes}
        write(arguments.out / "tokenizer_options.json", {**report, "rules": options(train, held, arguments.sizes)})


if __name__ == "__main__":
    main()
