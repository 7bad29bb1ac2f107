"""What keeps a folder of token shards safe: one writer at a time, whole files, and sentences for a full disk."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import DataError


@contextmanager
def alone_in(out: Path) -> Iterator[None]:
    """Refuse a second process that prepares in the same folder. The lock dies with its process, also under kill -9."""
    if os.name == "nt":
        yield
        return
    import fcntl

    with writing(out):
        handle = open(out / ".lock", "w")
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(
                f"{out}: another process prepares token shards in this folder; wait for it, or name another folder with "
                "data.cache"
            ) from None
        yield


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """Turn what the system raises while shards are written into one sentence."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            sentence = "the disk is full; free some space, or name a folder on another disk with data.cache"
        elif isinstance(error, PermissionError) or error.errno == errno.EROFS:
            sentence = "it cannot be written; grant the permission, or name another folder with data.cache"
        else:
            sentence = f"writing failed ({error.strerror or error})"
        raise DataError(
            f"{out}: {sentence}. Finished shards are kept: the same command continues after them"
        ) from error


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as f:
            json.dump(value, f, indent=1, ensure_ascii=False)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)  # on a full disk every byte counts
        raise


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is none that can be read."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
