"""Verbs on tokenizers: train, extend, test, lint, compare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from ..errors import CheckFailed, SproutError
from .arguments import JsonFile, check_json_target, say, write_json

Folder = Annotated[
    Path,
    typer.Argument(
        metavar="DIR", help="A tokenizer's folder or file, a run, a Hugging Face folder, or gpt2, o200k_base …"
    ),
]


def add_to(app: typer.Typer) -> None:
    group = typer.Typer(help="Train, extend, test and compare tokenizers.", no_args_is_help=True, rich_markup_mode=None)
    for verb in (train, extend, remap, shrink, test, lint, compare):
        group.command(no_args_is_help=True)(verb)
    app.add_typer(group, name="tokenizer")


def train(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write.")],
    files: Annotated[list[Path], typer.Argument(metavar="FILE", help="Text in any format that data takes.")],
    vocab_size: Annotated[int, typer.Option(min=1, help="Ids, special tokens included.")] = 6400,
    kind: Annotated[
        Literal["byte_bpe", "sentencepiece_bpe", "sentencepiece_unigram"], typer.Option(help="What is trained.")
    ] = "byte_bpe",
    digits: Annotated[
        Literal["single", "groups", "free"], typer.Option(help="Each digit a token; up to three together; no rule.")
    ] = "single",
    spaces: Annotated[
        Literal["single", "runs"], typer.Option(help="runs: indentation is cut from the word after it.")
    ] = "single",
    cjk: Annotated[
        Literal["runs", "single", "free"],
        typer.Option(help="East Asian letters: apart from others; one by one; no rule."),
    ] = "runs",
    format: Annotated[str, typer.Option(help="The files' format.")] = "auto",
    columns: Annotated[
        list[str] | None, typer.Option(metavar="FIELD=COLUMN", help="Where a field stands: text=body. Repeat for more.")
    ] = None,
    max_bytes: Annotated[int, typer.Option(min=1, help="Bytes of text to train on, and to hold.")] = 200_000_000,
    sample: Annotated[
        Literal["spread", "first"], typer.Option(help="Of longer texts: an even sample of all, or their beginning.")
    ] = "spread",
    force: Annotated[bool, typer.Option("--force", help="Replace a tokenizer that is there.")] = False,
    json_file: JsonFile = None,
) -> None:
    """Train a tokenizer on files, and report how well it compresses."""
    from ..tokenizer.check import compression, print_compression
    from ..tokenizer.reading import Used
    from ..tokenizer.train import train_from_files

    check_json_target(json_file)
    if out.is_file() or (not force and (out / "tokenizer.json").exists()):
        what = "is a file; give a folder" if out.is_file() else "holds a tokenizer already; --force replaces it"
        raise SproutError(f"{out} {what}")
    used = Used(sample, max_bytes)
    tokenizer = train_from_files(
        files,
        out,
        vocab_size,
        format=format,
        columns=_pairs(columns),
        kind=kind,
        digits=digits,
        spaces=spaces,
        cjk=cjk,
        sample=sample,
        max_bytes=max_bytes,
        say=say,
        used=used,
    )
    rows = compression(tokenizer)
    typer.echo(f"{out}: {tokenizer.vocab_size:,} ids")
    print_compression(rows)
    report = {"tokenizer": str(out), "vocab_size": tokenizer.vocab_size, "fingerprint": tokenizer.fingerprint}
    text = {"bytes_used": used.used, "bytes_of_text": used.total, "max_bytes": max_bytes, "sample": sample}
    write_json(json_file, {**report, "kind": kind, **text, "compression": rows})


def extend(
    folder: Folder,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write; it must not exist yet.")],
    tokens: Annotated[
        str | None, typer.Option(metavar="A,B", help="Control tokens to add, separated by commas.")
    ] = None,
    tokens_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Control tokens to add, one per line.")
    ] = None,
    text_tokens: Annotated[
        str | None, typer.Option(metavar="A,B", help="Words to add as tokens of text, separated by commas.")
    ] = None,
    reserved: Annotated[
        bool, typer.Option("--reserved", help="Take the ids of <|reserved_0|> and on before new ones.")
    ] = False,
    model: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Write this model to OUT, too, with rows for the new tokens.")
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Add tokens to a tokenizer; every id that it had keeps its meaning."""
    from ..pipeline.extend import extend_folder

    check_json_target(json_file)
    control = [*_names(tokens), *(_lines(tokens_file) if tokens_file else [])]
    words = _names(text_tokens)
    if not control and not words:
        raise SproutError("no tokens to add; give --tokens '<|a|>,<|b|>', --tokens-file FILE or --text-tokens WORD")
    report = extend_folder(
        folder, out, control, text_tokens=words, take_reserved=reserved, model=model, say=say
    )  # fmt: skip
    for name, id_ in report["tokens"].items():
        typer.echo(f"  {id_:>7}  {name}")
    typer.echo(f"{out}: {report['vocab_size']:,} ids, {report['was']:,} before")
    write_json(json_file, report)


def remap(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A run, a checkpoint or a Hugging Face folder.")],
    tokenizer: Annotated[Path, typer.Argument(metavar="NEW_TOKENIZER", help="The tokenizer it is to have.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write, to start from with init_from.")],
    json_file: JsonFile = None,
) -> None:
    """Give a model another tokenizer, for continued pretraining."""
    from ..pipeline.remap import remap_folder

    check_json_target(json_file)
    report = remap_folder(model, tokenizer, out, say=say)
    typer.echo(f"wrote {out}; train it on text: init_from: {out}")
    write_json(json_file, report)


