"""The stages of a cleaning run, as steps of a datatrove pipeline: its executors run them here, on Slurm or on Ray.

read: sources -> blocks;  judge: block -> what stays, rejects, keys;  match: keys of a band -> groups of equal ones;
choose: groups -> documents that go;  write: block -> clean/ and rejects/.
Each stage shares its units (files, blocks, bands) out over the tasks, passes over those that are done, and writes a
note when one is.
"""

from __future__ import annotations

import gzip
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.pipeline.base import PipelineStep

from ...config.clean import CleanConfig
from ..readers import read_file
from ..records import Text
from ..sources import Counts, Door, field_columns, record_from
from .duplicates import Groups, choose, groups_in_passes
from .minhash import band_keys, least_similarity, similarity
from .steps import Doc, Step, make_steps
from .work import Work, read_json, read_rows, write_array, write_bytes, write_json, write_rows

STAGES = ("read", "judge", "match", "choose", "write")
DOCS_AT_A_TIME = 256


@dataclass(frozen=True)
class Unit:
    """A part of the input that one task reads: a file, or all files of a source whose rows are limited."""

    source: int
    paths: tuple[str, ...]
    names: tuple[str, ...]  # what stands in document ids, the same wherever the input lies


@dataclass(frozen=True)
class Plan:
    """All that a task needs to know."""

    config: CleanConfig
    out: str
    units: tuple[Unit, ...]
    doors: tuple[Door, ...]  # one per source

    @property
    def work(self) -> Work:
        return Work(Path(self.out))


class Stage(PipelineStep):
    """``units()`` lists what there is to do; ``do`` one of them, and gives what its note says."""

    type = "sprout"

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.plan, self.work = plan, plan.work

    def units(self) -> Sequence[str]:
        return self.work.blocks(len(self.plan.units))

    def do(self, unit: str) -> dict[str, Any]:
        raise NotImplementedError

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        for unit in self.units()[rank::world_size]:
            note = self.work.note(self.name, unit)
            if not note.exists():
                with self.track_time(unit="unit"):
                    write_json(note, self.do(unit))
                self.stat_update("units")
        yield from ()


class Read(Stage):
    """Read the sources through the data door and write blocks of ``{"id", "text"}``."""

    name = "read"

    def units(self) -> Sequence[str]:
        return [f"{number:05d}" for number in range(len(self.plan.units))]

    def do(self, unit: str) -> dict[str, Any]:
        counts, total = Counts(), Size()
        blocks: list[str] = []
        for block in _blocks(self._documents(int(unit), counts), self.plan.config.block_mb * 1e6):
            name = f"{unit}-{len(blocks):05d}"
            write_rows(self.work.block(name), block, level=1)
            blocks.append(name)
            total.add([row["text"] for row in block])
        counts.check()
        return {"blocks": blocks, "counts": counts.as_dict(), "documents": total.documents, "bytes": total.bytes}

    def _documents(self, unit: int, counts: Counts) -> Iterator[dict[str, Any]]:
        part = self.plan.units[unit]
        source, door = self.plan.config.sources[part.source], self.plan.doors[part.source]
        split = source.columns.get("split", "auto")
        named = frozenset(path.split(".")[0] for path in field_columns(source).values())
        left = source.max_rows
        for path, name in zip(part.paths, part.names, strict=True):
            for raw in read_file(Path(path), source.encoding, split, named):
                if left is not None:
                    if not left:
                        return
                    left -= 1
                record = record_from(raw, door, self.plan.config.on_bad_row, counts)
                if isinstance(record, Text):
                    yield {"id": f"{name}:{raw.line}", "text": record.text}
                elif record is not None:
                    counts.withdraw("not plain text", f"{raw.path}:{raw.line}: a {type(record).__name__}, not a text")


def _blocks(rows: Iterable[dict[str, Any]], size: float) -> Iterator[list[dict[str, Any]]]:
    block: list[dict[str, Any]] = []
    held = 0
    for row in rows:
        block.append(row)
        held += len(row["text"].encode())
        if held >= size:
            yield block
            block, held = [], 0
    if block:
        yield block


class Size:
    """Documents, bytes and tokens that passed a point."""

    def __init__(self, tokenizer: Any = None) -> None:
        self.tokenizer = tokenizer
        self.documents = self.bytes = self.tokens = 0

    def add(self, texts: Sequence[str]) -> None:
        self.documents += len(texts)
        self.bytes += sum(len(text.encode()) for text in texts)
        if self.tokenizer is not None:
            self.tokens += sum(len(self.tokenizer.encode(text)) for text in texts)

    def as_dict(self) -> dict[str, Any]:
        tokens = self.tokens if self.tokenizer is not None else None
        return {"documents": self.documents, "bytes": self.bytes, "tokens": tokens}


