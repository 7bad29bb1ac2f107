"""Find the files of a source and open them as text: folders and globs, .gz and .zst, encodings, byte-order marks.

Whatever is wrong with a path or with the bytes of a file becomes one ``DataError`` that names the file and the cure.
"""

from __future__ import annotations

import codecs
import difflib
import errno
import fnmatch
import glob
import gzip
import importlib
import io
import os
import re
import weakref
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, Literal, TextIO, cast

from ..errors import DataError

Kind = Literal["txt", "jsonl", "json", "csv", "tsv", "parquet"]
SUFFIXES: dict[str, Kind] = {
    ".txt": "txt",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}
COMPRESSIONS = (".gz", ".zst")
# What ``errors="surrogateescape"`` leaves where a byte could not be decoded; no valid text decodes to these.
_UNDECODABLE = re.compile("[\udc80-\udcff]")


@dataclass(frozen=True, slots=True)
class FoundFiles:
    """Files of one source in reading order, and how many others were passed over for their suffix."""

    paths: tuple[Path, ...]
    ignored: int = 0


@lru_cache(maxsize=4096)  # asked for every row
def kind_of(path: Path) -> Kind | None:
    """What a file holds, by its suffix (``.jsonl.gz`` is jsonl), or None when the suffix is unknown."""
    suffixes = [s.lower() for s in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    kind = SUFFIXES.get(suffixes[-1]) if suffixes else None
    return None if kind == "parquet" and path.suffix.lower() in COMPRESSIONS else kind


def known_suffixes() -> str:
    return f"{', '.join(SUFFIXES)}; plain, .gz or .zst"


def find_files(pattern: str) -> FoundFiles:
    """Files named by a path, a glob or a folder (recursive, sorted by name, hidden ones left out).

    Links to folders are followed; a file that is reached twice through them is read once.
    """
    if not pattern.strip():
        raise DataError("the path of a source is empty; name a file, a glob or a folder")
    path = Path(pattern).expanduser()
    try:
        if path.is_dir():
            return _known_only(_walk(path), f"The folder {pattern}")
        if path.exists():
            if kind_of(path) is None:
                raise DataError(f"{path}: the suffix {path.suffix!r} is not known; known are {known_suffixes()}")
            return FoundFiles((path,))
        if glob.has_magic(pattern):
            matches = _matching(path)
            files = _each_once([p for p in matches if p.is_file() or (p.is_symlink() and not p.is_dir())])
            if not files:
                raise DataError(f"{pattern}: no file matches this pattern; check the folder and the wildcard")
            return _known_only(files, f"The pattern {pattern}")
    except PermissionError as error:
        raise DataError(_no_permission(Path(error.filename or path))) from None
    raise DataError(_missing(path))


def _matching(pattern: Path) -> list[Path]:
    """Paths that a glob names, sorted. ``**`` is walked here: the library's follows links in a circle, for hours."""
    deep = next((i for i, part in enumerate(pattern.parts) if "**" in part), None)
    if deep is None:
        return sorted(Path(p) for p in glob.glob(str(pattern)))
    below = pattern.parts[deep:]
    one = [r"(?:[^/.][^/]*/)*" if part == "**" else _one_name(part) + "/" for part in below[:-1]]
    wanted = re.compile("".join(one) + (r"(?:[^/.][^/]*/)*[^/.][^/]*" if below[-1] == "**" else _one_name(below[-1])))
    tops = [Path(p) for p in sorted(glob.glob(str(Path(*pattern.parts[:deep]))))] if deep else [Path()]
    found = ((top, path) for top in tops if top.is_dir() for path in _walk(top))
    return sorted(path for top, path in found if wanted.fullmatch(path.relative_to(top).as_posix()))


def _one_name(part: str) -> str:
    """The regular expression of one name between slashes; as in a shell, a wildcard finds no hidden file."""
    plain = fnmatch.translate(part)[4:-3].replace(".*", "[^/]*")
    return plain if part.startswith(".") else r"(?!\.)" + plain


def _walk(folder: Path) -> list[Path]:
    def refuse(error: OSError) -> None:
        raise error

    files: list[Path] = []
    seen = {folder.resolve()}
    for parent, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and _is_new(Path(parent, name), seen))
        files += [Path(parent, name) for name in names if not name.startswith(".")]
    return sorted(_each_once(files))


def _is_new(folder: Path, seen: set[Path]) -> bool:
    """Whether a folder was not met before, so that a link to one above it ends there."""
    real = Path(os.path.realpath(folder))
    new = real not in seen
    seen.add(real)
    return new


def _each_once(files: list[Path]) -> list[Path]:
    """Files without those that a linked folder shows a second time; of each, the shortest path."""
    found: dict[tuple[str, str], Path] = {}
    for path in sorted(files, key=lambda p: (len(p.parts), p)):
        found.setdefault((os.path.realpath(path.parent), path.name), path)
    return sorted(found.values())


