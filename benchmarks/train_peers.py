"""The peers of ``benchmarks/train.py``, each a whole training loop in a process of its own.

    python benchmarks/train_peers.py PEER MODE SPEC     (benchmarks/train.py starts it and takes turns with it)

PEER: ``transformers`` (its Trainer), ``litgpt`` (its model under a plain loop) or ``nanogpt``. MODE: a type of ``TYPES``,
then ``+compile`` and, of transformers, ``+eager`` (its attention without the fused kernel). SPEC: the JSON file that
``train.py`` writes. A step is: rows from the token file, forward, loss, backward, gradients clipped at 1, AdamW, schedule.
Nothing of SproutLM is imported, so that a peer may live in a Python of its own.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contest import Turns, channel
from torch import Tensor, nn
from torch.nn import functional as F

# float32: everything. autocast: float32 weights, products in bf16. bf16: weights and optimizer state in bf16 as well, with
# no float32 copy anywhere.
TYPES = ("float32", "autocast", "bf16")
STEPS, WARMUP, RATE, DECAY, BETAS, CLIP = 1_000_000, 40, 3e-4, 0.1, (0.9, 0.95), 1.0


def modes(device: str) -> list[str]:
    """What is tried of each peer."""
    types = TYPES[1:] if device == "cuda" else TYPES
    return [kind + ending for kind in types for ending in ("", "+compile")]


def token_file(spec: dict[str, Any]) -> np.ndarray:
    return np.memmap(spec["tokens"], dtype=spec["token_type"], mode="r")


# --- transformers -----------------------------------------------------------------------------------------------------


class Rows(torch.utils.data.Dataset):
    """The token file as rows of a fixed length, as ``Trainer`` takes them."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.tokens, self.seq = token_file(spec), spec["seq"]

    def __len__(self) -> int:
        return len(self.tokens) // self.seq

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        row = torch.from_numpy(self.tokens[index * self.seq : (index + 1) * self.seq].astype(np.int64))
        return {"input_ids": row, "labels": row}


def transformers_trainer(kind: str, extras: set[str], spec: dict[str, Any], turns: Turns) -> None:
    """``transformers.Trainer``; a callback holds it before each step."""
    import accelerate
    import transformers
    from transformers import AutoConfig, AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

    class Turn(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            turns.step_begins()

    config = AutoConfig.for_model(**spec["transformers"])
    config.use_cache = False
    model = AutoModelForCausalLM.from_config(
        config,
        dtype=torch.bfloat16 if kind == "bf16" else torch.float32,
        attn_implementation="eager" if "eager" in extras else "sdpa",
    )
    arguments = TrainingArguments(
        output_dir=str(Path(spec["tokens"]).parent / "transformers"),
        per_device_train_batch_size=spec["rows"],
        max_steps=STEPS,
        learning_rate=RATE,
        weight_decay=DECAY,
        adam_beta1=BETAS[0],
        adam_beta2=BETAS[1],
        max_grad_norm=CLIP,
        lr_scheduler_type="cosine",
        warmup_steps=WARMUP,
        optim="adamw_torch_fused",
        bf16=kind == "autocast",
        torch_compile="compile" in extras,
        use_cpu=spec["device"] == "cpu",
        dataloader_pin_memory=spec["device"] == "cuda",
        logging_steps=spec["steps"],
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    versions = {"transformers": transformers.__version__, "accelerate": accelerate.__version__}
    turns.introduce(lambda: about(model, versions))
    Trainer(model=model, args=arguments, train_dataset=Rows(spec), callbacks=[Turn()]).train()


# --- plain loops ------------------------------------------------------------------------------------------------------


def litgpt_model(spec: dict[str, Any]) -> tuple[nn.Module, dict[str, str]]:
    """litgpt's model with the head tied as its own ``tie_embeddings`` does."""
    from importlib.metadata import version

    from litgpt.config import Config
    from litgpt.model import GPT

    model = GPT(Config(**spec["litgpt"]))
    model.apply(model._init_weights)
    if spec["tied"]:
        model.transformer.wte.weight = model.lm_head.weight
    return model, {"litgpt": version("litgpt")}


def nanogpt_model(spec: dict[str, Any]) -> tuple[nn.Module, dict[str, str]]:
    from nanogpt import GPT2

    return GPT2(**spec["nanogpt"]), {}


def batches(spec: dict[str, Any]) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows from random places of the token file, and the same shifted by one: (rows, seq) each."""
    tokens, rows, seq = token_file(spec), spec["rows"], spec["seq"]
    generator = torch.Generator().manual_seed(2)
    while True:
        starts = torch.randint(len(tokens) - seq - 1, (rows,), generator=generator).tolist()
        whole = torch.stack([torch.from_numpy(tokens[i : i + seq + 1].astype(np.int64)) for i in starts])
        x, y = whole[:, :-1].contiguous(), whole[:, 1:].contiguous()
        if spec["device"] == "cuda":
            x, y = (part.pin_memory().to("cuda", non_blocking=True) for part in (x, y))
        yield x, y


def decayed(model: nn.Module) -> list[dict[str, Any]]:
    """AdamW's groups: matrices decay, vectors do not."""
    parameters = list(model.parameters())
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": DECAY},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]


def rate(step: int) -> float:
    """Share of the peak rate: linear warm-up, then a cosine to a tenth."""
    if step < WARMUP:
        return (step + 1) / WARMUP
    return 0.1 + 0.45 * (1 + math.cos(math.pi * step / STEPS))


def plain_loop(
    build: Callable[[dict[str, Any]], tuple[nn.Module, dict[str, str]]],
    kind: str,
    extras: set[str],
    spec: dict[str, Any],
    turns: Turns,
) -> None:
    """nanoGPT's loop. Compiled, the loss is part of what is compiled, as in nanoGPT's model."""
    model, versions = build(spec)
    model = model.to(spec["device"], torch.bfloat16 if kind == "bf16" else torch.float32).train()
    optimizer = torch.optim.AdamW(decayed(model), lr=RATE, betas=BETAS, fused=True)

    def loss_of(tokens: Tensor, targets: Tensor) -> Tensor:
        logits = model(tokens)
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.view(-1))

    compute = torch.compile(loss_of) if "compile" in extras else loss_of
    turns.introduce(lambda: about(model, versions))
    for step, (tokens, targets) in enumerate(batches(spec)):
        turns.step_begins()
        for group in optimizer.param_groups:
            group["lr"] = RATE * rate(step)
        with autocast(kind, spec["device"]):
            loss = compute(tokens, targets)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % spec["steps"] == 0:
            print(f"step {step}: loss {loss.item():.4f}", file=sys.stderr)


def autocast(kind: str, device: str) -> AbstractContextManager[Any]:
    return torch.autocast(device, torch.bfloat16) if kind == "autocast" else nullcontext()


def about(model: nn.Module, versions: dict[str, str]) -> dict[str, Any]:
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "versions": {"torch": torch.__version__, **versions},
    }


def main() -> None:
    peer, mode, path = sys.argv[1:]
    spec = json.loads(Path(path).read_text())
    torch.set_num_threads(spec["threads"])
    torch.manual_seed(1)
    if spec["device"] == "cuda":
        torch.set_float32_matmul_precision("high")  # as nanoGPT does
    turns = Turns(channel(), spec["clock"], spec["device"])
    kind, *extras = mode.split("+")
    if peer == "transformers":
        transformers_trainer(kind, set(extras), spec, turns)
    else:
        plain_loop({"litgpt": litgpt_model, "nanogpt": nanogpt_model}[peer], kind, set(extras), spec, turns)


if __name__ == "__main__":
    main()