class Judge(Stage):
    """Let every document of a block go through the steps; keep keys of those that stay."""

    name = "judge"

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self._steps: list[Step] | None = None
        self._tokenizer: Any = None

    def do(self, unit: str) -> dict[str, Any]:
        import orjson
        import xxhash

        if self._steps is None:
            self._steps = make_steps(self.plan.config, self.work.index)
            self._tokenizer = load_tokenizer(self.plan.config)
        docs = [Doc(row["id"], row["text"]) for row in read_rows(self.work.block(unit))]
        rejects = Rejects()
        size = Size(self._tokenizer)
        size.add([doc.text for doc in docs])
        funnel = {"read": size.as_dict() | {"reasons": {}, "changed": {}}}
        for step in self._steps:
            docs, funnel[step.name] = self._go_through(step, docs, rejects)
        texts = [doc.text for doc in docs]
        digests = [xxhash.xxh3_128_digest(" ".join(text.split())) for text in texts]
        keys = np.frombuffer(b"".join(digests), "<u8").astype(np.uint64).reshape(-1, 2).T
        keys = np.maximum(keys, np.uint64(1))  # 0 stands for no key
        if self.plan.config.minhash is not None:
            bands, sketches = band_keys(texts, self.plan.config.minhash)
            keys = np.concatenate([keys, bands])
            write_array(self.work.sketches(unit), sketches)
        write_rows(self.work.filtered(unit), ({"id": doc.id, "text": doc.text} for doc in docs), level=1)
        write_bytes(self.work.ids(unit), gzip.compress(orjson.dumps([doc.id for doc in docs]), 1, mtime=0))
        write_array(self.work.keys(unit), np.ascontiguousarray(keys))
        rejects.write(self.work, unit)
        return {"funnel": funnel, "left": len(docs)}

    def _go_through(self, step: Step, docs: list[Doc], rejects: Rejects) -> tuple[list[Doc], dict[str, Any]]:
        step.changed.clear()
        left: list[Doc] = []
        reasons: Counter[str] = Counter()
        for first in range(0, len(docs), DOCS_AT_A_TIME):
            some = docs[first : first + DOCS_AT_A_TIME]
            for doc, reason in zip(some, step.judge(some), strict=True):
                if reason is None:
                    left.append(doc)
                else:
                    reasons[reason] += 1
                    rejects.add(doc, reason)
        size = Size(self._tokenizer)
        size.add([doc.text for doc in left])
        return left, size.as_dict() | {"reasons": dict(reasons), "changed": dict(step.changed)}


class Rejects:
    """Rejected documents of a block, by reason."""

    def __init__(self) -> None:
        self.rows: dict[str, list[dict[str, Any]]] = {}

    def add(self, doc: Doc, reason: str) -> None:
        self.rows.setdefault(reason, []).append({"id": doc.id, "reason": reason, **doc.detail, "text": doc.text})

    def write(self, work: Work, unit: str) -> None:
        for reason, rows in self.rows.items():
            write_rows(work.rejects(reason, unit), rows)


class Match(Stage):
    """Find the documents with equal keys: unit ``000`` is exact equality, the others are bands."""

    name = "match"

    def units(self) -> Sequence[str]:
        config = self.plan.config
        exact = ["000"] if config.exact is not None else []
        return exact + [f"{band + 1:03d}" for band in range(config.minhash.bands if config.minhash is not None else 0)]

    def do(self, unit: str) -> dict[str, Any]:
        parts = [np.load(self.work.keys(name), mmap_mode="r") for name in super().units()]
        if unit == "000":
            groups = groups_in_passes([part[0] for part in parts], [part[1] for part in parts])
        else:
            groups = groups_in_passes([part[int(unit) + 1] for part in parts])
        write_array(self.work.groups(int(unit)), np.stack([groups.document, groups.group]))
        return {"documents": len(groups.document)}


