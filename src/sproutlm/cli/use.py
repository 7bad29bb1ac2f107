"""Verbs that use a model: chat, generate, eval."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .arguments import JsonFile, check_json_target, write_json

Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, a checkpoint or a Hugging Face folder.")]
Temperature = Annotated[float, typer.Option(min=0, help="Randomness; 0 is greedy.")]
TopK = Annotated[int, typer.Option(min=0, help="Only the K likeliest tokens; 0 = all.")]
TopP = Annotated[float, typer.Option(min=0, max=1, help="Only the likeliest tokens that make up this share.")]
RepetitionPenalty = Annotated[float, typer.Option(min=0, help="Above 1: fewer repetitions.")]
Greedy = Annotated[bool, typer.Option("--greedy", help="Always the likeliest token.")]
MaxTokens = Annotated[int, typer.Option(min=1, help="Longest answer.")]
Seed = Annotated[int | None, typer.Option(min=0, help="The same seed gives the same answer.")]
System = Annotated[str | None, typer.Option(help="System prompt.")]


def add_to(app: typer.Typer) -> None:
    app.command(no_args_is_help=True)(chat)
    app.command(no_args_is_help=True)(generate)
    app.command("eval", no_args_is_help=True)(evaluate)


def chat(
    run: Run,
    system: System = None,
    temperature: Temperature = 0.7,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    repetition_penalty: RepetitionPenalty = 1.0,
    greedy: Greedy = False,
    max_tokens: MaxTokens = 256,
    seed: Seed = None,
) -> None:
    """Talk to a model. /help shows what you can type; a pipe works as well."""
    from ..infer.chat import chat as talk

    talk(
        run,
        system=system,
        temperature=0.0 if greedy else temperature,
        top_k=top_k,
        top_p=top_p,
        repetition_penalty=repetition_penalty,
        max_tokens=max_tokens,
        seed=seed,
    )


def generate(
    run: Run,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="Text to go on from.")] = "",
    as_chat: Annotated[
        bool | None,
        typer.Option("--chat/--raw", help="A person's turn, or plain text [default: as the run was trained]."),
    ] = None,
    system: System = None,
    temperature: Temperature = 0.7,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    repetition_penalty: RepetitionPenalty = 1.0,
    greedy: Greedy = False,
    max_tokens: MaxTokens = 256,
    seed: Seed = None,
    json_file: JsonFile = None,
) -> None:
    """Continue a text, or answer one question."""
    from ..infer.generate import generate as write

    check_json_target(json_file)
    report = write(
        run,
        prompt,
        as_chat=as_chat,
        system=system,
        temperature=0.0 if greedy else temperature,
        top_k=top_k,
        top_p=top_p,
        repetition_penalty=repetition_penalty,
        max_tokens=max_tokens,
        seed=seed,
    )
    write_json(json_file, report)


def evaluate(
    run: Run,
    questions: Annotated[
        Path | None, typer.Option(metavar="FILE", help="questions.jsonl with checkable answers.")
    ] = None,
    text: Annotated[Path | None, typer.Option(metavar="FILE", help="Held-out text for bits per byte.")] = None,
    max_questions: Annotated[int | None, typer.Option(min=1, help="Questions of each kind; default all.")] = None,
    json_file: JsonFile = None,
) -> None:
    """Held-out bits per byte, stop rate, and checked answers by kind."""
    from ..pipeline.evaluate import evaluate as measure

    check_json_target(json_file)
    measure(run, questions=questions, text=text, max_questions=max_questions, json_file=json_file)
