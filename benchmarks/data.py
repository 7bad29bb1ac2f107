"""From rows to batches: how fast, and on how much memory, beside the libraries that people use for the same.

    python benchmarks/data.py --data ../shared/data --out benchmarks/results/data.json [--mb 200] [--rounds 3] [--part all]

prepare: tokenise and shard real sets (repeated to --mb of input), texts and texts with instruction rows, beside
``tokenizers.encode_batch`` alone on the same cores: texts already in memory, nothing read, framed, masked or written.
mixed: of prepare, the texts with instruction rows only (chats.py measures conversations on one thread).
map: the texts beside ``datasets.map(batched=True, num_proc=2)`` with the same tokenizer, from the same file to arrow.
batch: ``batch(step)`` at 2k context beside a training step of the poems recipe's model. packing: a million documents.
Sides take turns within one run; ratios are medians of pairs. Memory is the highest sum of resident sizes over a process and
its children, seen every 50 ms (pages that processes share count in each).
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil

TEXTS = ("pretrain/tang_poems_zh.jsonl.gz", "pretrain/c4_en.jsonl")
INSTRUCTIONS = ("sft/alpaca_zh.jsonl.gz", "sft/alpaca_en.jsonl.gz")
VOCABULARY = 6400
SEQ_LEN = 2048


def rows(file: Path) -> Iterator[str]:
    with (gzip.open if file.suffix == ".gz" else open)(file, "rt", encoding="utf-8") as lines:
        yield from lines


def text_rows(data: Path) -> list[str]:
    """Texts as JSON lines: poems and web text as they come, the book and the encyclopedia by paragraphs."""
    lines = [line for name in TEXTS for line in rows(data / name)]
    for name in ("pretrain/wiki_en.txt", "pretrain/shakespeare_en.txt"):
        text = (data / name).read_text(encoding="utf-8")
        lines += [json.dumps({"text": part}) + "\n" for part in text.split("\n\n") if part.strip()]
    return lines


def repeat(lines: list[str], megabytes: float, file: Path) -> int:
    """Write ``lines`` over and over until the file has that size; the bytes written."""
    size = 0
    with open(file, "w", encoding="utf-8") as out:
        while size < megabytes * 1e6:
            for line in lines:
                out.write(line)
                size += len(line.encode())
                if size >= megabytes * 1e6:
                    break
    return size


# --- one side a process: memory and start-up are its own ----------------------------------------------------------------


def cpu_seconds() -> float:
    """Of this process and the children that have ended: what other programs on the machine disturb less than the clock."""
    return sum(os.times()[:4])


def spent(begin: float, used: float) -> dict[str, float]:
    return {"seconds": time.perf_counter() - begin, "cpu_seconds": cpu_seconds() - used}


def side_prepare(files: list[str], tokenizer_dir: str, workers: int) -> dict[str, Any]:
    from sproutlm.config.schema import SourceConfig
    from sproutlm.data.prepare import prepare
    from sproutlm.tokenizer import ChatTemplate, Tokenizer

    tokenizer = Tokenizer.load(tokenizer_dir)
    template = ChatTemplate.of(tokenizer)
    sources = [SourceConfig(path=file) for file in files]
    with tempfile.TemporaryDirectory() as folder:
        begin, used = time.perf_counter(), cpu_seconds()
        dataset = prepare(
            sources, tokenizer, template, Path(folder) / "shards", seq_len=SEQ_LEN, on_bad_row="skip", workers=workers,
            say=lambda _: None,
        )  # fmt: skip
        return {**spent(begin, used), "tokens": dataset.n_tokens, "documents": dataset.n_documents}


def side_encode_batch(files: list[str], tokenizer_dir: str, workers: int) -> dict[str, Any]:
    """The texts that training reads (conversations as rendered), in memory, a thousand at a time to spare memory."""
    import tokenizers

    backend = tokenizers.Tokenizer.from_file(str(Path(tokenizer_dir) / "tokenizer.json"))
    texts = list(rendered_texts(files, tokenizer_dir))
    tokens = 0
    begin, used = time.perf_counter(), cpu_seconds()
    for at in range(0, len(texts), 1000):
        tokens += sum(len(e.ids) for e in backend.encode_batch(texts[at : at + 1000], add_special_tokens=False))
    return {**spent(begin, used), "tokens": tokens, "documents": len(texts)}


def rendered_texts(files: list[str], tokenizer_dir: str) -> Iterator[str]:
    """As ChatML would have them; written here directly, as rendering is not what is measured."""
    for file in files:
        for line in rows(Path(file)):
            row = json.loads(line)
            if "text" in row:
                yield row["text"]
            else:
                asked = "\n".join(part for part in (row["instruction"], row.get("input")) if part)
                yield f"<|im_start|>user\n{asked}<|im_end|>\n<|im_start|>assistant\n{row['output']}<|im_end|>\n"


def side_map(files: list[str], tokenizer_dir: str, workers: int) -> dict[str, Any]:
    import datasets
    from transformers import PreTrainedTokenizerFast

    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    datasets.disable_progress_bars()
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(Path(tokenizer_dir) / "tokenizer.json"))
    with tempfile.TemporaryDirectory() as folder:
        begin, used = time.perf_counter(), cpu_seconds()
        loaded = datasets.load_dataset("json", data_files=files, split="train", cache_dir=folder)
        mapped = loaded.map(_tokenise, batched=True, num_proc=2, remove_columns=loaded.column_names,
                            fn_kwargs={"tokenizer": tokenizer})  # fmt: skip
        return {**spent(begin, used), "documents": len(mapped), "tokens": None}


def _tokenise(rows: dict[str, list[str]], tokenizer: Any) -> dict[str, Any]:
    return {"input_ids": tokenizer(rows["text"], add_special_tokens=False)["input_ids"]}


SIDES: dict[str, Callable[..., dict[str, Any]]] = {
    "sproutlm": side_prepare,
    "encode_batch": side_encode_batch,
    "datasets.map": side_map,
}


def run_side(name: str, files: list[Path], tokenizer_dir: Path, workers: int) -> dict[str, Any]:
    """A side in a process of its own, watched."""
    command = [sys.executable, __file__, "--side", name, "--tokenizer", str(tokenizer_dir), "--workers", str(workers)]
    process = subprocess.Popen([*command, *map(str, files)], stdout=subprocess.PIPE, text=True)
    peak = [0]
    watching = threading.Thread(target=_watch, args=(process.pid, peak), daemon=True)
    watching.start()
    out, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"{name} ended with code {process.returncode}")
    return {**json.loads(out.strip().splitlines()[-1]), "peak_mb": round(peak[0] / 1e6)}


def _watch(pid: int, peak: list[int]) -> None:
    while True:
        try:
            root = psutil.Process(pid)
            total = 0
            for process in [root, *root.children(recursive=True)]:
                try:
                    total += process.memory_info().rss
                except psutil.NoSuchProcess:
                    pass
        except psutil.NoSuchProcess:
            return
        peak[0] = max(peak[0], total)
        time.sleep(0.05)


def compare(names: list[str], files: list[Path], tokenizer_dir: Path, rounds: int, workers: int) -> dict[str, Any]:
    """Sides in turns; medians, and how many times as fast the first is."""
    seen: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for number in range(rounds):
        for name in names if number % 2 == 0 else reversed(names):
            seen[name].append(run_side(name, files, tokenizer_dir, workers))
            one = seen[name][-1]
            print(
                f"  {name}: {one['seconds']:.1f} s, {one['cpu_seconds']:.1f} s of CPU, peak {one['peak_mb']} MB",
                flush=True,
            )
    report: dict[str, Any] = {"bytes": sum(file.stat().st_size for file in files)}
    for name, found in seen.items():
        seconds = [round(one["seconds"], 2) for one in found]
        report[name] = {
            "seconds": seconds,
            "median": statistics.median(seconds),
            "cpu_seconds": [round(one["cpu_seconds"], 2) for one in found],
            "mb_per_s": round(report["bytes"] / 1e6 / statistics.median(seconds), 2),
            "peak_mb": max(one["peak_mb"] for one in found),
            "tokens": found[0]["tokens"],
            "documents": found[0]["documents"],
        }
    for name in names[1:]:
        for key, clock in (("", "seconds"), ("_by_cpu", "cpu_seconds")):
            pairs = zip(seen[names[0]], seen[name], strict=True)
            ratio = statistics.median(theirs[clock] / mine[clock] for mine, theirs in pairs)
            report[f"times_as_fast_as_{name}{key}"] = round(ratio, 3)
    return report


# --- batches ------------------------------------------------------------------------------------------------------------


def batches(files: list[Path], tokenizer_dir: Path, steps: int) -> dict[str, Any]:
    """``batch(step)`` at 2k context, and a forward and backward pass of the poems recipe's shape over the same batch."""
    import torch

    from sproutlm.config.load import load_recipe
    from sproutlm.config.schema import SourceConfig
    from sproutlm.data.loader import Loader
    from sproutlm.data.prepare import prepare
    from sproutlm.model import Transformer
    from sproutlm.objectives.next_token import next_token
    from sproutlm.tokenizer import ChatTemplate, Tokenizer

    recipe = Path(__file__).parents[1] / "recipes" / "poems-zh.yaml"
    shape = load_recipe(recipe, [f"data.train={files[0]}"]).recipe.model  # type: ignore[union-attr]
    tokenizer = Tokenizer.load(tokenizer_dir)
    sources = [SourceConfig(path=str(file)) for file in files]
    with tempfile.TemporaryDirectory() as folder:
        dataset = prepare(
            sources, tokenizer, ChatTemplate.of(tokenizer), Path(folder) / "d", seq_len=SEQ_LEN, on_bad_row="skip",
            say=lambda _: None,
        )  # fmt: skip
        loader = Loader(dataset, seq_len=SEQ_LEN, rows_per_step=4, seed=1, pad_id=tokenizer.pad_id)
        loader.batch(0)
        times = [_timed(lambda step=step: loader.batch(step)) for step in range(1, 1 + 50)]  # type: ignore[misc]
        model = Transformer(shape.model_copy(update={"vocab_size": tokenizer.vocab_size, "max_seq_len": SEQ_LEN}))
        model.init_weights(seed=1)

        def step(number: int) -> None:
            loss, count, _ = next_token(model, loader.batch(number))
            (loss / count).backward()
            model.zero_grad()

        step(0)
        steps_taken = [_timed(lambda number=number: step(number)) for number in range(1, 1 + steps)]  # type: ignore[misc]
    tokens = 4 * SEQ_LEN
    given, consumed = tokens / statistics.median(times), tokens / statistics.median(steps_taken)
    return {
        "context": SEQ_LEN,
        "rows": 4,
        "parameters": sum(p.numel() for p in model.parameters()),
        "threads": torch.get_num_threads(),
        "batch_ms": round(1e3 * statistics.median(times), 3),
        "step_ms": round(1e3 * statistics.median(steps_taken), 1),
        "batch_tokens_per_s": round(given),
        "model_tokens_per_s": round(consumed),
        "times_what_the_model_consumes": round(given / consumed, 1),
    }


