"""A hub on this machine: the parts of Hugging Face's and ModelScope's interfaces that their libraries use for a download."""

from __future__ import annotations

import hashlib
import json
import re
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "c0ffee" + "0" * 34


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def git_sha1(data: bytes) -> str:
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()


@dataclass
class FakeHub:
    """Repositories by their path ('datasets/acme/tiny', 'acme/model'); files over 100 bytes are in large-file storage."""

    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    licence: str = "mit"
    # Bytes after which the connection is cut, per file, once for every number; what is served with wrong bytes, so often.
    cuts: dict[str, list[int]] = field(default_factory=dict)
    wrong: dict[str, int] = field(default_factory=dict)
    stall: dict[str, int] = field(default_factory=dict)  # bytes after which nothing more comes
    status: int | None = None
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)  # method, path, Range
    url: str = ""

    def gets(self, ending: str) -> list[str | None]:
        """The Range of every GET of a file, in order; None: from its beginning."""
        return [wanted for method, path, wanted in self.requests if method == "GET" and path.endswith(ending)]


class HubHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(head=True)

    def do_GET(self) -> None:
        self._answer(head=False)

    def _answer(self, head: bool) -> None:
        split = urlsplit(self.path)
        path, query = unquote(split.path), parse_qs(split.query)
        self.hub.requests.append((self.command, path, self.headers.get("Range")))
        if self.hub.status is not None:
            return self._json({"error": "no"}, self.hub.status)
        if path.startswith("/api/v1/"):
            return self._modelscope(path.removeprefix("/api/v1/"), query, head)
        if found := re.fullmatch(r"/api/(?:models/)?(.+?)(?:/revision/(.+?)|/tree/([^/]+))?", path):
            return self._api(*found.groups())
        if found := re.fullmatch(r"/(.+?)/resolve/([^/]+)/(.+)", path):
            repository = self.hub.repositories.get(found[1])
            if repository is None or found[3] not in repository:
                return self._json({"error": "no"}, 404, {"X-Error-Code": "EntryNotFound"})
            return self._file(found[3], repository[found[3]], head)
        self._json({"error": "no"}, 404)

    def _api(self, repo: str, revision: str | None, tree: str | None) -> None:
        if repo in self.hub.gated:
            return self._json({"error": "ask"}, 403, {"X-Error-Code": "GatedRepo"})
        repository = self.hub.repositories.get(repo)
        if repository is None:
            return self._json({"error": "no"}, 404, {"X-Error-Code": "RepoNotFound"})
        if (revision or tree) not in (None, "main", COMMIT):
            return self._json({"error": "no"}, 404, {"X-Error-Code": "RevisionNotFound"})
        if tree is None:
            card = {"license": self.hub.licence}
            name = repo.removeprefix("datasets/")
            return self._json({"id": name, "sha": COMMIT, "siblings": [], "tags": [], "cardData": card})
        entries = []
        for path, data in repository.items():
            entry: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": git_sha1(data)}
            if len(data) > 100:
                entry["lfs"] = {"oid": sha256(data), "size": len(data), "pointerSize": 130}
            entries.append(entry)
        self._json(entries)

    def _modelscope(self, path: str, query: dict[str, list[str]], head: bool) -> None:
        found = re.fullmatch(r"(models|datasets)/([^/]+/[^/]+)/repo(/tree|/files)?", path)
        if found is None:
            return self._json({"Code": 404, "Message": "not found", "Success": False}, 404)
        repo = ("datasets/" if found[1] == "datasets" else "") + found[2]
        repository = self.hub.repositories.get(repo)
        if repository is None:
            return self._json({"Code": 10010205001, "Message": "not found", "Success": False}, 404)
        if found[3]:
            files = [
                {"Path": path, "Name": path, "Size": len(data), "Sha256": sha256(data), "Type": "blob"}
                for path, data in repository.items()
            ]
            return self._json({"Code": 200, "Success": True, "Data": {"Files": files}})
        name = query["FilePath"][0]
        self._file(name, repository[name], head)

    def _file(self, name: str, data: bytes, head: bool) -> None:
        etag = sha256(data) if len(data) > 100 else git_sha1(data)
        if self.hub.wrong.get(name) and not head:
            self.hub.wrong[name] -= 1
            data = b"X" + data[1:]
        start = 0
        if wanted := re.match(r"bytes=(\d+)-", self.headers.get("Range") or ""):
            start = int(wanted[1])
        part = data[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("ETag", f'"{etag}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Accept-Ranges", "bytes")
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        if head:
            return
        if name in self.hub.stall:
            self.wfile.write(part[: self.hub.stall[name]])
            self.wfile.flush()
            while name in self.hub.stall:
                time.sleep(0.02)
            self.close_connection = True
            return
        cuts = self.hub.cuts.get(name)
        if cuts:
            self.wfile.write(part[: cuts.pop(0)])
            self.wfile.flush()
            self.close_connection = True
            self.connection.close()
            return
        self.wfile.write(part)

    def _json(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        for name, text in (headers or {}).items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
