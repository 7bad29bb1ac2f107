"""Write rows in any container: whole or not at all. What is half written bears a temporary name and goes when something fails."""

from __future__ import annotations

import csv
import gzip
import io
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

from ...errors import DataError
from ..fields import RowError
from ..files import find_files, kind_of, known_suffixes, optional
from ..typed_cells import PARQUET_JSON, PARQUET_KEY, WHOLE_ROW, dumps, encodable
from .columns import Columns, arrow_type

GROUP_ROWS, GROUP_BYTES = 2000, 32 << 20  # of one parquet row group, so that memory stays bounded
TABLES = ("csv", "tsv", "parquet")


def check_output(out: Path, sources: Sequence[str], force: bool) -> str:
    """The kind of file that ``out`` will be. ``DataError`` when it must not or cannot be written."""
    kind = kind_of(out)
    if kind is None:
        raise DataError(f"{out}: cannot tell from its suffix what to write; known are {known_suffixes()}")
    if out.is_dir():
        raise DataError(f"{out}: is a folder; name a file in it, such as {out / 'rows.jsonl'}")
    for source in sources:
        if any(out.exists() and path.exists() and out.samefile(path) for path in find_files(source).paths):
            raise DataError(f"{out}: is also read ({source}); name another file to write")
        if Path(source).is_dir() and out.resolve().is_relative_to(Path(source).resolve()):
            raise DataError(f"{out}: lies in the folder that is read ({source}), and would be read the next time")
    if out.exists() and not force:
        raise DataError(f"{out}: is there already; name another file, or overwrite it with --force")
    standing = next(parent for parent in out.absolute().parents if parent.exists())
    if not standing.is_dir() or not os.access(standing, os.W_OK):  # before the reading, not after it
        raise DataError(f"{out}: cannot be written, for {standing} is no folder that you may write to; choose another")
    if kind == "parquet":
        optional("pyarrow", out)
    if out.suffix.lower() == ".zst":
        optional("zstandard", out)
    return kind


def columns_for(out: Path) -> Columns | None:
    """A first pass's ``Columns`` where the container needs one, else None."""
    kind = kind_of(out)
    return Columns(str(kind)) if kind in TABLES else None


@contextmanager
def writing(outs: Sequence[Path], columns: Columns | None) -> Iterator[list[Output]]:
    """Open outputs; all of them get their names together when the block ends well, and none of them otherwise."""
    outputs: list[Output] = []
    try:
        with ExitStack() as undo:
            for out in outs:
                output = OUTPUTS[str(kind_of(out))](out, columns)
                outputs.append(output)
                undo.callback(output.abandon)
            yield outputs
            for output in outputs:
                output.finish()
            for output in outputs:
                output.commit()
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            raise
        raise DataError(f"{outs[0]}: cannot be written ({error.strerror or error}); nothing was left behind") from error


class Output:
    """One file being written. ``rows`` counts what went in."""

    def __init__(self, path: Path, columns: Columns | None) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        self.path, self.temporary, self.columns = path, Path(name), columns
        self.raw: BinaryIO = cast(BinaryIO, os.fdopen(handle, "wb"))
        self.rows = 0
        self.begin()

    def write(self, value: Any) -> None:
        """Add one row; ``RowError`` when this container cannot hold it."""
        self.put(value)
        self.rows += 1

    def begin(self) -> None:
        self.packed = _packed(self.path, self.raw)
        self.text = io.TextIOWrapper(self.packed, encoding="utf-8", newline="")

    def put(self, value: Any) -> None:
        raise NotImplementedError

    def end(self) -> None:
        """Write what stands after the last row, and close everything above ``raw``."""
        self.text.flush()
        self.text.detach()
        if self.packed is not self.raw:
            self.packed.close()

    def finish(self) -> None:
        self.end()
        self.raw.flush()
        os.fsync(self.raw.fileno())
        self.raw.close()
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(self.temporary, 0o666 & ~mask)

    def commit(self) -> None:
        os.replace(self.temporary, self.path)

    def abandon(self) -> None:
        """Remove what is unfinished; nothing after ``commit``."""
        with suppress(OSError, ValueError):
            self.raw.close()
        self.temporary.unlink(missing_ok=True)


