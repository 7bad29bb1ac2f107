"""``train.compile: blocks``: the same numbers, only while training, and a sentence where it cannot be."""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

from sproutlm.config.model import ModelConfig
from sproutlm.model import Transformer
from sproutlm.train import compile as compiling
from sproutlm.train.compile import compile_blocks, wanted
from sproutlm.train.loss import cross_entropy_sum

SHAPE: dict[str, Any] = {"vocab_size": 61, "dim": 32, "n_layers": 2, "n_heads": 2, "n_kv_heads": 1, "max_seq_len": 16}
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler here")


def model_of(**changes: Any) -> Transformer:
    model = Transformer(ModelConfig(**SHAPE | changes))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.1, 0.2, generator=generator)
    return model


def gradients(model: Transformer, masked: bool = False) -> list[Tensor]:
    tokens = torch.randint(61, (3, 16), generator=torch.Generator().manual_seed(2))
    positions = torch.arange(16).repeat(3, 1)  # as a loader gives them: for every row
    documents = (positions > 5).long() if masked else None
    loss = model(tokens, positions, documents, head=partial(cross_entropy_sum, targets=tokens.roll(-1, 1)))
    return [loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))]


def traced(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Let ``torch.compile`` trace as ever and make no code; the graphs that it is given, one after another."""
    torch.compiler.reset()
    graphs: list[Any] = []
    compiled = partial(torch.compile, backend=lambda graph, inputs: graphs.append(graph) or graph.forward)
    monkeypatch.setattr(torch, "compile", compiled)
    return graphs


@pytest.fixture
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.getbasetemp().parent / "compiled"
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(folder))
    torch.compiler.reset()
    return folder


@pytest.mark.slow  # a compiler's half minute
@needs_compiler
def test_loss_and_gradients_are_those_of_the_plain_blocks(cache: Path) -> None:
    _compiled_is_the_same()
    assert cache.is_dir()


def test_every_block_runs_compiled_while_training_and_none_otherwise(cache: Path, monkeypatch: Any) -> None:
    """The wiring alone: what the compiler would make is the function itself."""
    monkeypatch.setattr(torch, "compile", lambda function: function)
    _compiled_is_the_same()


def _compiled_is_the_same() -> None:
    model, said = model_of(), []
    plain = gradients(model)
    with ThreadPoolExecutor(1) as pool:
        assert compile_blocks(model, 3, 16, masked=False, say=said.append, thread=pool)
    assert all(parameter.grad is None for parameter in model.parameters()), "the trial leaves nothing behind"
    calls = []
    real = model.compiled
    assert real is not None
    model.compiled = lambda *args: calls.append(1) or real(*args)
    for one, other in zip(plain, gradients(model), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    assert len(calls) == 2, "both blocks ran compiled"
    with torch.no_grad():
        model(torch.zeros(1, 5, dtype=torch.int64))
    assert len(calls) == 2, "without gradients they run as they are"
    assert "kept in" in said[-1]


def test_what_is_compiled_is_kept_in_our_folder_unless_a_person_names_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Torch names its own, which lies among temporary files, as soon as an optimizer is made: before any block is compiled."""
    monkeypatch.setattr(torch, "compile", lambda function: function)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    own, said = str(tmp_path / "sproutlm" / "compiled"), []
    for before, kept in ((default_cache_dir(), own), (str(tmp_path / "theirs"), str(tmp_path / "theirs"))):
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", before)
        assert compile_blocks(model_of(), 3, 16, masked=False, say=said.append)
        assert f"kept in {kept} " in said[-1] and os.environ["TORCHINDUCTOR_CACHE_DIR"] == kept


@pytest.mark.parametrize(("masked", "window"), [(False, 0), (True, 0), (False, 4), (True, 4)])
def test_what_was_tried_is_what_a_step_asks_for(monkeypatch: pytest.MonkeyPatch, masked: bool, window: int) -> None:
    """A step compiles nothing more: there no failure would be caught, and the first compilation were for nobody."""
    graphs = traced(monkeypatch)
    windows = {"sliding_window": window, "window_pattern": "SF"} if window else {}
    model = model_of(**windows)
    assert compile_blocks(model, 3, 16, masked=masked, say=lambda line: None)
    tried = len(graphs)
    assert tried >= 1
    gradients(model, masked)
    assert len(graphs) == tried


def test_another_stage_of_the_same_process_compiles_for_its_own_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a block of one width Dynamo would take a second one's width for a number that changes: other code, and other
    rounding, than where the same stage is continued by a process of its own."""
    graphs = traced(monkeypatch)
    for dim, rows, seq in ((32, 3, 16), (64, 2, 8)):
        graphs.clear()
        assert compile_blocks(model_of(dim=dim), rows, seq, masked=False, say=lambda line: None)
        shapes = [
            node.meta["example_value"].shape
            for node in graphs[0].graph.nodes
            if node.op == "placeholder" and isinstance(node.meta["example_value"], Tensor)
        ]
        assert (rows, seq, dim) in [tuple(shape) for shape in shapes]
        assert all(type(size) is int for shape in shapes for size in shape)


def test_without_a_compiler_the_run_goes_on_and_says_what_to_install(
    cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", (str(tmp_path / "no-such-compiler"),))
    monkeypatch.setattr("torch._inductor.config.fx_graph_cache", False)
    monkeypatch.setattr("torch._functorch.config.enable_autograd_cache", False)
    model, said = model_of(), []
    plain = gradients(model)
    assert not compile_blocks(model, 3, 16, masked=False, say=said.append)
    assert said == [
        "train.compile: blocks run uncompiled: no C++ compiler was found; install g++ (Debian: apt install g++), or name one "
        "in CXX"
    ]
    assert model.compiled is None
    assert all(torch.equal(a, b) for a, b in zip(plain, gradients(model), strict=True))


def test_a_home_that_takes_no_files_leaves_what_is_compiled_among_temporary_ones(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch, "compile", lambda function: function)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", default_cache_dir())
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    said: list[str] = []
    assert compile_blocks(model_of(), 3, 16, masked=False, say=said.append)
    assert f"kept in {default_cache_dir()} " in said[-1]


def test_a_folder_for_compiled_blocks_that_takes_no_files_ends_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch looks into it before it compiles anything: in ``torch.compile`` itself."""

    def refused(function: Any) -> None:
        raise PermissionError(13, "Permission denied", "/theirs")

    monkeypatch.setattr(torch, "compile", refused)
    said: list[str] = []
    assert not compile_blocks(model_of(), 3, 16, masked=False, say=said.append)
    assert said == ["train.compile: blocks run uncompiled: PermissionError: [Errno 13] Permission denied: '/theirs'"]


def test_with_research_parts_nothing_is_compiled_and_that_is_said() -> None:
    said: list[str] = []
    model = model_of(family="research", research=("smear",))
    assert not compile_blocks(model, 3, 16, masked=False, say=said.append)
    assert said == ["train.compile: blocks that research parts lead into are not compiled"]


def test_nothing_is_compiled_that_selective_checkpointing_would_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function: pytest.fail("nobody would run it"))
    model, said = model_of(), []
    model.checkpointing = "selective"
    assert not compile_blocks(model, 3, 16, masked=False, say=said.append)
    assert said == [
        "train.compile: with train.checkpointing=selective, which looks at each product, blocks run uncompiled"
    ]


def test_any_other_failure_is_one_line_with_its_cause(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> None:
        try:
            raise ValueError("the inner fault\nwith more lines")
        except ValueError as error:
            raise RuntimeError("outer") from error

    monkeypatch.setattr(compiling, "_try", broken)
    said: list[str] = []
    assert not compile_blocks(model_of(), 3, 16, masked=True, say=said.append)
    assert said == ["train.compile: blocks run uncompiled: RuntimeError: outer (ValueError: the inner fault)"]


def test_blocks_of_experts_are_left_as_they_are() -> None:
    said: list[str] = []
    moe = {"n_experts": 2, "top_k": 1, "expert_dim": 16}
    assert not compile_blocks(model_of(family="qwen3_moe", moe=moe), 3, 16, masked=False, say=said.append)
    assert "experts are not compiled" in said[0]


def test_auto_compiles_on_a_gpu_only() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert wanted("blocks", cpu) and wanted("auto", gpu)
    assert not wanted("auto", cpu) and not wanted("none", gpu)
