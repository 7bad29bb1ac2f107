"""One of the processes of ``sprout verify dist``: goes through every form beside its fellows; rank 0 has the reference.

python -m sproutlm.verify.ranks_worker [FORM ...]        with torchrun's variables in the environment
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable, Mapping
from functools import cache

import torch
import torch.distributed as dist
from torch import Tensor

from ..config.parallel import ParallelConfig
from ..distributed import Ranks
from .measure import Measure, at_most, none_of
from .ranks_cases import FORMS, MODELS, STEPS, Form, Run, run_of, validation_loss

LIMIT = 1e-6  # float32: of gradients, relative to the norm of all, of that norm, and of the validation loss
EXACT = 1e-9  # float64: of each gradient, relative to its own largest entry
# float64: of weights after these steps. Biases of keys, whose gradient is nothing but rounding, move by what AdamW makes of it.
AFTER = 2e-8
AFTER_STEPS = {"adamw": STEPS, "muon": 5}
ZERO = 1e-12  # of the norm of all gradients: below it stands what is nothing but rounding, such as biases of keys


@cache
def reference(model: str, optimizer: str, dtype: torch.dtype, steps: int) -> Run:
    """One process, ``steps`` steps, all rows of a step at once."""
    run = run_of(MODELS[model], optimizer, 7, dtype)
    for _ in range(steps):
        run.step()
    return run


def checks_of(form: Form, ranks: Ranks) -> list[tuple[str, Measure]]:
    """Every promise of one form, beside one process; measured on all ranks, reported by rank 0."""
    asked, config = ParallelConfig(**form.parallel), MODELS[form.model]
    found: list[tuple[str, Measure]] = []
    for micro_rows, words in ((7, "one micro-batch"), (1, "accumulated")):
        run = run_of(config, "adamw", micro_rows, torch.float32, ranks, asked)
        before = validation_loss(run)
        run.step()
        alone = reference(form.model, "adamw", torch.float32, 1)
        got = run.whole(run.gradients)
        found.append((f"every gradient, {words}", largest(got, alone.gradients, LIMIT, of_all=True)))
        found.append((f"gradient norm, {words}", at_most(abs(run.norm / alone.norm - 1), LIMIT)))
        if form.model == "experts":
            found.append((f"gradients of experts, ratio to one process, {words}", ratio(got, alone.gradients)))
    rows = sorted({row for each in ranks.gathered(run.row_ids) for row in each})
    found.append(("the same rows in the step", none_of([] if rows == sorted(alone.row_ids) else [f"{rows}"])))
    expected = validation_loss(run_of(config, "adamw", 7, torch.float32))
    found.append(("validation loss", at_most(abs(before / expected - 1), LIMIT)))
    for optimizer, steps in AFTER_STEPS.items():
        run = run_of(config, optimizer, 2, torch.float64, ranks, asked)
        run.step()
        first = reference(form.model, optimizer, torch.float64, 1)
        if optimizer == "adamw":
            exact = largest(run.whole(run.gradients), first.gradients, EXACT)
            found.append(("every gradient, float64, a partial tail", exact))
        for _ in range(steps - 1):
            run.step()
        alone = reference(form.model, optimizer, torch.float64, steps)
        weights = largest(run.whole(run.trainer.weights.masters), alone.trainer.weights.masters, AFTER)
        found.append((f"weights after {steps} steps, {optimizer}, float64", weights))
    return found


@torch.no_grad()
def largest(got: Mapping[str, Tensor], expected: Mapping[str, Tensor], limit: float, of_all: bool = False) -> Measure:
    """The largest difference of any tensor, relative to that tensor's largest entry, or to the norm ``of_all``."""
    if got.keys() != expected.keys():
        return none_of(sorted(got.keys() ^ expected.keys()))
    norm = float(torch.stack([value.norm() for value in expected.values()]).norm())
    shares = {}
    for name, value in expected.items():
        scale = norm if of_all else max(float(value.abs().max()), norm * ZERO / limit)
        share = float((got[name] - value).abs().max()) / scale
        shares[name] = share if share == share else float("inf")
    worst = max(shares, key=lambda name: shares[name])
    return at_most(shares[worst], limit, "" if shares[worst] <= limit else worst)


def ratio(got: dict[str, Tensor], expected: dict[str, Tensor]) -> Measure:
    """How far the norms of experts' gradients are from those of one process: 1 where they are counted twice."""
    names = [name for name in expected if ".experts." in name]
    return at_most(max(abs(float(got[n].norm() / expected[n].norm()) - 1) for n in names), 1e-4)


def through(forms: list[Form], say: Callable[[Form, str, Measure], None]) -> None:
    torch.set_num_threads(1)
    world: Ranks | None = None
    for form in forms:
        asked = ParallelConfig(**form.parallel, timeout=240)
        world = Ranks.join(asked, torch.device("cpu")) if world is None else world.arranged(asked)
        for promise, measure in checks_of(form, world):
            say(form, promise, measure)
    if world is not None:
        world.close()


def main(arguments: list[str]) -> int:

    def say(form: Form, promise: str, measure: Measure) -> None:
        if dist.get_rank() == 0:
            print(json.dumps({"form": form.name, "promise": promise, "measure": vars(measure)}), flush=True)

    try:
        through([form for form in FORMS if not arguments or form.name in arguments], say)
    except Exception:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
