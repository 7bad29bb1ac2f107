"""The model alone: tokens per second forward, and forward + backward, beside transformers' on the same weights.

    python benchmarks/model.py [--cases gpt2,llama,qwen3,moe] [--rounds 5] [--threads 2] [--device cpu|cuda] --json OUT

Both models hold the same random weights in the same type and read the same tokens. Forward gives logits for every token
without gradients; forward + backward goes from the tokens to the gradient of every weight: ours through its loss,
transformers' through its own (``labels=``). transformers is tried with both of its attention back-ends (sdpa, eager) and
the faster is taken, in each row for itself. Readings take turns, in an order that turns round every time; figures are
medians, and the ratio is the median of the pairs' ratios. ``difference`` is the largest one between the two's logits.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sproutlm.config.model import ModelConfig
from sproutlm.families import for_family
from sproutlm.model import Transformer
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


def seconds(step: Callable[[], float], args: argparse.Namespace) -> float:
    clock = time.process_time if args.clock == "cpu" else time.perf_counter
    begin = clock()
    step()
    if args.device == "cuda":
        torch.cuda.synchronize()
    return clock() - begin


def variants(theirs: Any, moe: bool) -> list[tuple[str, Callable[[], None]]]:
    """Their ways to compute the same: name, and what switches it on."""
    ways = [("sdpa", partial(theirs.set_attn_implementation, "sdpa"))]
    ways.append(("eager", partial(theirs.set_attn_implementation, "eager")))
    if moe and hasattr(theirs, "set_experts_implementation"):
        theirs.set_attn_implementation("sdpa")
        return [(way, partial(theirs.set_experts_implementation, way)) for way in ("eager", "batched_mm", "grouped_mm")]
    return ways


def compare(name: str, dtype: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    case, kind = CASES[name], DTYPES[dtype]
    rows, seq = case["rows"] * args.scale, case["seq"]
    ours, theirs = pair(case, kind, args.device)
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randint(case["vocab_size"], (rows, seq), generator=generator).to(args.device)
    targets = torch.cat((tokens[:, 1:], torch.full_like(tokens[:, :1], -100)), dim=1)
    with torch.no_grad():
        difference = float((ours(tokens[:1, :64]) - theirs(tokens[:1, :64]).logits).abs().max())
    ways = variants(theirs, name == "moe")
    found = []
    for mode in MODES:
        backward = mode == "forward+backward"
        mine = partial(our_step, ours, tokens, targets, backward)
        other = partial(their_step, theirs, tokens, backward)
        first: dict[str, float] = {}
        for way, switch in ways:  # the faster of two readings decides which of their ways is the reference
            try:
                switch()
                seconds(other, args)
                first[way] = min(seconds(other, args) for _ in range(2))
            except (RuntimeError, ValueError, NotImplementedError) as error:
                print(f"  transformers {way}: {str(error).splitlines()[0][:100]}", flush=True)
        best = min(first, key=first.__getitem__)
        dict(ways)[best]()
        seconds(mine, args), seconds(other, args)
        times: dict[str, list[float]] = {"ours": [], "theirs": []}
        for turn in range(args.rounds):
            order = [("ours", mine), ("theirs", other)]
            for who, step in order if turn % 2 == 0 else order[::-1]:
                times[who].append(seconds(step, args))
        row = {
            "case": case["what"], "dtype": dtype, "mode": mode, "rows": rows, "seq": seq,
            "parameters": sum(p.numel() for p in ours.parameters()),
            "ours_tokens_per_second": rows * seq / statistics.median(times["ours"]),
            "transformers_tokens_per_second": rows * seq / statistics.median(times["theirs"]),
            "transformers_way": best,
            "ratio": statistics.median(t / o for o, t in zip(times["ours"], times["theirs"], strict=True)),
            "difference": difference,
        }  # fmt: skip
        found.append(row)
        print(
            f"{row['case']:34} {dtype:8} {mode:17} ours {row['ours_tokens_per_second']:8.0f} tok/s   transformers "
            f"({best}) {row['transformers_tokens_per_second']:8.0f}   {row['ratio']:.2f}x   logits {difference:.1e}",
            flush=True,
        )
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
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    import transformers

    transformers.logging.set_verbosity_error()
    rows = [
        row for case in args.cases.split(",") for dtype in args.dtypes.split(",") for row in compare(case, dtype, args)
    ]
    if args.json:
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
        device = torch.cuda.get_device_name() if args.device == "cuda" else processor()
        about = {
            "command": "python benchmarks/model.py " + " ".join(f"--{k} {v}" for k, v in vars(args).items() if k != "json"),
            "commit": commit, "date": str(date.today()), "device": device, "threads": args.threads,
            "torch": torch.__version__, "transformers": transformers.__version__, "rows": rows,
        }  # fmt: skip
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(about, indent=2) + "\n")


def processor() -> str:
    """The CPU by the name it gives itself."""
    cpuinfo = Path("/proc/cpuinfo")
    names = (
        [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        if (cpuinfo.exists())
        else []
    )
    return f"{names[0] if names else platform.processor()}, {len(names)} cores"


if __name__ == "__main__":
    main()
