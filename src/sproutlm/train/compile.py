"""The model's blocks through ``torch.compile`` while it trains: what lies between the products becomes one pass each.

One block is compiled, and all blocks of its kind use it. Evaluation and generation, whose shapes change from call to call,
go on without. What has been compiled is kept on disk, so that the next run on this machine begins in seconds.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..model import Transformer
from ..model.products import mkl_is_slow

Say = Callable[[str], None]
CACHE = "TORCHINDUCTOR_CACHE_DIR"
MOST_KINDS = (
    64  # of one block; torch's own limit of 8, beyond which it leaves blocks uncompiled, is too low for short rows
)


def wanted(choice: str, device: torch.device) -> bool:
    """``auto``: on a GPU. On a CPU the products are most of a step, and a gain of a tenth costs a minute at the start."""
    return choice == "blocks" or (choice == "auto" and device.type == "cuda")


def compile_blocks(
    model: Transformer, rows: int, seq: int, *, masked: bool, say: Say, thread: Executor | None = None
) -> bool:
    """Let ``model`` compute its dense blocks compiled from now on; whether it does.

    The blocks are tried forwards and backwards at the run's own shape, (rows, seq), with a document mask where
    ``masked``; whatever fails there is said in one line, and the run goes on without. ``thread``: where micro-batches
    are computed, if not here: what is compiled holds for threads that compute with as many cores.
    """
    if model.config.moe is not None and len(model.config.moe.dense_layers) < model.config.n_layers:
        say("train.compile: blocks with experts are not compiled (their shapes follow the routing)")
    if model.research is not None:
        say("train.compile: blocks that research parts lead into are not compiled")
    if not any(model.may_be_compiled(block) for block in model.layers):
        return False
    if model.checkpointing == "selective":
        say("train.compile: with train.checkpointing=selective, which looks at each product, blocks run uncompiled")
        return False
    began = time.perf_counter()
    try:
        _keep_what_is_compiled()
        mkl_is_slow()  # asked of the processor before, not while a block is being traced
        torch.compiler.reset()  # what a stage before this one compiled: shapes that differ from its would count as changing
        # A block for rows that are all as long; for others; of one row; each with a mask and without, and by a window of its own.
        torch._dynamo.config.recompile_limit = MOST_KINDS
        model.compiled = torch.compile(_run)
        if thread is None:
            _try(model, rows, seq, masked)
        else:
            thread.submit(_try, model, rows, seq, masked).result()
    except Exception as error:  # of Dynamo, the code generator, the compiler or the loader: a run needs none of them
        model.compiled = None
        say(f"train.compile: blocks run uncompiled: {_reason(error)}")
        return False
    finally:
        for parameter in model.parameters():
            parameter.grad = None
    say(f"compiled one block in {time.perf_counter() - began:.0f} s (kept in {os.environ.get(CACHE)} for the next run)")
    return True


def _run(block: Any, x: Tensor, *inputs: Any) -> Any:
    return block(x, *inputs)


def _try(model: Transformer, rows: int, seq: int, masked: bool) -> None:
    """Forwards and backwards as a training step goes, by the same way: what is compiled here is what the step asks for."""
    device = next(model.parameters()).device
    tokens = torch.zeros(rows, seq, dtype=torch.int64, device=device)
    positions = torch.arange(seq, device=device).repeat(rows, 1)
    hidden = model(tokens, positions, tokens if masked else None, head=lambda hidden, weight: hidden)
    hidden.float().sum().backward()


def _keep_what_is_compiled() -> None:
    """Name our folder, unless a person named one. Torch puts its own, in the folder for temporary files, into the environment
    as soon as an optimizer is made: that is nobody's choice, and gone after the next start of the machine."""
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir  # takes a second to import

    if os.environ.get(CACHE) not in (None, "", default_cache_dir()):
        return
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sproutlm" / "compiled"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # a home that takes no files, or none at all: among temporary files, then
        return
    if os.access(folder, os.W_OK):
        os.environ[CACHE] = str(folder)


def _reason(error: BaseException) -> str:
    """What failed and its innermost cause in one line; a missing compiler by name, with the cure."""
    causes = [error]
    while (inner := causes[-1].__cause__ or causes[-1].__context__) is not None and inner not in causes:
        causes.append(inner)
    names = {type(cause).__name__ for cause in causes}
    words = " ".join(str(cause) for cause in causes)
    if "InvalidCxxCompiler" in names or "No working C++ compiler" in words:
        return "no C++ compiler was found; install g++ (Debian: apt install g++), or name one in CXX"
    if "TritonMissing" in names or "triton" in words.lower():
        return "Triton, which makes code for GPUs, is missing or does not work; pip install triton"
    first, last = _first_line(causes[0]), _first_line(causes[-1])
    return first if first == last else f"{first} ({last})"


def _first_line(error: BaseException) -> str:
    lines = (line.strip() for line in str(error).splitlines())
    return f"{type(error).__name__}: {next(filter(None, lines), '')[:200]}"
