"""A recipe that is valid and yet seldom meant is named, and a sound one is left in peace."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from sproutlm.doctor.recipe import examine_recipe

SHIPPED = Path(__file__).resolve().parents[2] / "recipes"


def write(folder: Path, **changes: Any) -> Path:
    """A sound recipe on a file of texts, with changes by dotted key."""
    texts = [{"text": f"the river and the hill, number {i}"} for i in range(30)]
    (folder / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts))
    chats = [[{"role": "user", "content": f"{i}"}, {"role": "assistant", "content": f"{i}"}] for i in range(30)]
    (folder / "chats.jsonl").write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
    values: dict[str, Any] = {
        "name": "sound",
        "data": {"train": "texts.jsonl", "seq_len": 64},
        "model": {"dim": 32, "n_heads": 2, "n_layers": 1},
        "train": {"steps": 200, "batch_tokens": 1024},
    }
    for key, value in changes.items():
        *sections, last = key.split("__")
        place = values
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = value
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values))
    return folder / "recipe.yaml"


def test_a_sound_recipe_raises_no_alarm(tmp_path: Path, assert_healthy: Any) -> None:
    parts = examine_recipe(write(tmp_path))
    assert [part.kind for part in parts] == ["recipe", "data file"]
    assert_healthy(*parts)


@pytest.mark.parametrize("name", ["tiny", "quickstart"])
def test_shipped_recipes_raise_no_alarm(name: str, assert_healthy: Any) -> None:
    assert_healthy(*examine_recipe(SHIPPED / f"{name}.yaml"))


@pytest.mark.parametrize(
    ("changes", "check", "pitfall"),
    [
        ({"train__batch_tokens": 64}, "rows per step", 22),
        ({"schedule__warmup": 0}, "warm-up", 30),
        ({"schedule__warmup": 150}, "warm-up", 30),
        ({"optimizer__lr": 0.9}, "learning rate", 30),
        ({"optimizer__name": "adamw", "optimizer__lr": 1e-8}, "learning rate", 29),
        ({"data__document_mask": False}, "document mask", 11),
        ({"stage": "sft", "init_from": "random", "data__train": "chats.jsonl"}, "start", 39),
    ],
)
def test_each_setting_that_is_seldom_meant_is_named(
    changes: dict[str, Any], check: str, pitfall: int, tmp_path: Path, finding: Any
) -> None:
    """pitfalls 11, 22, 29, 30, 39"""
    found = finding(examine_recipe(write(tmp_path, **changes))[0], check)
    assert (found.status, found.pitfall) == ("warn", pitfall)
    assert found.cure


def test_only_a_control_may_be_fine_tuned_from_random_weights(tmp_path: Path, finding: Any) -> None:
    """pitfall 39: the shipped quickstart has such a control; the same stage without that word is an alarm."""
    text = (SHIPPED / "quickstart.yaml").read_text(encoding="utf-8")
    assert "    control: true\n" in text
    (tmp_path / "same.yaml").write_text(text.replace("    control: true\n", ""), encoding="utf-8")
    found = finding(examine_recipe(tmp_path / "same.yaml")[0], "start")
    assert (found.status, found.pitfall) == ("warn", 39) and found.what.startswith("control: ")


def test_the_default_warm_up_of_a_short_run_is_no_fault(tmp_path: Path, assert_healthy: Any) -> None:
    """pitfall 30: nobody asked for those 40 steps, and the schedule holds them to half of the run."""
    assert_healthy(*examine_recipe(write(tmp_path, train__steps=30)))


def test_a_recipe_that_does_not_validate_is_a_finding_per_fault(tmp_path: Path) -> None:
    found = examine_recipe(write(tmp_path, train__batch_tokens=100, colour="green"))[0]
    assert [f.status for f in found.findings] == ["fail", "fail"]
    assert any("colour" in f.what for f in found.findings)


def test_held_out_rows_that_are_trained_on_are_named(tmp_path: Path, finding: Any) -> None:
    path = write(tmp_path, data__validation=["./texts.jsonl"])
    assert finding(examine_recipe(path)[0], "held-out rows").status == "fail"
    path = write(tmp_path, data__validation=["chats.jsonl"])
    assert finding(examine_recipe(path)[0], "held-out rows").status == "ok"


def test_data_of_another_stage_is_named(tmp_path: Path, finding: Any) -> None:
    """pitfall 14: conversations in a pretraining recipe."""
    found = finding(examine_recipe(write(tmp_path, data__train="chats.jsonl"))[1], "kind of data")
    assert (found.status, found.pitfall) == ("warn", 14)


def test_the_rows_of_a_recipe_are_measured_with_its_own_length(tmp_path: Path, run: Path, finding: Any) -> None:
    """pitfall 2"""
    changes = {"stage": "sft", "init_from": str(run), "model": None, "data__train": "chats.jsonl", "data__seq_len": 8}
    parts = examine_recipe(write(tmp_path, train__batch_tokens=64, **changes))
    assert finding(parts[0], "start").status == "ok"
    assert "more than 8 tokens" in finding(parts[1], "long records").what


def test_a_start_that_is_not_there_is_named(tmp_path: Path, finding: Any) -> None:
    """pitfall 39"""
    changes = {"stage": "sft", "data__train": "chats.jsonl", "init_from": "runs/nowhere"}
    found = finding(examine_recipe(write(tmp_path, **changes))[0], "start")
    assert found.status == "fail" and "nowhere" in found.what


def test_a_tokenizer_that_is_not_the_one_of_the_start_is_named(tmp_path: Path, run: Path, finding: Any) -> None:
    """pitfall 9"""
    from sproutlm.tokenizer import train_tokenizer

    train_tokenizer(["another text altogether"], 290).save(tmp_path / "other")
    changes = {"stage": "sft", "data__train": "chats.jsonl", "init_from": str(run), "model": None}
    found = finding(examine_recipe(write(tmp_path, tokenizer__path="other", **changes))[0], "tokenizer")
    assert (found.status, found.pitfall) == ("fail", 9)
    same = write(tmp_path, tokenizer__path=str(run / "model"), **changes)
    assert finding(examine_recipe(same)[0], "tokenizer").status == "ok"
