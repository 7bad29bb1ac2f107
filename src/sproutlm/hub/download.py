"""Fetch a data set or a model: choose files, go on where an earlier run stopped, check every byte, leave a receipt."""

from __future__ import annotations

import os
import queue
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import SproutError
from .address import Address
from .checksums import RECEIPT, Receipt, difference, file_sums
from .folder import FolderStore
from .listing import Listing, RemoteFile, Selection, Store, select

# Half files wait here, below the folder of the download, until they are whole and right.
PARTS = ".download"
WORKERS = 4
# Room that is left on the disk, bytes.
SPARE = 64 << 20
# Bytes; comparing less takes no time that a person notices.
SAID_FROM = 2 * 10**9

Say = Callable[[str], None]


@dataclass(slots=True)
class Report:
    """What a download did. Sizes in bytes; ``left_out``: reason -> files."""

    address: str
    out: Path
    where: str
    revision: str | None
    licence: str | None
    files: list[str]
    bytes: int
    fetched: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    damaged: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    without_checksum: int = 0  # files for which the hub gives no checksum: ours is recorded, theirs is not known


def store_for(address: Address, hub: Path | None) -> Store:
    """The hub that an address names; with ``hub`` (or SPROUT_HUB) a local copy in its place."""
    root = hub or (Path(os.environ["SPROUT_HUB"]) if os.environ.get("SPROUT_HUB") else None)
    if address.hub == "folder":
        return FolderStore()
    if root is not None:
        if not root.expanduser().is_dir():
            raise SproutError(f"{root}: no such folder; --hub (or SPROUT_HUB) is a folder with a copy of the hub")
        return FolderStore(root.expanduser())
    if address.hub == "modelscope":
        from .model_scope import ModelScopeStore

        return ModelScopeStore()
    from .huggingface import HuggingFaceStore, cache_folder, is_offline

    if is_offline():
        if not cache_folder().is_dir():
            raise SproutError(
                f"{address}: HF_HUB_OFFLINE is set and there is no cache at {cache_folder()}; unset it, or give a local copy "
                "with --hub DIR"
            )
        return FolderStore(cache_folder())
    return HuggingFaceStore()


def plan(
    address: Address,
    hub: Path | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    max_files: int | None = None,
    sample_bytes: int | None = None,
) -> tuple[Store, Listing, Selection]:
    """What would be fetched; nothing is written."""
    store = store_for(address, hub)
    listing = store.listing(address)
    return store, listing, select(listing, include, exclude, max_files, sample_bytes)


