"""report.html: one file that asks for nothing, shows what a run wrote as text only, and compares runs."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from sproutlm.cli import main
from sproutlm.config import Recipe, dump_recipe
from sproutlm.errors import SproutError
from sproutlm.pipeline.html_report import MARK, differing, page, points, run_folders, view, write_report
from sproutlm.pipeline.report_words import WORDS
from sproutlm.pipeline.svg import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Line, figure, log_ticks, plot, thinned, ticks

EVIL = "</script></pre></title><script>alert(1)</script><img src=x onerror=alert(1)><!-- \x00\x1b]0;&lt; \ud800 春"
ALLOWED = {
    "html", "head", "body", "meta", "title", "style", "h1", "h2", "h3", "p", "div", "span", "table", "tr", "th", "td",
    "figure", "figcaption", "pre", "details", "summary", "svg", "line", "text", "polyline", "circle",
}  # fmt: skip


class Page(HTMLParser):
    """Tags, attributes and texts of a page; a tag that is not closed in its order is a fault."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags, self.attributes, self.texts = list[str](), list[tuple[str, str]](), list[str]()
        self.declarations, self.comments, self._open = list[str](), list[str](), list[str]()
        self.feed(page)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag != "meta":
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def handle_comment(self, data: str) -> None:
        self.comments.append(data)

    @property
    def all_text(self) -> str:
        return "\n".join(self.texts)


def make_run(run: Path, rows: list[dict[str, Any]] | None = None, **settings: Any) -> Path:
    run.mkdir(parents=True)
    fields: dict[str, Any] = {
        "name": "small",
        "data": {"train": [{"path": "/data/a.jsonl"}], "seq_len": 64},
        "model": {"vocab_size": 300, "dim": 16, "n_layers": 2, "n_heads": 2, "max_seq_len": 64},
        "train": {"steps": 40, "batch_tokens": 256, **settings},
    }
    (run / "recipe.yaml").write_text(dump_recipe(Recipe.model_validate(fields)), encoding="utf-8")
    (run / "env.json").write_text('{"torch": "2.13", "cuda": null}')
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (rows or logged())))
    return run


def logged() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [
        {"step": step, "tokens": 100 * step, "loss": 2 + 3 / step, "lr": 0.01 / step, "lr/mlp": 0.01 / step,
         "grad_norm": 1.0, "grad_norm/mlp": 0.5, "update_ratio/mlp": 0.01, "tokens_per_second": 500.0, "memory_mb": 300.0,
         "mfu": 0.25, "data_wait": 0.01, "changed_share": 0.9}
        for step in range(1, 21)
    ]  # fmt: skip
    return [*rows, {"step": 20, "tokens": 2000, "val_loss": 2.5, "val_bpb": 1.25}]


def sample(step: int, text: str, **more: Any) -> dict[str, Any]:
    return {"step": step, "tokens": 100 * step, "sample": text, **more}


def report(*runs: Path, lang: str = "en", doctor: bool = False, out: Path | None = None) -> Page:
    said: list[str] = []
    path = write_report(list(runs), out or runs[0].parent / "report.html", lang, doctor, said.append)
    return Page(path.read_text(encoding="utf-8"))


# --- nothing but text, and nothing from elsewhere ----------------------------------------------------------------------------


def test_what_a_model_wrote_stays_text(tmp_path: Path) -> None:
    """Samples, an objective's figure names, the folder's name, settings and the environment: all of it is a stranger's."""
    rows = [*logged(), {"step": 20, "tokens": 2000, f"update_ratio/{EVIL}": 0.5}, sample(10, EVIL), sample(20, EVIL)]
    run = make_run(tmp_path / "<img src=x onerror=alert(2)>", rows)
    (run / "env.json").write_text(json.dumps({EVIL: EVIL}))
    found = report(run, doctor=True, out=tmp_path / "r.html")
    assert set(found.tags) <= ALLOWED and not {"script", "img"} & set(found.tags)
    assert not [name for name, _ in found.attributes if name.startswith("on")]
    assert found.comments == [" sprout report "]
    assert found.all_text.count("<script>alert(1)</script>") >= 4, "shown, as what it is"
    raw = (tmp_path / "r.html").read_bytes()
    assert b"\x00" not in raw and b"\x1b" not in raw


def test_the_page_asks_for_nothing_and_may_run_nothing(tmp_path: Path) -> None:
    found = report(make_run(tmp_path / "run"))
    attributes = dict(found.attributes)
    assert not {"src", "href", "action", "data", "srcset", "style"} & attributes.keys()
    style = next(t for t in found.texts if "font:" in t)
    assert "url(" not in style and "@import" not in style
    policy = next(value for name, value in found.attributes if name == "content" and "default-src" in value)
    assert policy.startswith("default-src 'none'") and "script-src" not in policy
    links = re.findall(r"https?://[^\"' <]+", " ".join(v for _, v in found.attributes) + found.all_text)
    assert set(links) <= {"http://www.w3.org/2000/svg"}, "a name space, nothing that is fetched"


