"""Whether a server is there is known within seconds, whatever the network does."""

from __future__ import annotations

import socket
import threading
import time
from typing import Any

import pytest

from sproutlm.hub import reach


def test_a_server_that_answers_is_reached() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert reach.unreachable(f"http://127.0.0.1:{server.getsockname()[1]}/path") is None


def test_a_silent_network_or_resolver_costs_no_more_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    never = threading.Event()

    def silent(*_: Any, **__: Any) -> Any:
        never.wait(30)
        raise OSError("gone")

    monkeypatch.setattr(reach.socket, "create_connection", silent)
    began = time.monotonic()
    assert reach.unreachable("https://huggingface.co", seconds=0.2) == "no answer in 0 s"
    assert time.monotonic() - began < 2
    never.set()


def test_the_reason_is_in_words_and_names_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def fail(where: Any, timeout: float) -> None:
        asked.append(where)
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(reach.socket, "create_connection", fail)
    monkeypatch.setattr(reach, "getproxies", dict)
    assert reach.unreachable("https://hf-mirror.com") == "no such host"
    monkeypatch.setattr(reach, "getproxies", lambda: {"https": "http://proxy.example:3128"})
    monkeypatch.setattr(reach, "proxy_bypass", lambda host: False)
    assert reach.unreachable("https://hf-mirror.com") == "proxy proxy.example:3128: no such host"
    assert asked == [("hf-mirror.com", 443), ("proxy.example", 3128)]
