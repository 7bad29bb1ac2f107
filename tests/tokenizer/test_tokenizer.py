"""The tokenizer keeps every byte, never reads control tokens out of text, and loads from wherever one can be."""

from __future__ import annotations

import json
import pickle
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from tokenizers import AddedToken, Tokenizer as Backend, decoders, models, normalizers, pre_tokenizers, trainers

from sproutlm.errors import SproutError
from sproutlm.tokenizer import ChatTemplate, Tokenizer, check_template
from sproutlm.tokenizer.check import HARD_TEXTS, check_tokenizer, print_report, random_texts
from sproutlm.tokenizer.tokenizer import CONTROL_TOKENS

ANY_TEXT = st.text(alphabet=st.characters(exclude_categories=("Cs",)), max_size=60)


@settings(max_examples=150, deadline=None)
@given(text=ANY_TEXT)
def test_any_text_comes_back_byte_for_byte(tokenizer: Tokenizer, text: str) -> None:
    """Pitfall 8."""
    ids = tokenizer.encode(text)
    assert tokenizer.decode_bytes(ids) == text.encode()
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("text", HARD_TEXTS.values(), ids=HARD_TEXTS.keys())
def test_hard_texts_come_back_byte_for_byte(tokenizer: Tokenizer, text: str) -> None:
    """Pitfall 8: full-width punctuation, emoji, CRLF, ``##``."""
    assert tokenizer.decode_bytes(tokenizer.encode(text)) == text.encode()


def test_random_bytes_are_written_by_byte_tokens(tokenizer: Tokenizer) -> None:
    """Pitfall 8: every byte has a token, so any byte string can be written, UTF-8 or not."""
    id_of = {tokenizer.decode_bytes([i]): i for i in range(tokenizer.vocab_size)}
    data = np.random.default_rng(0).integers(0, 256, 5000, dtype=np.uint8).tobytes()
    assert tokenizer.decode_bytes(id_of[bytes([byte])] for byte in data) == data


def test_nothing_normalises_and_no_prefix_is_written(tokenizer: Tokenizer) -> None:
    """Pitfall 8."""
    data = tokenizer.backend_json
    assert data["normalizer"] is None
    assert not data["model"]["continuing_subword_prefix"]
    assert not data["model"]["end_of_word_suffix"]
    assert '"add_prefix_space": true' not in json.dumps(data["pre_tokenizer"])


@pytest.mark.parametrize("name", CONTROL_TOKENS)
def test_control_tokens_in_text_stay_text(tokenizer: Tokenizer, name: str) -> None:
    """Pitfall 4."""
    control = set(tokenizer.control_tokens.values())
    for text in (name, f"a{name}b", f" {name}\n{name}"):
        ids = tokenizer.encode(text)
        assert not control.intersection(ids)
        assert tokenizer.decode(ids) == text
        assert tokenizer.encode_batch([text])[0] == ids


def test_added_tokens_not_marked_special_stay_text_too(tokenizer: Tokenizer) -> None:
    """Pitfall 4: many folders add ``<think>`` without marking it special."""
    data = tokenizer.backend_json
    for token in data["added_tokens"]:
        if "think" in token["content"]:
            token["special"] = False
    foreign = Tokenizer(json.dumps(data), tokenizer.config)
    ids = foreign.encode("<think>no</think>")
    assert not set(foreign.control_tokens.values()).intersection(ids)
    assert foreign.decode(ids) == "<think>no</think>"


def test_eos_pad_and_unk_are_three_ids(tokenizer: Tokenizer) -> None:
    """Pitfall 1."""
    assert len({tokenizer.eos_id, tokenizer.pad_id, tokenizer.unk_id}) == 3
    assert tokenizer.eos_id == tokenizer.token_id("<|endoftext|>")
    assert tokenizer.stop_ids == (tokenizer.token_id("<|im_end|>"), tokenizer.eos_id)
    assert list(tokenizer.control_tokens) == list(CONTROL_TOKENS)
    assert list(tokenizer.control_tokens.values()) == list(range(len(CONTROL_TOKENS)))


def test_pad_is_never_eos_without_a_word(tokenizer: Tokenizer) -> None:
    """Pitfall 1: a folder with pad = eos gets a free token for pad; without a free one, it is said."""
    config = {**tokenizer.config, "pad_token": "<|endoftext|>"}
    spared = Tokenizer(json.dumps(tokenizer.backend_json), config)
    assert spared.pad_id != spared.eos_id
    assert spared.notes
    data = tokenizer.backend_json
    data["added_tokens"] = [t for t in data["added_tokens"] if t["content"] == "<|endoftext|>"]
    with pytest.warns(UserWarning, match="pad = eos"):
        alone = Tokenizer(json.dumps(data), {"eos_token": "<|endoftext|>"})
    assert alone.pad_id == alone.eos_id
    assert "pad = eos" in alone.notes[0]


