"""``sprout tokenizer test`` on tokenizers of every kind: what holds is proved, what does not is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer as Backend, decoders, models, normalizers, pre_tokenizers, trainers

from sproutlm.errors import SproutError
from sproutlm.tokenizer import Tokenizer, check, train_tokenizer
from sproutlm.tokenizer.check import check_tokenizer

from_words = ["the river and the hill, the river\n", "春眠不觉晓，处处闻啼鸟。", "12 + 30 = 42"] * 20


@pytest.fixture(autouse=True)
def _without_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison has tests of its own, and the import takes longer than all of these."""
    skipped = check._result("same ids as transformers", None, "skipped")
    monkeypatch.setattr(check, "_against_transformers", lambda tokenizer, folder: skipped)


def checks(folder: Path) -> dict[str, dict[str, Any]]:
    report = check_tokenizer(folder)
    by_name = {check["name"]: check for check in report["checks"]}
    assert len(by_name) == len(report["checks"])
    return by_name


def failed(folder: Path) -> set[str]:
    return {name for name, found in checks(folder).items() if found["ok"] is False}


@pytest.mark.parametrize("kind", ["byte_bpe", "sentencepiece_bpe", "sentencepiece_unigram"])
def test_what_we_train_passes_everything(kind: str, tmp_path: Path) -> None:
    """Pitfalls 1, 4, 7, 8, 9, 10 on each kind that we train."""
    if kind != "byte_bpe":
        pytest.importorskip("sentencepiece")
    words = [f"{a} {b}" for a in "the river and hill of fox dog day".split() for b in "sings runs grows falls".split()]
    train_tokenizer([*from_words, *words] * 3, 360, kind=kind).save(tmp_path)
    found = checks(tmp_path)
    assert not [check for check in found.values() if check["ok"] is False or check["warn"]]
    assert {"streaming", "special ids", "ids below the size", "first token", "round trips"} <= set(found)


def wordpiece(folder: Path) -> Path:
    backend = Backend(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=120, special_tokens=special, show_progress=False)
    backend.train_from_iterator(from_words, trainer)
    folder.mkdir()
    backend.save(str(folder / "tokenizer.json"))
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "eos_token": "[SEP]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    return folder


def test_wordpiece_loses_text_and_that_is_named(tmp_path: Path) -> None:
    """Pitfall 8: case, blanks and unknown letters are gone; ids and streaming are sound all the same."""
    assert failed(wordpiece(tmp_path / "w")) == {"all 256 bytes", "round trips"}


