"""A folder that a download made: is everything there that its receipt names, and as it came?"""

from __future__ import annotations

from pathlib import Path

from ..hub.checksums import RECEIPT, Receipt, file_sums
from .finding import Examination, counted, do, listed

SUM_BYTES = 500_000_000  # files of more than this, together, are compared by size alone: seconds, not minutes


def was_downloaded(folder: Path) -> bool:
    return folder.is_dir() and (folder / RECEIPT).is_file()


def examine_download(folder: Path) -> Examination:
    """Compare a folder with its receipt, without a network."""
    found = Examination(str(folder), "download")
    cure = f"remove {RECEIPT} and download again: files that are right are kept"
    read, receipt = found.attempt("receipt", cure, None, lambda: Receipt.read(folder))
    if not read or receipt is None:
        return found
    again = f"start the same download again, into this folder: it fetches only what is missing ({receipt.source})"
    if not receipt.complete:
        found.fail(
            "download", f"it did not come to its end; {counted(len(receipt.files), 'file')} of it are recorded", again
        )
    whole = sum(known.get("size") or 0 for known in receipt.files.values())
    sums = whole <= SUM_BYTES
    missing, wrong = [], []
    for name, known in receipt.files.items():
        path = folder / name
        if not path.is_file():
            missing.append(name)
        elif path.stat().st_size != known.get("size") or (sums and file_sums(path)[0] != known.get("sha256")):
            wrong.append(name)
    if missing:
        found.warn(
            "files of the download",
            f"{counted(len(missing), 'file')} {do(len(missing), 'are', 'is')} no longer there: {listed(missing)}",
            again,
        )
    if wrong:
        what = f"{counted(len(wrong), 'file')} {do(len(wrong), 'are', 'is')} not as {do(len(wrong), 'they', 'it')} came: {listed(wrong)}"
        found.fail("files of the download", what, f"{again}; or, if you edited them, keep your copy in another folder")
    if not missing and not wrong and receipt.files:
        how = (
            "sizes and checksums are right"
            if sums
            else f"sizes are right (checksums: the download's --check, {whole / 1e9:.1f} GB)"
        )
        found.ok("files of the download", f"{counted(len(receipt.files), 'file')} of {receipt.source}: {how}")
    if receipt.licence:
        found.notes.append(f"licence: {receipt.licence}")
    return found
