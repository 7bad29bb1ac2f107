"""Where a download comes from: ``hf://``, ``modelscope://``, a hub's web page, or a local folder."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

from ..errors import SproutError

Hub = Literal["hf", "modelscope", "folder"]
Kind = Literal["data", "model"]

FORMS = "hf://datasets/OWNER/NAME, hf://OWNER/NAME (a model), modelscope:// likewise, or a local folder"
_PAGES: dict[str, Hub] = {
    "huggingface.co": "hf",
    "hf.co": "hf",
    "hf-mirror.com": "hf",
    "modelscope.cn": "modelscope",
    "modelscope.ai": "modelscope",
}
_SEGMENT = re.compile(r"[\w.-]+")
# The hub's own branches have slashes in their names: @refs/pr/3, @refs/convert/parquet.
_REFS = re.compile(r"refs/(?:pr|convert|heads|tags)/[^/]+")


@dataclass(frozen=True, slots=True)
class Address:
    """One repository of a hub (or a folder), at a revision, and which of its files."""

    hub: Hub
    kind: Kind
    repo: str  # OWNER/NAME, or the folder's path
    revision: str | None = None  # None: the hub's default branch
    pattern: str | None = None  # a file, a folder or a glob within the repository; None: everything

    def __str__(self) -> str:
        if self.hub == "folder":
            return self.repo
        where = f"{self.hub}://{'datasets/' if self.kind == 'data' else ''}{self.repo}"
        return where + (f"@{self.revision}" if self.revision else "") + (f"/{self.pattern}" if self.pattern else "")

    @property
    def name(self) -> str:
        """The last part, in lower case: the folder that a download goes to unless another is given."""
        return Path(self.repo).name.lower() if self.hub != "folder" else _folder_name(Path(self.repo))

    def without_files(self) -> Address:
        return replace(self, pattern=None, revision=None)


def is_address(text: str) -> bool:
    """True where ``text`` can only be an address or a folder, not a name of the catalogue."""
    return "://" in text or text.startswith((".", "/", "~")) or "/" in text or Path(text).is_dir()


def parse_address(text: str, kind: Kind) -> Address:
    """Read an address.

    ``kind`` says what a folder holds, and must be what the address names; a ``SproutError`` says what is wrong with it.
    """
    scheme, separator, rest = text.partition("://")
    if not text.strip():
        raise SproutError(f"{text!r} names nothing; expected {FORMS}")  # a Path of nothing would be this folder
    if not separator:
        return Address("folder", kind, _folder(text))
    if scheme == "file":
        return Address("folder", kind, _folder(unquote(rest)))
    if scheme in ("http", "https"):
        return _of_page(text, kind)
    if scheme not in ("hf", "modelscope", "ms"):
        raise SproutError(f"{text}: the beginning {scheme}:// is not known; expected {FORMS}")
    found = _parse(text, "hf" if scheme == "hf" else "modelscope", rest)
    if found.kind != kind:
        if found.kind == "data":
            raise SproutError(f"{text} names a data set; use: sprout data download {text}")
        data = f"{found.hub}://datasets/{text.split('://', 1)[1]}"
        raise SproutError(f"{text} names a model; use {data} for the data set, or: sprout download model {text}")
    return found


def _parse(text: str, hub: Hub, rest: str) -> Address:
    if rest.startswith("/"):
        raise SproutError(f"{text}: a folder on this disk is given without {hub}://; expected {FORMS}")
    parts = rest.strip("/").split("/")
    kind: Kind = "model"
    if parts[0] in ("datasets", "models"):
        kind = "data" if parts.pop(0) == "datasets" else "model"
    elif parts[0] in ("spaces", "buckets", "kernels"):
        raise SproutError(f"{text}: {parts[0]} cannot be downloaded; expected {FORMS}")
    rest = "/".join(parts)
    before, at, after = rest.partition("@")
    revision: str | None = None
    if at and before.count("/") <= 1:
        refs = _REFS.match(after)
        revision, _, files = (refs[0], "/", after[refs.end() :].lstrip("/")) if refs else after.partition("/")
        revision = unquote(revision)
        repo = before
        if not revision:
            raise SproutError(f"{text}: nothing stands after @; give a branch, tag or commit, or leave @ out")
    else:
        owner, _, more = rest.partition("/")
        name, _, files = more.partition("/")
        repo = f"{owner}/{name}" if name else owner
    segments = repo.split("/")
    if len(segments) > 2 or not all(_SEGMENT.fullmatch(part) and part.strip(".") for part in segments):
        raise SproutError(f"{text}: {repo!r} is no OWNER/NAME; expected {FORMS}")
    if hub == "modelscope" and len(segments) != 2:
        raise SproutError(
            f"{text}: the owner is missing; expected modelscope://{'datasets/' * (kind == 'data')}OWNER/NAME"
        )
    return Address(hub, kind, repo, revision, files or None)


def _of_page(url: str, asked: Kind) -> Address:
    """A repository's page or file in the browser's address line: …/tree/REV/…, …/blob/REV/…, …/resolve/REV/…"""
    split = urlsplit(url)
    hub = _PAGES.get((split.hostname or "").removeprefix("www."))
    if hub is None:
        raise SproutError(
            f"{url}: only pages of huggingface.co and modelscope.cn are read from a web address; fetch another file with "
            f"`curl -L -C - -O URL`, then: sprout data inspect FILE"
        )
    parts = [part for part in split.path.split("/") if part]
    plain = []
    revision, files = None, ""
    for place, part in enumerate(parts):
        if part in ("tree", "blob", "resolve", "raw") and len(parts) > place + 1:
            revision, files = parts[place + 1], "/".join(parts[place + 2 :])
            break
        if part in ("files", "summary", "viewer", "discussions", "file"):
            break
        plain.append(part)
    text = f"{hub}://{'/'.join(plain)}" + (f"@{revision}" if revision else "") + (f"/{unquote(files)}" if files else "")
    return parse_address(text, asked)


def _folder(text: str) -> str:
    path = Path(text).expanduser()
    if not path.is_dir():
        raise SproutError(f"{text}: no such folder; expected {FORMS}")
    return str(path.absolute())


def _folder_name(path: Path) -> str:
    """``datasets--owner--name`` is called NAME, as are its snapshots; any other folder has its own name."""
    for part in (path.absolute(), *path.absolute().parents[:2]):
        if part.name.startswith(("datasets--", "models--")):
            return part.name.split("--")[-1].lower()
    return path.absolute().name.lower()
