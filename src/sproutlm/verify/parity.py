"""A family beside transformers: logits in both directions, in bf16, after files, and losses while both are trained."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from ..config.model import ModelConfig
from ..data.loader import Batch
from ..errors import SproutError
from ..export import load, save
from ..families import for_family
from ..model import Transformer
from ..objectives.next_token import next_token
from .cases import Case
from .measure import Measure, at_most, close, none_of, worst
from .reference import read_by_them, their_classes, their_model
from .tiny import learnable_tokens, random_model, random_tokens

ATOL, RTOL = 1e-5, 1.3e-6
BF16 = 0.05  # length of the difference in lengths of the logits; eight bits, rounded some dozens of times
STEPS, LOSS_ATOL = 50, 1e-4


@contextmanager
def empty_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="sprout-verify-") as name:
        yield Path(name) / "model"


@torch.no_grad()
def read_here(case: Case) -> Measure:
    """A folder that transformers wrote, read here."""
    theirs, tokens = their_model(case), random_tokens(2, 19)
    with empty_folder() as folder:
        theirs.save_pretrained(folder)
        ours, _ = load(folder)
    if ours.config != case.config():
        return none_of([f"config.json was read as {ours.config!r}"])
    expected = theirs(tokens).logits
    if expected.std() < 0.05:
        return none_of(["the reference logits are nearly constant: nothing is compared"])
    return close(ours(tokens), expected, atol=ATOL, rtol=RTOL)


@torch.no_grad()
def written_for_them(case: Case) -> Measure:
    """A folder written here, read by AutoModelForCausalLM: no code of ours, no key missing, unexpected or misshapen."""
    ours, tokens = random_model(case), random_tokens(2, 19)
    with empty_folder() as folder:
        save(ours, None, folder)
        theirs, keys = read_by_them(folder)
    if keys:
        return none_of(f"{kind}: {', '.join(names[:4])}" for kind, names in keys.items())
    if type(theirs) is not their_classes(case.family)[1] or theirs.dtype != torch.float32:
        return none_of([f"read as {type(theirs).__name__} in {theirs.dtype}"])
    return close(theirs(tokens).logits, ours(tokens), atol=ATOL, rtol=RTOL)


def low_precision(case: Case) -> Measure:
    """bf16 on both sides, each against float32: ours may not be further off than twice theirs, nor than ``BF16``.

    The two round in other places: of the shapes here ours is off by up to 1.5 times as much.
    """
    case = case.with_every_expert()
    theirs, tokens = their_model(case), random_tokens(2, 19)
    with empty_folder() as folder:
        theirs.save_pretrained(folder)
        ours, _ = load(folder)
    with torch.no_grad():
        expected = theirs(tokens).logits
        ours, theirs = ours.to(torch.bfloat16), theirs.to(torch.bfloat16)
        there = relative(theirs(tokens).logits, expected)
        generating = relative(ours(tokens), expected)
    training = relative(ours(tokens).detach(), expected)  # short rows are attended in another way under gradients
    return at_most(max(generating, training), min(2 * there, BF16), f"transformers {there:.1e}")


def relative(got: Tensor, expected: Tensor) -> float:
    return ((got.float() - expected).norm() / expected.norm()).item()


@torch.no_grad()
def round_trip(case: Case) -> Measure:
    """Ours saved and loaded, and theirs read and written again: every tensor and every logit bit for bit."""
    faults = []
    ours, tokens = random_model(case), random_tokens(2, 19)
    with empty_folder() as folder:
        save(ours, None, folder)
        again, _ = load(folder)
    before, after = ours.state_dict(), again.state_dict()
    faults += [f"{name} changed" for name in before if not torch.equal(before[name], after[name])]
    faults += ["the config changed"] if again.config != explicit(ours.config) else []
    faults += ["the logits changed"] if not torch.equal(again(tokens), ours(tokens)) else []
    if case.theirs is not None and _reference_is_there():
        with empty_folder() as folder:
            their_model(case).save_pretrained(folder)
            read, _ = load(folder)
            first = load_file(folder / "model.safetensors")
            save(read, None, folder.with_name("again"))
            second = load_file(folder.with_name("again") / "model.safetensors")
        faults += [f"{name} is in one file only" for name in first.keys() ^ second.keys()]
        faults += [f"{n} changed" for n in first.keys() & second.keys() if not torch.equal(first[n], second[n])]
    return none_of(faults)


def explicit(config: ModelConfig) -> ModelConfig:
    """With the original context written out, as a file states it where the kind of scaling depends on it."""
    scaling = config.rope_scaling
    if scaling is None or scaling.kind == "linear" or scaling.original_max_seq_len is not None:
        return config
    return config.model_copy(
        update={"rope_scaling": scaling.model_copy(update={"original_max_seq_len": config.max_seq_len})}
    )


def _reference_is_there() -> bool:
    from .reference import library

    return library() is not None


def training(case: Case) -> Measure:
    """The same batches, the same AdamW, the same start: the losses of ours and theirs stay together, and fall."""
    theirs = their_model(case)
    with empty_folder() as folder:
        theirs.save_pretrained(folder)
        read, _ = load(folder)
    config = read.config
    if config.moe is not None:  # the language model's loss alone: balancing losses are defined differently
        config = config.model_copy(update={"moe": config.moe.model_copy(update={"aux_weight": 0.0})})
    ours = Transformer(config)
    ours.load_state_dict(read.state_dict())
    optimizers = [
        torch.optim.AdamW(
            [p for name, p in model.named_parameters() if not name.endswith(".expert_bias")],  # never AdamW's
            lr=3e-3,
            betas=(0.9, 0.95),
            weight_decay=0.1,
        )
        for model in (ours, theirs)
    ]
    curve: list[tuple[float, float]] = []
    for step in range(STEPS):
        tokens = learnable_tokens(4, 24, seed=step)
        total, count, _ = next_token(ours, batch_of(tokens))
        losses = (total / count, theirs(input_ids=tokens, labels=tokens).loss)
        for loss, optimizer in zip(losses, optimizers, strict=True):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        curve.append((losses[0].item(), losses[1].item()))
    first, last = curve[0][1], curve[-1][1]
    if last > 0.9 * first:
        return none_of([f"nothing was learnt: loss {first:.3f} at first, {last:.3f} after {STEPS} steps"])
    return worst(at_most(abs(a - b), LOSS_ATOL, f"loss {first:.2f} to {last:.2f}") for a, b in curve)


def batch_of(tokens: Tensor) -> Batch:
    """Rows of one document each; nothing follows the last token."""
    rows, seq = tokens.shape
    targets = tokens.roll(-1, 1)
    targets[:, -1] = -100
    return Batch(tokens, targets, torch.arange(seq).expand(rows, seq), None, torch.arange(rows))


def refusals(case: Case) -> Measure:
    """pitfall 32: a tensor missing, extra, of another shape or of a type that cannot be trained is refused by its name."""
    config, family = case.config(), for_family(case.family)
    whole = dict(family.state_to_hf(config, random_model(case).state_dict()))
    names = sorted(whole)
    faults = []
    for name in (names[0], names[len(names) // 2], names[-1]):
        tensor = whole[name]
        spoilt = {
            "missing": {n: t for n, t in whole.items() if n != name},
            "extra": {**whole, f"{name}.more": tensor},
            "misshapen": {**whole, name: torch.zeros(*tensor.shape[:-1], tensor.shape[-1] + 3)},
            "quantised": {**whole, name: tensor.to(torch.int8)},
        }
        for kind, state in spoilt.items():
            try:
                family.state_from_hf(config, state)
            except SproutError as error:
                if not _names_it(str(error), name):
                    faults.append(f"{kind} {name}: refused without its name: {str(error)[:120]}")
            else:
                faults.append(f"{kind} {name}: accepted")
    return none_of(faults)


def _names_it(sentence: str, name: str) -> bool:
    """Under its own name, or the part that a fused or stacked file tensor belongs to."""
    stem = name.removesuffix(".weight").removesuffix(".bias")
    layer = stem.rsplit(".", 1)[0]
    return name in sentence or stem in sentence or layer in sentence
