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


# Long enough to be judged, and with nothing in it twice.
TEXT = "Once a miller sold his last sack of rye to buy a lamp that nobody else in town had wanted to keep."


def sample(rows: Rows, text: str, ended: bool) -> None:
    rows.append({"step": rows[-1]["step"], "tokens": 1, "sample": text, "ended": ended})


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
    "flat": (
        lambda r: set_all(logged(r), "loss", [4.0 - i / 1000 for i in range(20)]), "loss", "fail", 30, "it is flat",
    ),
    "diverged": (lambda r: [row.update(loss=4.0) for row in logged(r)[-4:]], "loss", "fail", 30, "it diverged"),
    "no better than guessing": (
        lambda r: set_all(logged(r), "loss", [6.2 - i / 50 for i in range(20)]),
        "loss against chance", "fail", 30, "where guessing would",
    ),
    "begins above guessing": (
        lambda r: logged(r)[0].update(loss=9.0), "loss against chance", "warn", 30, "begins well above guessing",
    ),
    "validation far above training": (
        lambda r: set_all(validations(r), "val_loss", [4.0, 3.6, 3.4, 3.3]),
        "training and validation", "warn", None, "far above training",
    ),
    "validation far below training": (
        lambda r: set_all(validations(r), "val_loss", [2.0, 1.6, 1.4, 1.2]),
        "training and validation", "warn", None, "far below training",
    ),
    "waits for data": (
        lambda r: set_all(logged(r), "data_wait", [0.0, 0.3] * 10), "data wait", "warn", None, "15.0% of the time",
    ),
    "repeats itself": (
        lambda r: [sample(r, "the river and the hill. " * 6, True), sample(r, "春眠不觉晓，" * 20, True)],
        "repetition", "warn", None, "2 of 2 longer samples at step 40",
    ),
    "never ends": (
        lambda r: [sample(r, TEXT, False) for _ in range(3)], "ends", "warn", 1, "0 of the last 3 samples",
    ),
    "not saved": (lambda r: r.append({**logged(r)[-1], "step": 60}), "saved", "warn", 28, "20 steps will be repeated"),
}  # fmt: skip


@pytest.mark.parametrize("name", METRICS)
def test_each_fault_of_the_metrics_is_named(name: str, run: Path, finding: Any) -> None:
    """pitfalls 1, 28, 30, 33, overfitting, a gap, waiting, repetition"""
    change, check, status, pitfall, words = METRICS[name]
    rewrite(run / "metrics.jsonl", change)
    found = finding(examine_run(run)[0], check)
    assert (found.status, found.pitfall) == (status, pitfall), found
    assert words in found.what and found.cure


WELL: dict[str, tuple[Callable[[Rows], Any], str]] = {
    # name: (change, the check that stays ok); what lies just on this side of each fault
    "a small fall at the end of a long one": (
        lambda r: set_all(logged(r), "loss", [5.0, 4.0, 3.5] + [3.0 - i / 1000 for i in range(17)]), "loss",
    ),
    "a little up at the end": (lambda r: [row.update(loss=2.3) for row in logged(r)[-4:]], "loss"),
    "clearly below guessing": (
        lambda r: set_all(logged(r), "loss", [5.7 - i / 20 for i in range(20)]), "loss against chance",
    ),
    "validation somewhat above training": (
        lambda r: set_all(validations(r), "val_loss", [3.0, 2.8, 2.7, 2.6]), "training and validation",
    ),
    "a hundredth waited": (lambda r: set_all(logged(r), "data_wait", [0.01] * 20), "data wait"),
    "one sample of three circles": (
        lambda r: [sample(r, "ho " * 40, True), sample(r, TEXT, True), sample(r, TEXT[::-1], True)], "repetition",
    ),
    "an earlier sample circled": (
        lambda r: [r.insert(0, {"step": 1, "tokens": 1, "sample": "ho " * 40}), sample(r, TEXT, True)], "repetition",
    ),
    "one of three ended": (lambda r: [sample(r, TEXT, i == 0) for i in range(3)], "ends"),
}  # fmt: skip


@pytest.mark.parametrize("name", WELL)
def test_what_is_no_fault_is_left_in_peace(name: str, run: Path, finding: Any) -> None:
    change, check = WELL[name]
    rewrite(run / "metrics.jsonl", change)
    found = finding(examine_run(run)[0], check)
    assert found.status == "ok", found


def test_texts_longer_than_a_sample_need_not_end_in_it(run: Path, finding: Any) -> None:
    rewrite(run / "metrics.jsonl", lambda rows: [sample(rows, TEXT, False) for _ in range(3)])
    change_manifest(run, tokens=10**6)
    assert finding(examine_run(run)[0], "ends").status == "ok"


def test_a_run_that_goes_on_from_another_may_start_low_and_stay(run: Path, finding: Any, recipe: Any) -> None:
    """What fails for random weights is no alarm for a fine-tuning: it begins near its end."""
    later = recipe.model_copy(update={"init_from": str(run / "nowhere")})
    (run / "recipe.yaml").write_text(dump_recipe(later))
    rewrite(run / "metrics.jsonl", lambda rows: set_all(logged(rows), "loss", [2.0 - i / 1000 for i in range(20)]))
    examined = examine_run(run)[0]
    assert finding(examined, "loss").status == "ok"
    assert "loss against chance" not in [f.check for f in examined.findings]


@pytest.mark.parametrize(("share", "status"), [(0.002, "warn"), (0.4, "ok")])
def test_where_the_start_is_gone_the_runs_own_share_of_changed_weights_counts(
    share: float, status: str, run: Path, finding: Any, recipe: Any
) -> None:
    """pitfall 29"""
    (run / "recipe.yaml").write_text(dump_recipe(recipe.model_copy(update={"init_from": str(run / "nowhere")})))
    rewrite(run / "metrics.jsonl", lambda rows: logged(rows)[-1].update(changed_share=share))
    found = finding(examine_run(run)[0], "change")
    assert (found.status, found.pitfall) == (status, 29)


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