def _known_only(files: list[Path], where: str) -> FoundFiles:
    known = tuple(p for p in files if kind_of(p) is not None)
    if known:
        return FoundFiles(known, len(files) - len(known))
    if not files:
        raise DataError(f"{where} is empty; put data files into it ({known_suffixes()})")
    seen = ", ".join(sorted({p.suffix or p.name for p in files})[:8])
    raise DataError(f"{where} holds no data file (seen: {seen}); known are {known_suffixes()}")


def _missing(path: Path) -> str:
    if path.is_symlink():
        return f"{path}: is a link to {os.readlink(path)}, which is not there; mend the link, or take it away"
    parent = path.parent
    while not parent.exists() and parent != parent.parent:
        path, parent = parent, parent.parent
    names = [p.name for p in parent.iterdir()] if parent.is_dir() else []
    near = difflib.get_close_matches(path.name, names, n=1, cutoff=0.5)
    hint = (
        f"did you mean {parent / near[0]}?" if near else "check the path; relative paths start at the recipe's folder"
    )
    return f"{path}: no such file or folder; {hint}"


def _no_permission(path: Path) -> str:
    return f"{path}: no permission to read it; grant it (chmod u+r for a file, u+rx for a folder) or use a copy"


# --- opening ----------------------------------------------------------------------------------------------------------


@contextmanager
def reading(path: Path, encoding: str = "utf-8") -> Iterator[None]:
    """Turn what the system, a decompressor or a codec raises while ``path`` is read into a ``DataError``."""
    try:
        yield
    except PermissionError:
        raise DataError(_no_permission(path)) from None
    except FileNotFoundError:
        raise DataError(_missing(path)) from None
    except UnicodeDecodeError:
        raise DataError(other_encoding(path, encoding)) from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: the compressed file is damaged or cut short ({error}); fetch it again") from None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise DataError(_missing(path)) from None
        raise DataError(f"{path}: cannot be read ({error.strerror or str(error).splitlines()[0]})") from None


_OPENED: weakref.WeakValueDictionary[Path, Any] = weakref.WeakValueDictionary()  # for ``position``


def open_binary(path: Path) -> BinaryIO:
    """The decompressed bytes of a file, with ``peek``."""
    stream: Any
    if path.suffix.lower() == ".gz":
        stream = gzip.open(path, "rb")
        _OPENED[path] = stream.fileobj
    elif path.suffix.lower() == ".zst":
        stream = io.BufferedReader(_ZstdFile(path), 1 << 18)
        _OPENED[path] = stream.raw
    else:
        stream = _OPENED[path] = open(path, "rb")
    return cast(BinaryIO, stream)


def position(path: Path) -> int | None:
    """How many bytes of the file as it lies on the disk were read so far, where one is open; for showing progress."""
    stream = _OPENED.get(path)
    try:
        if isinstance(stream, _ZstdFile):
            return stream.packed_position()
        return None if stream is None else int(stream.tell())
    except (OSError, ValueError):  # closed meanwhile
        return None


def open_text(path: Path, encoding: str = "utf-8", newline: str | None = None) -> TextIO:
    """Text without its byte-order mark; undecodable bytes stay as lone surrogates. Line ends become ``\\n``, unless
    ``newline`` is "", which keeps them as they are.

    A UTF-16 or UTF-32 byte-order mark decides over the default encoding: it is no guess, such bytes are not UTF-8.
    Every other byte a zero is UTF-16 without its mark, which is refused: as UTF-8 it would be read, zeros and all.
    """
    stream = open_binary(path)
    codec = _codec(path, encoding)
    if codec == "utf-8":
        start = stream.peek(64)[:64]  # type: ignore[attr-defined]
        codec = _encoding_of_mark(start[:4]) or "utf-8-sig"
        if codec == "utf-8-sig":
            for zeros, name in ((start[1::2], "utf-16-le"), (start[0::2], "utf-16-be")):
                if len(start) > 3 and not any(zeros) and all(start[name == "utf-16-be" :: 2]):
                    raise DataError(f"{path}:1: looks like UTF-16 (every other byte is 0); set encoding: {name}")
    return io.TextIOWrapper(stream, encoding=codec, errors="surrogateescape", newline=newline)


def _codec(path: Path, encoding: str) -> str:
    try:
        return codecs.lookup(encoding).name
    except LookupError:
        near = difflib.get_close_matches(
            encoding.lower(), ("utf-8", "gb18030", "gbk", "big5", "utf-16", "latin-1"), n=1
        )
        hint = f"did you mean {near[0]}?" if near else "for example utf-8 or gb18030"
        raise DataError(f"{path}: the encoding {encoding!r} is not known; {hint}") from None


