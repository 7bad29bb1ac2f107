"""``sprout eval``: bits per byte of held-out text, checked answers, and how often an answer ends by itself."""

from __future__ import annotations

import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..atomic import write_atomic
from ..config.schema import SourceConfig
from ..data.loader import Loader
from ..data.prepare import prepare
from ..errors import CheckpointError, DataError, SproutError
from ..eval.bits_per_byte import TextBytes, batches_of, bits_per_byte
from ..eval.questions import Question, ask, load_questions
from ..infer.generate import open_model, run_of, stage_of
from ..model import Transformer
from ..tokenizer.template import CHATML, ChatTemplate
from ..tokenizer.tokenizer import Tokenizer
from .prepare import validation_of

Say = Callable[[str], None]
TOKENS_PER_PASS = 8192
LONGEST_ROW = 1024  # a longer context costs much and changes the figure little


def evaluate(
    path: Path | str,
    *,
    questions: Path | None = None,
    text: Path | None = None,
    max_questions: int | None = None,
    kinds: list[str] | None = None,
    json_file: Path | None = None,
    say: Say = print,
) -> dict[str, Any]:
    """Measure the model at ``path`` on ``text`` (default: its run's own validation rows) and on ``questions`` (default:
    those of the embedded world that its run was trained on, once it was fine-tuned).

    ``max_questions`` limits each kind, spread evenly over the file; ``kinds`` names the kinds to ask. Prints a table and
    returns model, parameters, bits_per_byte, perplexity, validation (what the two were measured on), checked, stop_rate,
    seconds; what could not be measured is None. ``json_file`` also gets every reply. SproutError where nothing can be.
    """
    started = time.perf_counter()
    model, tokenizer = open_model(path)
    text_figures = _measure_text(model, tokenizer, Path(path), text, say)
    asked = _ask(model, tokenizer, Path(path), questions, max_questions, kinds, say)
    if text_figures is None and asked is None:
        raise SproutError(
            f"{path}: there is nothing to evaluate: this folder has no validation rows of its own and no questions were "
            "found; give --text FILE for bits per byte, or --questions FILE"
        )
    measured, answers = text_figures or {}, asked or {}
    report: dict[str, Any] = {
        "model": str(path),
        "parameters": sum(p.numel() for p in model.parameters()),
        "bits_per_byte": measured.get("bits_per_byte"),
        "perplexity": measured.get("perplexity"),
        "validation": {k: measured[k] for k in ("source", "loss", "tokens", "bytes")} if measured else None,
        "checked": answers.get("checked"),
        "stop_rate": answers.get("stop_rate"),
        "seconds": round(time.perf_counter() - started, 1),
    }
    _show(report)
    if json_file is not None:
        full = {**report, "replies": answers.get("replies")}
        write_atomic(json_file, json.dumps(full, ensure_ascii=False, indent=1) + "\n")
    return report


# --- text ---------------------------------------------------------------------------------------------------------------


def _measure_text(
    model: Transformer, tokenizer: Tokenizer, path: Path, text: Path | None, say: Say
) -> dict[str, Any] | None:
    """Figures of ``bits_per_byte`` with their source; None where there is no held-out text."""
    text_bytes = TextBytes(tokenizer, model.config.vocab_size)
    if text is not None:
        # The shards are this call's own; Windows keeps a mapped file from being deleted at once.
        with tempfile.TemporaryDirectory(prefix="sprout-eval-", ignore_cleanup_errors=True) as folder:
            loader = _text_loader(model, tokenizer, text, Path(folder), say)
            return {"source": str(text), **_score(model, loader, text_bytes)}
    run = run_of(path)
    if run is None:
        return None
    try:
        found = validation_of(run)
    except (DataError, FileNotFoundError) as error:
        say(
            f"bits per byte is left out: the validation rows of {run} cannot be read ({error}); --text FILE measures a file"
        )
        return None
    if found is None:
        say(f"bits per byte is left out: {run} was trained without validation rows; --text FILE measures a file")
        return None
    loader, trained_with = found
    if trained_with.fingerprint != tokenizer.fingerprint:
        raise CheckpointError(
            f"{path}: its tokenizer is not the one that {run / 'data'} was encoded with; use --text FILE"
        )
    return {"source": f"validation rows of {run}", **_score(model, loader, text_bytes)}


