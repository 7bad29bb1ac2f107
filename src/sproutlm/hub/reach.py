"""Is a hub's server there at all? Asked first, so that a missing network costs seconds and not the hubs' own retries."""

from __future__ import annotations

import socket
import threading
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

SECONDS = 5.0


def unreachable(endpoint: str, seconds: float = SECONDS) -> str | None:
    """None when a connection to ``endpoint`` (or to the proxy in front of it) opens; otherwise why not, in a few words."""
    url = urlsplit(endpoint)
    host, port = url.hostname or "", url.port or (443 if url.scheme == "https" else 80)
    proxy = None if proxy_bypass(host) else getproxies().get(url.scheme)
    if proxy:
        through = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        if through.scheme.startswith("socks"):
            return None  # the library speaks to it
        host, port = through.hostname or "", through.port or 80
    answer: list[str | None] = []

    def connect() -> None:
        try:
            socket.create_connection((host, port), timeout=seconds).close()
            answer.append(None)
        except OSError as error:
            answer.append("no such host" if isinstance(error, socket.gaierror) else (error.strerror or str(error)))

    # A resolver can wait longer than any timeout of a socket: it is left behind in its thread.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(seconds)
    reason = answer[0] if answer else f"no answer in {seconds:.0f} s"
    return reason if reason is None or not proxy else f"proxy {host}:{port}: {reason}"
