"""Verbs that prove what the model computes, and that a run goes on exactly where it was."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ..errors import CheckFailed
from .arguments import JsonFile, check_json_target, write_json


def add_to(app: typer.Typer) -> None:
    verbs = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
    verbs.command()(model)
    verbs.command()(moe)
    verbs.command()(resume)
    verbs.command()(dist)
    app.add_typer(verbs, name="verify", help="Prove that models compute what they should; 2 is returned where not.")


def model(
    family: Annotated[
        str | None, typer.Option("--family", metavar="NAME", help="One family: llama, qwen3, gpt2, … [default: all].")
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Every family beside transformers and beside itself: logits, losses, packing, cache, padding, first weights."""
    check_json_target(json_file)
    from ..verify import verify_model

    _end(verify_model(family, _say), json_file)


def moe(json_file: JsonFile = None) -> None:
    """The mixture of experts: router gradient, grouped products, balancing from a skewed start."""
    check_json_target(json_file)
    from ..verify import verify_moe

    _end(verify_moe(_say), json_file)


def resume(
    stage: Annotated[
        str, typer.Option("--stage", metavar="NAME", help="One stage of training: pretrain, sft.")
    ] = "all",
    json_file: JsonFile = None,
) -> None:
    """A run that was killed or told to stop and started again, beside one that was not: bit for bit, in every stage."""
    check_json_target(json_file)
    from ..verify import verify_resume

    _end(verify_resume(stage, _say), json_file)


def dist(
    form: Annotated[
        str | None, typer.Option("--form", metavar="WORDS", help="Forms whose name holds WORDS [default: all].")
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Every way of sharing a run among processes beside one process: gradients, norm, rows, losses, weights. No GPU is needed."""
    check_json_target(json_file)
    from ..verify import verify_dist

    _end(verify_dist(form, _say), json_file)


def _say(line: str) -> None:
    print(line, flush=True)


def _end(report: dict[str, Any], json_file: Any) -> None:
    from ..verify import print_report

    well = print_report(report, _say)
    write_json(json_file, report)
    if not well:
        n = report["failed"]
        raise CheckFailed(f"{n} check{'' if n == 1 else 's'} failed; {'it stands' if n == 1 else 'they stand'} above")
