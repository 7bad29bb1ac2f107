"""The model alone: tokens per second forward, and forward + backward, beside transformers' on the same weights.

    python benchmarks/model.py [--cases gpt2,llama,qwen3,moe] [--rounds 5] [--threads 2] [--device cpu|cuda] --json OUT

Both models hold the same random weights in the same type and read the same tokens, each in a process of its own, as its
users run it: ours keeps freed memory (``train/allocator.py``), as ``sprout train`` does. Forward gives logits for every
token without gradients; forward + backward goes from the tokens to the gradient of every weight: ours through its loss,
transformers' through its own (``labels=``). transformers is tried with both of its attention back-ends (sdpa, eager), of
a mixture of experts with each of its ways to multiply, and the fastest is taken, in each row for itself. The processes
take turns, in an order that turns round every time; figures are medians, and the ratio is the median of the pairs'
ratios. ``difference`` is the largest one between the two's logits, beside the largest logit.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import torch
from contest import Contestant, channel, commit, device_name, peak_bytes
from torch import Tensor

from sproutlm.config.model import ModelConfig
from sproutlm.families import for_family
from sproutlm.model import Transformer
from sproutlm.train.allocator import keep_freed_memory
from sproutlm.train.loss import cross_entropy_sum

CASES: dict[str, dict[str, Any]] = {
    "gpt2": {"what": "GPT-2 124M", "config": {"preset": "gpt2"}, "vocab_size": 50257, "rows": 4, "seq": 256},
    "llama": {"what": "Llama 26M", "config": {"preset": "llama-26m"}, "vocab_size": 6400, "rows": 8, "seq": 512},
    "qwen3": {"what": "Qwen3 0.6B", "config": {"preset": "qwen3-0.6b"}, "vocab_size": 151936, "rows": 1, "seq": 512},
    "moe": {
        "what": "Qwen3-MoE, 16 experts of which 2",
        "config": {
            "family": "qwen3_moe", "dim": 512, "n_layers": 8, "n_heads": 8, "n_kv_heads": 2, "max_seq_len": 512,
            "moe": {"n_experts": 16, "top_k": 2, "expert_dim": 704},
        },
        "vocab_size": 6400, "rows": 8, "seq": 512,
    },
}  # fmt: skip
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}
NOT_SAID = ("json", "page", "from_json", "serve")
MODES = ("forward", "forward+backward")


def pair(case: dict[str, Any], dtype: torch.dtype, device: str) -> tuple[Transformer, Any]:
    """Ours and transformers' model with the same weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = ModelConfig.model_validate({**case["config"], "vocab_size": case["vocab_size"]})
    ours = Transformer(config).init_weights(0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in ours.named_parameters():  # the zero-initialised ones too: an idle block proves nothing
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.normal_(0, 0.02, generator=generator)
    ours = ours.to(device=device, dtype=dtype)
    family = for_family(config.family)
    hf = family.config_to_hf(config, dtype=str(dtype).removeprefix("torch."))
    theirs_config = AutoConfig.for_model(**hf)
    theirs = AutoModelForCausalLM.from_config(theirs_config, dtype=dtype).to(device)
    state = dict(family.state_to_hf(config, dict(ours.state_dict())))
    missing, unexpected = theirs.load_state_dict(in_their_shape(state, theirs.state_dict()), strict=False)
    theirs.tie_weights()
    if [name for name in missing if "lm_head" not in name] or unexpected:
        raise SystemExit(f"the two models differ: missing {missing}, unexpected {unexpected}")
    return ours.eval(), theirs.eval()  # eval: no dropout in either; gradients flow all the same


def in_their_shape(stored: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as a checkpoint names them -> as the running module names them (transformers 5 stacks experts)."""
    if set(stored) <= set(wanted):
        return stored
    state = {name: tensor for name, tensor in stored.items() if ".experts." not in name}
    for name in wanted:
        if ".experts." not in name:
            continue
        prefix, kind = name.rsplit(".", 1)
        count = len({key.removeprefix(prefix + ".").split(".")[0] for key in stored if key.startswith(prefix + ".")})

        def stack(part: str, prefix: str = prefix, count: int = count) -> Tensor:
            return torch.stack([stored[f"{prefix}.{e}.{part}.weight"] for e in range(count)])

        joined = kind == "gate_up_proj"
        state[name] = torch.cat((stack("gate_proj"), stack("up_proj")), dim=1) if joined else stack(kind)
    return state


def our_step(model: Transformer, tokens: Tensor, targets: Tensor, backward: bool) -> float:
    if not backward:
        with torch.no_grad():
            return float(model(tokens)[0, 0, 0])
    loss = model(tokens, head=partial(cross_entropy_sum, targets=targets)) / targets.numel()
    loss.backward()
    model.zero_grad(set_to_none=True)
    return float(loss.detach())


def their_step(model: Any, tokens: Tensor, backward: bool) -> float:
    if not backward:
        with torch.no_grad():
            return float(model(tokens, use_cache=False).logits[0, 0, 0])
    loss = model(tokens, labels=tokens, use_cache=False).loss
    loss.backward()
    model.zero_grad(set_to_none=True)
    return float(loss.detach())


def variants(theirs: Any, moe: bool) -> dict[str, Callable[[], None]]:
    """Their ways to compute the same: name, and what switches it on. ``batched_mm`` is left out: it copies the expert
    weights once per token, 12 GB here."""
    if moe and hasattr(theirs, "set_experts_implementation"):
        theirs.set_attn_implementation("sdpa")
        return {way: partial(theirs.set_experts_implementation, way) for way in ("eager", "grouped_mm")}
    return {way: partial(theirs.set_attn_implementation, way) for way in ("sdpa", "eager")}


def serve(who: str, name: str, args: argparse.Namespace) -> None:
    """A process that holds one of the two models and does what each line of its input asks for."""
    out = channel()
    torch.set_num_threads(args.threads)
    if who == "ours":
        keep_freed_memory()
    case, kind = CASES[name], DTYPES[args.dtypes]
    ours, theirs = pair(case, kind, args.device)
    rows, seq = case["rows"] * args.scale, case["seq"]
    tokens = torch.randint(case["vocab_size"], (rows, seq), generator=torch.Generator().manual_seed(2)).to(args.device)
    targets = torch.cat((tokens[:, 1:], torch.full_like(tokens[:, :1], -100)), dim=1)
    with torch.no_grad():
        first, second = ours(tokens[:1, :64]).float(), theirs(tokens[:1, :64]).logits.float()
    ways = {} if who == "ours" else variants(theirs, name == "moe")
    about = {
        "parameters": sum(p.numel() for p in ours.parameters()), "ways": list(ways),
        "difference": float((first - second).abs().max()), "largest_logit": float(second.abs().max()),
    }  # fmt: skip
    if who == "ours":
        theirs = None
    else:
        ours = None
    print(json.dumps(about), file=out)
    clock = time.process_time if args.clock == "cpu" else time.perf_counter
    for line in sys.stdin:
        mode, _, way = line.strip().partition(" ")
        backward = mode == "forward+backward"
        try:
            if way:
                ways[way]()
            begin = clock()
            our_step(ours, tokens, targets, backward) if who == "ours" else their_step(theirs, tokens, backward)
            if args.device == "cuda":
                torch.cuda.synchronize()
            seconds = clock() - begin
            print(json.dumps({"seconds": seconds, "peak_bytes": peak_bytes(args.device)}), file=out)
        except (RuntimeError, ValueError, NotImplementedError) as error:
            print(json.dumps({"error": str(error).splitlines()[0][:200]}), file=out)


def contestant(who: str, name: str, dtype: str, args: argparse.Namespace) -> Contestant:
    """The other end of ``serve``."""
    settings = ["--dtypes", dtype, "--threads", args.threads, "--device", args.device]
    settings += ["--clock", args.clock, "--scale", args.scale]
    return Contestant([sys.executable, __file__, "--serve", who, "--cases", name, *map(str, settings)])


def compare(name: str, dtype: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    case = CASES[name]
    ours, theirs = contestant("ours", name, dtype, args), contestant("theirs", name, dtype, args)
    tokens, found = case["rows"] * args.scale * case["seq"], []
    for mode in MODES:
        first: dict[str, float] = {}
        for way in theirs.about["ways"]:  # the fastest of their ways is the reference, found in two readings each
            answers = [theirs.ask(f"{mode} {way}") for _ in range(3)][1:]
            if "error" in answers[0]:
                print(f"  transformers {way}: {answers[0]['error']}", flush=True)
                continue
            first[way] = min(answer["seconds"] for answer in answers)
        best = min(first, key=first.__getitem__)
        theirs.ask(f"{mode} {best}")
        ours.ask(mode), ours.ask(mode)
        times: dict[str, list[float]] = {"ours": [], "theirs": []}
        for turn in range(args.rounds):
            order = [("ours", ours), ("theirs", theirs)]
            for who, one in order if turn % 2 == 0 else order[::-1]:
                answer = one.ask(mode)
                times[who].append(answer["seconds"])
        row = {
            "case": case["what"], "dtype": dtype, "mode": mode, "rows": case["rows"] * args.scale, "seq": case["seq"],
            "parameters": ours.about["parameters"],
            "ours_tokens_per_second": round(tokens / statistics.median(times["ours"]), 1),
            "transformers_tokens_per_second": round(tokens / statistics.median(times["theirs"]), 1),
            "transformers_way": best,
            "ratio": round(statistics.median(t / o for o, t in zip(times["ours"], times["theirs"], strict=True)), 3),
            "ours_peak_bytes": ours.ask(mode)["peak_bytes"], "transformers_peak_bytes": theirs.ask(mode)["peak_bytes"],
            "difference": ours.about["difference"], "largest_logit": ours.about["largest_logit"],
        }  # fmt: skip
        found.append(row)
        print(
            f"{row['case']:34} {dtype:8} {mode:17} ours {row['ours_tokens_per_second']:8.0f} tok/s   transformers "
            f"({best}) {row['transformers_tokens_per_second']:8.0f}   {row['ratio']:.2f}x   "
            f"logits {row['difference']:.1e} of {row['largest_logit']:.1f}",
            flush=True,
        )
    ours.end(), theirs.end()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default="gpt2,llama,qwen3,moe")
    parser.add_argument("--dtypes", default="float32,bf16")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--clock",
        choices=("wall", "cpu"),
        default="wall",
        help="cpu: processor seconds, with --threads 1 on a busy machine",
    )
    parser.add_argument("--scale", type=int, default=1, help="times the rows; a GPU wants more of them")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--page", type=Path, help="write the results page from the --json file as well")
    parser.add_argument("--from-json", action="store_true", help="only write the page, from readings made before")
    parser.add_argument("--serve", choices=("ours", "theirs"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args.serve, args.cases, args)
        return
    if args.from_json:
        args.page.write_text(page(json.loads(args.json.read_text()), args.json))
        return
    import transformers

    rows = [
        row for case in args.cases.split(",") for dtype in args.dtypes.split(",") for row in compare(case, dtype, args)
    ]
    if args.json:
        about = {
            "command": "python benchmarks/model.py " + " ".join(f"--{k} {v}" for k, v in vars(args).items() if k not in NOT_SAID),
            "commit": commit(), "date": str(date.today()), "device": device_name(args.device), "threads": args.threads,
            "torch": torch.__version__, "transformers": transformers.__version__, "rows": rows,
        }  # fmt: skip
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(about, indent=2) + "\n")
    if args.page:
        args.page.write_text(page(json.loads(args.json.read_text()), args.json))


def page(about: dict[str, Any], source: Path) -> str:
    """The results as a page."""
    lines = [
        "# The model alone, beside transformers",
        "",
        f"    {about['command']}",
        "",
        f"This page is written by `python benchmarks/model.py --from-json --json {source.as_posix()} --page FILE`. {about['date']}, "
        f"{about['device']}, {about['threads']} threads, torch {about['torch']}, transformers {about['transformers']}, "
        f"commit {about['commit']}.",
        "",
        "Same weights, same tokens, each library in a process of its own as its users run it, in turns; the way of "
        "transformers that was the fastest in that row stands beside its rate. Ratio: median of the pairs' ratios. "
        "Peak memory is the process's, its libraries included. What makes the difference: `docs/experiments.md`.",
        "",
        "| model | type | what | tokens | ours, tok/s | transformers, tok/s | ratio | peak, ours / theirs, GB |",
        "| --- | --- | --- | ---: | ---: | --- | ---: | --- |",
    ]
    for row in about["rows"]:
        lines.append(
            f"| {row['case']} | {row['dtype']} | {row['mode']} | {row['rows']} x {row['seq']} | "
            f"{row['ours_tokens_per_second']:,.0f} | {row['transformers_tokens_per_second']:,.0f} ({row['transformers_way']}) | "
            f"**{row['ratio']:.2f}** | {row['ours_peak_bytes'] / 1e9:.2f} / {row['transformers_peak_bytes'] / 1e9:.2f} |"
        )
    worst = {dtype: max(r["difference"] for r in about["rows"] if r["dtype"] == dtype and "MoE" not in r["case"])
             for dtype in sorted({r["dtype"] for r in about["rows"]})}  # fmt: skip
    told = ", ".join(f"{value:.1g} in {dtype}" for dtype, value in worst.items())
    lines += [
        "",
        f"Largest difference between the two's logits, of the dense models: {told}, at logits up to "
        f"{max(r['largest_logit'] for r in about['rows']):.1f}. (In bf16 a rounding can send a token of a mixture to another "
        "expert, in either library: its logits differ by more.)",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
