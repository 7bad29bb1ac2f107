"""tiktoken's encodings from rank files, against tiktoken 0.14 with a small table of ranks made here."""

from __future__ import annotations

import base64
import hashlib
import json
import random
from collections import Counter
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from tokenizer_examples import TEXTS, strings
from tokenizers import Tokenizer as Backend

from sproutlm.errors import SproutError
from sproutlm.tokenizer import Tokenizer, tiktoken_import
from sproutlm.tokenizer.merges import merge_of
from sproutlm.tokenizer.spelling import BYTE_OF_CHARACTER
from sproutlm.tokenizer.tiktoken_import import ENCODINGS, from_tiktoken

pytestmark = pytest.mark.filterwarnings("ignore:.*pad = eos")

LINES = [
    *TEXTS,
    "don't DON'T we'll I'd HelloWorld fooBar's 1234567 ==== ---- \r\n\r\n  \n\n    x aaaaaaa 哈哈哈哈 世界\n",
] * 3


@lru_cache
def ranks() -> dict[bytes, int]:
    """Bytes in a shuffled order, as OpenAI's are, then byte-pair merges across all of a line, blanks included."""
    order = list(range(256))
    random.Random(1).shuffle(order)
    made = {bytes([byte]): rank for rank, byte in enumerate(order)}
    lines = [[bytes([byte]) for byte in line.encode()] for line in LINES]
    while len(made) < 560:
        pairs = Counter(pair for line in lines for pair in zip(line, line[1:], strict=False))
        a, b = max(pairs, key=lambda pair: (pairs[pair], pair))
        made.setdefault(a + b, len(made))
        for line in lines:
            place = 0
            while place < len(line) - 1:
                if line[place] == a and line[place + 1] == b:
                    line[place : place + 2] = [a + b]
                place += 1
    # Tokens that no merges make: tiktoken finds them where they are a whole piece, "\\n  " at the end of a text.
    for token in (b"zqxj", b"\n  "):
        made[token] = len(made)
    return made


def rank_file() -> bytes:
    return b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks().items())


def gpt2_files(folder: Path) -> Path:
    """vocab.bpe and encoder.json that say what ``ranks`` says."""
    character = {byte: text for text, byte in BYTE_OF_CHARACTER.items()}

    def written(token: bytes) -> str:
        return "".join(character[byte] for byte in token)

    merges = Backend.from_str(from_ranks("gpt2", folder).files()["tokenizer.json"])
    pairs = json.loads(merges.to_str())["model"]["merges"]
    ids = {written(token): rank for token, rank in ranks().items()}
    (folder / "encoder.json").write_text(json.dumps({**ids, "<|endoftext|>": 50256}))
    (folder / "vocab.bpe").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in pairs))
    return folder / "vocab.bpe"


def from_ranks(encoding: str, folder: Path) -> Tokenizer:
    file = folder / "mine.tiktoken"
    file.write_bytes(rank_file())
    return from_tiktoken(file, encoding=encoding)


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our small table passes for the published one."""
    for name, encoding in ENCODINGS.items():
        if name != "gpt2":
            sha256 = hashlib.sha256(rank_file()).hexdigest()
            monkeypatch.setitem(tiktoken_import.ENCODINGS, name, replace(encoding, sha256=sha256))


@pytest.mark.parametrize("name", ENCODINGS)
def test_ids_equal_tiktoken(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than 1,000 texts, cut by the pattern that tiktoken itself has for this encoding."""
    tiktoken = pytest.importorskip("tiktoken", reason="tiktoken is compared where it is installed")
    public = pytest.importorskip("tiktoken_ext.openai_public")
    monkeypatch.setattr(public, "load_tiktoken_bpe", lambda *_, **__: dict(ranks()))
    monkeypatch.setattr(public, "data_gym_to_mergeable_bpe_ranks", lambda *_, **__: dict(ranks()))
    constructed = public.ENCODING_CONSTRUCTORS[name]()
    constructed.pop("explicit_n_vocab", None)
    theirs, ours = tiktoken.Encoding(**constructed), from_ranks(name, tmp_path)
    texts = [
        *strings(2000, seed=11),
        *LINES,
        "zqxj zqxjs",
        "a\n  ",
        "a\n  \n",
        " \r\n ",
        "'ſ",
        "x  'LL",
        "1234567",
        "/\n/\n",
    ]
    assert len(texts) > 1000
    for text in texts:
        ids = ours.encode(text)
        assert theirs.encode_ordinary(text) == ids, text
        assert ours.decode_bytes(ids) == text.encode()
    assert ours.control_tokens == constructed["special_tokens"]
    assert ours.vocab_size == theirs.max_token_value + 1


