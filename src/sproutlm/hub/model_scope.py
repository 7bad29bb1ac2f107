"""ModelScope through its own library, which honours MODELSCOPE_ENDPOINT, MODELSCOPE_DOMAIN and MODELSCOPE_API_TOKEN."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..errors import SproutError
from .address import Address
from .listing import Listing, RemoteFile
from .reach import unreachable

DEFAULT_ENDPOINT = "https://modelscope.cn"


def endpoint() -> str:
    """The server: MODELSCOPE_ENDPOINT, or the older MODELSCOPE_DOMAIN (a host without https://)."""
    given = os.environ.get("MODELSCOPE_ENDPOINT") or os.environ.get("MODELSCOPE_DOMAIN") or DEFAULT_ENDPOINT
    return (given if "://" in given else f"https://{given}").rstrip("/")


class ModelScopeStore:
    def __init__(self) -> None:
        # One line of ours for all files, not a bar for each; tqdm reads this when it is imported.
        os.environ.setdefault("TQDM_DISABLE", "1")
        try:
            import modelscope_hub
        except ImportError:
            raise SproutError(
                "ModelScope's library is missing; install it: pip install 'sproutlm[data]', or use an hf:// address"
            ) from None
        import logging

        logging.getLogger("modelscope_hub").setLevel(logging.ERROR)
        self.endpoint = endpoint()
        self._api: Any = modelscope_hub.HubApi(endpoint=self.endpoint)

    def listing(self, address: Address) -> Listing:
        reason = unreachable(self.endpoint)
        if reason is not None:
            raise SproutError(_cannot_reach(address, self.endpoint, reason))
        try:
            entries = self._api.list_repo_files(address.repo, _kind(address), revision=address.revision or "master")
        except Exception as error:
            raise self._sentence(error, address) from error
        files = tuple(
            RemoteFile(entry.path, entry.size, entry.sha256 if _is_sha256(entry.sha256) else None)
            for entry in entries
            if entry.type == "blob"
        )
        return Listing(address, self.endpoint, address.revision or "master", files)

    def fetch(self, listing: Listing, file: RemoteFile, folder: Path) -> Path:
        address = listing.address
        try:
            return Path(
                self._api.download_file(
                    address.repo,
                    _kind(address),
                    file.path,
                    revision=listing.revision,
                    local_dir=folder,
                    file_size=file.size,
                )
            )
        except Exception as error:
            raise self._sentence(error, address, file.path) from error

    def _sentence(self, error: Exception, address: Address, file: str | None = None) -> Exception:
        from modelscope_hub import errors

        what = f"{address.without_files()}" + (f", file {file}" if file else "")
        if isinstance(error, errors.NotExistError):
            at = f" or revision {address.revision!r}" if address.revision else ""
            return SproutError(
                f"{what}: not found at {self.endpoint}; check the name{at}; ModelScope's owners differ from Hugging Face's"
            )
        if isinstance(error, errors.AuthenticationError | errors.PermissionDeniedError):
            return SproutError(
                f"{what}: ModelScope refuses; agree to its terms on its page and set MODELSCOPE_API_TOKEN "
                f"({self.endpoint}/my/myaccesstoken)"
            )
        if isinstance(error, errors.FileIntegrityError):
            return SproutError(
                f"{what}: the bytes that came differ from the hub's checksum; start the same command again"
            )
        if isinstance(error, errors.NetworkError | ConnectionError):
            return SproutError(
                _cannot_reach(address, self.endpoint, "the connection was lost" if file else "no answer")
            )
        if isinstance(error, errors.HubError):
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            return SproutError(f"{what}: {first}; start the same command again, or use the hf:// address")
        return error


def _kind(address: Address) -> str:
    return "dataset" if address.kind == "data" else "model"


def _is_sha256(text: str | None) -> bool:
    return text is not None and len(text) == 64


def _cannot_reach(address: Address, server: str, reason: str) -> str:
    return (
        f"{address}: cannot reach {server} ({reason}); check MODELSCOPE_ENDPOINT, behind a proxy set HTTPS_PROXY, without a "
        "network give a local copy with --hub DIR"
    )
