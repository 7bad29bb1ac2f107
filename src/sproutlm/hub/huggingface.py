"""The Hugging Face hub through ``huggingface_hub``, which honours HF_ENDPOINT, HF_TOKEN, HF_HOME and the proxies."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..errors import SproutError
from .address import Address
from .listing import Listing, RemoteFile
from .reach import unreachable

DEFAULT_ENDPOINT = "https://huggingface.co"
MIRROR = "HF_ENDPOINT=https://hf-mirror.com"
# Bytes; larger files are served from block storage only.
PLAIN_LIMIT = 50 * 10**9


def endpoint() -> str:
    return (os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT).rstrip("/")


def is_offline() -> bool:
    return _is_set("HF_HUB_OFFLINE") or _is_set("TRANSFORMERS_OFFLINE")


def _is_set(name: str) -> bool:
    return os.environ.get(name, "").lower() in ("1", "on", "yes", "true")


def cache_folder() -> Path:
    """The hub's cache: HF_HUB_CACHE, or hub/ in HF_HOME."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    cache = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE") or Path(home, "hub")
    return Path(os.path.expandvars(cache)).expanduser()


class HuggingFaceStore:
    def __init__(self) -> None:
        self.endpoint = endpoint()
        from huggingface_hub import HfApi
        from huggingface_hub.utils import disable_progress_bars, logging

        disable_progress_bars()  # one line of ours for all files
        logging.set_verbosity_error()
        self._api = HfApi(endpoint=self.endpoint, library_name="sproutlm")

    def listing(self, address: Address) -> Listing:
        reason = unreachable(self.endpoint)
        if reason is not None:
            raise SproutError(cannot_reach(address, self.endpoint, reason))
        kind = "dataset" if address.kind == "data" else "model"
        try:
            info = self._api.repo_info(address.repo, repo_type=kind, revision=address.revision)
            entries = self._api.list_repo_tree(address.repo, recursive=True, revision=info.sha, repo_type=kind)
            files = tuple(_remote(entry) for entry in entries if hasattr(entry, "blob_id"))
        except Exception as error:
            raise self._sentence(error, address) from error
        card = getattr(info, "card_data", None)
        licence = card.get("license") if card is not None else None
        return Listing(
            address, self.endpoint, info.sha, files, ", ".join(licence) if isinstance(licence, list) else licence
        )

    def fetch(self, listing: Listing, file: RemoteFile, folder: Path) -> Path:
        """Over plain HTTP, which can go on with half a file of an earlier run; the library's own download begins again.

        It also asks no server but HF_ENDPOINT, as a mirror needs it, while the hub's block storage (xet) does. That one is
        used for files past what plain HTTP serves, and where HF_XET_HIGH_PERFORMANCE asks for it.
        """
        try:
            if (file.size or 0) > PLAIN_LIMIT or _is_set("HF_XET_HIGH_PERFORMANCE"):
                return self._fetch_by_library(listing, file, folder)
            return self._fetch_plain(listing, file, folder)
        except Exception as error:
            raise self._sentence(error, listing.address, file.path) from error

    def _fetch_plain(self, listing: Listing, file: RemoteFile, folder: Path) -> Path:
        from huggingface_hub import file_download
        from huggingface_hub.utils import build_hf_headers

        kind = "dataset" if listing.address.kind == "data" else "model"
        url = file_download.hf_hub_url(
            listing.address.repo, file.path, repo_type=kind, revision=listing.revision, endpoint=self.endpoint
        )
        location = file_download.get_hf_file_metadata(url, endpoint=self.endpoint).location
        headers = build_hf_headers(library_name="sproutlm")
        if urlsplit(location).netloc != urlsplit(url).netloc:
            headers.pop("authorization", None)  # the token is for the hub, not for its storage
        part = folder / f"{file.path}.{(file.version or '')[:16]}.part"
        part.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "ab") as f:
            if file.size is not None and f.tell() > file.size:
                f.truncate(0)
            file_download.http_get(location, f, resume_size=f.tell(), headers=headers, expected_size=file.size)
        return part

    def _fetch_by_library(self, listing: Listing, file: RemoteFile, folder: Path) -> Path:
        from huggingface_hub import hf_hub_download

        return Path(
            hf_hub_download(
                listing.address.repo,
                file.path,
                repo_type="dataset" if listing.address.kind == "data" else "model",
                revision=listing.revision,
                local_dir=folder,
                endpoint=self.endpoint,
                library_name="sproutlm",
            )
        )

    def _sentence(self, error: Exception, address: Address, file: str | None = None) -> Exception:
        """What a person can do about an error of the hub; a full disk, an interruption and faults of ours stay as they are."""
        from huggingface_hub import errors

        what = f"{address.without_files()}" + (f", file {file}" if file else "")
        page = f"{self.endpoint}/{'datasets/' * (address.kind == 'data')}{address.repo}"
        status = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(error, errors.GatedRepoError):
            return SproutError(
                f"{what}: the owner asks for consent first; accept the terms at {page}, then set HF_TOKEN to a token from "
                f"{DEFAULT_ENDPOINT}/settings/tokens"
            )
        if isinstance(error, errors.RevisionNotFoundError):
            return SproutError(
                f"{what}: there is no revision {address.revision!r}; leave @ out, or choose one of {page}/commits/main"
            )
        if isinstance(error, errors.RepositoryNotFoundError):
            return SproutError(
                f"{what}: not found at {self.endpoint}; check the name, and for a private one set HF_TOKEN"
            )
        if status in (401, 403):
            return SproutError(
                f"{what}: the hub refuses ({status}); set HF_TOKEN to a token that may read it, from {DEFAULT_ENDPOINT}/settings/tokens"
            )
        if status == 429:
            return SproutError(
                f"{what}: the hub is asked too often (429); set HF_TOKEN, or wait; the same command goes on where it stopped"
            )
        if isinstance(error, errors.EntryNotFoundError):
            return SproutError(
                f"{what}: no such file at this revision; start again without @, the repository may have changed"
            )
        if isinstance(status, int):
            return SproutError(
                f"{what}: {self.endpoint} answers {status}; try again later: the same command goes on where it stopped"
            )
        if isinstance(error, OSError) and error.errno is not None and not _of_network(error):
            return error
        if isinstance(
            error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled | ConnectionError
        ) or _of_network(error):
            return SproutError(
                cannot_reach(
                    address, self.endpoint, type(error).__name__ if file is None else "the connection was lost"
                )
            )
        if isinstance(error, OSError | RuntimeError | ValueError):
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            return SproutError(f"{what}: {first}; start the same command again: it goes on where it stopped")
        return error


def _remote(entry: Any) -> RemoteFile:
    lfs = entry.lfs
    return RemoteFile(entry.path, entry.size, lfs.sha256 if lfs else None, None if lfs else entry.blob_id)


def _of_network(error: BaseException) -> bool:
    """The library's HTTP errors, by the name of their module: it has changed its HTTP library more than once."""
    return type(error).__module__.split(".")[0] in ("httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3")


def cannot_reach(address: Address, server: str, reason: str) -> str:
    cures = [f"in China set {MIRROR}"] if server == DEFAULT_ENDPOINT else ["check HF_ENDPOINT"]
    cures += ["behind a proxy set HTTPS_PROXY", "without a network give a local copy with --hub DIR"]
    return f"{address}: cannot reach {server} ({reason}); {'; '.join(cures)}"