def test_the_leftmost_of_equal_merges_comes_first() -> None:
    """As both libraries do it: in "aaa", the first two are joined, so "aaa" is "aa" and "a"."""
    rank = {"aa": 0, "ab": 1, "aaa": 2, "aab": 3, "xyz": 4}
    assert merge_of("aaa", rank) == ("aa", "a")
    assert merge_of("aab", rank) == ("aa", "b")
    assert merge_of("xyz", rank) is None


def test_pinned_facts_are_those_of_tiktoken(monkeypatch: pytest.MonkeyPatch) -> None:
    public = pytest.importorskip("tiktoken_ext.openai_public", reason="tiktoken is compared where it is installed")
    asked: dict[str, Any] = {}
    monkeypatch.setattr(public, "load_tiktoken_bpe", lambda url, expected_hash: asked.update({url: expected_hash}))
    monkeypatch.setattr(
        public,
        "data_gym_to_mergeable_bpe_ranks",
        lambda vocab_bpe_file, vocab_bpe_hash, **_: asked.update({vocab_bpe_file: vocab_bpe_hash}),
    )
    for name, encoding in ENCODINGS.items():
        assert public.ENCODING_CONSTRUCTORS[name]()["special_tokens"] == encoding.special
        assert asked[encoding.url] == encoding.sha256


def test_gaps_between_ids_are_kept_by_the_library(tmp_path: Path) -> None:
    """Pitfall 9: cl100k_base has no id 100256; the library left alone would move <|endoftext|> there."""
    tokenizer = from_ranks("cl100k_base", tmp_path)
    assert tokenizer.vocab_size == 100277
    tokenizer.save(tmp_path / "saved")
    backend = Backend.from_file(str(tmp_path / "saved" / "tokenizer.json"))
    assert backend.token_to_id("<|endoftext|>") == 100257
    assert backend.encode("hello<|endoprompt|><|endofprompt|>").ids[-1] == 100276
    assert tokenizer.decode([100256, *tokenizer.encode("fox"), 100270, 10**7]) == "fox"
    assert tokenizer.token_bytes()[100256:].sum() == 0


def test_control_tokens_in_text_stay_text(tmp_path: Path) -> None:
    """Pitfall 4: a control token stands in the vocabulary, where ``ignore_merges`` would look it up."""
    tokenizer = from_ranks("o200k_base", tmp_path)
    for text in ("<|endoftext|>", "a<|endofprompt|>b"):
        assert not set(tokenizer.control_tokens.values()).intersection(tokenizer.encode(text))
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_names_and_files_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, published: None) -> None:
    file = tmp_path / "cl100k_base.tiktoken"
    file.write_bytes(rank_file())
    (tmp_path / "renamed.tiktoken").write_bytes(rank_file())
    (tmp_path / hashlib.sha1(ENCODINGS["cl100k_base"].url.encode()).hexdigest()).write_bytes(rank_file())
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    wanted = Tokenizer.load(file)
    for name in ("cl100k_base", "tiktoken:cl100k_base", file, tmp_path / "cl100k_base.tiktoken"):
        assert Tokenizer.load(name).fingerprint == wanted.fingerprint
    assert Tokenizer.load(tmp_path / "renamed.tiktoken").vocab_size > 50_000  # known by its sha256
    wanted.save(tmp_path / "saved")
    assert Tokenizer.load(tmp_path / "saved").fingerprint == wanted.fingerprint


