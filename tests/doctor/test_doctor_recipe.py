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


# --- template, vocabulary, new tokens ---------------------------------------------------------------------------------

SFT = {"stage": "sft", "data__train": "chats.jsonl", "model": None}


def test_a_template_whose_end_token_is_not_trained_is_named(tmp_path: Path, run: Path, finding: Any) -> None:
    """pitfall 1: before an hour of training, not after it."""
    from sproutlm.tokenizer.library import load_template

    end = "{{- '<|im_end|>' }}\n        {%- endgeneration %}"
    assert end in load_template("chatml")
    broken = load_template("chatml").replace(end, "{%- endgeneration %}{{- '<|im_end|>' }}")
    (tmp_path / "broken.jinja").write_text(broken)
    path = write(tmp_path, **SFT, init_from=str(run), template__use="broken.jinja")
    parts = examine_recipe(path)
    found = finding(parts[0], "template: the end token of a reply is trained")
    assert (found.status, found.pitfall) == ("fail", 1)
    assert finding(parts[1], "stop token").status == "fail"  # and in the rows themselves
    sound = write(tmp_path, **SFT, init_from=str(run), template__use="qwen3")
    assert finding(examine_recipe(sound)[0], "end of turn is trained").status == "ok"


def test_a_template_that_the_tokenizer_cannot_write_is_named(
    tmp_path: Path, tokenizer_folder: Path, finding: Any
) -> None:
    """pitfall 6: Llama's control tokens are spelled out by a tokenizer that lacks them; new_tokens gives them."""
    changes = {"stage": "sft", "init_from": "random", "data__train": "chats.jsonl", "template__use": "llama3"}
    found = finding(examine_recipe(write(tmp_path, **changes))[0], "template: the tokenizer has its control tokens")
    assert (found.status, found.pitfall) == ("fail", 6) and "<|eot_id|>" in found.what
    names = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    found_all = examine_recipe(write(tmp_path, **changes, tokenizer__new_tokens=names))[0]
    assert finding(found_all, "end of turn is trained").status == "ok"
    assert finding(found_all, "new tokens").status == "ok"
    given = write(tmp_path, **changes, tokenizer__new_tokens=names, tokenizer__path=str(tokenizer_folder))
    assert finding(examine_recipe(given)[0], "end of turn is trained").status == "ok"


def test_a_tokenizer_without_a_template_cannot_write_conversations(
    tmp_path: Path, tokenizer: Any, finding: Any
) -> None:
    """pitfall 14"""
    tokenizer.with_chat_template(None).save(tmp_path / "bare")
    changes = {"stage": "sft", "init_from": "random", "data__train": "chats.jsonl", "tokenizer__path": "bare"}
    found = finding(examine_recipe(write(tmp_path, **changes))[0], "chat template")
    assert (found.status, found.pitfall) == ("fail", 14) and "template: {use: chatml}" in found.cure


def test_new_tokens_that_nothing_writes_are_named(tmp_path: Path, finding: Any) -> None:
    """pitfall 4: in rows their names stay text, so their rows in the model would stay as they began."""
    found = finding(examine_recipe(write(tmp_path, tokenizer__new_tokens=["<|speaker|>"]))[0], "new tokens")
    assert (found.status, found.pitfall) == ("warn", 4) and "<|speaker|>" in found.what


def test_a_model_with_fewer_rows_than_the_tokenizer_has_ids_is_named(
    tmp_path: Path, tokenizer_folder: Path, tokenizer: Any, finding: Any
) -> None:
    """pitfall 9"""
    model = {"dim": 32, "n_heads": 2, "n_layers": 1, "vocab_size": tokenizer.vocab_size - 1}
    path = write(tmp_path, tokenizer__path=str(tokenizer_folder), model=model)
    found = finding(examine_recipe(path)[0], "vocabulary")
    assert (found.status, found.pitfall) == ("fail", 9) and f"{tokenizer.vocab_size:,} ids" in found.what
    path = write(tmp_path, model={**model, "vocab_size": 500}, tokenizer__vocab_size=600)
    assert finding(examine_recipe(path)[0], "vocabulary").status == "fail"