def _timed(call: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def packing() -> dict[str, Any]:
    """A million documents with lengths as texts have them (log-normal, median 300 tokens)."""
    from sproutlm.data.packing import pack, packing_statistics

    lengths = np.random.default_rng(1).lognormal(5.7, 1.0, 1_000_000).astype(np.int64) + 2
    report: dict[str, Any] = {"documents": len(lengths), "tokens": int(lengths.sum()), "capacity": SEQ_LEN}
    for mode in ("best_fit", "stream"):
        begin = time.perf_counter()
        packed = pack(lengths, SEQ_LEN, mode)
        useful = packing_statistics(lengths, packed, SEQ_LEN)["useful_after"]
        report[mode] = {"seconds": round(time.perf_counter() - begin, 2), "useful": round(useful, 5)}
    return report


# --- all of it ----------------------------------------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    import datasets
    import tokenizers

    cpu = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "")
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    return {
        "command": " ".join(["python", *sys.argv]),
        "commit": commit,
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "load_at_start": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "tokenizers": tokenizers.__version__,
        "datasets": datasets.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/data.json"))
    parser.add_argument("--mb", type=float, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=0, help="Tokenising processes; 0 = all cores.")
    parser.add_argument("--part", choices=("prepare", "mixed", "map", "batch", "packing", "all"), default="all")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--tokenizer", help=argparse.SUPPRESS)
    parser.add_argument("files", nargs="*", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(SIDES[arguments.side](arguments.files, arguments.tokenizer, arguments.workers)))
        return
    report = measure(arguments)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(arguments.out)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    from sproutlm.tokenizer import train_tokenizer

    def asked(part: str) -> bool:
        return arguments.part in (part, "all")

    report: dict[str, Any] = {}
    if arguments.out.is_file():
        report = json.loads(arguments.out.read_text(encoding="utf-8"))
    for part in ("prepare", "mixed", "map", "batch", "packing"):
        if asked(part):
            report.setdefault("runs", {})[part] = machine()
    with tempfile.TemporaryDirectory(prefix="sprout-bench-") as folder:
        texts, mixed, tokenizer_dir = (Path(folder) / name for name in ("texts.jsonl", "rows.jsonl", "tokenizer"))
        plain = text_rows(arguments.data)
        instructions = [line for name in INSTRUCTIONS for line in rows(arguments.data / name)]
        sample = [json.loads(line) for line in (*plain[::9], *instructions[::9])]
        tokenizer = train_tokenizer(
            ("\n".join(v for v in row.values() if isinstance(v, str)) for row in sample),
            VOCABULARY,
            max_bytes=8_000_000,
        )
        tokenizer.save(tokenizer_dir)
        if asked("prepare"):
            repeat(plain, arguments.mb, texts)
            print(f"texts, {arguments.mb:g} MB", flush=True)
            found = compare(["sproutlm", "encode_batch"], [texts], tokenizer_dir, arguments.rounds, arguments.workers)
            report["prepare_texts"] = found
        if asked("prepare") or asked("mixed"):
            # As the real sets come: about three quarters of the characters stand in instruction rows.
            share = sum(map(len, plain)) / (sum(map(len, plain)) + sum(map(len, instructions)))
            repeat(plain, arguments.mb * share, texts)
            repeat(instructions, arguments.mb * (1 - share), mixed)
            print(f"texts and instruction rows, {arguments.mb:g} MB", flush=True)
            files = [texts, mixed]
            report["prepare_texts_and_instructions"] = {
                "share_of_texts": round(share, 3),
                **compare(["sproutlm", "encode_batch"], files, tokenizer_dir, arguments.rounds, arguments.workers),
            }
        if asked("map"):
            repeat(plain, arguments.mb, texts)
            print("datasets.map", flush=True)
            report["map"] = compare(["sproutlm", "datasets.map"], [texts], tokenizer_dir, arguments.rounds, 2)
        if asked("batch"):
            repeat(plain, 10, texts)
            report["batch"] = batches([texts], tokenizer_dir, 5)
            print(report["batch"], flush=True)
    if asked("packing"):
        report["packing"] = packing()
        print(report["packing"], flush=True)
    return report


if __name__ == "__main__":
    main()
