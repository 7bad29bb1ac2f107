"""Reading a checkpoint: time and peak memory, beside transformers' ``from_pretrained``, in turns within one run.

    python benchmarks/import.py [--size 100m|500m|1.2b] [--rounds 3] --out benchmarks/results

A random checkpoint of a Llama shape is written in bf16 shards to a temporary folder. Each reading is a process of its own:
memory is the highest resident set while reading, less what it was before (the libraries themselves), as a share of the
weights; "seconds" ends when the model is there, "in use" is the time until every weight has been read once, because a reader may hand out a view of the file and
leave the reading for later; "cpu" is the processor's time for both. The files are in the page cache in all readings; medians
are given, and ratios are medians over the rounds, whose order alternates. ``import`` is ``sprout import hf``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

SIZES = {
    "100m": {"vocab_size": 32_000, "dim": 768, "n_layers": 12, "n_heads": 12, "n_kv_heads": 4, "ffn_dim": 2048},
    "500m": {"vocab_size": 64_000, "dim": 1280, "n_layers": 22, "n_heads": 20, "n_kv_heads": 4, "ffn_dim": 3456},
    "1.2b": {"vocab_size": 128_256, "dim": 2048, "n_layers": 16, "n_heads": 32, "n_kv_heads": 8, "ffn_dim": 8192},
}
READINGS = ("ours bf16", "transformers bf16", "ours float32", "transformers float32")
IMPORTS = ("import as it is", "import to float16")


def write_checkpoint(size: str, folder: Path) -> int:
    """A random checkpoint, tensor by tensor; returns its parameters."""
    import torch

    from sproutlm.config.model import ModelConfig
    from sproutlm.export.huggingface import write_json
    from sproutlm.export.weights import write_weights
    from sproutlm.families import expected_shapes, for_family
    from sproutlm.families.lazy import Lazy

    config = ModelConfig(family="llama", max_seq_len=2048, tie_embeddings=True, **SIZES[size])  # type: ignore[arg-type]
    shapes = expected_shapes(config)
    header = {name: torch.empty(shape, dtype=torch.bfloat16, device="meta") for name, shape in shapes.items()}
    makers = {
        name: lambda shape=shape: (torch.randn(shape) * 0.02).to(torch.bfloat16)  # type: ignore[misc]
        for name, shape in shapes.items()
    }
    family = for_family("llama")
    write_json(folder / "config.json", family.config_to_hf(config, dtype="bfloat16"))
    write_weights(folder, family.state_to_hf(config, Lazy(makers, header)), "bfloat16", shard_bytes=1_000_000_000)
    return sum(tensor.numel() for tensor in header.values())


def parameters_of(folder: Path) -> int:
    from sproutlm.export.weights import SafetensorsFolder

    return sum(tensor.numel() for tensor in SafetensorsFolder(folder).header().values())


def resident(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


def one(what: str, folder: Path) -> dict[str, float]:
    """One reading, in this process."""
    import torch

    dtype = torch.float32 if what.endswith("float32") else torch.bfloat16
    if what.startswith("transformers"):
        from transformers import AutoModelForCausalLM, LlamaForCausalLM  # noqa: F401

        AutoModelForCausalLM.from_config  # noqa: B018
    else:
        from sproutlm.export import import_folder, load
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
    before, begin, worked = resident("VmRSS"), time.perf_counter(), time.process_time()
    if what.startswith("import"):
        with tempfile.TemporaryDirectory(dir=folder.parent) as out:
            import_folder(folder, Path(out) / "m", dtype="float16" if "float16" in what else None)
            seconds, cpu = time.perf_counter() - begin, time.process_time() - worked
            return {"seconds": seconds, "cpu_seconds": cpu, "peak_bytes": resident("VmHWM") - before}
    if what.startswith("ours"):
        model: Any = load(folder, dtype)[0]
    else:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    loaded = time.perf_counter() - begin
    with torch.no_grad():
        total = sum(float(parameter.view(-1)[::16].float().sum()) for parameter in model.parameters())
    assert total == total
    used, cpu = time.perf_counter() - begin, time.process_time() - worked
    peak = resident("VmHWM") - before
    return {"seconds": loaded, "in_use_seconds": used, "cpu_seconds": cpu, "peak_bytes": peak}


def text_of(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent)
    return done.stdout.strip()


def measure(what: str, folder: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "--one", what, "--folder", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    if done.returncode:
        raise SystemExit(f"{what}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="100m")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--temporary", type=Path, help="folder for the checkpoint (2.5 GB, and as much again, at 1.2b)")
    parser.add_argument("--no-import", action="store_true", help="only the readings; `sprout import hf` is left out")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help="a checkpoint of that size that is there already")
    args = parser.parse_args()
    from sproutlm.train.checkpoint import file_sha256

    if args.one:
        print(json.dumps(one(args.one, args.folder)))
        return
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(dir=args.temporary) as temporary:
        folder = args.folder or Path(temporary) / "checkpoint"
        folder.mkdir(exist_ok=True)
        parameters = parameters_of(folder) if args.folder else write_checkpoint(args.size, folder)
        results: dict[str, list[dict[str, float]]] = {what: [] for what in READINGS + IMPORTS * (not args.no_import)}
        for path in folder.glob("*.safetensors"):  # into the page cache, from where all of them read
            file_sha256(path)
        for round_ in range(args.rounds):
            for what in reversed(results) if round_ % 2 else results:
                results[what].append(measure(what, folder))
                print(round_ + 1, what, results[what][-1], file=sys.stderr, flush=True)
    report: dict[str, Any] = {
        "command": f"python benchmarks/import.py --size {args.size} --rounds {args.rounds}"
        + " --no-import" * args.no_import,
        "commit": text_of("git", "rev-parse", "--short", "HEAD"),
        "date": time.strftime("%Y-%m-%d"),
        "packages": {name: version(name) for name in ("torch", "transformers", "safetensors")},
        "load_average_before": load_before,
        "load_average_after": os.getloadavg()[0],
        "size": args.size,
        "parameters": parameters,
        "rounds": args.rounds,
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "threads": os.environ.get("OMP_NUM_THREADS", "default"),
        "readings": {},
    }
    for what, rounds in results.items():
        weights = parameters * (4 if what.endswith("float32") else 2)
        middle = {key: statistics.median(r[key] for r in rounds) for key in rounds[0]}
        report["readings"][what] = middle | {"peak_share_of_weights": middle["peak_bytes"] / weights}
    for dtype in ("bf16", "float32"):
        for key in ("seconds", "in_use_seconds", "cpu_seconds"):
            pairs = zip(results[f"ours {dtype}"], results[f"transformers {dtype}"], strict=True)
            ratios = [theirs[key] / ours[key] for ours, theirs in pairs]
            name = key.removesuffix("_seconds")
            report[f"times_faster_{name}_{dtype}"] = statistics.median(ratios)
            report[f"times_faster_{name}_{dtype}_rounds"] = ratios
    print(json.dumps(report, indent=2))
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / f"import_{args.size}.json").write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