def test_vocabulary_size_is_the_highest_id_plus_one(tokenizer: Tokenizer) -> None:
    """Pitfall 9: ids may have gaps, so neither the count of tokens nor the highest id is the size."""
    assert tokenizer.vocab_size == 420
    data = tokenizer.backend_json
    data["added_tokens"].append({**data["added_tokens"][0], "content": "<|far|>", "id": 500})
    gapped = Tokenizer(json.dumps(data), tokenizer.config)
    # The tokenizers library may close the gap; whatever id it gives out must fit.
    highest = max(gapped.encode("hello") + list(gapped._encoder.get_vocab().values()))
    assert gapped.vocab_size == highest + 1
    assert len(gapped.token_bytes()) == gapped.vocab_size


def test_token_bytes_add_up_to_the_text(tokenizer: Tokenizer) -> None:
    text = "春眠不觉晓, the fox 🦊\r\n"
    sizes = tokenizer.token_bytes()
    assert sizes.dtype == np.int64
    assert sizes[tokenizer.encode(text)].sum() == len(text.encode())
    assert not sizes[list(tokenizer.control_tokens.values())].any()


def test_ids_beyond_the_vocabulary_give_no_text(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode([*tokenizer.encode("fox"), tokenizer.vocab_size, 10**6]) == "fox"


def test_decode_shows_control_tokens_only_when_asked(tokenizer: Tokenizer) -> None:
    ids = [tokenizer.token_id("<|im_start|>"), *tokenizer.encode("fox"), tokenizer.token_id("<|im_end|>")]
    assert tokenizer.decode(ids) == "fox"
    assert tokenizer.decode(ids, keep_control=True) == "<|im_start|>fox<|im_end|>"


def test_offsets_cover_the_text_in_order(tokenizer: Tokenizer) -> None:
    text = "  春眠 🦊  hello world "
    ids, offsets = tokenizer.encode_with_offsets(text)
    assert len(ids) == len(offsets)
    assert set().union(*(range(a, b) for a, b in offsets)) == set(range(len(text)))
    assert [a for a, _ in offsets] == sorted(a for a, _ in offsets)


def test_save_and_load_keep_everything(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "a")
    loaded = Tokenizer.load(tmp_path / "a")
    assert loaded.fingerprint == tokenizer.fingerprint
    assert loaded.chat_template == tokenizer.chat_template
    loaded.save(tmp_path / "b")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_load_finds_the_tokenizer_of_a_run(tokenizer: Tokenizer, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for step, whole in ((100, True), (200, True), (300, False)):
        place = run / "checkpoints" / f"step-{step:08d}"
        tokenizer.with_chat_template(f"step {step}").save(place)
        if whole:
            (place / "COMPLETE").write_text("{}")
    assert Tokenizer.load(run).chat_template == "step 200"  # the newest whole checkpoint
    tokenizer.with_chat_template("final").save(run / "model")
    assert Tokenizer.load(run).chat_template == "final"
    assert Tokenizer.load(run / "checkpoints" / "step-00000100").chat_template == "step 100"


def test_template_file_beside_the_tokenizer_is_read(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("from the file")
    assert Tokenizer.load(tmp_path).chat_template == "from the file"
    tokenizer.save(tmp_path)
    assert Tokenizer.load(tmp_path).chat_template == tokenizer.chat_template


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({}, "no tokenizer.json"),
        ({"tokenizer.json": b"{"}, "not JSON"),
        ({"tokenizer.json": b"[]"}, "expected a JSON object"),
        ({"tokenizer.json": b"\xff\xfe{}"}, "not UTF-8"),
        ({"tokenizer.json": b"{}"}, "no model"),
        ({"tokenizer.model": b"x"}, "not a whole SentencePiece model"),
    ],
)
def test_damaged_folders_are_refused_with_a_sentence(tmp_path: Path, files: dict[str, bytes], sentence: str) -> None:
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(SproutError, match=sentence):
        Tokenizer.load(tmp_path)


def test_missing_folder_is_refused_with_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(SproutError, match="no such folder"):
        Tokenizer.load(tmp_path / "nowhere")


def test_eos_of_another_tokenizer_is_refused(tokenizer: Tokenizer) -> None:
    """Pitfall 9."""
    with pytest.raises(SproutError, match="different tokenizers"):
        Tokenizer(json.dumps(tokenizer.backend_json), {"eos_token": "</s>"})


def test_half_a_surrogate_pair_is_refused_with_a_sentence(tokenizer: Tokenizer) -> None:
    with pytest.raises(SproutError, match=r"U\+D83D, character 2"):
        tokenizer.encode("ab\ud83d")
    with pytest.raises(SproutError, match="surrogate"):
        tokenizer.encode_batch(["fine", "\udc00"])


def test_fingerprint_follows_content_not_layout(tokenizer: Tokenizer) -> None:
    data = tokenizer.backend_json
    spaced = Tokenizer(json.dumps(data, indent=4, sort_keys=True), {**tokenizer.config, "chat_template": "other"})
    assert spaced.fingerprint == tokenizer.fingerprint
    data["model"]["merges"][0], data["model"]["merges"][1] = data["model"]["merges"][1], data["model"]["merges"][0]
    assert Tokenizer(json.dumps(data), tokenizer.config).fingerprint != tokenizer.fingerprint


def test_pickles_and_serves_threads(tokenizer: Tokenizer, template: ChatTemplate) -> None:
    copy, copied_template = pickle.loads(pickle.dumps((tokenizer, template)))
    messages = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hello fox"}]
    wanted = template.render(messages)
    assert copy.encode("the fox") == tokenizer.encode("the fox")
    assert copied_template.render(messages) == wanted
    results: list[bool] = []

    def work() -> None:
        same = ChatTemplate(template.source, tokenizer)
        results.extend(same.render(messages) == wanted for _ in range(50))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 200
    assert all(results)


# --- the report -------------------------------------------------------------------------------------------------------


def test_report_of_our_own_tokenizer_is_clean(folder: Path) -> None:
    lines: list[str] = []
    report = check_tokenizer(folder)
    assert print_report(report, lines.append), "\n".join(lines)
    assert {row["sample"] for row in report["compression"]} >= {"zh", "en", "code"}
    assert json.loads(json.dumps(report)) == report


def _foreign(folder: Path, *, normalizer: normalizers.Normalizer | None = None, prefix: str = "") -> Path:
    backend = Backend(models.BPE(continuing_subword_prefix=prefix) if prefix else models.BPE())
    backend.normalizer = normalizer
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=[AddedToken("<|endoftext|>", special=True)],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        continuing_subword_prefix=prefix,
        show_progress=False,
    )
    backend.train_from_iterator(["hello hello help，你好，你好"], trainer=trainer)
    folder.mkdir()
    (folder / "tokenizer.json").write_text(backend.to_str())
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<|endoftext|>"}')
    return folder