# --- what it shows ---------------------------------------------------------------------------------------------------------


def test_a_run_is_shown_with_its_curves_samples_settings_and_findings(tmp_path: Path) -> None:
    rows = [*logged(), sample(5, "an early one"), sample(20, "the latest", ended=False), sample(20, "x" * 3000)]
    found = report(make_run(tmp_path / "run", rows), doctor=True)
    titles = [value for name, value in found.attributes if name == "aria-label"]
    words = WORDS["en"]
    assert [words[k] for k in ("loss", "val_bpb", "lr", "grad_norm", "update_ratio", "memory", "tokens_per_second", "mfu",
                               "data_wait", "changed_share")] == titles  # fmt: skip
    text = found.all_text
    for part in (
        "the latest",
        "an early one",
        "cut off",
        "1,000 more characters",
        "train.batch_tokens",
        "2.1500",
        "25.0%",
    ):
        assert part in text, part
    assert "nothing was saved" in text, "the doctor's finding"
    assert text.index("the latest") < text.index("an early one")


def test_several_runs_are_drawn_together_and_only_what_differs_is_listed(tmp_path: Path) -> None:
    a, b = make_run(tmp_path / "a"), make_run(tmp_path / "b", clip=0.5)
    found = report(a, b)
    views = [view(run, run.name, False, print) for run in (a, b)]
    assert differing(views) == ["train.clip"]
    labels = [t for t in found.texts if t in ("a · training", "b · training")]
    assert sorted(set(labels)) == ["a · training", "b · training"]
    colours = {value for name, value in found.attributes if name == "stroke"}
    assert len(colours) == 2, "a colour for each run"


def test_runs_of_other_lengths_figures_and_ends_are_compared(tmp_path: Path) -> None:
    """One cut off half-way, one finished with fewer kinds of figures, one killed in the middle of a line, one that only began."""
    half = make_run(tmp_path / "half")
    whole = make_run(tmp_path / "whole", [{"step": n, "tokens": 100 * n, "loss": 4 - n / 20} for n in range(1, 41)])
    killed = make_run(tmp_path / "killed", [{"step": n, "loss": 3.0, "own_figure": 1} for n in (1, 2)])
    with open(killed / "metrics.jsonl", "a") as log:
        log.write('{"step": 3, "loss": 2.')
    begun = make_run(tmp_path / "begun")
    (begun / "metrics.jsonl").write_text("")
    found = report(half, whole, killed, begun)
    cells = found.texts
    for name, steps, loss in (("half", "20 / 40", "2.1500"), ("whole", "40", "2.0000"), ("killed", "2 / 40", "3.0000")):
        row = cells[cells.index(name) :][:5]
        assert steps in row and loss in row, (name, row)
    row = cells[cells.index("begun") :][:5]
    assert row[1] == "0 / 40" and "n/a" in row
    labels = [text for text in cells if " · " in text]
    assert {"half · training", "half · validation", "whole · training", "killed · training"} == set(labels)
    titles = [value for name, value in found.attributes if name == "aria-label"]
    assert WORDS["en"]["val_bpb"] in titles and cells.count("half") > cells.count("begun"), (
        "drawn where there are points"
    )


def test_the_page_speaks_chinese_where_asked(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [*logged(), sample(20, "春")])
    assert WORDS["en"].keys() == WORDS["zh"].keys()
    found = report(run, lang="zh")
    assert "第 20 步" in found.texts
    assert ("lang", "zh-CN") in found.attributes and "概要" in found.texts and "Summary" not in found.texts
    for lang, words in WORDS.items():
        for key, value in words.items():
            assert re.findall(r"\{\w+\}", value) == re.findall(r"\{\w+\}", WORDS["en"][key]), (lang, key)


def test_a_run_without_a_readable_recipe_or_samples_is_still_shown(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [{"step": 1, "loss": 3.0}, {"step": 2, "loss": "high", "sample": 5}])
    (run / "recipe.yaml").write_text("name: [")
    (run / "env.json").write_text("{")
    found = report(run)
    assert WORDS["en"]["no_recipe"] in found.texts and WORDS["en"]["no_samples"] in found.texts
    assert "circle" in found.tags, "a single point"


