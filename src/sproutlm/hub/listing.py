"""What a hub holds: files with their sizes and checksums, and which of them are taken."""

from __future__ import annotations

import fnmatch
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Protocol

from ..errors import SproutError
from .address import Address


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a repository. ``size`` in bytes; a checksum is None where the hub does not give it."""

    path: str  # below the repository's root, with slashes
    size: int | None = None
    sha256: str | None = None
    git_sha1: str | None = None  # git's hash of a file that is not in large-file storage

    @property
    def version(self) -> str | None:
        return self.sha256 or self.git_sha1


@dataclass(frozen=True, slots=True)
class Listing:
    address: Address
    where: str  # the endpoint or folder it was read from
    revision: str | None  # the commit; None where the hub does not say
    files: tuple[RemoteFile, ...]
    licence: str | None = None


class Store(Protocol):
    """A hub. ``listing`` raises ``SproutError`` where the repository cannot be read; ``fetch`` goes on with half a file."""

    def listing(self, address: Address) -> Listing: ...

    def fetch(self, listing: Listing, file: RemoteFile, folder: Path) -> Path:
        """Put the whole file below ``folder`` and return its path; half a file from before is completed."""
        ...


@dataclass(slots=True)
class Selection:
    """Files to take, and how many were left out for which reason."""

    files: list[RemoteFile] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)


PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib")
OTHER_WEIGHTS = (
    ".h5",
    ".msgpack",
    ".onnx",
    ".onnx_data",
    ".ot",
    ".tflite",
    ".gguf",
    ".mlmodel",
    ".mlpackage",
    ".pdparams",
)
CODE = (".py", ".ipynb", ".sh", ".so", ".dll", ".exe")
# Copies of the same weights for other programs.
OTHER_FOLDERS = ("original", "onnx", "openvino", "coreml", "flax", "runs")
PICKLE = "pickle, which can run code when read"
NOT_USED = "weights for other programs"
PROGRAM = "program code, which is never run"
NOT_ASKED = "not matched by the patterns"
EXCLUDED = "matched by --exclude"
PAST_LIMIT = "past --max-files or --sample"


def select(
    listing: Listing,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    max_files: int | None = None,
    sample_bytes: int | None = None,
) -> Selection:
    """Choose from ``listing``: patterns first, then what is safe and of use, then the limits.

    The page and the licence of a repository come along with any choice and do not count. ``sample_bytes`` takes whole
    files, the fewest first ones that reach it. Raises ``SproutError`` where nothing is left, saying why.
    """
    address, chosen, found = listing.address, Selection(), 0
    patterns = [pattern for pattern in (address.pattern, *include) if pattern]
    taken_bytes = 0
    for file in sorted(listing.files, key=lambda file: natural_order(file.path)):
        _refuse_escape(listing, file)
        if PurePosixPath(file.path).name.startswith(".git"):
            continue
        if _is_page(file.path):
            chosen.files.append(file)
            continue
        reason = _reason(file, address, patterns, exclude)
        if reason is None and (
            (max_files is not None and found >= max_files)
            or (sample_bytes is not None and found and taken_bytes >= sample_bytes)
        ):
            reason = PAST_LIMIT
        if reason is not None:
            chosen.left_out[reason] += 1
            continue
        chosen.files.append(file)
        found += 1
        taken_bytes += file.size or 0
    if not found:
        raise SproutError(_nothing(listing, patterns, chosen))
    weights = [file for file in chosen.files if file.path.endswith(".safetensors")]
    if address.kind == "model" and not weights and chosen.left_out[PICKLE] and not patterns:
        raise SproutError(_only_pickles(listing))
    return chosen


def _reason(file: RemoteFile, address: Address, patterns: Sequence[str], exclude: Sequence[str]) -> str | None:
    path, suffix = PurePosixPath(file.path), PurePosixPath(file.path).suffix.lower()
    if suffix in CODE:
        return PROGRAM
    # A data set's .bin may be a token stream, which is read as numbers; a model's is a pickle.
    if suffix in PICKLES and not (address.kind == "data" and suffix == ".bin"):
        return PICKLE
    if patterns and not any(matches(file.path, pattern) for pattern in patterns):
        return NOT_ASKED
    if any(matches(file.path, pattern) for pattern in exclude):
        return EXCLUDED
    if address.kind == "model" and not patterns:
        # consolidated.safetensors holds the same weights once more, under the owner's own names.
        again = path.name.startswith("consolidated") and suffix == ".safetensors"
        if again or suffix in OTHER_WEIGHTS or path.parts[0] in OTHER_FOLDERS:
            return NOT_USED
    return None


def matches(path: str, pattern: str) -> bool:
    """A glob over the whole path or the file's name; a folder's name stands for all below it."""
    pattern = pattern.strip("/")
    name = PurePosixPath(path).name
    return fnmatch.fnmatch(path, pattern) or fnmatch.fnmatch(name, pattern) or fnmatch.fnmatch(path, f"{pattern}/*")


def natural_order(path: str) -> list[tuple[int, int, str]]:
    """part-2 before part-10."""
    import re

    pieces = re.findall(r"\d+|\D+", path)
    return [(0, int(piece), "") if piece.isdecimal() else (1, 0, piece) for piece in pieces]


def _is_page(path: str) -> bool:
    return "/" not in path and PurePosixPath(path).stem.upper() in ("README", "LICENSE", "LICENCE", "COPYING", "NOTICE")


def _refuse_escape(listing: Listing, file: RemoteFile) -> None:
    """No file of a hub may be written outside the folder of the download."""
    parts = PurePosixPath(file.path).parts
    if not parts or file.path.startswith("/") or ".." in parts or "\\" in file.path or ":" in parts[0]:
        raise SproutError(
            f"{listing.address}: the file name {file.path!r} leads out of the folder; nothing was fetched"
        )


def _nothing(listing: Listing, patterns: Sequence[str], chosen: Selection) -> str:
    names = [file.path for file in listing.files if not _is_page(file.path)]
    if not names:
        return f"{listing.address}: the repository is empty (at {listing.where}); check the name and the revision"
    if chosen.left_out[PICKLE] and listing.address.kind == "model":
        return _only_pickles(listing)
    if not chosen.left_out[NOT_ASKED]:
        return f"{listing.address}: nothing to take from {len(names)} files ({describe_left_out(chosen.left_out)})"
    some = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
    return f"{listing.address}: none of {len(names)} files matches {' or '.join(patterns)}; there are {some}; choose with --include"


def _only_pickles(listing: Listing) -> str:
    return (
        f"{listing.address.without_files()}: its weights are pickles only (.bin, .pt), which can run code when read, and are not "
        "taken; choose a copy with .safetensors, on Hugging Face often under a pull request: "
        f"{listing.address.without_files()}@refs/pr/1"
    )


def describe_left_out(left_out: Counter[str]) -> str:
    return "; ".join(f"{count} {reason}" for reason, count in left_out.most_common())
