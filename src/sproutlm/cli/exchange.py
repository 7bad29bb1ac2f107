"""Verbs for other people's tools: export, import."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import SproutError
from .arguments import JsonFile, check_json_target, say, write_json


def add_to(app: typer.Typer) -> None:
    leaving = typer.Typer(help="Write a model for other tools.", no_args_is_help=True, rich_markup_mode=None)
    leaving.command("hf", no_args_is_help=True)(export_hf)
    leaving.command("gguf", no_args_is_help=True)(export_gguf)
    leaving.command("ollama", no_args_is_help=True)(export_ollama)
    app.add_typer(leaving, name="export")
    coming = typer.Typer(help="Take in a model of other tools.", no_args_is_help=True, rich_markup_mode=None)
    coming.command("hf", no_args_is_help=True)(import_hf)
    app.add_typer(coming, name="import")


Model = Annotated[Path, typer.Argument(metavar="MODEL", help="A run folder, a checkpoint or a Hugging Face folder.")]
Check = Annotated[bool, typer.Option(help="Load what was written and compare its logits.")]
Kind = Annotated[
    str | None,
    typer.Option("--type", help="f32, f16, bf16, q8_0, q5_1, q5_0, q4_1 or q4_0; default: the model's own."),
]


def export_hf(
    run: Model,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write.")],
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16; default: the model's own.")] = None,
    shard_size: Annotated[str, typer.Option(help="Largest weight file: 500MB, 4GB.")] = "4GB",
    check: Check = True,
    json_file: JsonFile = None,
) -> None:
    """Write a Hugging Face folder that transformers loads with no code of ours."""
    from ..export.huggingface import export_run

    check_json_target(json_file)
    report = export_run(run, out, dtype=dtype, shard_bytes=_bytes(shard_size), check=check)
    typer.echo(f"wrote {out}: {report['architecture']}, {report['dtype']}, {report['bytes']:,} bytes")
    _say_check(report.get("check"), "transformers", report["dtype"])
    write_json(json_file, report)


def export_gguf(
    run: Model,
    out: Annotated[Path, typer.Argument(metavar="OUT.gguf", help="File to write.")],
    kind: Kind = None,
    check: Check = True,
    json_file: JsonFile = None,
) -> None:
    """Write one file for llama.cpp and programs built on it, with tokenizer, chat template and stop tokens inside."""
    from ..export.gguf import export_gguf as write

    check_json_target(json_file)
    report = write(run, out, kind=kind, check=check, progress=_progress())
    _say_gguf(report)
    write_json(json_file, report)


def export_ollama(
    run: Model,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write.")],
    kind: Kind = None,
    check: Check = True,
    json_file: JsonFile = None,
) -> None:
    """Write a folder for Ollama: the GGUF file and a Modelfile with the same chat template."""
    from ..export.gguf import export_ollama as write

    check_json_target(json_file)
    report = write(run, out, kind=kind, check=check, progress=_progress())
    _say_gguf(report)
    typer.echo(f"hand it to Ollama: ollama create NAME -f {out / 'Modelfile'}")
    write_json(json_file, report)


def _say_gguf(report: dict[str, Any]) -> None:
    for note in report["notes"]:
        say(f"note: {note}")
    typer.echo(
        f"wrote {report['out']}: {report['architecture']}, {report['type']}, {report['bytes']:,} bytes, "
        f"context {report['context']:,}, tokenizer {report['tokenizer']}"
    )
    _say_check(report.get("check"), "llama.cpp", report["type"])


def _say_check(check: dict[str, Any] | None, program: str, kind: str) -> None:
    """What loading again has shown."""
    if check is None:
        return
    most = check["largest_logit"]
    typer.echo(f"loaded again: as {kind}, logits differ by up to {check['here']:.2g} (they reach {most:.3g})")
    there = check.get("transformers", check.get("llama_cpp"))
    if there is None:
        package = {"llama.cpp": "xllamacpp"}.get(program, program)
        say(f"note: not tried in {program}, which is not installed (pip install {package})")
        return
    figure = "log-probabilities" if program == "llama.cpp" else "logits"
    typer.echo(f"in {program}: {figure} differ by up to {there:.2g} from ours with the same file")
    if "texts" in check:
        total = check["texts"] + check.get("prompts", 0)
        typer.echo(f"in {program}: the same token ids for {total - check['other_ids']} of {total} texts and prompts")


def _progress() -> Callable[[int, int], None]:
    """Says every few seconds how many tensors are written and how long the rest will take."""
    begun = told = 0.0

    def progress(done: int, total: int) -> None:
        nonlocal begun, told
        now = time.monotonic()
        if done == 1:
            begun = told = now
        elif now - told > 2 and done < total:
            told = now
            say(f"{done} of {total} tensors written, about {(now - begun) / (done - 1) * (total - done):.0f} s left")

    return progress


def _bytes(text: str) -> int:
    units = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(KB|MB|GB|)", text.strip().upper())
    if not found or float(found[1]) <= 0:
        raise SproutError(f"--shard-size {text}: not a size; give a number with KB, MB or GB, such as 4GB")
    return int(float(found[1]) * units[found[2]])


def import_hf(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A Hugging Face folder.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write, usable like a run.")],
    dtype: Annotated[
        str | None, typer.Option(help="Write the weights anew as float32, bfloat16 or float16; else as they are.")
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Check a Hugging Face folder and take it in."""
    from ..export.take_in import import_folder

    check_json_target(json_file)
    report = import_folder(folder, out, dtype=dtype, say=say)
    typer.echo(f"{report['architecture']}, {report['parameters']:,} parameters, {', '.join(report['dtype'])}")
    ready = f"talk to it: sprout chat {out}" if report["tokenizer"] else f"start from it: init_from: {out}"
    typer.echo(f"wrote {out}; {ready}")
    write_json(json_file, report)