class Choose(Stage):
    """Decide, over the whole corpus and in its order, which duplicates go; one task."""

    name = "choose"

    def units(self) -> Sequence[str]:
        return ["all"]

    def do(self, unit: str) -> dict[str, Any]:
        config, blocks = self.plan.config, super().units()
        starts = np.cumsum([0, *(read_json(self.work.note("judge", name))["left"] for name in blocks)])
        groups = [self._groups(band + 1) for band in range(config.minhash.bands if config.minhash is not None else 0)]
        exact, near = choose(
            self._groups(0) if config.exact is not None else None, groups, self._alike(blocks, starts, groups)
        )
        kept = set(exact.values()) | set(near.values())
        ids = self._ids(blocks, starts, np.array(sorted(kept), np.int64))
        removed: dict[str, list[list[Any]]] = {}
        for reason, pairs in (("exact", exact), ("minhash", near)):
            owners = np.searchsorted(starts, np.fromiter(pairs, np.int64, len(pairs)), side="right") - 1
            for (one, like), owner in zip(pairs.items(), owners.tolist(), strict=True):
                removed.setdefault(blocks[owner], []).append([one - int(starts[owner]), reason, ids[like]])
        import orjson

        for name in blocks:
            rows = sorted(removed.get(name, []), key=lambda row: row[0])
            write_bytes(self.work.removed(name), gzip.compress(orjson.dumps(rows), 1, mtime=0))
        return {"exact": len(exact), "minhash": len(near)}

    def _alike(self, blocks: Sequence[str], starts: np.ndarray, groups: Sequence[Groups]) -> Callable[[int, int], bool]:
        """Compares the sketches of two documents; only those of documents that share a key are held."""
        step = self.plan.config.minhash
        if step is None or not groups:
            return lambda one, other: True
        least = least_similarity(step)
        wanted = np.unique(np.concatenate([group.document for group in groups]))
        bounds = np.searchsorted(wanted, starts)
        held = np.empty((len(wanted), step.bands * step.rows), np.uint8)
        for number, name in enumerate(blocks):
            first, end = bounds[number], bounds[number + 1]
            if end > first:
                held[first:end] = np.load(self.work.sketches(name), mmap_mode="r")[wanted[first:end] - starts[number]]
        place = {document: row for row, document in enumerate(wanted.tolist())}
        return lambda one, other: similarity(held[place[one]], held[place[other]]) >= least

    def _groups(self, number: int) -> Groups:
        document, group = np.load(self.work.groups(number))
        return Groups(document, group)

    def _ids(self, blocks: Sequence[str], starts: np.ndarray, wanted: np.ndarray) -> dict[int, str]:
        """The ids of documents, given by their number in the corpus; only blocks that hold one are read."""
        import orjson

        found: dict[int, str] = {}
        bounds = np.searchsorted(wanted, starts)
        for number, name in enumerate(blocks):
            inside = set(wanted[bounds[number] : bounds[number + 1]].tolist())
            if inside:
                ids = orjson.loads(gzip.decompress(self.work.ids(name).read_bytes()))
                found |= {index: ids[index - int(starts[number])] for index in inside}
        return found


class Write(Stage):
    """Write what stays, and the duplicates to the rejects."""

    name = "write"

    def do(self, unit: str) -> dict[str, Any]:
        import orjson

        config = self.plan.config
        with gzip.open(self.work.removed(unit)) as file:
            removed = {index: (reason, like) for index, reason, like in orjson.loads(file.read())}
        left, rejects, reasons = [], Rejects(), Counter[str]()
        after: dict[str, list[str]] = {"exact": [], "minhash": []}  # texts that passed each of the two
        for index, row in enumerate(read_rows(self.work.filtered(unit))):
            reason, like = removed.get(index, (None, None))
            if reason is not None:
                rejects.add(Doc(row["id"], row["text"], {"duplicate_of": like}), _REASONS[reason])
                reasons[reason] += 1
            if reason != "exact":
                after["exact"].append(row["text"])
            if reason is None:
                after["minhash"].append(row["text"])
                left.append(row)
        if left:
            write_rows(self.work.clean(unit), left)
        rejects.write(self.work, unit)
        tokenizer, funnel = load_tokenizer(config), {}
        for name in ("exact", "minhash"):
            if getattr(config, name) is not None:
                size = Size(tokenizer)
                size.add(after[name])
                dropped = {_REASONS[name]: reasons[name]} if reasons[name] else {}
                funnel[name] = size.as_dict() | {"reasons": dropped, "changed": {}}
        return {"funnel": funnel, "left": len(left)}


_REASONS = {"exact": "exact_duplicate", "minhash": "near_duplicate"}


def load_tokenizer(config: CleanConfig) -> Any:
    """The tokenizer that counts, or None."""
    return None if config.tokenizer is None else _tokenizer(config.tokenizer)


@lru_cache(maxsize=1)
def _tokenizer(folder: str) -> Any:
    from ...tokenizer import Tokenizer

    return Tokenizer.load(folder)
