"""A run with a fault is named with it, and a healthy one is left in peace."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sproutlm.config import dump_recipe
from sproutlm.doctor.recognise import recognise
from sproutlm.doctor.run import examine_run, examine_saves, examine_shards

Rows = list[dict[str, Any]]


def rewrite(path: Path, change: Callable[[Rows], Any]) -> None:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    change(rows)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def logged(rows: Rows) -> Rows:
    return [row for row in rows if "loss" in row]


def validations(rows: Rows) -> Rows:
    return [row for row in rows if "val_loss" in row]


def test_a_healthy_run_raises_no_alarm(run: Path, assert_healthy: Any) -> None:
    parts = examine_run(run)
    assert [part.kind for part in parts] == ["run folder", "checkpoint", "Hugging Face folder"]
    assert_healthy(*parts, *examine_saves(run / "checkpoints"), examine_shards(run / "data" / "train"))


def set_all(rows: Rows, key: str, values: list[float]) -> None:
    for row, value in zip(rows, values, strict=True):
        row[key] = value


METRICS: dict[str, tuple[Callable[[Rows], Any], str, str, int | None, str]] = {
    # name: (change, check, status, pitfall, what the sentence names)
    "NaN": (lambda r: logged(r)[7].update(loss=float("nan")), "finite figures", "fail", 33, "loss at step 16"),
    "never fell": (lambda r: set_all(logged(r), "loss", [5 + i / 100 for i in range(20)]), "loss", "fail", 30, "not fallen"),
    "rose again": (lambda r: [row.update(loss=2.8) for row in logged(r)[-4:]], "loss", "warn", 30, "rises again"),
    "overfitting": (
        lambda r: set_all(validations(r), "val_loss", [3.0, 2.5, 2.6, 2.9]),
        "validation loss", "warn", None, "best 2.5000 at step 20",
    ),
    "exploding gradient": (lambda r: logged(r)[12].update(grad_norm=90.0), "gradient norm", "warn", 33, "90 at step 26"),
    "rate above the peak": (lambda r: logged(r)[5].update(lr=0.5), "learning rate", "fail", 30, "above optimizer.lr"),
    "no warm-up": (
        lambda r: logged(r)[0].update(lr_multiplier=1.0), "learning rate", "fail", 30, "the warm-up is absent",
    ),
    "another schedule": (
        lambda r: logged(r)[-1].update(lr_multiplier=1.0), "learning rate", "fail", 30, "where wsd has 0.05",
    ),
    "not saved": (lambda r: r.append({**logged(r)[-1], "step": 60}), "saved", "warn", 28, "20 steps will be repeated"),
}  # fmt: skip


@pytest.mark.parametrize("name", METRICS)
def test_each_fault_of_the_metrics_is_named(name: str, run: Path, finding: Any) -> None:
    """pitfalls 28, 30, 33, and overfitting"""
    change, check, status, pitfall, words = METRICS[name]
    rewrite(run / "metrics.jsonl", change)
    found = finding(examine_run(run)[0], check)
    assert (found.status, found.pitfall) == (status, pitfall), found
    assert words in found.what and found.cure


def test_a_change_on_resume_that_was_recorded_is_no_fault(run: Path, finding: Any) -> None:
    """pitfall 30: rates from before the change belong to the recipe of then."""
    rewrite(run / "metrics.jsonl", lambda rows: logged(rows)[0].update(lr_multiplier=0.1, lr=0.9))
    assert finding(examine_run(run)[0], "learning rate").status == "fail"
    (run / "changes.jsonl").write_text('{"step": 20, "key": "optimizer.lr", "old": 0.9, "new": 0.01}\n')
    assert finding(examine_run(run)[0], "learning rate").status == "ok"


def test_a_run_without_its_end_is_named(run: Path, finding: Any) -> None:
    """pitfall 28: stopped before the end, or never saved at all."""
    shutil.rmtree(run / "model")
    found = finding(examine_run(run)[0], "saved")
    assert (found.status, found.pitfall) == ("warn", 28)
    shutil.rmtree(run / "checkpoints")
    assert finding(examine_run(run)[0], "saved").status == "fail"


def test_a_folder_that_is_only_prepared_is_no_fault(run: Path, tmp_path: Path, assert_healthy: Any) -> None:
    run.joinpath("data").rename(tmp_path / "prepared")
    only = tmp_path / "only"
    only.mkdir()
    (tmp_path / "prepared").rename(only / "data")
    assert recognise(only) == "run"
    assert_healthy(*examine_run(only))


def test_a_damaged_newest_checkpoint_is_passed_over_and_said(run: Path, finding: Any) -> None:
    """pitfall 27"""
    weights = run / "checkpoints" / "step-00000040" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    parts = examine_run(run)
    assert any("step 40 is damaged" in note for note in parts[0].notes)
    assert parts[1].path is not None and parts[1].path.endswith("step-00000020")
    assert finding(parts[0], "saved").status == "warn"
    shutil.rmtree(run / "checkpoints" / "step-00000020")
    assert finding(examine_run(run)[0], "checkpoints").status == "fail"


def change_manifest(run: Path, **changes: Any) -> None:
    path = run / "data" / "train" / "manifest.json"
    manifest = json.loads(path.read_text())
    counts = changes.pop("counts", {})
    path.write_text(json.dumps({**manifest, **changes, "counts": {**manifest["counts"], **counts}}))


@pytest.mark.parametrize(
    ("changes", "check", "status", "pitfall"),
    [
        ({"counts": {"dropped": {"empty": 5}, "records_out": 25}}, "rows dropped", "warn", 13),
        ({"counts": {"truncated": 12}}, "records cut", "warn", 2),
        ({"lost_tokens": 10**6}, "records cut", "warn", 2),
        ({"chats_with_stop": 0}, "stop token", "fail", 1),
        ({"chats_with_stop": 20}, "stop token", "warn", 1),
        ({"tokenizer": "0" * 64}, "tokenizer of the data", "fail", 9),
        ({"vocab_size": 20, "max_id": None}, "token shards", "fail", 9),
    ],
)
def test_what_was_lost_on_the_way_to_the_tokens_is_named(
    changes: dict[str, Any], check: str, status: str, pitfall: int, run: Path, finding: Any
) -> None:
    """pitfalls 1, 2, 9, 13, from the data's manifest"""
    change_manifest(run, **changes)
    found = finding(examine_run(run)[0], check)
    assert (found.status, found.pitfall) == (status, pitfall), found


