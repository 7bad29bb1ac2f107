"""Whatever kind of file a person hands to the doctor: schemas, token streams, tokenizers, templates, downloads, parts of a set."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sproutlm.doctor import examine
from sproutlm.doctor.recognise import recognise
from sproutlm.errors import SproutError
from sproutlm.hub.checksums import Receipt, file_sums
from sproutlm.tokenizer.library import load_template

ROOT = Path(__file__).resolve().parents[2]
SCHEMAS = ROOT / "tests" / "fixtures" / "schemas"
SHARED = ROOT / ".." / "shared" / "data"
DATATROVE = ROOT / "tests" / "fixtures" / "datatrove"


def alarms(*paths: Path) -> dict[str, str]:
    """check -> status of what is not well."""
    examined = examine(paths)["examined"]
    return {f["check"]: f["status"] for one in examined for f in one["findings"] if f["status"] != "ok"}


def finding_of(check: str, *paths: Path) -> dict[str, Any]:
    examined = examine(paths)["examined"]
    matching = [f for one in examined for f in one["findings"] if f["check"] == check]
    assert len(matching) == 1, [(f["check"], f["what"]) for one in examined for f in one["findings"]]
    return matching[0]


# What is really unusual in the fixtures; every other one is left in peace.
EXPECTED = {
    "conversations.jsonl": {"long records": "warn"},  # without a tokenizer, letters are tokens
    "messages.tools.jsonl": {"long records": "warn"},
    "sharegpt.jsonl": {"long records": "warn"},
    "mixed.jsonl": {"rows": "fail"},
    "preference.jsonl": {"one-sided wrapper": "warn"},
    "preference_messages.jsonl": {"duplicates": "warn"},  # one pair in three shapes
    "unpaired_messages.jsonl": {"duplicates": "warn"},
}


@pytest.mark.parametrize("name", sorted(path.name for path in SCHEMAS.iterdir()))
def test_every_schema_is_examined_and_nothing_is_invented(name: str) -> None:
    found = alarms(SCHEMAS / name)
    found.pop("long records", None)
    expected = {check: status for check, status in EXPECTED.get(name, {}).items() if check != "long records"}
    assert found == expected


# Looked at by eye: each of these is so, and nothing else is wrong with these sets.
REAL = {
    "pretrain/c4_en.jsonl": {"damaged characters": "warn"},
    "pretrain/equations_nested_text.jsonl": {"rows": "fail"},
    "pretrain/shakespeare_en.txt": {},
    "sft/identity.jsonl": {"placeholders": "warn"},
    "sft/toolcall_zh_sharegpt.jsonl": {"duplicates": "warn", "stray result": "warn", "long records": "warn"},
    "preference/dpo_zh.jsonl": {"duplicates": "warn", "damaged characters": "warn"},
    "preference/instruction_pairs_en.jsonl": {"equal sides": "warn"},
    "classification/sms_spam.tsv": {"duplicates": "warn"},
    "classification/hotel_reviews_zh.csv": {"empty rows": "warn"},
    "eval/cmmlu/dev": {"rows": "fail"},
}


@pytest.mark.parametrize("name", REAL)
def test_real_sets_have_the_faults_that_they_have(name: str) -> None:
    if not (SHARED / name).exists():
        pytest.skip("the shared data is not here")
    assert alarms(SHARED / name) == REAL[name]


# --- token streams ----------------------------------------------------------------------------------------------------


def stream(path: Path, ids: list[int], dtype: str = "<u2") -> Path:
    path.write_bytes(np.array(ids, dtype=dtype).tobytes())
    return path


def test_a_token_stream_is_examined_with_its_tokenizer(tmp_path: Path, tokenizer: Any, tokenizer_folder: Path) -> None:
    ids = [i for n in range(50) for i in (*tokenizer.encode(f"the river {n}"), tokenizer.eos_id)]
    assert alarms(stream(tmp_path / "a.bin", ids)) == {}
    assert alarms(stream(tmp_path / "a.bin", ids), tokenizer_folder) == {}
    assert recognise(DATATROVE / "uint16") == "tokens" and alarms(DATATROVE / "uint16") == {}


def test_ids_without_a_row_and_a_file_cut_short_are_failures(
    tmp_path: Path, tokenizer: Any, tokenizer_folder: Path
) -> None:
    """pitfalls 9 and 12"""
    other = stream(tmp_path / "a.bin", [5, tokenizer.vocab_size, tokenizer.eos_id] * 9)
    found = finding_of("token ids", other, tokenizer_folder)
    assert (found["status"], found["pitfall"]) == ("fail", 9) and "name the tokenizer" in found["what"]
    shutil.copytree(DATATROVE / "uint16", tmp_path / "cut")
    file = next((tmp_path / "cut").glob("*.ds"))
    file.write_bytes(file.read_bytes()[:-2])
    found = finding_of("token file", file)
    assert (found["status"], found["pitfall"]) == ("fail", 12)


def test_documents_that_never_end_are_named(tmp_path: Path, tokenizer: Any, tokenizer_folder: Path) -> None:
    """pitfall 1: a stream of another end token, or of none, teaches no text's end."""
    endless = stream(tmp_path / "a.bin", [i for n in range(3000) for i in tokenizer.encode(f"the river {n}")])
    found = finding_of("stop token", endless, tokenizer_folder)
    assert (found["status"], found["pitfall"]) == ("warn", 1) and "columns: {eos: ID}" in found["cure"]
    ends = np.array([3, 6, 9], dtype="<u8")  # datatrove's layout names its documents
    for last, status in ((7, "warn"), (tokenizer.eos_id, "ok")):
        shard = stream(tmp_path / "a.ds", [5, 6, last] * 3)
        (tmp_path / "a.ds.index").write_bytes(ends.tobytes())
        assert finding_of("stop token", shard, tokenizer_folder)["status"] == status