def _text_loader(model: Transformer, tokenizer: Tokenizer, text: Path, folder: Path, say: Say) -> Loader:
    seq_len = min(model.config.max_seq_len, LONGEST_ROW)
    # Plain texts need no template: a tokenizer without one can still be measured.
    template = ChatTemplate(tokenizer.chat_template or CHATML, tokenizer)
    source = SourceConfig(path=str(text))
    dataset = prepare([source], tokenizer, template, folder / "text", seq_len=seq_len, say=say)
    return Loader(dataset, seq_len=seq_len, rows_per_step=1, seed=0, pad_id=tokenizer.pad_id)


def _score(model: Transformer, loader: Loader, text_bytes: TextBytes) -> dict[str, float]:
    micro_batch = max(TOKENS_PER_PASS // loader.seq_len, 1)
    return bits_per_byte(model, batches_of(loader, loader.rows_per_epoch, micro_batch), text_bytes)


# --- questions ----------------------------------------------------------------------------------------------------------


def _ask(
    model: Transformer,
    tokenizer: Tokenizer,
    path: Path,
    file: Path | None,
    max_questions: int | None,
    kinds: list[str] | None,
    say: Say,
) -> dict[str, Any] | None:
    """The report of ``ask``; None where there is no question for this model."""
    if file is None:
        file = find_questions(path)
        if file is None:
            return None
        if stage_of(path) == "pretrain":
            say(f"{file} is not asked: this run was only pretrained; --questions FILE asks it all the same")
            return None
        say(f"asking the questions of {file}")
    chosen = choose(load_questions(file), max_questions, kinds, file)
    shown = time.perf_counter()

    def progress(done: int, total: int) -> None:
        nonlocal shown
        if time.perf_counter() - shown > 5:
            shown = time.perf_counter()
            say(f"  {done} of {total} questions answered")

    return ask(model, tokenizer, chosen, progress=progress)


def find_questions(path: Path) -> Path | None:
    """``questions.jsonl`` of the embedded world beside the run or inside it."""
    run = run_of(path) or path.absolute()
    places = [base / world for base in (run, run.parent) for world in ("world", "world-tiny")]
    return next((place / "questions.jsonl" for place in places if (place / "questions.jsonl").is_file()), None)


def choose(
    questions: list[Question], max_questions: int | None, kinds: list[str] | None, file: Path | str
) -> list[Question]:
    """The questions of ``kinds``, at most ``max_questions`` of each, taken at even distances: a file may be in order."""
    by_kind: dict[str, list[Question]] = defaultdict(list)
    for question in questions:
        by_kind[question.kind].append(question)
    unknown = sorted(set(kinds or ()) - by_kind.keys())
    if unknown:
        raise DataError(f"{file}: no question of kind {', '.join(unknown)}; its kinds are {', '.join(sorted(by_kind))}")
    chosen: set[str] = set()
    for kind, those in by_kind.items():
        if kinds is None or kind in kinds:
            n = min(max_questions or len(those), len(those))
            chosen.update(those[i * len(those) // n].id for i in range(n))
    return [question for question in questions if question.id in chosen]


# --- the table ----------------------------------------------------------------------------------------------------------


def _show(report: dict[str, Any]) -> None:
    table = Table(title=f"{escape(report['model'])}: {report['parameters']:,} parameters", show_header=False)
    table.add_column("figure")
    table.add_column("value", justify="right")
    if report["validation"]:
        table.add_row("bits per byte", f"{report['bits_per_byte']:.4f}")
        table.add_row("perplexity per token", f"{report['perplexity']:.3f}")
        table.add_row(
            "measured on", f"{escape(report['validation']['source'])} ({report['validation']['bytes']:,} bytes)"
        )
    if report["checked"]:
        checked = report["checked"]
        table.add_row("right answers", f"{checked['overall']:.1%} of {sum(checked['counts'].values())}")
        for kind, share in checked["by_kind"].items():
            table.add_row(f"  {kind}", f"{share:.1%} of {checked['counts'][kind]}")
        for language, share in checked["by_language"].items():
            table.add_row(f"  {language}", f"{share:.1%}")
        table.add_row("answers that end by themselves", f"{report['stop_rate']:.1%}")
    Console().print(table)
