"""Several processes beside one: the same recipe, the same cores, as tokens a second.

    python benchmarks/ranks.py --json benchmarks/results/ranks.json --page docs/results/ranks.md [--rounds 3] [--steps 12]

One process with a thread for each of two cores (its micro-batches side by side, as `sprout train` chooses) against two processes
of one thread each (gloo): every rank with a copy of the weights (DDP), one copy shared (FSDP2), heads and channels split (tensor
parallel). Each reading is a run of its own, whose first step is not counted; the ways take turns, and the median counts.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

from contest import commit, processor

from sproutlm.cli.arguments import write_json
from sproutlm.config.load import shipped_recipes

WAYS = {
    "one process, two threads": (1, []),
    "two ranks, DDP": (2, []),
    "two ranks, FSDP2": (2, ["parallel.shard=2"]),
    "two ranks, tensor parallel": (2, ["parallel.tp=2"]),
}
MODEL = "{dim: 256, n_layers: 6, n_heads: 4, n_kv_heads: 4, ffn_dim: 768, max_seq_len: 256}"
SETTINGS = [
    f"model={MODEL}", "data.seq_len=256", "train.batch_tokens=4096", "train.compute=float32", "train.device=cpu",
    "train.log_every=1", "train.save_every=1000", "data.validation=null", "sample.prompts=[]", "data.workers=1",
]  # fmt: skip


def reading(work: Path, ranks: int, settings: list[str], steps: int) -> dict[str, float]:
    """Tokens a second, and what one rank held at most (MB), of one run."""
    run = Path(tempfile.mkdtemp(dir=work))
    recipe = [str(shipped_recipes() / "tiny.yaml"), *SETTINGS, *settings, f"train.steps={steps}", f"run={run}"]
    recipe += [f"data.cache={work / 'cache'}", f"tokenizer.path={work / 'first' / 'tokenizer'}"]
    command = [sys.executable, "-m", "sproutlm", "train", *recipe]
    if ranks > 1:
        command[1:2] = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "-m"]
    env = os.environ | {"OMP_NUM_THREADS": str(2 // ranks)}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    last = next(row for row in reversed(rows) if "loss" in row)
    return {"rate": last["tokens_per_second"], "memory": last["memory_mb"], "loss": last["loss"]}


def measure(rounds: int, steps: int) -> dict[str, Any]:
    found: dict[str, list[dict[str, float]]] = {name: [] for name in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        prepare = ["-m", "sproutlm", "data", "prepare", str(shipped_recipes() / "tiny.yaml"), *SETTINGS]
        subprocess.run(
            [sys.executable, *prepare, f"run={work / 'first'}", f"data.cache={work / 'cache'}"],
            check=True, capture_output=True,
        )  # fmt: skip
        for turn in range(rounds):
            for name in list(WAYS) if turn % 2 == 0 else reversed(WAYS):
                ranks, settings = WAYS[name]
                found[name].append(reading(work, ranks, settings, steps))
                print(f"round {turn + 1}: {name}: {found[name][-1]['rate']:,.0f} tokens/s", flush=True)
    return {"ways": found, "model": MODEL, "rounds": rounds, "steps": steps, "date": str(date.today())}


def page(result: dict[str, Any]) -> str:
    rates = {name: statistics.median(one["rate"] for one in rows) for name, rows in result["ways"].items()}
    memory = {name: statistics.median(one["memory"] for one in rows) for name, rows in result["ways"].items()}
    base = rates["one process, two threads"]
    lines = [
        "# Several processes beside one", "",
        f"    {result['command']}", "",
        f"{result['date']}, {result['machine']}, commit {result['commit']}. Written by `benchmarks/ranks.py`: the same recipe on two cores, "
        f"float32, model {result['model']}, 16 rows of 256 tokens a step; the median of {result['rounds']} runs in turn, of "
        f"{result['steps']} steps each, the first not counted. Memory is that of one rank.", "",
        "| | tokens/s | beside one process | memory of a rank |", "| --- | ---: | ---: | ---: |",
        *(f"| {name} | {rate:,.0f} | {rate / base:.2f} | {memory[name]:,.0f} MB |" for name, rate in rates.items()), "",
        "On one machine's cores several processes gain nothing: this measures what exchanging costs. All runs end at the same loss "
        f"({', '.join(sorted({format(one['loss'], '.4f') for rows in result['ways'].values() for one in rows}))}).", "",
    ]  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--page", type=Path)
    asked = parser.parse_args()
    command = f"python benchmarks/ranks.py --rounds {asked.rounds} --steps {asked.steps}"
    result = measure(asked.rounds, asked.steps) | {"command": command, "commit": commit(), "machine": processor()}
    if asked.json:
        write_json(asked.json, result)
    text = page(result)
    print(text)
    if asked.page:
        asked.page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
