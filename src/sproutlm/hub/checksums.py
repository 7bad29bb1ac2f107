"""Sums over files, and the receipt of a download: what came from where, with which checksum."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import SproutError
from .listing import RemoteFile

# Hidden, so that a folder of data can be read as a whole: this is no data.
RECEIPT = ".download.json"
_BLOCK = 1 << 20


def file_sums(path: Path, *, git: bool = False) -> tuple[str, str | None]:
    """(sha256, git's sha1 of the file as a blob where asked for), hexadecimal, in one pass."""
    sha256 = hashlib.sha256()
    sha1 = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False) if git else None
    with open(path, "rb") as f:
        while block := f.read(_BLOCK):
            sha256.update(block)
            if sha1 is not None:
                sha1.update(block)
    return sha256.hexdigest(), sha1.hexdigest() if sha1 is not None else None


def difference(path: Path, file: RemoteFile) -> tuple[str, str | None]:
    """(sha256 of the file at ``path``, what differs from what the hub says or None)."""
    size = path.stat().st_size
    if file.size is not None and size != file.size:
        return "", f"has {size:,} bytes, the hub says {file.size:,}"
    sha256, sha1 = file_sums(path, git=file.git_sha1 is not None and file.sha256 is None)
    for ours, theirs, kind in ((sha256, file.sha256, "sha256"), (sha1, file.git_sha1, "git sha1")):
        if theirs is not None and ours is not None and ours != theirs:
            return sha256, f"has {kind} {ours[:12]}…, the hub says {theirs[:12]}…"
    return sha256, None


@dataclass(slots=True)
class Receipt:
    """``.download.json`` beside the files. ``files``: path -> {size, sha256, version}."""

    source: str
    where: str
    revision: str | None
    licence: str | None = None
    complete: bool = False
    left_out: dict[str, int] = field(default_factory=dict)
    files: dict[str, dict[str, Any]] = field(default_factory=dict)

    @staticmethod
    def read(folder: Path) -> Receipt | None:
        path = folder / RECEIPT
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
            names = Receipt.__dataclass_fields__
            return Receipt(**{name: value for name, value in known.items() if name in names})
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise SproutError(
                f"{path}: cannot be read ({error}); remove it, and the files are compared with the hub's checksums"
            ) from None

    def write(self, folder: Path) -> None:
        """Whole or not at all."""
        known = {"format": 1, **{name: getattr(self, name) for name in self.__dataclass_fields__}}
        known["files"] = dict(sorted(self.files.items()))
        temporary = folder / f"{RECEIPT}.tmp"
        with open(temporary, "w", encoding="utf-8") as f:
            f.write(json.dumps(known, ensure_ascii=False, indent=1) + "\n")
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, folder / RECEIPT)
