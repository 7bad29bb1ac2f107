"""A model file in llama.cpp itself, unpatched, through the ``xllamacpp`` wheel: what it reads, writes and answers there."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..errors import SproutError

QUIET = -1


def available() -> bool:
    """Whether the wheel is installed; nothing of ours needs it but checks."""
    return importlib.util.find_spec("xllamacpp") is not None


class LlamaCpp:
    """One GGUF file, loaded on the CPU. Use as a context; SproutError where llama.cpp refuses the file."""

    def __init__(self, file: Path | str, *, context: int = 512, threads: int = 1) -> None:
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = str(file)
        params.n_ctx, params.n_parallel, params.n_gpu_layers = context, 1, 0
        params.n_batch = params.n_ubatch = context
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        # Keys and values in float32, so that what differs is the file and not the cache.
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.hostnames, params.port = ["127.0.0.1"], free_port()
        params.warmup, params.verbosity, params.fit_params = False, QUIET, False
        with silence():
            try:
                self._server: Any = xllamacpp.Server(params)
            except Exception as error:
                raise SproutError(f"{file}: llama.cpp cannot load this file ({error})") from None
        self._url = self._server.listening_address
        self._wait()

    def __enter__(self) -> LlamaCpp:
        return self

    def __exit__(self, *_: object) -> None:
        with silence():
            self._server = None  # the server ends with its last reference

    def _wait(self, seconds: float = 120.0) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                if self._get("/health").get("status") == "ok":
                    return
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(0.05)
        raise SproutError(f"llama.cpp did not answer at {self._url} within {seconds:.0f} s")

    def _get(self, path: str) -> dict[str, Any]:
        with urllib.request.urlopen(self._url + path, timeout=10) as answer:
            return json.load(answer)

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        request = urllib.request.Request(
            self._url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=600) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise SproutError(f"llama.cpp: {path}: {error.read().decode(errors='replace')[:500]}") from None

    def encode(self, text: str, *, control: bool = False, start: bool = False) -> list[int]:
        """Ids of a text. ``control``: names of control tokens count; ``start``: with the first token, where it has one."""
        body = {"content": text, "add_special": start, "parse_special": control}
        return self._post("/tokenize", body)["tokens"]

    def prompt(self, messages: Sequence[dict[str, Any]]) -> str:
        """What its own template engine makes of a conversation, up to where the answer begins."""
        return self._post("/apply-template", {"messages": list(messages)})["prompt"]

    def greedy(self, ids: Sequence[int], n: int, *, stop: bool = True) -> list[int]:
        """``n`` further ids, each the likeliest; fewer where it stops. Without ``stop``, stop tokens are never chosen."""
        body = {"prompt": list(ids), "n_predict": n, "temperature": 0.0, "top_k": 1, "return_tokens": True}
        body |= {} if stop else {"ignore_eos": True}
        return self._post("/completion", body)["tokens"]

    def next_logprobs(self, ids: Sequence[int], n: int) -> dict[int, float]:
        """Log-probabilities of the ``n`` likeliest next ids."""
        # Figures come with text alone, so a letter is forced; they are those from before the forcing.
        letter = [[self.encode("a")[-1], 1e4]]
        body = {"prompt": list(ids), "n_predict": 1, "temperature": 0.0, "n_probs": n, "logit_bias": letter}
        answer = self._post("/completion", body)
        return {each["id"]: each["logprob"] for each in answer["completion_probabilities"][0]["top_logprobs"]}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """llama.cpp writes its log to the process's own stderr; keep it from a person's terminal."""
    sys.stderr.flush()
    kept = os.dup(2)
    hole = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(hole, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(hole)