def test_a_folder_of_stages_gives_its_training_runs(tmp_path: Path) -> None:
    make_run(tmp_path / "all" / "pretrain")
    make_run(tmp_path / "all" / "sft")
    (tmp_path / "all" / "tokenizer").mkdir()
    (tmp_path / "all" / "stages.json").write_text("{}")
    assert [run.name for run in run_folders([tmp_path / "all"])] == ["pretrain", "sft"]


# --- mistakes --------------------------------------------------------------------------------------------------------------


def test_what_is_no_run_and_what_is_no_report_is_refused(tmp_path: Path) -> None:
    run, other = make_run(tmp_path / "run"), tmp_path / "notes.html"
    other.write_text("my notes")
    wrong: list[tuple[list[Path], Path | None, str]] = [
        ([run / "recipe.yaml"], None, "no metrics.jsonl"),
        ([run, tmp_path / "." / "run"], None, "given twice"),
        ([run], other, "no report"),
        ([run], tmp_path, "a folder"),
        ([run], tmp_path / "nowhere" / "r.html", "is not there"),
        ([tmp_path / "missing"], None, "missing"),
    ]
    for paths, out, words in wrong:
        with pytest.raises(SproutError, match=words):
            write_report(paths, out, doctor=False, say=lambda text: None)
    assert other.read_text() == "my notes"


def test_the_verb_writes_into_the_run_and_again_over_its_own_page(tmp_path: Path, capsys: Any) -> None:
    run = make_run(tmp_path / "run")
    for _ in range(2):
        assert main(["report", str(run), "--no-doctor"]) == 0
    assert (run / "report.html").read_text(encoding="utf-8").startswith(MARK)
    assert main(["report", str(run), "--lang", "fr"]) == 1
    assert "--lang fr" in capsys.readouterr().err


# --- plots -----------------------------------------------------------------------------------------------------------------


def polyline(svg: str) -> list[tuple[float, float]]:
    (found,) = re.findall(r'<polyline points="([^"]+)"', svg)
    return [tuple(map(float, pair.split(","))) for pair in found.split()]  # type: ignore[misc]


def test_points_lie_where_their_values_are() -> None:
    left, right, top, bottom = LEFT, WIDTH - RIGHT, TOP, HEIGHT - BOTTOM
    drawn = polyline(plot("t", "x", [Line("a", [(0, 1.0), (5, 2.0), (10, 5.0)], "#000")]))
    assert drawn == [(left, bottom), ((left + right) / 2, bottom + (top - bottom) / 4), (right, top)]
    drawn = polyline(plot("t", "x", [Line("a", [(0, 0.01), (5, 0.1), (10, 1.0)], "#000")], log=True))
    assert drawn[1] == ((left + right) / 2, (top + bottom) / 2)


def test_what_cannot_be_drawn_is_counted() -> None:
    line = Line("a", [(0, 1.0), (1, math.nan), (2, math.inf), (3, 0.0), (4, 2.0)], "#000")
    assert len(polyline(plot("t", "x", [line]))) == 3 and "∅ 2" in plot("t", "x", [line])
    assert "∅ 3" in plot("t", "x", [line], log=True)
    assert plot("t", "x", [Line("a", [(0, math.nan)], "#000")]) == ""
    assert polyline(plot("t", "x", [Line("a", [(0, 3.0), (1, 3.0)], "#000")])), "a constant has a height, too"


def test_thinning_keeps_every_spike_and_both_ends() -> None:
    points = [(float(i), 1.0) for i in range(100_000)]
    points[54_321] = (54_321.0, 50.0)
    kept = thinned(points, 600)
    assert len(kept) <= 600 and (54_321.0, 50.0) in kept and (kept[0], kept[-1]) == (points[0], points[-1])
    assert kept == sorted(kept)


def test_figures_of_axes_are_round() -> None:
    assert ticks(0, 10) == [0, 2, 4, 6, 8, 10] and ticks(0.13, 0.37) == pytest.approx([0.15, 0.2, 0.25, 0.3, 0.35])
    assert log_ticks(0.001, 2) == pytest.approx([0.001, 0.01, 0.1, 1]) and log_ticks(0.3, 4) == pytest.approx(
        [0.5, 1, 2]
    )
    assert [figure(v) for v in (0, 0.0021, 1.5, 20_000, 3e6)] == ["0", "0.0021", "1.5", "20k", "3M"]


def test_a_figure_that_is_no_number_is_no_point() -> None:
    rows = [{"step": 2, "tokens": 20, "mfu": None}, {"step": 1, "tokens": 10, "mfu": True}, {"step": 3, "mfu": 0.5}]
    assert points(rows, "mfu") == [(3.0, 0.5)]
    assert page([view_of(rows)], "en", doctor=False)


def view_of(rows: list[dict[str, Any]]) -> Any:
    from sproutlm.pipeline.html_report import RunView

    return RunView(Path("run"), "run", rows, None)
