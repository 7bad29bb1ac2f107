"""A local copy of a hub: its cache (``datasets--owner--name/snapshots/…``), a mirror (``OWNER/NAME/files``) or any folder."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from ..errors import SproutError
from .address import Address
from .checksums import RECEIPT
from .listing import Listing, RemoteFile

_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class FolderStore:
    """Reads repositories below ``root``; with a folder as address, that folder itself."""

    root: Path | None = None

    def listing(self, address: Address) -> Listing:
        folder = Path(address.repo) if address.hub == "folder" else self._find(address)
        revision = None
        if (folder / "snapshots").is_dir():
            folder, revision = _snapshot(folder, address)
        elif re.fullmatch(r"[0-9a-f]{40}", folder.name) and folder.parent.name == "snapshots":
            revision = folder.name
        elif address.revision is not None:
            raise SproutError(f"{address}: {folder} is a plain folder without revisions; leave @{address.revision} out")
        return Listing(address, str(folder), revision, tuple(_files(folder)), _licence(folder / "README.md"))

    def fetch(self, listing: Listing, file: RemoteFile, folder: Path) -> Path:
        source, target = Path(listing.where, file.path), folder / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        # Without a checksum half a file could be of an older content: it is begun again.
        done = target.stat().st_size if target.exists() and file.version is not None else 0
        if file.size is not None and done > file.size:
            done = 0
        try:
            with open(source, "rb") as f, open(target, "r+b" if done else "wb") as out:
                f.seek(done)
                out.seek(done)
                while block := f.read(_BLOCK):
                    out.write(block)
        except OSError as error:
            if error.filename is not None and str(error.filename) == str(source):
                raise SproutError(f"{source}: cannot be read ({error.strerror}); mend the local copy") from None
            raise
        return target

    def _find(self, address: Address) -> Path:
        assert self.root is not None
        kind = "datasets" if address.kind == "data" else "models"
        joined = f"{kind}--{address.repo.replace('/', '--')}"
        # ModelScope's own caches: dots become underscores in the older one.
        owner, _, name = address.repo.rpartition("/")
        places = [
            self.root / joined,
            self.root / "hub" / joined,
            self.root / kind / address.repo,
            self.root / kind / address.repo.replace("/", "--"),
            self.root / kind / owner / name.replace(".", "___"),
            self.root / address.repo,
        ]
        for place in places:
            if place.is_dir():
                return place
        near = sorted(_repositories(self.root, kind))[:5]
        held = f"it holds {', '.join(near)}" if near else "it holds no repository"
        raise SproutError(
            f"{address}: not in the local copy {self.root} ({held}); expected {joined}/snapshots/… as in a hub's cache, or "
            f"{kind}/{address.repo}/ with the files"
        )


def _snapshot(folder: Path, address: Address) -> tuple[Path, str]:
    """The folder of a revision: a branch or tag in refs/, or a commit (its beginning will do)."""
    wanted = address.revision
    kept = sorted(path.name for path in (folder / "snapshots").iterdir() if path.is_dir())
    refs = {
        path.relative_to(folder / "refs").as_posix(): path.read_text(encoding="utf-8").strip()
        for path in (folder / "refs").rglob("*")
        if path.is_file()
    }
    if wanted is None:
        commit = refs.get("main") or refs.get("master") or (kept[0] if len(kept) == 1 else None)
        wanted = "main"
    else:
        matching = [name for name in kept if name == wanted or (len(wanted) >= 6 and name.startswith(wanted))]
        commit = refs.get(wanted) or (matching[0] if len(matching) == 1 else None)
    if commit is None or commit not in kept:
        known = ", ".join([*sorted(refs), *kept]) or "none"
        raise SproutError(f"{address}: the local copy {folder} has no revision {wanted!r}; it has {known}")
    return folder / "snapshots" / commit, commit


def _files(folder: Path) -> list[RemoteFile]:
    def refuse(error: OSError) -> None:
        raise SproutError(
            f"{error.filename}: cannot be read ({error.strerror}); mend the local copy, or its permissions"
        )

    files = []
    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(parent, name)
            if name.startswith(".") or name == RECEIPT or name.endswith(".incomplete"):
                continue
            if not path.exists():
                raise SproutError(f"{path}: its file in blobs/ is missing; the local copy is incomplete, copy it again")
            # A cache names its blobs by their checksum: sha256 for large files, git's sha1 for the others.
            blob = path.resolve().name if path.is_symlink() else ""
            files.append(
                RemoteFile(
                    path.relative_to(folder).as_posix(),
                    path.stat().st_size,
                    blob if re.fullmatch(r"[0-9a-f]{64}", blob) else None,
                    blob if re.fullmatch(r"[0-9a-f]{40}", blob) else None,
                )
            )
    return files


def _licence(card: Path) -> str | None:
    """The licence that a hub's page states in the lines at its top."""
    try:
        head = card.read_text(encoding="utf-8", errors="replace")[:20_000]
    except OSError:
        return None
    found = re.search(r"^license:[ \t]*([^\s#][^\n#]*)$", head, re.MULTILINE) if head.startswith("---") else None
    return found[1].strip().strip("'\"") if found else None


def _repositories(root: Path, kind: str) -> set[str]:
    """OWNER/NAME of what a local copy holds."""
    found = set()
    for place in (root, root / "hub"):
        for path in place.glob(f"{kind}--*"):
            found.add(path.name.removeprefix(f"{kind}--").replace("--", "/", 1))
    found |= {path.name.replace("--", "/", 1) for path in (root / kind).glob("*--*")}
    for path in [*(root / kind).glob("*/*"), *root.glob("*/*")]:
        if path.is_dir() and path.parent.name not in ("hub", kind) and "--" not in path.parent.name:
            found.add(f"{path.parent.name}/{path.name}")
    return {name for name in found if not name.startswith(".")}