def _encoding_of_mark(start: bytes) -> str | None:
    if start.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "utf-32"
    return "utf-16" if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else None


class _ZstdFile(io.RawIOBase):
    """Decompressed bytes of a .zst file of one or more frames; a frame that is cut short raises ``EOFError``.

    The library's own stream reader ends quietly at a cut frame, which would lose rows without a word.
    """

    def __init__(self, path: Path) -> None:
        zstandard = optional("zstandard", path)
        self._new_frame = zstandard.ZstdDecompressor().decompressobj
        self._error: type[Exception] = zstandard.ZstdError
        self._file = open(path, "rb")
        self._frame: Any = None
        self._ready = b""

    def readable(self) -> bool:
        return True

    def packed_position(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()

    def readinto(self, target: Any) -> int:
        while not self._ready:
            if self._frame is not None and self._frame.eof:
                rest, self._frame = self._frame.unused_data, None
            else:
                rest = b""
            packed = rest or self._file.read(1 << 17)
            if not packed:
                if self._frame is not None:
                    raise EOFError("a zstd frame has no end")
                return 0
            self._frame = self._frame or self._new_frame()
            try:
                self._ready = self._frame.decompress(packed)
            except self._error as error:
                raise EOFError(str(error)) from None
        size = min(len(target), len(self._ready))
        target[:size], self._ready = self._ready[:size], self._ready[size:]
        return size


def optional(module: str, path: Path) -> Any:
    """Import a module of the ``data`` extra, or say what to install."""
    try:
        return importlib.import_module(module)
    except ImportError:
        package = module.split(".")[0]
        raise DataError(f'{path}: reading it needs {package}; install it with: pip install "sproutlm[data]"') from None


# --- encodings --------------------------------------------------------------------------------------------------------


class Decoding:
    """Watches the text of one file for bytes that did not decode.

    One bad line in a file whose other lines decode is a bad row; a file whose very first line beyond ASCII fails is
    in another encoding altogether, and reading on would drop most of it.
    """

    def __init__(self, path: Path, encoding: str) -> None:
        self._path, self._encoding, self._proven = path, encoding, False

    def fault(self, text: str) -> str | None:
        """A sentence when ``text`` holds undecodable bytes. Raises ``DataError`` when the file is in another encoding."""
        if text.isascii():
            return None
        bad = _UNDECODABLE.search(text)
        if bad is None:
            self._proven = True
            return None
        if not self._proven and _UNDECODABLE.sub("", text[: bad.start()]).isascii():
            raise DataError(other_encoding(self._path, self._encoding))
        return f"byte 0x{ord(bad[0]) - 0xDC00:02X} at character {bad.start() + 1} is not {self._encoding}"


def other_encoding(path: Path, encoding: str) -> str:
    """The sentence for a file that is not in ``encoding``: where it fails, and which encoding would do."""
    name = "UTF-8" if encoding.lower().replace("_", "-") in ("utf-8", "utf8") else encoding
    offset, line = _first_fault(path, encoding)
    suggested = _suggest_encoding(path)
    cure = f"set encoding: {suggested}" if suggested else "set encoding: to the right one"
    return f"{path}:{line}: not {name} (first bad byte at offset {offset:,}); {cure}, or convert the file to UTF-8"


def _first_fault(path: Path, encoding: str) -> tuple[int, int]:
    """Offset and line of the first undecodable byte, in the decompressed file; a second pass, made only for an error."""
    decoder = codecs.getincrementaldecoder(encoding)()
    start, line = 0, 1
    with open_binary(path) as stream:
        while True:
            chunk = stream.read(1 << 20)
            try:
                line += decoder.decode(chunk, final=not chunk).count("\n")
            except UnicodeDecodeError as error:
                held_over = len(error.object) - len(chunk)
                return start - held_over + error.start, line + error.object[: error.start].count(b"\n")
            if not chunk:
                return start, line
            start += len(chunk)


def _suggest_encoding(path: Path) -> str | None:
    with open_binary(path) as stream:
        sample = stream.read(1 << 20)
    marked = _encoding_of_mark(sample[:4])
    if marked:
        return marked
    high = sum(b >= 0x80 for b in sample[:65536])
    paired = 2 * len(re.findall(rb"[\x81-\xfe][\x80-\xfe]", sample[:65536]))
    # Chinese text comes in pairs of high bytes; Western text has single accented letters between plain ones.
    candidates = ("utf-8", "gb18030", "big5", "cp1252") if paired > 0.6 * high else ("utf-8", "cp1252", "gb18030")
    for name in candidates:
        try:
            codecs.getincrementaldecoder(name)().decode(sample)
        except UnicodeDecodeError:
            continue
        return name
    return None
