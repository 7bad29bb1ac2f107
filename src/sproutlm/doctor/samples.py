"""What a run's own samples give away: texts that go round in circles, and texts that never end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..config.schema import Recipe
from ..data.shards import MANIFEST
from ..export.weights import read_json
from .finding import Examination, counted

SHORTEST = 40  # characters, below which a text can hardly repeat itself
WINDOW = 8  # characters
DISTINCT_LEAST = 0.5  # share of windows that are the first of their kind
REPEATING_SHARE = 0.5  # of the samples
LEAST_SAMPLES = 2


def distinct_share(text: str) -> float:
    """Share of a text's windows of ``WINDOW`` characters that occur for the first time: 1 = nothing is repeated."""
    windows = [text[i : i + WINDOW] for i in range(len(text) - WINDOW + 1)]
    return len(set(windows)) / len(windows) if windows else 1.0


def examine_samples(found: Examination, run: Path, rows: list[dict[str, Any]], recipe: Recipe | None) -> None:
    """Judge the samples of the last step that has any."""
    samples = [row for row in rows if isinstance(row.get("sample"), str)]
    if not samples:
        return
    last = [row for row in samples if row["step"] == samples[-1]["step"]]
    repetition(found, last)
    if recipe is not None:
        ends(found, samples, recipe, mean_length(run, recipe))


def repetition(found: Examination, last: list[dict[str, Any]]) -> None:
    texts = [row["sample"] for row in last if len(row["sample"]) >= SHORTEST]
    circling = [text for text in texts if distinct_share(text) < DISTINCT_LEAST]
    what = f"{len(circling)} of {counted(len(texts), 'longer sample')} at step {last[0]['step']:,} repeat themselves"
    if circling and len(circling) >= REPEATING_SHARE * len(texts):
        cure = (
            "train longer; look for rows that repeat (sprout doctor FILE); for now: chat with a higher temperature or "
            "repetition penalty"
        )
        found.warn("repetition", f"{what}: …{circling[0][-SHORTEST:]!r}", cure)
    elif texts:
        found.ok("repetition", what)


def mean_length(run: Path, recipe: Recipe) -> float | None:
    """Tokens of a document or conversation of the training data; None where it cannot be known."""
    folder = (Path(recipe.data.cache) if recipe.data.cache else run / "data") / "train"
    try:
        manifest = read_json(folder / MANIFEST)
        return manifest["tokens"] / manifest["documents"]
    except Exception:  # its own check says what is wrong with it
        return None


def ends(found: Examination, samples: list[dict[str, Any]], recipe: Recipe, length: float | None) -> None:
    """pitfall 1: texts that go on until they are cut off, where those of the training data end sooner."""
    last = [row for row in samples if isinstance(row.get("ended"), bool)][-max(LEAST_SAMPLES, 8) :]
    if len(last) < LEAST_SAMPLES:
        return
    ended, most = sum(row["ended"] for row in last), recipe.sample.max_tokens
    what = f"{ended} of the last {len(last)} samples came to an end by themselves within {most} tokens"
    if length is None or length > most:
        found.ok("ends", what + ("" if ended else ", fewer than a text of the training data has on average"))
    elif ended:
        found.ok("ends", what)
    else:
        cure = (
            "train longer; if it stays, the end token is not trained: sprout tokenizer test, and `sprout data inspect` "
            "shows whether texts end with one"
        )
        found.warn("ends", f"{what}; a text of the training data has {length:.0f} on average", cure, 1)