@pytest.mark.parametrize(
    ("options", "cure"),
    [({"normalizer": normalizers.NFKC()}, "NFKC"), ({"prefix": "##"}, "##")],
    ids=["NFKC", "hash prefix"],
)
@pytest.mark.filterwarnings("ignore:.*pad = eos")
def test_report_names_nfkc_and_hash_prefix_and_pad_as_eos(tmp_path: Path, options: dict, cure: str) -> None:
    """Pitfalls 8 and 1, as faults of a folder that a person brings."""
    report = check_tokenizer(_foreign(tmp_path / "foreign", **options))
    failed = {check["name"]: check for check in report["checks"] if check["ok"] is False}
    assert not report["ok"]
    assert cure in failed["round trips"]["cure"]
    assert "three named ids" in failed
    assert not print_report(report, lambda line: None)


def test_report_names_an_untrained_end(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Pitfall 1."""
    assert tokenizer.chat_template is not None
    end = "            {{- '<|im_end|>' }}\n        {%- endgeneration %}"
    broken = tokenizer.chat_template.replace(end, "        {%- endgeneration %}{{- '<|im_end|>' }}")
    assert broken != tokenizer.chat_template
    tokenizer.with_chat_template(broken).save(tmp_path)
    report = check_tokenizer(tmp_path)
    failed = [check for check in report["checks"] if check["ok"] is False]
    assert failed[0]["name"] == "end of turn is trained"
    assert all("is trained" in check["name"] and "<|im_end|>" in check["sentence"] for check in failed)
    with pytest.raises(SproutError, match="never stop"):
        check_template(ChatTemplate(broken, tokenizer))


def test_random_texts_are_the_same_each_time() -> None:
    assert list(random_texts(20)) == list(random_texts(20))


def test_a_contradictory_tokenizer_is_a_sentence_though_the_library_panics(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A panic of the library's Rust code is a BaseException, which `except Exception` lets through."""

    class Panic(BaseException):
        pass

    def panic(text: str) -> None:
        raise Panic("index out of range")

    monkeypatch.setattr("sproutlm.tokenizer.tokenizer.tokenizers.Tokenizer", type("Fake", (), {"from_str": panic}))
    with pytest.raises(SproutError, match="cannot read this file .index out of range"):
        Tokenizer(tokenizer.files()["tokenizer.json"])