# --- tokenizers and templates -----------------------------------------------------------------------------------------


def test_a_sentencepiece_model_is_a_tokenizer(tmp_path: Path) -> None:
    """The file itself, as people hand it over; that it has no chat template is said."""
    import io

    sentencepiece = pytest.importorskip("sentencepiece")
    proto = io.BytesIO()
    lines = ["the river and the hill", "春眠不觉晓，处处闻啼鸟。", "What is 2 + 2?"] * 30
    options = {
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "byte_fallback": True,
        "pad_id": 3,
    }
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=proto, vocab_size=340, model_type="bpe", minloglevel=2, **options
    )
    (tmp_path / "tokenizer.model").write_bytes(proto.getvalue())
    for path in (tmp_path / "tokenizer.model", tmp_path):
        assert recognise(path) == "tokenizer"
        assert "chat template" in alarms(path) and "fail" not in alarms(path).values(), alarms(path)
    (tmp_path / "tokenizer.model").write_bytes(proto.getvalue()[:2000])
    assert finding_of("loads", tmp_path / "tokenizer.model")["status"] == "fail"


def test_a_template_file_is_linted(tmp_path: Path, tokenizer_folder: Path) -> None:
    """pitfall 1: the end token outside of what is trained."""
    sound = tmp_path / "sound.jinja"
    sound.write_text(load_template("chatml"))
    assert alarms(sound) == {} and alarms(sound, tokenizer_folder) == {}
    broken = load_template("chatml").replace(
        "{{- '<|im_end|>' }}\n        {%- endgeneration %}", "{%- endgeneration %}{{- '<|im_end|>' }}"
    )
    assert broken != load_template("chatml")
    (tmp_path / "broken.jinja").write_text(broken)
    found = finding_of("template: the end token of a reply is trained", tmp_path / "broken.jinja")
    assert (found["status"], found["pitfall"]) == ("fail", 1) and "<|im_end|>" in found["what"]


def test_a_template_for_another_tokenizer_is_refused_beside_it(tmp_path: Path, tokenizer_folder: Path) -> None:
    """pitfall 6: its control tokens would be spelled out."""
    llama = tmp_path / "llama.jinja"
    llama.write_text(load_template("llama3"))
    assert alarms(llama) == {}
    found = finding_of("template: the tokenizer has its control tokens", llama, tokenizer_folder)
    assert (found["status"], found["pitfall"]) == ("fail", 6)


def test_weights_and_folders_of_templates_say_what_to_give_instead(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"x")
    with pytest.raises(SproutError, match=f"sprout doctor {tmp_path}"):
        recognise(tmp_path / "model.safetensors")
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "a.jinja").write_text("x")
    with pytest.raises(SproutError, match="a.jinja"):
        recognise(tmp_path / "t")


# --- downloads --------------------------------------------------------------------------------------------------------


@pytest.fixture
def downloaded(tmp_path: Path) -> Path:
    folder = tmp_path / "downloaded"
    folder.mkdir()
    rows = "".join(json.dumps({"text": f"the hill {i}"}) + "\n" for i in range(30))
    (folder / "a.jsonl").write_text(rows)
    (folder / "b.jsonl").write_text(rows.replace("hill", "river"))
    (folder / "README.md").write_text("x")
    files = {
        name: {"size": (folder / name).stat().st_size, "sha256": file_sums(folder / name)[0], "version": None}
        for name in ("a.jsonl", "b.jsonl")
    }
    Receipt("hf://datasets/a/b", "hf", None, "mit", True, {}, files).write(folder)
    return folder


def test_a_whole_download_is_well_and_its_rows_are_examined(downloaded: Path) -> None:
    assert alarms(downloaded) == {}
    kinds = [one["kind"] for one in examine([downloaded])["examined"]]
    assert kinds == ["download", "data, 2 files"]


def test_a_download_that_is_not_whole_is_named(downloaded: Path) -> None:
    text = (downloaded / "a.jsonl").read_text()
    (downloaded / "a.jsonl").write_text(text.replace("hill", "hall"))  # the same size
    found = finding_of("files of the download", downloaded)
    assert found["status"] == "fail" and "a.jsonl" in found["what"] and "hf://datasets/a/b" in found["cure"]
    (downloaded / "a.jsonl").unlink()
    assert finding_of("files of the download", downloaded)["status"] == "warn"
    receipt = Receipt.read(downloaded)
    assert receipt is not None
    receipt.complete = False
    receipt.write(downloaded)
    assert finding_of("download", downloaded)["status"] == "fail"
    (downloaded / ".download.json").write_text("{")
    assert finding_of("receipt", downloaded)["status"] == "fail"


# --- parts of a set ---------------------------------------------------------------------------------------------------


def test_rows_and_labels_of_two_files_are_compared(tmp_path: Path) -> None:
    def part(name: str, *rows: tuple[str, str]) -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows))
        return path

    train = part("train.jsonl", *((f"text {i}", "ab"[i % 2]) for i in range(40)))
    assert alarms(train, part("test.jsonl", ("new", "a"), ("newer", "b"))) == {}
    leak = part("test.jsonl", ("Text  7", "b"), ("newer", "a"))  # case and blanks make no difference
    found = finding_of("rows in two parts", train, leak)
    assert found["status"] == "warn" and "test.jsonl:1" in found["what"] and "1 of 2 records" in found["what"]
    found = finding_of("labels not trained", train, part("test.jsonl", ("new", "c"), ("newer", "a")))
    assert found["status"] == "fail" and "'c'" in found["what"] and "test.jsonl:1" in found["what"]
