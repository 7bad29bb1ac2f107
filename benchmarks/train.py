"""Training, whole optimizer steps: tokens per second and peak memory beside transformers' Trainer, litgpt and nanoGPT.

    python benchmarks/train.py --json OUT [--page docs/results/train.md] [--cases 26m,124m] [--rounds 5] [--threads 2]
                               [--litgpt-python PATH]     where litgpt is installed, if not beside SproutLM
    python benchmarks/train.py --only ours --profile      where a step's processor time goes

Every contestant reads the same file of random tokens, in a process of its own, as its users run it. Each peer is first
read in every mode (``train_peers.py``), a process for each, so that its memory is known, too; its fastest mode then takes
turns with ours, in an order that turns round every time. A reading is ``--steps`` whole steps with one line of the log.
Figures are medians; a ratio is the median of the pairs' ratios. ``--clock cpu --threads 1`` is for a busy machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

import torch
from contest import Contestant, Ended, commit, device_name
from train_ours import make_data, prepare_shards
from train_page import page
from train_peers import modes

from sproutlm.config.model import ModelConfig
from sproutlm.config.presets import shape_of
from sproutlm.families import for_family
from sproutlm.pipeline.watching import peak
from sproutlm.plan.flops import flops

# rows and seq of a step, by device; on the CPU so that a step of the slowest contestant stays below ten seconds.
CASES: dict[str, dict[str, Any]] = {
    "26m": {
        "what": "26M, Qwen3's blocks",
        "model": {
            "family": "qwen3", "vocab_size": 6400, "dim": 512, "n_layers": 8, "n_heads": 8, "n_kv_heads": 2,
            "ffn_dim": 1408, "max_seq_len": 512, "tie_embeddings": True,
        },
        "cpu": (8, 512), "cuda": (64, 512),
    },
    "124m": {"what": "124M, GPT-2's blocks", "model": shape_of("gpt2"), "cpu": (8, 512), "cuda": (32, 1024)},
    "64m": {"what": "64M, MiniMind's shape", "model": shape_of("minimind-3"), "cpu": (8, 512), "cuda": (64, 512)},
    "0.6b": {"what": "Qwen3 0.6B", "model": shape_of("qwen3-0.6b"), "cpu": (1, 512), "cuda": (8, 2048)},
    "1.2b": {"what": "1.2B, Qwen3's blocks", "model": shape_of("1.2b"), "cpu": (1, 512), "cuda": (8, 2048)},
    "tiny": {
        "what": "tiny",
        "model": {
            "family": "qwen3", "vocab_size": 512, "dim": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2,
            "ffn_dim": 176, "max_seq_len": 64, "tie_embeddings": True,
        },
        "cpu": (4, 64), "cuda": (4, 64),
    },
}  # fmt: skip
DEFAULT_CASES = {"cpu": "26m,124m", "cuda": "64m,124m,0.6b,1.2b"}
OURS, PEERS = ("ours", "ours-muon"), ("transformers", "litgpt", "nanogpt")
NOT_SAID = ("json", "page", "from_json", "profile", "litgpt_python")
READINGS = 3  # of each mode, beside the first
HERE = Path(__file__).resolve().parent


# --- what is run ------------------------------------------------------------------------------------------------------


def litgpt_shape(config: ModelConfig, seq: int) -> dict[str, Any]:
    """litgpt's names for the shape. It knows no learned positions: GPT-2's blocks get its rotation of a quarter of a head."""
    shape = {
        "block_size": seq, "n_layer": config.n_layers, "n_embd": config.dim, "n_head": config.n_heads,
        "n_query_groups": config.n_kv_heads, "head_size": config.head_dim, "vocab_size": config.vocab_size,
        "padded_vocab_size": config.vocab_size, "intermediate_size": config.ffn_dim, "parallel_residual": False,
    }  # fmt: skip
    if config.family == "gpt2":
        return shape | {"norm_class_name": "LayerNorm", "mlp_class_name": "GptNeoxMLP", "bias": True, "attn_bias": True}
    return shape | {
        "norm_class_name": "RMSNorm", "mlp_class_name": "LLaMAMLP", "bias": False, "rotary_percentage": 1.0,
        "rope_base": int(config.rope_theta), "norm_qk": config.qk_norm,
    }  # fmt: skip


def spec_of(name: str, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """All that a contestant must know, made once; its data are written to ``folder``."""
    case = CASES[name]
    config = ModelConfig.model_validate(case["model"])
    rows, seq = case[args.device]
    rows *= args.scale
    spec = {
        "rows": rows, "seq": seq, "device": args.device, "threads": args.threads, "clock": args.clock, "steps": args.steps,
        "model": case["model"], "train": dict(pair.split("=", 1) for pair in args.train or []), "tied": config.tie_embeddings,
        "transformers": for_family(config.family).config_to_hf(config, dtype="float32"),
        "litgpt": litgpt_shape(config, seq),
        "nanogpt": {"vocab": config.vocab_size, "dim": config.dim, "layers": config.n_layers, "heads": config.n_heads, "positions": seq},
        **make_data(folder, config.vocab_size, seq),
    }  # fmt: skip
    prepare_shards(spec)
    return spec


def start(who: str, mode: str, spec: dict[str, Any], args: argparse.Namespace) -> Contestant:
    """The contestant's process, ready for its first step."""
    name = f"{who}-{mode}".replace("+", "-")
    path = Path(spec["tokens"]).parent / f"{name}.json"
    path.write_text(json.dumps(spec))
    if who in PEERS:
        python = args.litgpt_python if who == "litgpt" else sys.executable
        return Contestant([str(python), str(HERE / "train_peers.py"), who, mode, str(path)])
    return Contestant([sys.executable, str(HERE / "train_ours.py"), who, str(path)])