def shrink(
    source: Annotated[
        Path,
        typer.Argument(metavar="MODEL|TOKENIZER", help="A run, a checkpoint, a Hugging Face folder, or a tokenizer."),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write; it must not exist yet.")],
    data: Annotated[
        list[Path], typer.Option("--data", metavar="FILE", help="The texts it is to be good at. May be repeated.")
    ],
    keep: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Ids at most, the most used ones [default: all that are used]."),
    ] = None,
    min_count: Annotated[int, typer.Option(min=1, metavar="N", help="Drop tokens that stand less often.")] = 1,
    tokenizer_only: Annotated[bool, typer.Option("--tokenizer-only", help="Leave the model as it is.")] = False,
    check: Annotated[bool, typer.Option(help="Run the model before and after, and compare its logits.")] = True,
    json_file: JsonFile = None,
) -> None:
    """Cut a byte-level BPE vocabulary down to the tokens that texts use; a model keeps their rows exactly."""
    from ..pipeline.shrink import shrink_folder

    check_json_target(json_file)
    report = shrink_folder(
        source, data, out, keep=keep, min_count=min_count, tokenizer_only=tokenizer_only, check=check, say=say
    )  # fmt: skip
    typer.echo(f"{report['vocab_size']:,} ids kept of {report['was']:,}; the texts use {report['used']:,} of them")
    gone, tokens = report["tokens_dropped"], report["tokens"]
    typer.echo(f"{gone:,} of {tokens:,} tokens of the texts are of a kind that is gone ({gone / tokens:.2%})")
    typer.echo(
        f"{report['texts_tried']:,} texts tried: {report['texts_same']:,} in the same pieces, all come back; "
        f"{report['tokens_tried_after']:,} tokens, {report['tokens_tried']:,} before"
    )
    if report["model"]:
        typer.echo(f"{report['parameters']:,} parameters, {report['parameters_before']:,} before")
    if "logits_differ" in report:
        typer.echo(f"logits of the kept ids differ by up to {report['logits_differ']:.2g}")
    typer.echo(f"wrote {out}")
    write_json(json_file, report)


def test(
    folder: Folder,
    text: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="Report its compression, too. May be repeated.")
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Prove that every text comes back byte for byte, and report compression per language."""
    from ..tokenizer.check import check_tokenizer, print_report

    check_json_target(json_file)
    report = check_tokenizer(folder, text or [])
    print_report(report)
    write_json(json_file, report)
    failed = [check["name"] for check in report["checks"] if check["ok"] is False]
    if failed:
        raise CheckFailed(f"{folder}: failed: {', '.join(failed)}; the cures stand above")


def lint(
    template: Annotated[
        Path, typer.Argument(metavar="TEMPLATE|DIR", help="chatml, qwen3 …, a Jinja file, or a tokenizer's folder.")
    ],
    tokenizer: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The tokenizer to try it with; else a stand-in.")
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Refuse a chat template whose end of turn is not trained, or whose prompts differ from training."""
    from ..tokenizer.lint import lint as lint_template, print_lint
    from ..tokenizer.tokenizer import Tokenizer

    check_json_target(json_file)
    report = lint_template(template, Tokenizer.load(tokenizer) if tokenizer else None)
    sound = print_lint(report)
    write_json(json_file, report)
    if not sound:
        raise CheckFailed(f"{template}: this template is refused; the cures stand above")


def compare(
    tokenizers: Annotated[list[Path], typer.Argument(metavar="A B...", help="Two tokenizers or more.")],
    data: Annotated[
        list[Path], typer.Option("--data", metavar="FILE", help="Text to compare on, code too. May be repeated.")
    ],
    max_mb: Annotated[float, typer.Option(min=0.001, help="Million bytes of text, shared by the files.")] = 20.0,
    plot: Annotated[Path | None, typer.Option(metavar="FILE.png", help="Draw the figures.")] = None,
    json_file: JsonFile = None,
) -> None:
    """Compare tokenizers on the same text: bytes per token by language, fertility, speed, shared tokens."""
    from ..tokenizer.compare import (
        by_language,
        compare as compare_tokenizers,
        plot_comparison,
        print_comparison,
        read_texts,
    )
    from ..tokenizer.tokenizer import Tokenizer

    check_json_target(json_file)
    _check_plot(plot)
    if len(tokenizers) < 2:
        raise SproutError("one tokenizer alone cannot be compared; give two or more (or see: sprout tokenizer test)")
    names = [str(path) for path in tokenizers]
    loaded = [(name, Tokenizer.load(path)) for name, path in zip(names, tokenizers, strict=True)]
    report = compare_tokenizers(loaded, by_language(read_texts(data, int(max_mb * 1e6))), say=say)
    print_comparison(report)
    write_json(json_file, report)
    if plot is not None:
        plot_comparison(report, plot)
        typer.echo(f"drawn: {plot}")


def _check_plot(path: Path | None) -> None:
    if path is None:
        return
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise SproutError(f"--plot {path}: the suffix says what is drawn; give NAME.png, NAME.svg or NAME.pdf")
    if not path.absolute().parent.is_dir():
        raise SproutError(f"--plot {path}: the folder {path.absolute().parent} does not exist; make it first")


def _names(given: str | None) -> list[str]:
    return [name.strip() for name in (given or "").split(",") if name.strip()]


def _lines(file: Path) -> list[str]:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise SproutError(
            f"--tokens-file {file}: cannot be read ({error}); give a UTF-8 file, one token a line"
        ) from None
    return [line.strip() for line in text.splitlines() if line.strip()]


def _pairs(given: list[str] | None) -> dict[str, str]:
    pairs = {}
    for pair in given or []:
        field, equals, column = pair.partition("=")
        if not (field and equals and column):
            raise SproutError(f"--columns {pair}: expected FIELD=COLUMN, such as text=body")
        pairs[field] = column
    return pairs
