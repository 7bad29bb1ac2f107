"""``sprout report``: one HTML file about one or several runs that needs no network, no script and no other file.

Whatever comes from a run (names, samples, settings, findings) is text: it is escaped where it is put in, and the page's
own policy forbids scripts and every request, should an escape ever be missed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from .. import __version__
from ..atomic import write_atomic
from ..config.load import load_recipe
from ..doctor.recognise import recognise
from ..errors import SproutError
from ..train.metrics import read_metrics
from .report_words import WORDS
from .svg import COLOURS, DASHES, Line, plot, text

MARK = "<!doctype html>\n<!-- sprout report -->\n"
SAMPLE_STEPS, SAMPLE_CHARACTERS, SETTING_CHARACTERS = 6, 2000, 400
POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, "Noto Sans CJK SC", "Microsoft YaHei", sans-serif; max-width: 1500px; margin: 1.5em auto; padding: 0 1em; }
h1 { font-size: 1.5em; } h2 { font-size: 1.15em; margin-top: 1.8em; } h3 { font-size: 1em; margin-bottom: .2em; }
table { border-collapse: collapse; } th, td { text-align: left; padding: .2em .8em .2em 0; vertical-align: top; border-bottom: 1px solid #8884; }
td { overflow-wrap: anywhere; } .wide { overflow-x: auto; }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(380px, 1fr)); gap: 1em; }
figure { margin: 0; } figcaption { font-weight: 600; }
svg { width: 100%; height: auto; } svg text { font-size: 11px; fill: currentColor; } svg .grid { stroke: #8884; }
svg polyline { stroke-width: 1.6; stroke-linejoin: round; } svg .out { fill: #b00; }
.key { display: inline-block; margin-right: 1em; font-size: .85em; } .key svg { width: 26px; height: 8px; margin-right: .3em; vertical-align: middle; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #8881; padding: .6em; margin: .4em 0; unicode-bidi: isolate; }
.warn { color: #b36b00; } .fail { color: #c00; font-weight: 600; } .ok { color: #2a7d2a; } .small { font-size: .85em; opacity: .8; }
"""

Rows = list[dict[str, Any]]


@dataclass
class RunView:
    """What the page shows of one run."""

    path: Path
    name: str
    rows: Rows
    settings: dict[str, Any] | None  # dotted key -> value
    environment: dict[str, Any] = field(default_factory=dict)
    examined: list[dict[str, Any]] = field(default_factory=list)  # the doctor's


# --- reading --------------------------------------------------------------------------------------------------------------


def run_folders(paths: Sequence[Path]) -> list[Path]:
    """The training runs that ``paths`` name: run folders, or folders of several stages. SproutError for anything else."""
    found: list[Path] = []
    for path in paths:
        kind = recognise(path)
        runs = [path]
        if kind == "stages":
            runs = sorted(folder for folder in path.iterdir() if (folder / "metrics.jsonl").is_file())
        if kind not in ("run", "stages") or not runs or not all((run / "metrics.jsonl").is_file() for run in runs):
            raise SproutError(f"{path}: no metrics.jsonl here; give the folder of a run that has begun to train")
        for run in runs:
            if run.resolve() in [known.resolve() for known in found]:
                raise SproutError(f"{run}: given twice; name each run once")
            found.append(run)
    return found


