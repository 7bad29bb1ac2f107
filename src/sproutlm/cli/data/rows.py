"""Check, convert and cut data files: validate, convert, split, sample, mix, balance."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ...errors import CheckFailed, SproutError
from ..arguments import JsonFile, check_json_target, say, write_json
from .wording import as_options, in_options

if TYPE_CHECKING:
    from ...data.verbs.rows import Input

Source = Annotated[str, typer.Argument(metavar="IN", help="A file, a glob in quotes, or a folder; .gz and .zst, too.")]
Sources = Annotated[list[str], typer.Argument(metavar="IN...", help="Files, globs in quotes, or folders.")]
Out = Annotated[
    Path,
    typer.Argument(metavar="OUT", help="The file to write; its suffix says what: .jsonl .json .csv .tsv .parquet .txt"),
]
Format = Annotated[str, typer.Option(help="The schema of the rows, where it cannot be told from them.")]
Columns = Annotated[
    list[str] | None,
    typer.Option(metavar="FIELD=COLUMN", help="Where a field stands: text=body. Repeat for more."),
]
Encoding = Annotated[str, typer.Option(help="Encoding of text files, such as gb18030.")]
Fill = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=TEXT", help="Put TEXT where rows say {{NAME}}. Repeat for more."),
]
RoleOrder = Annotated[
    Literal["strict", "any"], typer.Option(help="strict: user and assistant take turns, a user first.")
]
OnBadRow = Annotated[
    Literal["error", "skip"], typer.Option(help="At a row that cannot be read: stop, or leave it out and count it.")
]
Force = Annotated[bool, typer.Option("--force", help="Overwrite what is there.")]
Seed = Annotated[int, typer.Option(min=0, max=2**63 - 1, help="The same seed gives the same bytes.")]
Tokenizer = Annotated[Path | None, typer.Option(metavar="DIR", help="Count tokens with the tokenizer in this folder.")]
Rows = Annotated[int | None, typer.Option(min=1, help="So many rows.")]
Tokens = Annotated[int | None, typer.Option(min=1, help="So many tokens.")]
Megabytes = Annotated[float | None, typer.Option("--mb", help="So many million bytes.")]
To = Annotated[
    str | None, typer.Option(metavar="SCHEMA", help="Write rows of this schema; else they stay as they are.")
]


def add_to(group: typer.Typer) -> None:
    """Add the verbs of this file to ``sprout data``."""
    for verb in (validate, convert, split, sample, mix, balance):
        group.command(no_args_is_help=True)(in_options(verb))


def validate(
    sources: Sources,
    format: Format = "auto",
    columns: Columns = None,
    encoding: Encoding = "utf-8",
    fill: Fill = None,
    role_order: RoleOrder = "strict",
    json_file: JsonFile = None,
) -> None:
    """Read everything and name each kind of fault, with its first place and its cure. Exit code 2 if a row is bad.

    Several inputs are parts of one data set, the first one to train on: labels and rows are compared between them.
    """
    from ...data.verbs.validate import validate as check

    check_json_target(json_file)
    report = check([_input(source, format, columns, encoding, fill, role_order) for source in sources])
    for found in report["inputs"]:
        counts = found["counts"]
        typer.echo(
            f"{found['source']}: {found['format'] or 'format not known'}, {counts['rows_in']:,} rows, {counts['records_out']:,} usable"
        )
        for kind, word in (("faults", "FAULT"), ("notes", "note ")):
            for line in found[kind]:
                rows = f"{line['rows']:,} row{'s, first' if line['rows'] > 1 else ''} at " if line["rows"] else ""
                cure = f". Cure: {line['cure']}" if line["cure"] else ""
                said = line["first"].rstrip(".") if cure else line["first"]
                typer.echo(as_options(f"  {word} {line['kind']}: {rows}{said}{cure}"))
        if counts["ignored_files"]:
            typer.echo(f"  note  ignored: {counts['ignored_files']:,} files whose suffix is not known")
        if found["labels"]:
            shown = ", ".join(f"{label} {rows:,}" for label, rows in list(found["labels"].items())[:10])
            typer.echo(f"  labels: {shown}{' …' if len(found['labels']) > 10 else ''}")
    write_json(json_file, report)
    if not report["ok"]:
        first = next(f["first"] for found in report["inputs"] for f in found["faults"])
        kinds = sum(len(found["faults"]) for found in report["inputs"])
        raise CheckFailed(f"{kinds} kind{'s' if kinds > 1 else ''} of fault; first: {first}")
    typer.echo("every row can be used")


def convert(
    source: Source,
    out: Out,
    to: To = None,
    format: Format = "auto",
    columns: Columns = None,
    encoding: Encoding = "utf-8",
    fill: Fill = None,
    role_order: RoleOrder = "strict",
    on_bad_row: OnBadRow = "error",
    force: Force = False,
    json_file: JsonFile = None,
) -> None:
    """Write rows in another kind of file, as they are or, with --to, in another schema."""
    from ...data.verbs.convert import convert as run

    check_json_target(json_file)
    _tell(run(_input(source, format, columns, encoding, fill, role_order, on_bad_row), out, to, force), json_file)


def split(
    source: Source,
    out: Annotated[
        list[Path],
        typer.Argument(metavar="OUT...", help="A folder for train, validation, test; or one file for each part."),
    ],
    parts: Annotated[str, typer.Option(help="The share of each part.")] = "0.8,0.1,0.1",
    names: Annotated[
        str | None, typer.Option(help="For a folder: the parts' names; default: train,validation,test.")
    ] = None,
    stratify: Annotated[bool, typer.Option("--stratify", help="Part each label's rows by the same shares.")] = False,
    by: Annotated[
        str | None, typer.Option(metavar="FIELD", help="Keep rows with the same FIELD together; default: equal texts.")
    ] = None,
    seed: Seed = 0,
    format: Format = "auto",
    columns: Columns = None,
    encoding: Encoding = "utf-8",
    on_bad_row: OnBadRow = "error",
    force: Force = False,
    json_file: JsonFile = None,
) -> None:
    """Part rows for training, validation and test: exact shares, equal rows in one part only."""
    from ...data.verbs.split import split as run

    check_json_target(json_file)
    try:
        shares = [float(share) for share in parts.split(",")]
    except ValueError:
        raise SproutError(f"--parts {parts}: give numbers with commas between, such as 0.8,0.1,0.1") from None
    outs = _outs(out, names, len(shares), source)
    given = _input(source, format, columns, encoding, None, "any", on_bad_row)
    report = run(given, outs, shares, seed=seed, stratify=stratify, by=by, force=force)
    for part in report["parts"]:
        typer.echo(f"{part['out']}: {part['rows']:,} rows ({part['asked']:.1%} asked)")
    _tell(report, json_file)


def _outs(out: list[Path], names: str | None, n: int, source: str) -> list[Path]:
    """The files of the parts: as named, or in a folder, of the kind that is read."""
    from ...data.files import COMPRESSIONS, SUFFIXES, kind_of
    from ...data.verbs.split import NAMES

    if len(out) > 1 or kind_of(out[0]) is not None:
        if names is not None:
            raise SproutError("--names goes with a folder; here the files have names already")
        return out
    chosen = (
        tuple(name.strip() for name in names.split(","))
        if names
        else NAMES.get(n, tuple(f"part-{i}" for i in range(1, n + 1)))
    )
    suffixes = [suffix for suffix in Path(source).suffixes if suffix.lower() in (*SUFFIXES, *COMPRESSIONS)]
    ending = "".join(suffixes) if kind_of(Path(source)) is not None else ".jsonl"
    return [out[0] / f"{name}{'.jsonl' if ending.startswith('.txt') else ending}" for name in chosen]


def sample(
    source: Source,
    out: Out,
    rows: Rows = None,
    tokens: Tokens = None,
    megabytes: Megabytes = None,
    tokenizer: Tokenizer = None,
    seed: Seed = 0,
    format: Format = "auto",
    columns: Columns = None,
    encoding: Encoding = "utf-8",
    on_bad_row: OnBadRow = "error",
    force: Force = False,
    json_file: JsonFile = None,
) -> None:
    """Take a random part: --rows N, --tokens N with --tokenizer DIR, or --mb X. One pass; each row has the same chance."""
    from ...data.verbs.sample import sample as run

    check_json_target(json_file)
    given = _input(source, format, columns, encoding, None, "any", on_bad_row)
    report = run(given, out, rows=rows, tokens=tokens, megabytes=megabytes, tokenizer=tokenizer, seed=seed, force=force)
    typer.echo(f"{out}: " + ", ".join(f"{n:,} {unit}" for unit, n in report["taken"].items()))
    _tell(report, json_file)


def mix(
    out: Out,
    sources: Annotated[
        list[str], typer.Argument(metavar="IN=WEIGHT...", help="Sources and weights: a.jsonl=0.7 b.jsonl=0.3")
    ],
    rows: Rows = None,
    tokens: Tokens = None,
    megabytes: Megabytes = None,
    tokenizer: Tokenizer = None,
    no_repeat: Annotated[
        bool, typer.Option("--no-repeat", help="Refuse when a source is too small for its share.")
    ] = False,
    to: To = None,
    seed: Seed = 0,
    format: Format = "auto",
    columns: Columns = None,
    encoding: Encoding = "utf-8",
    on_bad_row: OnBadRow = "error",
    force: Force = False,
    json_file: JsonFile = None,
) -> None:
    """Mix sources by weight, in tokens (in bytes without --tokenizer). Without a size: until the first is used up."""
    from ...data.verbs.mix import mix as run

    check_json_target(json_file)
    parts = []
    for text in sources:
        path, equals, weight = text.rpartition("=")
        try:
            parts.append((_input(path, format, columns, encoding, None, "any", on_bad_row), float(weight)))
        except ValueError:
            equals = ""
        if not (equals and path):
            raise SproutError(f"{text}: expected a source and its weight, such as a.jsonl=0.7")
    report = run(
        parts, out, rows=rows, tokens=tokens, megabytes=megabytes, tokenizer=tokenizer, seed=seed,
        repeat=not no_repeat, to=to, force=force,
    )  # fmt: skip
    unit = report["unit"]
    typer.echo(f"{out}: {report['rows']:,} rows, {report['total']:,} {unit}")
    for part in report["sources"]:
        typer.echo(
            f"  {part['path']}: {part['share']:.2%} of {unit} ({part['asked']:.2%} asked), {part['rows']:,} rows, {part['passes']:.2f} passes"
        )
    _tell(report, json_file)


def balance(
    source: Source,
    out: Out,
    to: Annotated[
        str,
        typer.Option(
            metavar="min|max|N", help="Rows of each label: as the rarest has, as the most frequent has, or N."
        ),
    ],
    by: Annotated[
        str | None, typer.Option(metavar="FIELD", help="Balance the values of FIELD; default: the labels.")
    ] = None,
    seed: Seed = 0,
    format: Format = "auto",
    columns: Columns = None,
    encoding: Encoding = "utf-8",
    on_bad_row: OnBadRow = "error",
    force: Force = False,
    json_file: JsonFile = None,
) -> None:
    """Give every label as many rows, by leaving rows out or repeating them."""
    from ...data.verbs.balance import balance as run

    check_json_target(json_file)
    given = _input(source, format, columns, encoding, None, "any", on_bad_row)
    report = run(given, out, to, by=by, seed=seed, force=force)
    for label, rows in report["labels"].items():
        typer.echo(f"{label}: {rows['before']:,} rows before, {rows['after']:,} after")
    _tell(report, json_file)


# --- what the verbs share -----------------------------------------------------------------------------------------------


def _input(
    source: str,
    format: str,
    columns: Sequence[str] | None,
    encoding: str,
    fill: Sequence[str] | None,
    role_order: str = "any",
    on_bad_row: str = "error",
) -> Input:
    from ...config.data import SourceConfig
    from ...data.verbs.rows import Input

    pairs = {
        "columns": _pairs(columns, "--columns", "FIELD=COLUMN, such as --columns text=body"),
        "fill": _pairs(fill, "--fill", "NAME=TEXT, such as --fill name=Sprout"),
    }
    config = SourceConfig(path=source, format=format, encoding=encoding, role_order=role_order, **pairs)
    return Input(config, on_bad_row, say)


def _pairs(given: Sequence[str] | None, option: str, expected: str) -> dict[str, str]:
    found = {}
    for pair in given or ():
        name, equals, value = pair.partition("=")
        if not (name.strip() and equals and (value or option == "--fill")):
            raise SproutError(f"{option} {pair}: expected {expected}")
        found[name.strip()] = value
    return found


def _tell(report: dict[str, Any], json_file: Path | None) -> None:
    """Print what became of the rows, and write the report."""
    from ...data.sources import Counts

    for line in Counts.from_dict(report["counts"]).lines():
        typer.echo(as_options(line.replace(" records", " kept")))
    for note in report["notes"]:
        typer.echo(as_options(note))
    write_json(json_file, report)
