"""Content hashes of files, remembered as long as the file system says that nothing was touched."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

from .shards import sha256_of

SETTLED_NS = 2_000_000_000  # a file changed more recently may change again within the same tick of its time stamp
LARGE_BYTES = 4 << 30


class FileHashes:
    """sha256 of files. Size, mtime and ctime together tell an edit, even one of a byte that resets the mtime."""

    def __init__(self, memory: Path, say: Callable[[str], None]) -> None:
        self._memory, self._say = memory, say
        self._fresh: dict[str, list[int | str]] = {}
        self._stamps: dict[Path, list[int]] = {}
        try:
            self._known: dict[str, list[int | str]] = dict(json.loads(memory.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            self._known = {}

    def sha256(self, path: Path) -> str:
        """Content hash of a file; read again only if it was touched since. DataError where it cannot be read."""
        from .files import reading  # its names for what can go wrong

        with reading(path):
            now = time.time_ns()
            stat = path.stat()
            stamp = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
            name = str(path.absolute())
            self._stamps[path] = stamp
            known = self._known.get(name)
            if known is not None and known[:3] == stamp:
                digest = str(known[3])
            else:
                if stat.st_size > LARGE_BYTES:
                    self._say(f"reading {path} ({stat.st_size / 2**30:.0f} GB) to know it again")
                digest = sha256_of(path)
        if max(stat.st_mtime_ns, stat.st_ctime_ns) < now - SETTLED_NS:
            self._fresh[name] = [*stamp, digest]
        return digest

    def stamp(self, *paths: Path) -> None:
        """Note size and times of files that are too large to be hashed, for ``unchanged``."""
        for path in paths:
            stat = path.stat()
            self._stamps[path] = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]

    def unchanged(self, path: Path) -> bool:
        """Whether a file whose hash was asked for has not been touched since."""
        try:
            stat = path.stat()
        except OSError:
            return False
        return self._stamps[path] == [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]

    def save(self) -> None:
        """Remember what was looked at this time. A folder that cannot be written only costs a second reading."""
        if self._fresh == self._known:
            return
        temporary = self._memory.with_name(f"{self._memory.name}.tmp")
        try:
            temporary.write_text(json.dumps(self._fresh), encoding="utf-8")
            os.replace(temporary, self._memory)
        except OSError:
            temporary.unlink(missing_ok=True)
