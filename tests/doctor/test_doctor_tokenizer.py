"""A tokenizer with a fault is named with it, and a healthy one is left in peace."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from sproutlm.doctor.tokenizer import examine_tokenizer


@pytest.fixture
def edit(tokenizer_folder: Path) -> Callable[[str, Callable[[dict[str, Any]], Any]], Path]:
    """Change one of the tokenizer's files as parsed JSON; the folder."""

    def change(name: str, how: Callable[[dict[str, Any]], Any]) -> Path:
        values = json.loads((tokenizer_folder / name).read_text(encoding="utf-8"))
        how(values)
        (tokenizer_folder / name).write_text(json.dumps(values, ensure_ascii=False), encoding="utf-8")
        return tokenizer_folder

    return change


def template_of(values: dict[str, Any], old: str, new: str, last: bool = False) -> None:
    before, found, after = values["chat_template"].rpartition(old)
    assert found
    values["chat_template"] = before + new + after if last else values["chat_template"].replace(old, new)


def add_first_token(values: dict[str, Any]) -> None:
    token = "<|endoftext|>"
    values["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": token, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {token: {"id": token, "ids": [0], "tokens": [token]}},
    }


def test_a_healthy_tokenizer_raises_no_alarm(tokenizer_folder: Path, assert_healthy: Any) -> None:
    assert_healthy(examine_tokenizer(tokenizer_folder))


CONFIG, BACKEND = "tokenizer_config.json", "tokenizer.json"
FAULTS: dict[str, tuple[str, Callable[[dict[str, Any]], Any], str, str, int]] = {
    # name: (file, change, check, status, pitfall)
    "pad = eos": (CONFIG, lambda v: v.update(pad_token=v["eos_token"]), "pad = eos", "warn", 1),
    "unk = eos": (CONFIG, lambda v: v.update(unk_token=v["eos_token"]), "unk = eos", "warn", 1),
    "end token not trained": (
        CONFIG,
        lambda v: template_of(v, "'<|im_end|>' }}\n        {%- endgeneration %}", "'' }}{%- endgeneration %}{{- '<|im_end|>' }}"),
        "end of turn is trained", "fail", 1,
    ),
    "another prompt": (
        CONFIG, lambda v: template_of(v, "<|im_start|>assistant\\n", "<|im_start|>assistant: ", last=True),
        "prompt begins its conversation", "fail", 6,
    ),
    "no template": (CONFIG, lambda v: v.pop("chat_template"), "chat template", "warn", 14),
    "first token twice in the template": (
        CONFIG,
        lambda v: v.update(bos_token="<|endoftext|>", chat_template="<|endoftext|><|endoftext|>" + v["chat_template"]),
        "first token", "fail", 7,
    ),
    "NFKC": (BACKEND, lambda v: v.update(normalizer={"type": "NFKC"}), "round trips", "fail", 8),
    "a prefix that the merges contradict": (
        BACKEND, lambda v: v["model"].update(continuing_subword_prefix="##"), "loads", "fail", 8,
    ),
    "not byte level": (BACKEND, lambda v: v.update(pre_tokenizer=None, decoder=None), "all 256 bytes", "fail", 8),
    "a missing byte": (
        BACKEND, lambda v: v["model"]["vocab"].update({"\u0100\u0100": v["model"]["vocab"].pop("\u0100")}),
        "all 256 bytes", "fail", 8,
    ),
    "a gap in the ids": (BACKEND, lambda v: v["model"]["vocab"].update({"xqx": 400}), "ids", "warn", 9),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_of_a_tokenizer_is_named(name: str, edit: Any, finding: Any) -> None:
    """pitfalls 1, 6, 7, 8, 9, 14, as a tokenizer from elsewhere can have them."""
    file, change, check, status, pitfall = FAULTS[name]
    found = finding(examine_tokenizer(edit(file, change)), check)
    assert (found.status, found.pitfall) == (status, pitfall)
    assert found.what and found.cure


def test_a_prefix_inside_words_is_named(tmp_path: Path, finding: Any) -> None:
    """pitfall 8: byte-level BPE trained with the ## of another kind of vocabulary writes it into every text."""
    backend = tokenizers.Tokenizer(models.BPE(continuing_subword_prefix="##"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    ends = ["<|endoftext|>", "<|pad|>", "<|unk|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=ends, continuing_subword_prefix="##", show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )  # fmt: skip
    backend.train_from_iterator(["the river and the hill, the river"] * 3, trainer)
    backend.save(str(tmp_path / "tokenizer.json"))
    names = {"eos_token": ends[0], "pad_token": ends[1], "unk_token": ends[2]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(names))
    found = finding(examine_tokenizer(tmp_path), "round trips")
    assert (found.status, found.pitfall) == ("fail", 8)
    assert "##" in found.cure


def test_pad_equal_to_eos_fails_where_no_other_token_is_left(edit: Any, finding: Any) -> None:
    """pitfall 1: with nothing to pad with but the end token, ignoring pad ignores the end."""

    def only_ends(values: dict[str, Any]) -> None:
        kept = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
        values["added_tokens"] = [t for t in values["added_tokens"] if t["content"] in kept]

    edit(CONFIG, lambda v: v.update(pad_token="<|endoftext|>", unk_token=None))
    with pytest.warns(UserWarning, match="pad = eos"):
        found = finding(examine_tokenizer(edit(BACKEND, only_ends)), "three named ids")
    assert (found.status, found.pitfall) == ("fail", 1)


def test_a_first_token_that_other_programs_would_double_is_named(edit: Any, finding: Any) -> None:
    """pitfall 7: written by the template, and added again whenever text is tokenised."""
    assert finding(examine_tokenizer(edit(BACKEND, add_first_token)), "first token").status == "ok"
    folder = edit(CONFIG, lambda v: v.update(chat_template="<|endoftext|>" + v["chat_template"]))
    found = finding(examine_tokenizer(folder), "first token")
    assert (found.status, found.pitfall) == ("warn", 7)


@pytest.mark.parametrize(
    ("rows", "status", "words"), [(-1, "fail", "largest id"), (0, "ok", ""), (6, "ok", "6 of them spare")]
)
def test_a_model_sized_by_the_largest_id_is_named(
    rows: int, status: str, words: str, tokenizer: Any, tokenizer_folder: Path, finding: Any
) -> None:
    """pitfall 9: vocab_size off by one beside the tokenizer."""
    (tokenizer_folder / "config.json").write_text(json.dumps({"vocab_size": tokenizer.vocab_size + rows}))
    found = finding(examine_tokenizer(tokenizer_folder), "vocabulary")
    assert (found.status, found.pitfall) == (status, 9)
    assert words in found.what
