"""Which rank holds what: sizes, places and parts, without any process group; and the files that several ranks wrote."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sproutlm.config.parallel import ParallelConfig
from sproutlm.distributed import Piece, Ranks
from sproutlm.distributed.dims import AXES, DATA, ParallelDims
from sproutlm.errors import CheckpointError, SproutError
from sproutlm.train.checkpoint import file_sha256
from sproutlm.train.tensor_file import write_tensors
from sproutlm.train.tensor_parts import offsets_header, part_name, read_tensors

WAYS = [
    ({"dp": 4}, 4),
    ({"dp": 4, "shard": 4}, 4),
    ({"dp": 8, "shard": 4, "ep": 2}, 8),
    ({"dp": 2, "shard": 0, "tp": 2, "cp": 2}, 8),
    ({"tp": 2}, 6),
    ({"dp": 6, "ep": 3}, 6),
]


def ranks_of(asked: dict[str, int], world: int) -> list[Ranks]:
    dims = ParallelDims.of(ParallelConfig(**asked), world)
    return [Ranks(rank, dims) for rank in range(world)]


@pytest.mark.parametrize(("asked", "world"), WAYS)
def test_every_rank_has_a_place_of_its_own(asked: dict[str, int], world: int) -> None:
    everyone = ranks_of(asked, world)
    places = [tuple(ranks.index((axis,)) for axis in AXES) for ranks in everyone]
    sizes = [getattr(everyone[0].dims, axis) for axis in AXES]
    assert places == list(itertools.product(*(range(size) for size in sizes)))
    assert [ranks.index(AXES) for ranks in everyone] == list(range(world))
    assert {ranks.data_rank for ranks in everyone} == set(range(everyone[0].dims.size(DATA)))


@pytest.mark.parametrize(
    ("asked", "world", "sentence"),
    [
        ({"dp": 3}, 4, "dp=3 * cp=1 * tp=1 does not fit 4 processes; start 3 processes"),
        ({"tp": 3}, 4, "dp=all * cp=1 * tp=3 does not fit 4 processes; start a multiple of 3 processes"),
        ({"dp": 2}, 1, "does not fit 1 process; start 2 processes"),
        ({"shard": 3}, 4, "parallel.shard=3 does not divide the 4 ranks"),
        ({"ep": 3}, 4, "parallel.ep=3 does not divide the 4 ranks"),
        ({"shard": 2, "ep": 4}, 4, "parallel.ep=4 does not divide the 2 ranks"),
    ],
)
def test_impossible_products_are_refused(asked: dict[str, int], world: int, sentence: str) -> None:
    with pytest.raises(SproutError) as error:
        ParallelDims.of(ParallelConfig(**asked), world)
    assert sentence in str(error.value)


PIECES = [
    Piece((7, 5), ((("outer",), 0),)),
    Piece((8, 6), ((("tp",), 0), (("outer", "inner"), 0))),
    Piece((8, 6), ((("tp",), 1), (("outer",), 0))),
    Piece((4, 3, 5), ((("inner",), 0), (("outer",), 0))),
    Piece((3,), ((("outer", "inner"), 0),)),
]


@pytest.mark.parametrize("piece", PIECES, ids=str)
def test_the_parts_of_all_ranks_are_the_whole_once_per_copy(piece: Piece) -> None:
    everyone = [Ranks(rank, ParallelDims(2, 2, 2, 1, 2, 4)) for rank in range(16)]
    whole = torch.arange(1.0, 1 + torch.Size(piece.shape).numel()).view(piece.shape)
    seen, written = torch.zeros_like(whole), torch.zeros_like(whole)
    for ranks in everyone:
        place = tuple(slice(a, b) for a, b in piece.bounds(ranks))
        assert torch.equal(piece.cut(whole, ranks), whole[place])
        seen[place] += 1 / piece.replicas(ranks)
        written[place] += piece.written_here(ranks)
    assert torch.equal(seen, torch.ones_like(whole)), "every entry counts once in a norm"
    assert torch.equal(written, torch.ones_like(whole)), "every entry is written once"


def test_the_outer_split_comes_first() -> None:
    """Two ranks along tp, each of whose halves two others share: thirds of a half, not halves of a third."""
    piece = Piece((8,), ((("tp",), 0), (("outer",), 0)))
    dims = ParallelDims(1, 2, 1, 1, 2, 2)
    found = {(r.index(("tp",)), r.index(("outer",))): piece.bounds(r)[0] for r in (Ranks(i, dims) for i in range(4))}
    assert found == {(0, 0): (0, 2), (0, 1): (2, 4), (1, 0): (4, 6), (1, 1): (6, 8)}


# --- files of several ranks -------------------------------------------------------------------------------------------


@pytest.fixture
def written(tmp_path: Path) -> dict[str, Tensor]:
    """A matrix and a vector in the files of four ranks, as ``RankCheckpointer`` writes them; some hold nothing of the vector."""
    tensors = {"a.weight": torch.randn(7, 6), "b": torch.arange(3.0)}
    pieces = {
        "a.weight": Piece((7, 6), ((("tp",), 1), (("outer",), 0))),
        "b": Piece((3,), ((("outer",), 0),)),
    }
    for rank in range(4):
        ranks = Ranks(rank, ParallelDims(1, 2, 1, 1, 2, 2))
        mine = {n: pieces[n].cut(t, ranks) for n, t in tensors.items() if pieces[n].written_here(ranks)}
        at = {name: [start for start, _ in pieces[name].bounds(ranks)] for name in mine}
        write_tensors(tmp_path / part_name("model", rank, 4), mine, offsets_header(at))
    return tensors


def test_parts_are_read_whole_and_as_any_layout_needs_them(tmp_path: Path, written: dict[str, Tensor]) -> None:
    whole = read_tensors(tmp_path, "model")
    assert whole.keys() == written.keys() and all(torch.equal(whole[n], t) for n, t in written.items())
    for first, last in itertools.combinations(range(8), 2):
        part = read_tensors(tmp_path, "model", {"a.weight": [(first, last), (1, 5)]})
        assert torch.equal(part["a.weight"], written["a.weight"][first:last, 1:5])
        assert torch.equal(part["b"], written["b"])
    assert read_tensors(tmp_path, "model", {"a.weight": [(7, 7), (0, 6)]})["a.weight"].shape == (0, 6)


def test_a_missing_file_of_a_rank_is_named(tmp_path: Path, written: dict[str, Tensor]) -> None:
    (tmp_path / part_name("model", 2, 4)).unlink()
    with pytest.raises(
        CheckpointError, match=r"of a\.weight 33 entries are there, 42 are needed; a rank's file is missing"
    ):
        read_tensors(tmp_path, "model")


def test_torchs_own_checkpoint_reader_reads_them(tmp_path: Path, written: dict[str, Tensor]) -> None:
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint import HuggingFaceStorageReader

    state = {name: torch.zeros_like(tensor) for name, tensor in written.items()}
    dcp.load(state, storage_reader=HuggingFaceStorageReader(str(tmp_path)), no_dist=True)
    assert all(torch.equal(state[name], tensor) for name, tensor in written.items())


def test_a_checkpoint_of_several_ranks_is_used_like_any_other(tmp_path: Path) -> None:
    """Loaded whole by ``sproutlm.load``, and sound to ``sprout doctor``."""
    import sproutlm
    from sproutlm.config.model import ModelConfig
    from sproutlm.doctor.checkpoint import examine_checkpoint
    from sproutlm.model import Transformer

    config = ModelConfig(vocab_size=32, dim=16, n_layers=1, n_heads=2, ffn_dim=32, max_seq_len=16)
    model = Transformer(config).init_weights(1)
    for rank in range(2):
        ranks = Ranks(rank, ParallelDims(1, 2, 1, 1, 1, 2))
        for stem in ("model", "optimizer"):
            pieces = {n: Piece(tuple(p.shape), ((("outer",), 0),)) for n, p in model.named_parameters()}
            mine = {n: pieces[n].cut(p.detach(), ranks) for n, p in model.named_parameters()}
            at = {name: [start for start, _ in pieces[name].bounds(ranks)] for name in mine}
            write_tensors(tmp_path / part_name(stem, rank, 2), mine, offsets_header(at))
    texts = {"model_config.json": config.model_dump_json(), "trainer.json": '{"state": {}}', "recipe.yaml": "{}"}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    table = {
        path.name: {"bytes": path.stat().st_size, "sha256": file_sha256(path)} for path in sorted(tmp_path.iterdir())
    }
    (tmp_path / "COMPLETE").write_text(json.dumps({"step": 1, "files": table}))
    loaded, _ = sproutlm.load(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters(), strict=True))
    found = {finding.check: finding.status for finding in examine_checkpoint(tmp_path).findings}
    assert (found["tensors"], found["resuming"]) == ("ok", "ok")