def sentencepiece_like(folder: Path) -> Path:
    """As SentencePiece files from elsewhere are converted: a blank before the text, written as "▁"."""
    alphabet = [(f"<0x{byte:02X}>", -10.0) for byte in range(256)]
    pieces = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), *alphabet, ("▁", -3.0), ("▁the", -2.0), ("河", -4.0)]
    backend = Backend(models.Unigram(pieces, 0, byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens([AddedToken(t, special=True) for t in ("<unk>", "<s>", "</s>")])
    folder.mkdir()
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>", "unk_token": "<unk>"}))
    return folder


def test_a_tokenizer_that_adds_a_blank_streams_what_it_decodes(tmp_path: Path) -> None:
    assert failed(sentencepiece_like(tmp_path / "s")) == set()


def test_unknown_that_pads_is_a_fault_only_where_a_text_can_hold_it(tmp_path: Path) -> None:
    """Llama 2's files have no token for padding beside the unknown one, and a byte for everything unknown."""
    tokenizer = Tokenizer.load(sentencepiece_like(tmp_path / "s"))
    assert tokenizer.pad_id == tokenizer.unk_id
    assert "no text holds unk" in check._named_ids(tokenizer)
    tokenizer.byte_exact = False
    with pytest.raises(SproutError, match="three different ids"):
        check._named_ids(tokenizer)


def edited(tokenizer: Tokenizer, folder: Path, change: Callable[[dict, dict], None]) -> Path:
    data, config = tokenizer.backend_json, json.loads(json.dumps(tokenizer.config))
    change(data, config)
    Tokenizer(json.dumps(data), config, where="edited").save(folder)
    (folder / "tokenizer.json").write_text(json.dumps(data), "utf-8")
    return folder


def test_one_id_with_two_names_is_named(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Pitfall 9."""

    loaded = Tokenizer.load(edited(tokenizer, tmp_path, lambda data, config: None))
    loaded.control_tokens["<|twin|>"] = loaded.control_tokens["<|im_start|>"]
    with pytest.raises(
        check.SproutError, match="'<|im_start|>' and '<|twin|>' have the same id, 3".replace("|", r"\|")
    ):
        check._special_ids(loaded)


def test_a_model_with_fewer_rows_is_named(folder: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Pitfall 9: the largest id was taken for the size."""
    tokenizer.save(tmp_path)
    for rows, wrong in ((tokenizer.vocab_size - 1, {"ids below the size"}), (tokenizer.vocab_size, set())):
        (tmp_path / "config.json").write_text(json.dumps({"vocab_size": rows}))
        assert failed(tmp_path) == wrong


def test_a_stream_that_breaks_characters_is_named(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pitfall 10: the check can fail."""

    class OneByOne:
        def __init__(self, tokenizer: Tokenizer) -> None:
            self.tokenizer = tokenizer

        def push(self, id_: int) -> str:
            return self.tokenizer.decode([id_])

        def flush(self) -> str:
            return ""

    monkeypatch.setattr(check, "StreamDecoder", OneByOne)
    with pytest.raises(check.SproutError, match="streamed id by id"):
        check._streaming(tokenizer)


def test_a_first_token_that_both_sides_write_is_named(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Pitfall 7: written by the template, and added by the post-processor, or by the word of the config alone."""
    token = "<|endoftext|>"

    def template(data: dict, config: dict) -> None:
        config["chat_template"] = token + config["chat_template"]
        config["bos_token"] = token

    def adds(data: dict, config: dict) -> None:
        template(data, config)
        config["add_bos_token"] = True

    def twice(data: dict, config: dict) -> None:
        template(data, config)
        template(data, config)

    quiet = checks(edited(tokenizer, tmp_path / "quiet", template))["first token"]
    loud = checks(edited(tokenizer, tmp_path / "loud", adds))["first token"]
    assert (quiet["ok"], quiet["warn"]) == (True, False)
    assert (loud["ok"], loud["warn"], loud["pitfall"]) == (True, True, 7)
    assert "first token" in failed(edited(tokenizer, tmp_path / "twice", twice))


def test_the_template_linter_speaks_in_the_report(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Pitfall 1: an end token outside the trained part is refused here, too."""

    def change(data: dict, config: dict) -> None:
        body = "{% for m in messages %}<|im_start|>{{ m.role }}\n{% generation %}{{ m.content }}{% endgeneration %}<|im_end|>\n{% endfor %}"
        config["chat_template"] = body + "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"

    names = failed(edited(tokenizer, tmp_path, change))
    assert [name for name in names if name.startswith("template: ")]


def test_lint_from_the_command_line(folder: Path, tmp_path: Path, sprout: Any) -> None:
    assert sprout("tokenizer", "lint", folder, "--json", tmp_path / "l.json").code == 0
    assert json.loads((tmp_path / "l.json").read_text("utf-8"))["ok"]
    (tmp_path / "bad.jinja").write_text(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}\n{% endfor %}", "utf-8"
    )
    ran = sprout("tokenizer", "lint", tmp_path / "bad.jinja", "--tokenizer", folder)
    assert ran.code == 2
    assert "cure" in ran.out


def test_train_reports_refuses_and_replaces(tmp_path: Path, sprout: Any) -> None:
    rows = "".join(json.dumps({"body": text}, ensure_ascii=False) + "\n" for text in from_words)
    (tmp_path / "rows.jsonl").write_text(rows, "utf-8")
    arguments = (
        "tokenizer",
        "train",
        tmp_path / "t",
        tmp_path / "rows.jsonl",
        "--format",
        "text",
        "--columns",
        "text=body",
    )
    ran = sprout(*arguments, "--vocab-size", "300", "--digits", "groups", "--json", tmp_path / "t.json")
    assert ran.code == 0, ran.err
    report = json.loads((tmp_path / "t.json").read_text("utf-8"))
    assert report["vocab_size"] == 300
    assert {row["sample"] for row in report["compression"]} == {"zh", "en", "code"}
    assert "bytes/token" in ran.out
    before = (tmp_path / "t" / "tokenizer.json").read_bytes()
    again = sprout(*arguments, "--vocab-size", "320")
    assert again.code == 1
    assert "--force" in again.err
    assert (tmp_path / "t" / "tokenizer.json").read_bytes() == before
    assert sprout(*arguments, "--vocab-size", "320", "--max-bytes", "500", "--force").code == 0
    assert Tokenizer.load(tmp_path / "t").vocab_size > 300
