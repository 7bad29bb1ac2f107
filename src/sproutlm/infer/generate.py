"""One answer, or one continuation of a text, streamed as it is written."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

import torch
import yaml

from ..errors import SproutError
from ..export.load import load
from ..model import Transformer
from ..tokenizer.template import ChatTemplate
from ..tokenizer.tokenizer import Tokenizer, token_name
from .engine import Completion, Engine, Request
from .sampling import SamplingParams


def generate(
    path: Path | str,
    prompt: str,
    params: SamplingParams | None = None,
    *,
    as_chat: bool | None = None,
    system: str | None = None,
    json_file: Path | None = None,
    output: TextIO | None = None,
    **sampling: Any,
) -> dict[str, Any]:
    """Go on from ``prompt`` with the model at ``path``; the text streams to ``output`` (default: stdout).

    ``as_chat`` renders the prompt as a person's turn; None does so where the run was fine-tuned on conversations. A raw
    prompt follows the token that begins a text. Sampling comes as ``params``, or as fields of ``SamplingParams`` by name.
    Returns prompt, text, finish_reason, chat, prompt_tokens, tokens, seconds, tokens_per_second.
    """
    params = replace(params or SamplingParams(), **sampling)
    model, tokenizer = open_model(path)
    chat = stage_of(path) == "sft" if as_chat is None else as_chat
    if system and not chat:
        raise SproutError("a system prompt needs a conversation, and this is a raw continuation; add --chat")
    request = chat_request(tokenizer, prompt, params, system) if chat else raw_request(tokenizer, prompt, params)
    stream = output or sys.stdout
    started = time.perf_counter()
    completion = write_answer(stream, Engine(model, tokenizer), request)
    seconds = time.perf_counter() - started
    report = {
        "prompt": prompt,
        "text": completion.text,
        "finish_reason": completion.finish_reason,
        "chat": chat,
        "prompt_tokens": len(request.prompt_ids),
        "tokens": len(completion.ids),
        "seconds": round(seconds, 3),
        "tokens_per_second": round(len(completion.ids) / seconds, 1),
    }
    if json_file is not None:
        json_file.write_text(json.dumps(report, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return report


def chat_request(tokenizer: Tokenizer, prompt: str, params: SamplingParams, system: str | None) -> Request:
    """The prompt as a person's turn, by the tokenizer's own template."""
    template = ChatTemplate.of(tokenizer)
    head = [{"role": "system", "content": system}] if system else []
    rendered = template.render([*head, {"role": "user", "content": prompt}], add_generation_prompt=True)
    return Request(rendered.ids, params, template.stop_ids)


def raw_request(tokenizer: Tokenizer, prompt: str, params: SamplingParams) -> Request:
    """The prompt as the beginning of a text, after the token that begins one, as in training."""
    return Request([begin_id(tokenizer), *tokenizer.encode(prompt)], params, tokenizer.stop_ids)


def begin_id(tokenizer: Tokenizer) -> int:
    """The token that begins a text: a foreign tokenizer's bos where it names one, else the end of the text before."""
    name = token_name(tokenizer.config.get("bos_token"))
    return tokenizer.control_tokens.get(name or "", tokenizer.eos_id)


def write_answer(stream: TextIO, engine: Engine, request: Request) -> Completion:
    """Write an answer to ``stream`` while it is made, and a line break at its end."""
    pieces = engine.stream_text(request)
    while True:
        try:
            stream.write(next(pieces))
        except StopIteration as end:
            stream.write("\n")
            stream.flush()
            return end.value
        stream.flush()


def open_model(path: Path | str) -> tuple[Transformer, Tokenizer]:
    """The model at ``path`` on the device that it will run on, with its tokenizer; SproutError where it has none."""
    model, tokenizer = load(path)
    if tokenizer is None:
        raise SproutError(f"{path}: there is no tokenizer.json beside this model; put its tokenizer's files there")
    return model.to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer


def run_of(path: Path | str) -> Path | None:
    """The folder whose ``recipe.yaml`` describes the model at ``path``: its run, where it lies in one, else itself."""
    path = Path(path).absolute()
    run = path.parent.parent if path.parent.name == "checkpoints" else path.parent if path.name == "model" else path
    return next((folder for folder in (run, path) if (folder / "recipe.yaml").is_file()), None)


def stage_of(path: Path | str) -> str | None:
    """``pretrain`` or ``sft``, by the recipe that was stored with the model; None where none was."""
    run = run_of(path)
    if run is None:
        return None
    try:
        recipe = yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None
    return recipe.get("stage", "pretrain") if isinstance(recipe, dict) else None
