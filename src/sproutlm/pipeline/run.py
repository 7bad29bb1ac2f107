"""``sprout run``: several stages in order. A stage that is done and whose inputs are unchanged, by content, is skipped."""

from __future__ import annotations

import glob
import hashlib
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..atomic import write_atomic
from ..config.schema import (
    ChatStage,
    EvalStage,
    ExportStage,
    Pipeline,
    Recipe,
    Stage,
    SynthStage,
    TokenizerStage,
    TrainStage,
)
from ..errors import CheckFailed, CheckpointError, RecipeError
from ..train.checkpoint import file_sha256
from .continuation import run_lock

if TYPE_CHECKING:
    from ..config.load import Loaded

Say = Callable[[str], None]
STAGE_PREFIX = "stage:"


@dataclass
class Progress:
    """What is known of each stage, kept in ``<run>/stages.json`` after each change."""

    path: Path
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def load(cls, run: Path) -> Progress:
        path = run / "stages.json"
        if not path.is_file():
            return cls(path)
        try:
            return cls(path, json.loads(path.read_text(encoding="utf-8")))
        except ValueError:
            return cls(path)  # cut off: every stage is looked at again, and continues from its own folder

    def set(self, name: str, **values: Any) -> None:
        self.stages.setdefault(name, {}).update(values)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(self.path, json.dumps(self.stages, indent=1, ensure_ascii=False))


def resolve_stages(value: Any, run: Path, used: set[str]) -> Any:
    """Replace ``stage:NAME[/file]`` by that stage's folder, everywhere in a stage's fields; collect the names used."""
    if isinstance(value, str) and value.startswith(STAGE_PREFIX):
        reference = value[len(STAGE_PREFIX) :]
        used.add(reference.split("/", 1)[0])
        return str(run / reference)
    if isinstance(value, dict):
        return {k: resolve_stages(v, run, used) for k, v in value.items()}
    if isinstance(value, list):
        return [resolve_stages(v, run, used) for v in value]
    return value


def external_files(value: Any) -> list[Path]:
    """Files named by ``path``-like strings (a file, a folder, a glob) in a stage's fields that lie outside the run."""
    if isinstance(value, str):
        if not Path(value).is_absolute():
            return []
        try:
            named = [Path(value)] if Path(value).exists() else [Path(name) for name in glob.glob(value, recursive=True)]
            inside = [p for path in named for p in (path.rglob("*") if path.is_dir() else [path])]
            return sorted(path for path in inside if path.is_file())
        except OSError:
            return []
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [path for item in items for path in external_files(item)]


def stage_key(stage: Stage, progress: Progress, seed: int) -> str:
    """Hash of what the stage's result depends on: its fields, the seed, the stages it uses, outside files' content."""
    used: set[str] = set()
    fields = stage.model_dump(mode="json")
    resolve_stages(fields, Path("/"), used)
    unknown = sorted(name for name in used if name not in progress.stages)
    if unknown:
        raise RecipeError([f"stages.{stage.name}: stage:{unknown[0]} is not the name of an earlier stage"])
    content = {
        "version": __version__,
        "seed": seed,
        "fields": fields,
        "uses": {name: progress.stages[name]["key"] for name in sorted(used)},
        "files": {str(p): file_sha256(p) for p in external_files(fields)},
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def perform(stage: Stage, folder: Path, run: Path, seed: int, say: Say) -> dict[str, Any]:
    """Do one stage in its folder; returns its figures."""
    fields = resolve_stages(stage.model_dump(mode="json"), run, set())
    if isinstance(stage, SynthStage):
        from ..data.synth import synthesize

        return synthesize(folder, seed if stage.seed is None else stage.seed, stage.size)
    if isinstance(stage, TokenizerStage):
        from .prepare import train_tokenizer_on

        return train_tokenizer_on(TokenizerStage.model_validate(fields).tokenizer, folder, say)
    if isinstance(stage, TrainStage):
        from .train import train_recipe

        recipe = Recipe.model_validate({"name": stage.name, "seed": seed, **fields["recipe"]})
        return train_recipe(recipe, folder, say=say)
    if isinstance(stage, EvalStage):
        from .evaluate import evaluate

        folder.mkdir(parents=True, exist_ok=True)
        return evaluate(
            Path(fields["model"]),
            questions=Path(fields["questions"]) if fields["questions"] else None,
            text=Path(fields["text"]) if fields["text"] else None,
            max_questions=stage.max_questions,
            kinds=stage.kinds,
            json_file=folder / "report.json",
            say=say,
        )
    if isinstance(stage, ExportStage):
        from ..export.huggingface import export_run

        return export_run(Path(fields["model"]), folder)
    assert isinstance(stage, ChatStage)
    return converse_stage(stage, Path(fields["model"]), folder, seed, say)


def converse_stage(stage: ChatStage, model_path: Path, folder: Path, seed: int, say: Say) -> dict[str, Any]:
    """Hold the scripted conversation, print it and keep it."""
    from ..export.load import load
    from ..infer.chat import converse
    from ..infer.sampling import SamplingParams

    model, tokenizer = load(model_path)
    if tokenizer is None:
        raise CheckpointError(f"{model_path}: it has no tokenizer.json, so nothing can be said to it")
    turns = converse(model, tokenizer, stage.says, SamplingParams(temperature=0.0, max_tokens=96, seed=seed))
    for turn in turns:
        say(f"  {'you' if turn['role'] == 'user' else 'model'}: {turn['content']}")
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "conversation.json", json.dumps(turns, indent=1, ensure_ascii=False))
    return {"conversation": turns}