def test_rows_that_are_mostly_padding_are_named(tmp_path: Path, finding: Any) -> None:
    """pitfall 11: only where packing is turned off."""
    found = finding(examine_recipe(write(tmp_path, data__packing="none"))[1], "padding")
    assert (found.status, found.pitfall) == ("warn", 11) and "best_fit" in found.cure
    short = examine_recipe(write(tmp_path, data__packing="none", data__seq_len=16))[1]
    assert finding(short, "padding").status == "ok"
    assert not [f for f in examine_recipe(write(tmp_path))[1].findings if f.check == "padding"]


def test_a_token_stream_of_another_tokenizer_is_named(
    tmp_path: Path, tokenizer_folder: Path, tokenizer: Any, finding: Any
) -> None:
    """pitfall 9"""
    import numpy as np

    path = write(tmp_path, tokenizer__path=str(tokenizer_folder), data__train="ids.bin")
    for highest, status in ((tokenizer.vocab_size - 1, "ok"), (tokenizer.vocab_size, "fail")):
        (tmp_path / "ids.bin").write_bytes(np.array([7, highest, tokenizer.eos_id] * 40, dtype="<u2").tobytes())
        found = finding(examine_recipe(path)[1], "token ids")
        assert (found.status, found.pitfall) == (status, 9)


# --- held-out rows ----------------------------------------------------------------------------------------------------


def test_rows_of_another_file_that_are_trained_on_are_named(tmp_path: Path, finding: Any) -> None:
    """Files of two names, with rows in common."""
    path = write(tmp_path, data__validation=["held.jsonl"])
    held = [{"text": f"the river and the hill, number {i}"} for i in (3, 99, 100)]
    (tmp_path / "held.jsonl").write_text("".join(json.dumps(row) + "\n" for row in held))
    parts = examine_recipe(path)
    found = finding(parts[0], "rows in two parts")
    assert found.status == "warn" and "1 of 3 records" in found.what and "held.jsonl:1" in found.what
    assert [part.path for part in parts[1:]] == [str(tmp_path / "texts.jsonl"), str(tmp_path / "held.jsonl")]
    (tmp_path / "held.jsonl").write_text("".join(json.dumps(row) + "\n" for row in held[1:]))
    assert finding(examine_recipe(path)[0], "rows in two parts").status == "ok"


def test_held_out_rows_that_stand_among_the_others_too_are_named(tmp_path: Path, finding: Any) -> None:
    path = write(tmp_path, data__validation={"rows": 5})
    assert finding(examine_recipe(path)[0], "rows in two parts").status == "ok"
    lines = (tmp_path / "texts.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "texts.jsonl").write_text("".join([*lines, lines[0]]))
    found = finding(examine_recipe(path)[0], "rows in two parts")
    assert found.status == "warn" and "1 of 5 records" in found.what and "texts.jsonl:31" in found.what


def test_pretraining_on_instructions_is_named_with_what_is_trained(tmp_path: Path, finding: Any) -> None:
    """pitfall 14: only the answers."""
    path = write(tmp_path, data__train="rows.jsonl")
    rows = [{"instruction": f"what is {i}?", "output": f"{i}"} for i in range(20)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = finding(examine_recipe(path)[1], "kind of data")
    assert found.status == "warn" and "only the answers are trained" in found.what


@pytest.mark.parametrize(
    ("settings", "order", "rows"),
    [
        ({}, "fail", "fail"),
        ({"data__on_bad_row": "skip"}, "warn", "warn"),
        ({"data__train": {"path": "chats.jsonl", "role_order": "any"}}, None, "fail"),
    ],
)
def test_rows_at_which_training_will_stop_are_failures(
    settings: dict[str, Any], order: str | None, rows: str, tmp_path: Path, run: Path, finding: Any
) -> None:
    """pitfall 13: as the recipe has it: stopped at, dropped, or taken."""
    path = write(tmp_path, **{**SFT, "init_from": str(run), **settings})
    turns = [("user", "a"), ("user", "b"), ("assistant", "c")]
    odd = {"messages": [{"role": role, "content": text} for role, text in turns]}
    with (tmp_path / "chats.jsonl").open("a") as file:
        file.write(json.dumps(odd) + "\n" + '{"messages": 7}\n')
    part = examine_recipe(path)[1]
    assert finding(part, "rows").status == rows
    if order is None:
        assert not [f for f in part.findings if f.check == "role order"]
    else:
        assert finding(part, "role order").status == order
        assert "chats.jsonl:31" in finding(part, "role order").what