def _packed(path: Path, raw: BinaryIO) -> BinaryIO:
    if path.suffix.lower() == ".gz":  # without name and time, so that the same rows give the same bytes
        return cast(BinaryIO, gzip.GzipFile(filename="", mode="wb", fileobj=raw, compresslevel=6, mtime=0))
    if path.suffix.lower() == ".zst":
        compressor = optional("zstandard", path).ZstdCompressor(level=6)
        return cast(BinaryIO, compressor.stream_writer(raw, closefd=False))
    return raw


class JsonLines(Output):
    def put(self, value: Any) -> None:
        self.text.write(dumps(value) + "\n")


class JsonArray(Output):
    def put(self, value: Any) -> None:
        self.text.write((",\n" if self.rows else "[\n") + dumps(value))

    def end(self) -> None:
        self.text.write("\n]\n" if self.rows else "[]\n")
        super().end()


class Table(Output):
    def begin(self) -> None:
        super().begin()
        assert self.columns is not None
        self._json = self.columns.json_columns()
        self._write = csv.writer(self.text, lineterminator="\n").writerow if kind_of(self.path) == "csv" else self._tabs
        self._write(self.columns.header())

    def _tabs(self, cells: list[str]) -> None:
        self.text.write("\t".join(cells) + "\n")

    def put(self, value: Any) -> None:
        assert self.columns is not None
        self._write(self.columns.cells(value, self._json))


class PlainText(Output):
    """Texts parted by blank lines; a text that would not come back as it is, is refused."""

    def put(self, value: Any) -> None:
        text = value.get("text") if isinstance(value, dict) and list(value) == ["text"] else value
        if not isinstance(text, str):
            held = ", ".join(map(str, value)) if isinstance(value, dict) else type(value).__name__
            raise RowError(
                f"the row holds more than a text ({held}), and a .txt holds texts alone; to keep the text only, say "
                "--format text --to text (with --columns text=NAME where it has another name), or write .jsonl",
                reason="more than a text",
            )
        self._refuse(text)
        self.text.write(("\n" if self.rows else "") + text + "\n")

    @staticmethod
    def _refuse(text: str) -> None:
        if any(not line.strip() for line in text.split("\n")):
            what = "is empty or has a blank line inside or at an end"
        elif "\r" in text or text.startswith("\ufeff") or not encodable(text):
            what = "holds a carriage return, a byte-order mark or half a surrogate pair"
        else:
            return
        raise RowError(f"the text {what}, and would not come back from a .txt as it is; write .jsonl", "not for .txt")


class Parquet(Output):
    def begin(self) -> None:
        import pyarrow
        from pyarrow import parquet

        assert self.columns is not None
        self._json = self.columns.json_columns()
        marked = {PARQUET_KEY: PARQUET_JSON}
        fields = [
            pyarrow.field(name, pyarrow.string(), metadata=marked)
            if name in self._json
            else pyarrow.field(name, arrow_type(self.columns.shape(name)))
            for name in self.columns.order
        ]
        if self.columns.whole:
            fields.append(pyarrow.field(WHOLE_ROW, pyarrow.string(), metadata=marked))
        self._schema = pyarrow.schema(fields)
        self._writer = parquet.ParquetWriter(self.raw, self._schema, compression="zstd")
        self._held: list[dict[str, Any]] = []
        self._size = 0

    def put(self, value: Any) -> None:
        assert self.columns is not None
        if not self.columns.fits(value):
            row = {WHOLE_ROW: dumps(value)}
        else:
            row = {name: dumps(cell) if name in self._json else cell for name, cell in value.items()}
        self._held.append(row)
        self._size += len(dumps(row))
        if len(self._held) >= GROUP_ROWS or self._size >= GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        import pyarrow

        if self._held:
            self._writer.write_table(pyarrow.Table.from_pylist(self._held, schema=self._schema))
        self._held, self._size = [], 0

    def end(self) -> None:
        self._flush()
        self._writer.close()


OUTPUTS: dict[str, type[Output]] = {
    "jsonl": JsonLines,
    "json": JsonArray,
    "csv": Table,
    "tsv": Table,
    "parquet": Parquet,
    "txt": PlainText,
}