def names_of(runs: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell the runs apart."""
    parts = [run.resolve().parts for run in runs]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(one[-depth:]) for one in parts]
        if len(set(names)) == len(names):
            return names
    return [str(run) for run in runs]


def flat(value: Any, key: str = "") -> dict[str, Any]:
    """Nested settings by dotted key; lists of plain values stay whole."""
    if isinstance(value, dict) and value:
        return {k: v for name, part in value.items() for k, v in flat(part, f"{key}.{name}" if key else name).items()}
    if isinstance(value, list) and any(isinstance(part, dict) for part in value):
        return {k: v for i, part in enumerate(value) for k, v in flat(part, f"{key}.{i}").items()}
    return {key: value}


def view(run: Path, name: str, doctor: bool, say: Callable[[str], None]) -> RunView:
    settings = None
    try:
        settings = flat(load_recipe(run / "recipe.yaml").recipe.model_dump(mode="json"))
    except SproutError as error:
        say(f"{run}: its settings are not shown: {error}")
    try:
        environment = json.loads((run / "env.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        environment = {}
    examined: list[dict[str, Any]] = []
    if doctor:
        from ..doctor import examine

        say(f"examining {run}")
        examined = examine([run])["examined"]
    return RunView(
        run,
        name,
        read_metrics(run / "metrics.jsonl"),
        settings,
        environment if isinstance(environment, dict) else {},
        examined,
    )


def differing(views: Sequence[RunView]) -> list[str]:
    """Dotted keys whose values are not the same in all runs that have settings; where a run lies is no difference."""
    known = [v.settings for v in views if v.settings is not None]
    keys = sorted({key for settings in known for key in settings} - {"run"})
    missing = object()
    return [key for key in keys if any(settings.get(key, missing) != known[0].get(key, missing) for settings in known)]


# --- figures --------------------------------------------------------------------------------------------------------------


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def tokens_at(row: dict[str, Any]) -> float:
    """Where a row lies on the axis: tokens trained on, or its step where a row has none."""
    return float(row["tokens"] if is_number(row.get("tokens")) else row["step"])


def points(rows: Rows, key: str) -> list[tuple[float, float]]:
    """(tokens, value) of a figure, in order."""
    found = [(tokens_at(row), float(row[key])) for row in rows if is_number(row.get(key))]
    return sorted(found, key=lambda point: point[0])


def groups(views: Sequence[RunView], prefix: str) -> list[str]:
    """The keys ``prefix/GROUP`` of all runs, in the order in which they come up."""
    return list(dict.fromkeys(key for v in views for row in v.rows for key in row if key.startswith(f"{prefix}/")))


def curves(views: Sequence[RunView], words: dict[str, str]) -> str:
    """Every plot that has points: lines by run, and for a single run also by group of weights."""
    one = len(views) == 1
    wanted: list[tuple[str, list[tuple[str, str]], bool]] = [
        (words["loss"], [("loss", words["training"]), ("val_loss", words["validation"])], False),
        (words["val_bpb"], [("val_bpb", "")], False),
    ]
    if one:
        for prefix in ("lr", "grad_norm", "update_ratio"):
            total = [(prefix, "all")] if prefix == "grad_norm" else []
            keys = total + [(key, key.partition("/")[2]) for key in groups(views, prefix)]
            wanted.append((words[prefix], keys or [(prefix, "")], prefix != "lr"))
    else:
        wanted += [(words["lr"], [("lr", "")], False), (words["grad_norm"], [("grad_norm", "")], True)]
        for key in groups(views, "update_ratio"):
            wanted.append((f"{words['update_ratio']}: {key.partition('/')[2]}", [(key, "")], True))
    wanted.append((words["memory"], [("memory_mb", ""), ("cuda_memory_mb", "CUDA")], False))
    for key in ("tokens_per_second", "step_ms", "mfu", "data_wait", "gpu_use", "changed_share"):
        wanted.append((words[key], [(key, "")], False))
    return "".join(draw(title, keys, views, words, log) for title, keys, log in wanted)


def draw(title: str, keys: list[tuple[str, str]], views: Sequence[RunView], words: dict[str, str], log: bool) -> str:
    """One plot with its key; an empty string without points. Runs differ in colour and figures in dash; a single run's
    figures in both."""
    lines = []
    for r, one in enumerate(views):
        for k, (key, label) in enumerate(keys):
            found = points(one.rows, key)
            if key == "tokens_per_second":  # 0 stands for "not measured yet"
                found = [point for point in found if point[1] > 0]
            if found:
                colour, dash = (r, k) if len(views) > 1 else (k, 0)
                parts = [part for part in (one.name if len(views) > 1 else "", label) if part]
                lines.append(Line(" · ".join(parts), found, COLOURS[colour % len(COLOURS)], DASHES[dash % len(DASHES)]))
    svg = plot(title, words["tokens"], lines, log=log)
    if not svg:
        return ""
    keys_shown = "".join(key_of(line) for line in lines if line.label)
    return f"<figure><figcaption>{text(title)}</figcaption>{svg}<div>{keys_shown}</div></figure>"


def key_of(line: Line) -> str:
    dash = f' stroke-dasharray="{line.dash}"' if line.dash else ""
    stroke = f'<line x1="0" x2="26" y1="4" y2="4" stroke="{line.colour}" stroke-width="2"{dash}/>'
    return f'<span class="key"><svg viewBox="0 0 26 8" aria-hidden="true">{stroke}</svg>{text(line.label)}</span>'


# --- the page -------------------------------------------------------------------------------------------------------------


def table(head: Sequence[Any], rows: Iterable[Sequence[Any]]) -> str:
    """Cells are text, but for those that are already ``Markup``."""

    def cells(row: Sequence[Any], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{c if isinstance(c, Markup) else text(c)}</{tag}>" for c in row) + "</tr>"

    body = "".join(cells(row, "td") for row in rows)
    return f'<div class="wide"><table>{cells(head, "th") if head else ""}{body}</table></div>'


class Markup(str):
    """Text that is HTML already."""


def number(value: float | None, shape: str, words: dict[str, str]) -> str:
    return words["none"] if value is None or not math.isfinite(value) else format(value, shape)


def summary(views: Sequence[RunView], words: dict[str, str]) -> str:
    head = ["run", "steps", "tokens", "final_loss", "final_val", "final_bpb", "speed", "mean_mfu", "peak_memory"]
    rows = []
    for one in views:

        def values(key: str, rows: Rows = one.rows) -> list[float]:
            return [y for _, y in points(rows, key) if math.isfinite(y)]

        speed, used = [v for v in values("tokens_per_second") if v > 0], values("mfu")
        rows.append(
            [
                one.name,
                steps_made(one),
                f"{max(map(tokens_at, one.rows), default=0):,.0f}",
                number(next(reversed(values("loss")), None), ".4f", words),
                number(min(values("val_loss"), default=None), ".4f", words),
                number(min(values("val_bpb"), default=None), ".4f", words),
                number(speed[-1] if speed else None, ",.0f", words),
                number(sum(used) / len(used) if used else None, ".1%", words),
                number(max([*values("memory_mb"), *values("cuda_memory_mb")], default=None), ",.0f", words),
            ]
        )
    return table([words[name] for name in head], rows)


def steps_made(one: RunView) -> str:
    """Steps of a run; with those that it was to make where it made fewer (cut off, still running, or stopped early)."""
    made, planned = max((row["step"] for row in one.rows), default=0), (one.settings or {}).get("train.steps")
    if isinstance(planned, int) and made < planned:
        return f"{made:,} / {planned:,}"
    return f"{made:,}"


def differences(views: Sequence[RunView], words: dict[str, str]) -> str:
    keys = differing(views)
    if not keys:
        return f"<p>{words['same']}</p>"
    rows = [[key, *(short((v.settings or {}).get(key, "")) for v in views)] for key in keys]
    return table(["", *(v.name for v in views)], rows)


def short(value: Any) -> str:
    shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return (
        shown
        if len(shown) <= SETTING_CHARACTERS
        else f"{shown[:SETTING_CHARACTERS]}… (+{len(shown) - SETTING_CHARACTERS:,})"
    )


def samples(one: RunView, words: dict[str, str]) -> str:
    """The last step's samples open, earlier ones folded away; what is left out is counted."""
    by_step: dict[int, Rows] = {}
    for row in one.rows:
        if isinstance(row.get("sample"), str):
            by_step.setdefault(row["step"], []).append(row)
    if not by_step:
        return f"<p>{words['no_samples']}</p>"
    steps = sorted(by_step, reverse=True)

    def of(step: int) -> str:
        return f"<h3>{words['step'].format(n=f'{step:,}')}</h3>" + "".join(sample(row, words) for row in by_step[step])

    earlier = "".join(of(step) for step in steps[1:SAMPLE_STEPS])
    rest = len(steps) - SAMPLE_STEPS
    if rest > 0:
        earlier += f'<p class="small">{words["older"].format(n=f"{rest:,}")}</p>'
    return of(steps[0]) + (f"<details><summary>{words['earlier']}</summary>{earlier}</details>" if earlier else "")


def sample(row: dict[str, Any], words: dict[str, str]) -> str:
    shown, more = row["sample"][:SAMPLE_CHARACTERS], len(row["sample"]) - SAMPLE_CHARACTERS
    notes = [words["more"].format(n=f"{more:,}")] if more > 0 else []
    notes += [words["ended_not"]] if row.get("ended") is False else []
    return f"<pre>{text(shown)}</pre>" + (f'<p class="small">{"; ".join(notes)}</p>' if notes else "")


def findings(one: RunView, words: dict[str, str]) -> str:
    every = [finding for part in one.examined for finding in part["findings"]]
    faults = [finding for status in ("fail", "warn") for finding in every if finding["status"] == status]
    if not faults:
        return f'<p class="ok">{words["all_well"].format(n=len(every))}</p>'
    rows = [
        [Markup(f'<span class="{f["status"]}">{f["status"]}</span>'), f["check"], f["what"], f["cure"]] for f in faults
    ]
    return table(["", words["check"], words["what"], words["cure"]], rows)


def page(views: Sequence[RunView], lang: str, doctor: bool = True) -> str:
    """The whole page as text."""
    words = WORDS[lang]
    title = f"{words['title']}: {', '.join(v.name for v in views)}"
    body = [f"<h1>{text(title)}</h1>", f"<h2>{words['summary']}</h2>", summary(views, words)]
    if len(views) > 1:
        body += [f"<h2>{words['differences']}</h2>", differences(views, words)]
    drawn = curves(views, words)
    body += [f"<h2>{words['curves']}</h2>", f'<div class="plots">{drawn}</div>']
    if 'class="out"' in drawn:
        body.append(f'<p class="small">{words["left_out"]}</p>')
    for one in views:
        if len(views) > 1:
            body.append(f"<h2>{words['run']} {text(one.name)}</h2>")
        sections = [(words["findings"], findings(one, words))] if doctor else []
        sections.append((words["samples"], samples(one, words)))
        body += [f"<h2>{name}</h2>{content}" for name, content in sections]
        plain = table([], ([k, short(v)] for k, v in (one.settings or {}).items()))
        shown = plain if one.settings is not None else f"<p>{words['no_recipe']}</p>"
        body.append(f"<details><summary>{words['settings']}</summary>{shown}</details>")
        environment = table([], ([k, short(v)] for k, v in one.environment.items()))
        body.append(f"<details><summary>{words['environment']}</summary>{environment}</details>")
    body.append(f'<p class="small">{words["written"].format(version=text(__version__))}</p>')
    head = (
        f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{escape(POLICY)}">'
        f'<meta name="viewport" content="width=device-width"><title>{text(title)}</title><style>{STYLE}</style>'
    )
    language = "zh-CN" if lang == "zh" else "en"
    return f'{MARK}<html lang="{language}"><head>{head}</head><body>{"".join(body)}</body></html>\n'


def write_report(
    paths: Sequence[Path], out: Path | None, lang: str = "en", doctor: bool = True, say: Callable[[str], None] = print
) -> Path:
    """Write the page about the runs in ``paths`` to ``out`` (default: report.html in the run's folder, for several in the
    current one) and return where it is. SproutError where a path is no run, or ``out`` is a file that is no report."""
    runs = run_folders(paths)
    target = out or (paths[0] if len(paths) == 1 else Path()) / "report.html"
    if target.is_dir():
        raise SproutError(f"{target}: a folder; give a file for --out, such as {target / 'report.html'}")
    if not target.parent.is_dir():
        raise SproutError(f"{target}: the folder {target.parent} is not there; create it, or choose another --out")
    if target.is_file() and target.stat().st_size and not target.read_bytes().startswith(MARK.encode()):
        raise SproutError(f"{target}: there is another file of this name, no report; choose another --out")
    views = [view(run, name, doctor, say) for run, name in zip(runs, names_of(runs), strict=True)]
    try:
        write_atomic(target, page(views, lang, doctor))
    except OSError as error:
        raise SproutError(
            f"{target}: it cannot be written ({error.strerror}); choose another place with --out"
        ) from error
    say(f"{target}: {len(views)} run{'' if len(views) == 1 else 's'}, {target.stat().st_size / 1024:,.0f} KB")
    return target