def run(loaded: Loaded, say: Say = print) -> dict[str, Any]:
    """Run the stages in order; write ``report.json`` and ``loss.png``; a requirement not met ends with exit code 2."""
    pipeline = loaded.recipe
    assert isinstance(pipeline, Pipeline)
    folder = loaded.run_dir
    with run_lock(folder):
        started = time.perf_counter()
        progress = Progress.load(folder)
        for number, stage in enumerate(pipeline.stages, 1):
            head = f"[{number}/{len(pipeline.stages)}] {stage.name}"
            key = stage_key(stage, progress, pipeline.seed)
            known = progress.stages.get(stage.name, {})
            if known.get("key") == key and known.get("done") and (folder / stage.name).is_dir():
                say(f"{head}: done before, unchanged")
                continue
            if known and known.get("key") != key and (folder / stage.name).exists():
                set_aside(folder / stage.name, say)
                known = {}
            say(f"{head}: {stage.do}")
            progress.set(stage.name, key=key, do=stage.do, done=False, seconds=known.get("seconds", 0.0))
            begin = time.perf_counter()
            try:
                figures = perform(stage, folder / stage.name, folder, pipeline.seed, say)
            finally:
                # Time spent counts also when the stage was interrupted: a later run adds its own.
                spent = round(progress.stages[stage.name]["seconds"] + time.perf_counter() - begin, 1)
                progress.set(stage.name, seconds=spent)
            progress.set(stage.name, done=True, figures=figures)
        return report(pipeline, folder, progress, time.perf_counter() - started, say)


def set_aside(folder: Path, say: Say) -> None:
    """Keep the result of older settings beside the new one, once."""
    old = folder.with_name(folder.name + ".replaced")
    if old.exists():
        shutil.rmtree(old)
    folder.rename(old)
    say(f"  its inputs changed: the earlier result is kept in {old.name}")


def report(pipeline: Pipeline, folder: Path, progress: Progress, wall: float, say: Say) -> dict[str, Any]:
    """Collect the stages' figures into ``report.json``, print the table, check what the recipe requires."""
    stages = [
        {"name": s.name, **{k: v for k, v in progress.stages[s.name].items() if k != "key"}} for s in pipeline.stages
    ]
    out: dict[str, Any] = {
        "name": pipeline.name,
        "seconds": round(sum(s["seconds"] for s in stages), 1),
        "seconds_this_run": round(wall, 1),
        "stages": stages,
        "bits_per_byte": None,
        "checked": None,
        "stop_rate": None,
    }
    computes = {s["figures"]["compute"] for s in stages if s["do"] == "train"}
    out["compute"] = "/".join(sorted(computes)) if computes else None
    failures = []
    for stage in pipeline.stages:
        figures = progress.stages[stage.name]["figures"]
        if isinstance(stage, TrainStage) and figures.get("bits_per_byte") is not None and out["bits_per_byte"] is None:
            out["bits_per_byte"] = figures["bits_per_byte"]
        if isinstance(stage, EvalStage):
            checked = {
                k: v
                for k, v in (figures.get("checked") or {}).items()
                if k in ("overall", "by_kind", "by_language", "counts")
            }
            if stage.control:
                out["control"] = checked
            else:
                out["checked"], out["stop_rate"] = checked, figures.get("stop_rate")
                failures += unmet(stage, figures)
    write_atomic(folder / "report.json", json.dumps(out, indent=1, ensure_ascii=False))
    plot_stages(pipeline, folder)
    from .report import print_report

    print_report(pipeline, folder, out)
    if failures:
        raise CheckFailed("; ".join(failures) + f"; see {folder / 'report.json'}")
    return out


def unmet(stage: EvalStage, figures: dict[str, Any]) -> list[str]:
    """Sentences for each required figure that was not reached."""
    checked = figures.get("checked") or {}
    values: dict[str, float] = {"stop_rate": figures.get("stop_rate") or 0.0, "overall": checked.get("overall", 0.0)}
    if checked.get("by_kind"):
        values["each_kind"] = min(checked["by_kind"].values())
    return [
        f"{stage.name}: {name} is {values.get(name, 0.0):.1%}, required {least:.1%}"
        for name, least in stage.require.items()
        if values.get(name, 0.0) < least
    ]


def plot_stages(pipeline: Pipeline, folder: Path) -> None:
    """``loss.png`` of the whole run: the training curves of its stages side by side."""
    from ..train.metrics import plot_or_say

    curves = {s.name: folder / s.name / "metrics.jsonl" for s in pipeline.stages if isinstance(s, TrainStage)}
    curves = {name: path for name, path in curves.items() if path.is_file()}
    if curves:
        plot_or_say(curves, folder / "loss.png")
