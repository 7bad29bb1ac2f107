"""Fetch models and data sets from Hugging Face, ModelScope or a local copy of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..errors import CheckFailed, SproutError
from .arguments import JsonFile, check_json_target, say, write_json

if TYPE_CHECKING:
    from ..hub.address import Address
    from ..hub.catalogue import Entry
    from ..hub.listing import Listing, Selection

Out = Annotated[
    Path | None, typer.Option("--out", "-o", metavar="DIR", help="Where to; default: data/NAME or models/NAME here.")
]
Include = Annotated[
    list[str] | None, typer.Option(metavar="GLOB", help="Only files like this: '*.jsonl', 'en/*'. Repeat for more.")
]
Exclude = Annotated[list[str] | None, typer.Option(metavar="GLOB", help="No files like this. Repeat for more.")]
MaxFiles = Annotated[int | None, typer.Option(min=1, metavar="N", help="The first N files.")]
Sample = Annotated[
    str | None, typer.Option(metavar="SIZE", help="The first files until SIZE is reached, such as 2GB; whole files.")
]
From = Annotated[str | None, typer.Option("--from", metavar="HUB", help="hf or modelscope, for a name that both have.")]
HubCopy = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="A local copy of the hub in place of the network [also: SPROUT_HUB]."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show files, sizes and licence; fetch nothing.")]
Check = Annotated[
    bool, typer.Option("--check", help="Only compare what is there with its recorded checksums; no network.")
]


def add_to(app: typer.Typer) -> None:
    group = typer.Typer(
        help="Fetch models and data sets by name or address.", no_args_is_help=True, rich_markup_mode=None
    )
    group.command(no_args_is_help=True)(model)
    from .data import download as of_data

    group.command(no_args_is_help=True)(of_data.download)
    group.registered_commands[-1].name = "data"
    app.add_typer(group, name="download")


def model(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="A name of the catalogue, hf://OWNER/NAME[@REVISION][/FILES], modelscope://…, or a folder.",
        ),
    ],
    out: Out = None,
    include: Include = None,
    exclude: Exclude = None,
    max_files: MaxFiles = None,
    sample: Sample = None,
    source: From = None,
    hub: HubCopy = None,
    dry_run: DryRun = False,
    check: Check = False,
    json_file: JsonFile = None,
) -> None:
    """Fetch a model: safetensors, config and tokenizer; pickles are left out."""
    fetch("model", name, out, include, exclude, max_files, sample, source, hub, dry_run, check, json_file)


def fetch(
    kind: Literal["data", "model"],
    name: str,
    out: Path | None,
    include: list[str] | None,
    exclude: list[str] | None,
    max_files: int | None,
    sample: str | None,
    source: str | None,
    hub: Path | None,
    dry_run: bool,
    check: bool,
    json_file: Path | None,
) -> None:
    """What ``download data`` and ``download model`` have in common."""
    from ..hub.download import check as check_files, download, parse_size, plan

    check_json_target(json_file)
    address, entry = _resolve(name, kind, source)
    out = out or Path("data" if kind == "data" else "models", entry.name if entry is not None else address.name)
    if check:
        right, wrong = check_files(out)
        write_json(json_file, {"out": out, "right": right, "wrong": wrong})
        for path, what in wrong.items():
            say(f"{path}: {what}")
        if wrong:
            raise CheckFailed(
                f"{out}: {len(wrong)} of {right + len(wrong)} files are not as they came; fetch them again: the same command without --check"
            )
        typer.echo(f"{out}: {_files(right)}, all as they came")
        return
    wanted = include or (entry.files if entry is not None and not address.pattern else [])
    try:
        store, listing, selection = plan(
            address, hub, wanted, exclude or (), max_files, None if sample is None else parse_size(sample)
        )
    except SproutError as error:
        raise _with_other_hub(error, entry, address) from error.__cause__
    _say_plan(listing, selection, entry)
    if dry_run:
        for file in selection.files:
            typer.echo(f"{_size(file.size):>10}  {file.path}")
        write_json(
            json_file,
            {
                "address": str(address),
                "out": out,
                "revision": listing.revision,
                "files": [{"path": file.path, "size": file.size} for file in selection.files],
                "left_out": selection.left_out,
            },
        )
        return
    report = download(store, listing, selection, out, say)
    _say_report(report, entry, kind)
    write_json(json_file, {name: getattr(report, name) for name in report.__dataclass_fields__})


def _resolve(name: str, kind: Literal["data", "model"], source: str | None) -> tuple[Address, Entry | None]:
    from ..hub.address import is_address, parse_address
    from ..hub.catalogue import catalogue, find, of_address

    if source not in (None, "hf", "modelscope"):
        raise SproutError(f"--from {source}: expected hf or modelscope")
    if is_address(name) and not any(entry.name == name for entry in catalogue(kind)):
        if "://" not in name and not Path(name).expanduser().is_dir() and name.count("/") == 1 and name[0] not in "./~":
            # OWNER/NAME, as the hubs' own commands take it.
            name = f"{source or 'hf'}://{'datasets/' if kind == 'data' else ''}{name}"
        address = parse_address(name, kind)
        return address, of_address(address) if address.hub != "folder" else None
    entry = find(name, kind)
    return entry.address(source), entry  # type: ignore[arg-type]


def _with_other_hub(error: SproutError, entry: Entry | None, address: Address) -> SproutError:
    """A name that does not answer on one hub may be on the other, or be near another name."""
    from ..hub.catalogue import nearest

    text = str(error)
    other = {"hf": "modelscope", "modelscope": "hf"}.get(address.hub)
    if (
        entry is not None
        and other is not None
        and getattr(entry, other)
        and ("cannot reach" in text or "refuses" in text)
    ):
        text += f"; or the other hub: --from {other}"
    elif entry is None and "not found" in text and (near := nearest(address.repo, address.kind)):
        text += f"; near in the catalogue: {', '.join(near)}"
    return type(error)(text)


def _say_plan(listing: Listing, selection: Selection, entry: Entry | None) -> None:
    from ..hub.listing import describe_left_out

    total = sum(file.size or 0 for file in selection.files)
    licence = listing.licence or (entry.licence if entry is not None else None) or "not stated: see its page"
    at = f" at {listing.revision[:12]}" if listing.revision else ""
    say(f"{listing.address}{at}: {_files(len(selection.files))}, {_size(total)}; licence: {licence}")
    if entry is not None and entry.note:
        say(f"note: {entry.note}")
    if selection.left_out:
        say(f"left out: {describe_left_out(selection.left_out)}")


def _say_report(report: Any, entry: Entry | None, kind: Literal["data", "model"]) -> None:
    from ..hub.next_steps import next_steps

    if not report.fetched:
        state = "nothing to fetch: all were there, and their checksums are right"
    else:
        state = f"{len(report.fetched)} fetched, {len(report.kept)} were there, checksums right"
    typer.echo(f"{report.out}: {_files(len(report.files))}, {_size(report.bytes)}; {state}")
    if report.without_checksum:
        typer.echo(
            f"{_files(report.without_checksum)} without a checksum at the source: what came is recorded, and compared from now on"
        )
    for line in next_steps(kind, report.out, report.files, entry):
        typer.echo(line)


def _files(count: int) -> str:
    return f"{count:,} file{'' if count == 1 else 's'}"


def _size(size: int | None) -> str:
    from ..hub.download import size_text

    return "?" if size is None else size_text(size)