def download(store: Store, listing: Listing, selection: Selection, out: Path, say: Say = lambda line: None) -> Report:
    """Bring every file of ``selection`` to ``out``, whole and with the right checksum.

    Files that are there and right are kept, damaged ones are named and fetched again, half ones are completed. A file in
    ``out`` that no receipt knows and that differs is never overwritten: ``SproutError``.
    """
    if out.exists() and not out.is_dir():
        raise SproutError(f"{out}: is no folder; give a folder with --out")
    receipt = _receipt(listing, selection, out)
    there = sum(path.stat().st_size for path in (out / file.path for file in selection.files) if path.is_file())
    if there > SAID_FROM:
        say(f"comparing {size_text(there)} that are there with their checksums")
    report = Report(
        str(listing.address),
        out,
        listing.where,
        listing.revision,
        listing.licence,
        [file.path for file in selection.files],
        sum(file.size or 0 for file in selection.files),
        left_out=dict(selection.left_out),
        without_checksum=sum(file.version is None for file in selection.files),
    )
    missing = []
    for file in selection.files:
        if _is_there(file, out, receipt, report, say):
            report.kept.append(file.path)
        else:
            missing.append(file)
    _check_room(missing, out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        with _alone(out):
            receipt.complete = not missing
            receipt.write(out)
            if missing:
                _Fetching(store, listing, receipt, report, out, say).run(missing)
                receipt.complete = True
                receipt.write(out)
            shutil.rmtree(out / PARTS, ignore_errors=True)
    except PermissionError as error:
        raise SproutError(
            f"{error.filename or out}: no permission to write here; choose another folder with --out"
        ) from None
    except (FileExistsError, NotADirectoryError) as error:
        raise SproutError(
            f"{error.filename or out}: a file stands where a folder is needed; choose another folder with --out"
        ) from None
    return report


def check(out: Path) -> tuple[int, dict[str, str]]:
    """Compare what is in ``out`` with its receipt, without a network: (files that are right, path -> what is wrong)."""
    receipt = Receipt.read(out)
    if receipt is None:
        raise SproutError(f"{out}: holds no {RECEIPT}; it was not made by a download, or not in this folder")
    wrong = {}
    for name, known in receipt.files.items():
        path = out / name
        if not path.is_file():
            wrong[name] = "is missing"
        elif file_sums(path)[0] != known["sha256"]:
            wrong[name] = "differs from its checksum"
    return len(receipt.files) - len(wrong), wrong


def _receipt(listing: Listing, selection: Selection, out: Path) -> Receipt:
    source = str(listing.address.without_files())
    known = Receipt.read(out)
    if known is not None and known.source != source:
        raise SproutError(f"{out}: holds files of {known.source}; choose another folder with --out")
    if out.exists() and not out.is_dir():
        raise SproutError(f"{out}: is a file; choose a folder with --out")
    files = known.files if known is not None else {}
    return Receipt(source, listing.where, listing.revision, listing.licence, False, dict(selection.left_out), files)


def _is_there(file: RemoteFile, out: Path, receipt: Receipt, report: Report, say: Say) -> bool:
    """True where the file is whole and right. What is damaged or outdated is said; what is foreign is refused."""
    path, known = out / file.path, receipt.files.get(file.path)
    if not path.is_file():
        return False
    sha256, wrong = difference(path, file)
    if wrong is None and (file.version is not None or (known is not None and known["sha256"] == sha256)):
        receipt.files[file.path] = _entry(path, sha256, file)
        return True
    if known is None:
        raise SproutError(
            f"{path}: is already there, differs from the hub's, and is not from an earlier download; move it away or choose "
            "another folder with --out"
        )
    if file.version is not None and known.get("version") not in (None, file.version):
        say(f"{file.path}: changed on the hub since the last download; fetching it again")
    else:
        wrong = wrong or "differs from the checksum recorded when it came"
        report.damaged[file.path] = wrong
        say(f"{file.path}: {wrong}; it is damaged or was edited, fetching it again")
    return False


def _entry(path: Path, sha256: str, file: RemoteFile) -> dict[str, Any]:
    return {"size": path.stat().st_size, "sha256": sha256, "version": file.version}


def _check_room(missing: Sequence[RemoteFile], out: Path) -> None:
    needed = sum(file.size or 0 for file in missing)
    place = out.absolute()
    while not place.exists():
        place = place.parent
    halves = sum(path.stat().st_size for path in (out / PARTS).rglob("*") if path.is_file())
    free = shutil.disk_usage(place).free
    if missing and needed - halves + SPARE > free:
        raise SproutError(
            f"{out}: {size_text(needed - halves)} are needed and {size_text(free)} are free on this disk; take less with --sample "
            "or --max-files, or choose another disk with --out"
        )


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Two commands that go on with the same half file would spoil it: the second one is refused."""
    try:
        import fcntl
    except ImportError:  # not on Windows
        yield
        return
    (out / PARTS).mkdir(exist_ok=True)
    handle = os.open(out / PARTS, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise SproutError(
            f"{out}: another download is writing here; wait for it, or choose another folder with --out"
        ) from None
    finally:
        os.close(handle)


class _Fetching:
    """Several files at a time in threads of their own; the caller's thread reports and keeps the receipt."""

    def __init__(self, store: Store, listing: Listing, receipt: Receipt, report: Report, out: Path, say: Say) -> None:
        self.store, self.listing, self.receipt, self.report, self.out, self.say = (
            store,
            listing,
            receipt,
            report,
            out,
            say,
        )
        self.parts = out / PARTS
        self.waiting: queue.SimpleQueue[RemoteFile] = queue.SimpleQueue()
        self.done: queue.SimpleQueue[tuple[RemoteFile, str, BaseException | None]] = queue.SimpleQueue()

    def run(self, files: Sequence[RemoteFile]) -> None:
        for file in files:
            self.waiting.put(file)
        # Daemons: a person who stops the command does not wait for gigabytes.
        for _ in range(min(WORKERS, len(files))):
            threading.Thread(target=self._work, daemon=True).start()
        progress = _Progress(sum(file.size or 0 for file in files), len(files), self.parts, self.say)
        left, saved = len(files), time.monotonic()
        try:
            while left:
                try:
                    file, sha256, error = self.done.get(timeout=0.5)
                except queue.Empty:
                    progress.tick()
                    continue
                if error is not None:
                    raise error
                left -= 1
                self.receipt.files[file.path] = _entry(self.out / file.path, sha256, file)
                self.report.fetched.append(file.path)
                progress.finished(file)
                if time.monotonic() - saved > 2:
                    self.receipt.write(self.out)
                    saved = time.monotonic()
        finally:
            self.receipt.write(self.out)
        self.report.fetched.sort()

    def _work(self) -> None:
        while True:
            try:
                file = self.waiting.get_nowait()
            except queue.Empty:
                return
            try:
                self.done.put((file, self._one(file), None))
            except BaseException as error:
                self.done.put((file, "", error))
                return

    def _one(self, file: RemoteFile) -> str:
        """Fetch, check, put in place; a file with wrong bytes is fetched once more from its beginning."""
        wrong = None
        for _ in range(2):
            part = self.store.fetch(self.listing, file, self.parts)
            sha256, wrong = difference(part, file)
            if wrong is None:
                target = self.out / file.path
                target.parent.mkdir(parents=True, exist_ok=True)
                _to_disk(part)
                os.replace(part, target)
                return sha256
            part.unlink()
        raise SproutError(
            f"{self.listing.address.without_files()}, file {file.path}: what came twice {wrong}; the copy at "
            f"{self.listing.where} is damaged: try again later, or another mirror"
        )


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class _Progress:
    """A line every few seconds, fewer as hours pass: bytes, rate, time left. Half files count."""

    def __init__(self, total: int, files: int, parts: Path, say: Say, every: float = 5.0) -> None:
        self.total, self.files, self.parts, self.say, self.every = total, files, parts, say, every
        self.finished_bytes = self.finished_files = 0
        self.began = self.said = time.monotonic()
        self.at_start = self._halves()

    def finished(self, file: RemoteFile) -> None:
        self.finished_bytes += file.size or 0
        self.finished_files += 1
        self.tick()

    def tick(self) -> None:
        now = time.monotonic()
        if now - self.said < max(self.every, (now - self.began) / 60):
            return
        self.said = now
        have = min(self.finished_bytes + self._halves(), self.total or 1 << 62)
        rate = max(have - self.at_start, 0) / (now - self.began)
        left = f", {duration_text((self.total - have) / rate)} left" if rate > 0 and self.total else ""
        of = f" of {size_text(self.total)}" if self.total else ""
        self.say(f"{size_text(have)}{of}, file {self.finished_files + 1} of {self.files}, {size_text(rate)}/s{left}")

    def _halves(self) -> int:
        total = 0
        for path in self.parts.rglob("*"):
            try:
                total += path.stat().st_size if path.is_file() else 0
            except OSError:
                continue  # it was just put in place
        return total


def size_text(size: float) -> str:
    """12.3 GB, in thousands as the hubs and disks count."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:,.1f} TB"


def duration_text(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"


def parse_size(text: str) -> int:
    """Bytes in 100MB, 1.5 GB, 2GiB, 500k."""
    import re

    found = re.fullmatch(r"\s*([\d.]+)\s*([kmgt]?)(i?)b?\s*", text, re.IGNORECASE)
    try:
        assert found is not None
        size = float(found[1]) * (1024 if found[3] else 1000) ** " kmgt".index(found[2].lower() or " ")
    except (AssertionError, ValueError):
        raise SproutError(f"--sample {text}: expected a size such as 100MB or 2GB") from None
    if size < 1:
        raise SproutError(f"--sample {text}: expected more than nothing, such as 100MB")
    return int(size)
