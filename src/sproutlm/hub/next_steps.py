"""What to type after a download: look at the rows, and the lines of a recipe."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from shlex import quote

from .address import Kind
from .catalogue import Entry
from .listing import matches

# What the readers of data know; a suffix may be followed by a compression.
_READ = (".jsonl", ".ndjson", ".parquet", ".json", ".csv", ".tsv", ".txt")
_COMPRESSED = (".gz", ".zst")
_NO_ROWS = ("dataset_info.json", "dataset_infos.json", "config.json", "metadata.json", "state.json")
_ARCHIVES = (".zip", ".tar", ".tgz", ".7z", ".rar", ".bz2", ".xz")


def next_steps(what: Kind, out: Path, files: Sequence[str], entry: Entry | None) -> list[str]:
    """Lines to print: commands and a piece of recipe that fit what lies in ``out``."""
    if what == "model":
        return [
            f"check it:     sprout doctor {quote(str(out))}",
            f"talk to it:   sprout chat {quote(str(out))}",
            "in a recipe:",
            f"  init_from: {out}",
        ]
    pattern = _pattern(files, entry)
    if pattern is None:
        packed = [name for name in files if PurePosixPath(name).suffix.lower() in _ARCHIVES]
        if packed:
            return [_unpack(out, packed[0])]
        return [f"no file with rows is among them; see {out}"]
    path = f"{out.as_posix()}/{pattern}"
    known = entry is not None and entry.format is not None
    options = f" --format {entry.format}" if known and entry is not None else ""
    columns = entry.columns if entry is not None else {}
    options += "".join(f" --columns {field}={column}" for field, column in columns.items())
    if entry is not None and entry.stage == "eval":
        return [f"for evaluation: keep {out} out of what you train on"]
    lines = [f"check it:     sprout data validate {quote(path)}{options}"]
    if entry is None or entry.stage in ("pretrain", "sft"):
        # inspect shows what is trained, which pairs and labels are not in these two stages.
        lines.append(f"look at it:   sprout data inspect {quote(path)}{options}")
    lines += ["in a recipe:", "  data:", "    train:", f"      - path: {path}"]
    if known and entry is not None:
        lines.append(f"        format: {entry.format}")
    if columns:
        lines.append(f"        columns: {{{', '.join(f'{field}: {column}' for field, column in columns.items())}}}")
    return lines


def _unpack(out: Path, name: str) -> str:
    archive = quote(str(out / name))
    command = f"unzip {archive} -d" if name.lower().endswith(".zip") else f"tar -xf {archive} -C"
    return f"unpack it:    {command} {quote(str(out))}, then: sprout data inspect FILE"


def _pattern(files: Sequence[str], entry: Entry | None) -> str | None:
    """A glob for the training rows: the catalogue's where it fits, else the commonest kind of data file."""
    if entry is not None and entry.train is not None and any(matches(name, entry.train) for name in files):
        return entry.train
    data = [name for name in files if _suffix(name) is not None and PurePosixPath(name).name not in _NO_ROWS]
    if not data:
        return None
    training = [name for name in data if "train" in name.lower()] or data
    suffix = Counter(_suffix(name) for name in training).most_common(1)[0][0]
    chosen = [name for name in training if _suffix(name) == suffix]
    if len(chosen) == 1:
        return chosen[0]
    folders = {PurePosixPath(name).parent.as_posix() for name in chosen}
    beginning = "*train*" if all("train" in PurePosixPath(name).name.lower() for name in chosen) else "*"
    if len(folders) == 1 and (folder := folders.pop()) != ".":
        return f"{folder}/{beginning}{suffix}"
    return f"{'' if folders <= {'.'} else '**/'}{beginning}{suffix}"


def _suffix(name: str) -> str | None:
    lower = name.lower()
    for known in _READ:
        for end in (known, *(known + compression for compression in _COMPRESSED)):
            if lower.endswith(end):
                return end
    return None