def test_gpt2_loads_from_its_two_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = gpt2_files(tmp_path)
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    monkeypatch.setitem(tiktoken_import.ENCODINGS, "gpt2", replace(ENCODINGS["gpt2"], sha256=sha256))
    assert Tokenizer.load(file).fingerprint == from_ranks("gpt2", tmp_path).fingerprint
    wrong = json.loads((tmp_path / "encoder.json").read_text())
    for token, rank in wrong.items():
        wrong[token] = 561 - rank if rank < 562 else rank
    (tmp_path / "encoder.json").write_text(json.dumps(wrong))
    with pytest.raises(SproutError, match="do not agree"):
        Tokenizer.load(file)
    (tmp_path / "encoder.json").unlink()
    with pytest.raises(SproutError, match="encoder.json, which gives the merges their ids, is not beside it"):
        Tokenizer.load(file)


@pytest.mark.parametrize("name", ["gpt2", "cl100k_base", "tiktoken:o200k_base"])
def test_absent_ranks_are_one_sentence(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    with pytest.raises(SproutError) as error:
        Tokenizer.load(name)
    assert "nothing is downloaded" in str(error.value)
    assert ENCODINGS[name.removeprefix("tiktoken:")].url in str(error.value)
    assert str(tmp_path) in str(error.value)


def test_damaged_and_unknown_rank_files_are_one_sentence(tmp_path: Path) -> None:
    file = tmp_path / "cl100k_base.tiktoken"
    file.write_bytes(rank_file())
    with pytest.raises(SproutError, match="not the ranks of cl100k_base as published"):
        Tokenizer.load(file)
    mine = tmp_path / "mine.tiktoken"
    mine.write_bytes(rank_file())
    with pytest.raises(SproutError, match="its ranks alone do not say how text is cut"):
        Tokenizer.load(mine)
    with pytest.raises(SproutError, match="no encoding that is known"):
        Tokenizer.load("tiktoken:nonsense")
    for data, sentence in (
        (rank_file()[: len(rank_file()) // 5], "copy it again"),
        (
            rank_file()[:-3],
            None,
        ),  # the number's last digits: another rank for the last token, which is seen as a double
        (rank_file() + b"nonsense\n", r"mine.tiktoken:563: expected base64 and a rank"),
        (b"", "256 of the 256 bytes"),
    ):
        mine.write_bytes(data)
        with pytest.raises(SproutError, match=sentence):
            from_tiktoken(mine, encoding="cl100k_base")
    # Llama 3 ships ranks under SentencePiece's name.
    (tmp_path / "llama").mkdir()
    (tmp_path / "llama" / "tokenizer.model").write_bytes(rank_file())
    with pytest.raises(SproutError, match="load the model's tokenizer.json instead"):
        Tokenizer.load(tmp_path / "llama")


def test_new_tokens_behind_gaps_keep_their_ids_in_other_programs(tmp_path: Path) -> None:
    """Pitfall 9: the tokenizers library would number what cl100k_base gets besides from the count of its tokens on."""
    from sproutlm.tokenizer.extend import extend

    file = tmp_path / "mine.tiktoken"
    file.write_bytes(rank_file())
    tokenizer = from_tiktoken(file, encoding="cl100k_base")
    longer = extend(extend(tokenizer, ["<|im_start|>", "<|im_end|>"]), ["<|more|>"])
    longer.save(tmp_path / "out")
    theirs = Backend.from_file(str(tmp_path / "out" / "tokenizer.json"))
    assert longer.control_tokens["<|more|>"] == tokenizer.vocab_size + 2
    assert {name: theirs.token_to_id(name) for name in longer.control_tokens} == longer.control_tokens
    assert longer.encode("the <|more|> fox") == tokenizer.encode("the <|more|> fox")