def test_damaged_token_shards_are_found_by_their_checksum(run: Path, finding: Any) -> None:
    """pitfall 12"""
    shard = next((run / "data" / "train").glob("*.ds"))
    content = bytearray(shard.read_bytes())
    content[0] ^= 1
    shard.write_bytes(content)
    assert finding(examine_shards(run / "data" / "train"), "token shards").status == "fail"


def test_a_final_model_with_another_template_is_named(run: Path, finding: Any) -> None:
    """pitfall 6"""
    path = run / "model" / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["chat_template"] = config["chat_template"].replace("\\n", " ")
    path.write_text(json.dumps(config), encoding="utf-8")
    found = finding(examine_run(run)[0], "chat template")
    assert (found.status, found.pitfall) == ("fail", 6)


def stored(run: Path, recipe: Any, **changes: Any) -> None:
    (run / "recipe.yaml").write_text(dump_recipe(recipe.model_copy(update=changes)), encoding="utf-8")


def test_fine_tuning_from_random_weights_is_named(run: Path, recipe: Any, finding: Any) -> None:
    """pitfall 39"""
    stored(run, recipe, stage="sft", init_from="random")
    found = finding(examine_run(run)[0], "start")
    assert (found.status, found.pitfall) == ("warn", 39)


def test_a_stage_that_changed_nothing_is_named(run: Path, recipe: Any, tmp_path: Path, finding: Any) -> None:
    """pitfall 29: weights equal to those that the stage started from, once saved as bf16."""
    start = Path(shutil.copytree(run / "model", tmp_path / "start"))
    stored(run, recipe, stage="sft", init_from=str(start))
    found = finding(examine_run(run)[0], "change")
    assert (found.status, found.pitfall) == ("warn", 29) and found.what.startswith("0.0%")
    tensors = {name: tensor + 0.1 for name, tensor in load_file(start / "model.safetensors").items()}
    save_file(tensors, start / "model.safetensors", {"format": "pt"})
    assert finding(examine_run(run)[0], "change").status == "ok"
    assert torch.isfinite(next(iter(tensors.values()))).all()


def test_a_recipe_that_no_longer_resolves_is_named(run: Path, finding: Any) -> None:
    (run / "recipe.yaml").write_text((run / "recipe.yaml").read_text() + "colour: green\n")
    found = finding(examine_run(run)[0], "recipe")
    assert found.status == "fail" and "colour" in found.what