def pre_reading(who: str, mode: str, spec: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """A peer in one mode, in a process that ends afterwards: warmed up, then the best of a few readings."""
    try:
        one = start(who, mode, spec, args)
        one.ask(str(args.steps))  # the first compiles
        answers = [one.ask(str(args.steps)) for _ in range(READINGS)]
        one.end()
    except Ended as error:
        print(f"  {who:13} {mode:24} {error}", flush=True)
        return {"error": str(error).split("; its line:")[0]}
    tokens = args.steps * spec["rows"] * spec["seq"]
    found = {
        "tokens_per_second": round(tokens / min(answer["seconds"] for answer in answers), 1),
        "peak_bytes": answers[-1]["peak_bytes"],
    }
    print(
        f"  {who:13} {mode:24} {found['tokens_per_second']:9.0f} tok/s {found['peak_bytes'] / 1e9:6.2f} GB", flush=True
    )
    return found


def rate_of(reading: dict[str, Any]) -> float:
    return reading.get("tokens_per_second", 0.0)


def try_modes(who: str, spec: dict[str, Any], args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Pre-readings of a peer by mode; ``transformers`` is tried with its other attention in its fastest mode as well."""
    tried = args.modes.split(",") if args.modes else modes(args.device)
    found = {mode: pre_reading(who, mode, spec, args) for mode in tried}
    best = max(found, key=lambda mode: rate_of(found[mode]))
    if who == "transformers" and rate_of(found[best]):
        found[f"{best}+eager"] = pre_reading(who, f"{best}+eager", spec, args)
    return found


def installed(who: str, args: argparse.Namespace) -> bool:
    """Whether a peer's library can be imported in the Python it is to run in."""
    if who == "nanogpt":
        return True
    python = args.litgpt_python if who == "litgpt" else sys.executable
    modules = {"litgpt": "litgpt.model", "transformers": "transformers, accelerate"}[who]
    return subprocess.run([str(python), "-c", f"import {modules}"], capture_output=True).returncode == 0


def compare(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """One case: pre-readings, the turns, and what follows from them."""
    with tempfile.TemporaryDirectory(prefix="sprout-bench-") as folder:
        spec = spec_of(name, Path(folder), args)
        print(f"{CASES[name]['what']}: {spec['rows']} x {spec['seq']} tokens a step", flush=True)
        readings: dict[str, Any] = {}
        skipped: dict[str, str] = {}
        best = {who: "" for who in OURS if who in args.only}
        for who in (who for who in PEERS if who in args.only):
            if not installed(who, args):
                skipped[who] = "not installed: skipped"
                print(f"  {who}: {skipped[who]}", flush=True)
                continue
            readings[who] = try_modes(who, spec, args)
            mode = max(readings[who], key=lambda mode: rate_of(readings[who][mode]))
            if rate_of(readings[who][mode]):
                best[who] = mode
            else:
                skipped[who] = "no mode of it ran"
        row = take_turns(name, spec, best, args)
    return row | {"pre_readings": readings, "skipped": skipped}


def take_turns(name: str, spec: dict[str, Any], best: dict[str, str], args: argparse.Namespace) -> dict[str, Any]:
    """``--rounds`` readings of everyone in ``best`` (name -> mode), and of the products alone where ours is among them."""
    running: dict[str, Contestant] = {}
    found: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {}
    order = [*best, *(["products"] if "ours" in best else [])]
    for turn in range(args.rounds):
        for who in order if turn % 2 == 0 else order[::-1]:
            if who not in running:
                if who == "products":
                    spec = spec | {"products": found["ours"][0]["compute"]}
                running[who] = start(who, best.get(who, ""), spec, args)
                running[who].ask(str(args.steps))  # compiles, fills caches and the allocator
                running[who].ask(str(args.steps))
            found.setdefault(who, (running[who].about, []))[1].append(running[who].ask(str(args.steps)))
            if args.apart:
                running.pop(who).end()
    for one in running.values():
        one.end()
    return row_of(name, spec, best, found, args)


# --- what is reported -------------------------------------------------------------------------------------------------


def row_of(
    name: str,
    spec: dict[str, Any],
    best: dict[str, str],
    found: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]],
    args: argparse.Namespace,
) -> dict[str, Any]:
    """Figures of a case, from what each contestant said of itself and answered."""
    tokens = args.steps * spec["rows"] * spec["seq"]
    seconds = {who: [answer["seconds"] for answer in answers] for who, (_, answers) in found.items()}
    row: dict[str, Any] = {
        "case": name, "what": CASES[name]["what"], "rows": spec["rows"], "seq": spec["seq"], "steps": args.steps,
        "contestants": {
            who: found[who][0] | {
                "mode": mode or found[who][0]["compute"],
                "tokens_per_second": round(tokens / statistics.median(seconds[who]), 1),
                "peak_bytes": max(answer["peak_bytes"] for answer in found[who][1]),
                "seconds": [round(value, 4) for value in seconds[who]],
            }
            for who, mode in best.items()
        },
    }  # fmt: skip
    figures = row["contestants"]
    if "ours" not in figures:
        return row
    row["ratio"] = {
        who: round(statistics.median(t / o for o, t in zip(seconds["ours"], seconds[who], strict=True)), 3)
        for who in figures
        if who != "ours"
    }
    peers = [who for who in figures if who in PEERS]
    if peers:
        row["fastest_peer"] = min(peers, key=row["ratio"].__getitem__)
        row["ratio_to_fastest_peer"] = row["ratio"][row["fastest_peer"]]
    if "transformers" in figures:
        theirs = figures["transformers"]["peak_bytes"]
        row["memory_ratio_to_transformers"] = round(figures["ours"]["peak_bytes"] / theirs, 3)
    return row | arithmetic(spec, figures["ours"], found["products"], statistics.median(seconds["products"]))


def arithmetic(spec: dict[str, Any], ours: dict[str, Any], products: Any, seconds: float) -> dict[str, Any]:
    """The model's operations that ours makes in a second, beside those of its products alone and of the device."""
    config = ModelConfig.model_validate(spec["model"])
    done = flops(config, spec["seq"]).training * ours["tokens_per_second"]
    rate = products[0]["operations"] / seconds
    stated = peak(torch.device("cuda"), torch.bfloat16) if spec["device"] == "cuda" else None
    return {
        "model_flops_per_second": done, "products_flops_per_second": rate, "products_type": ours["compute"],
        "share_of_products": round(done / rate, 3), "mfu": round(done / stated, 3) if stated else None,
    }  # fmt: skip


def told(row: dict[str, Any]) -> None:
    """The case's outcome, printed."""
    for who, one in row["contestants"].items():
        ratio = f"{row['ratio'][who]:5.2f}x" if who in row.get("ratio", {}) else ""
        print(
            f"{row['what']:24} {who:13} {one['mode']:24} {one['tokens_per_second']:9.0f} tok/s "
            f"{one['peak_bytes'] / 1e9:6.2f} GB {ratio}",
            flush=True,
        )
    if "share_of_products" in row:
        print(
            f"  ours: {row['model_flops_per_second'] / 1e9:.0f} GFLOP/s of the model, {row['share_of_products']:.0%} of the "
            f"{row['products_flops_per_second'] / 1e9:.0f} of its products alone in {row['products_type']}",
            flush=True,
        )


def profile(name: str, args: argparse.Namespace) -> None:
    """Print the table of one step of ours."""
    with tempfile.TemporaryDirectory(prefix="sprout-bench-") as folder:
        path = Path(folder) / "spec.json"
        path.write_text(json.dumps(spec_of(name, Path(folder), args) | {"profile": True}))
        who = next(who for who in OURS if who in args.only)
        subprocess.run([sys.executable, str(HERE / "train_ours.py"), who, str(path)], check=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", help=", ".join(name for name in CASES if name != "tiny"))
    parser.add_argument("--only", default=",".join(OURS + PEERS), help="contestants")
    parser.add_argument("--modes", help="tried of each peer; default: all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1, help="optimizer steps in a reading")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: processor seconds")
    parser.add_argument("--scale", type=int, default=1, help="times the rows")
    parser.add_argument(
        "--apart", action="store_true", help="one process at a time, new for each reading; always on CUDA"
    )
    parser.add_argument(
        "--train", nargs="+", metavar="KEY=VALUE", help="keys of our recipe's train section, for experiments"
    )
    parser.add_argument("--litgpt-python", type=Path, default=Path(sys.executable), help="the Python that has litgpt")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--page", type=Path, help="write the results page from the --json file as well")
    parser.add_argument("--from-json", action="store_true", help="only write the page, from readings made before")
    parser.add_argument("--profile", action="store_true", help="a table of one step of ours, by operator")
    args = parser.parse_args()
    args.cases = args.cases or DEFAULT_CASES[args.device]
    args.apart = args.apart or args.device == "cuda"  # all of them together would not fit a card
    known = {"cases": list(CASES), "only": [*OURS, *PEERS]}
    for option, names in known.items():
        wrong = [name for name in getattr(args, option).split(",") if name not in names]
        if wrong:
            parser.error(f"--{option}: {wrong[0]!r} is none; expected some of {', '.join(names)}")
    if args.from_json and not (args.page and args.json):
        parser.error("--from-json: name the figures with --json and the page with --page")
    if args.page and not args.json:
        parser.error("--page: it is written from the figures; name their file with --json")
    if args.profile and not set(args.only.split(",")) & set(OURS):
        parser.error("--profile: it is of ours; add --only ours or --only ours-muon")
    return args


def main() -> None:
    args = arguments()
    if args.from_json:
        args.page.write_text(page(json.loads(args.json.read_text()), args.json))
        return
    said = {key: value for key, value in vars(args).items() if key not in NOT_SAID and value not in (None, False)}
    args.only = args.only.split(",")
    if args.profile:
        for name in args.cases.split(","):
            profile(name, args)
        return
    rows = []
    for name in args.cases.split(","):
        rows.append(compare(name, args))
        told(rows[-1])
        if args.json:  # after each case: the next one may end badly
            write(rows, said, args)
    if args.page:
        args.page.write_text(page(json.loads(args.json.read_text()), args.json))


def shown(option: str, value: Any) -> str:
    """An option as it is typed."""
    if value is True:
        return f"--{option}"
    return f"--{option} {' '.join(value) if isinstance(value, list) else value}"


def write(rows: list[dict[str, Any]], said: dict[str, Any], args: argparse.Namespace) -> None:
    """The cases so far, and how they were measured, into ``--json``."""
    contestants = [one for row in rows for one in row["contestants"].values()]
    about = {
        "command": "python benchmarks/train.py " + " ".join(shown(k, v) for k, v in said.items()),
        "commit": commit(), "date": str(date.today()), "device": device_name(args.device), "threads": args.threads,
        "clock": args.clock, "rounds": args.rounds, "apart": args.apart,
        "versions": {name: version for one in contestants for name, version in one["versions"].items()},
        "rows": rows,
    }  # fmt: skip
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(about, indent=2) + "\n")


if __name__ == "__main__":
    main()
