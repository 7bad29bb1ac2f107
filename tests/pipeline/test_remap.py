"""A model with another tokenizer: what both know is carried over exactly, the rest is a good beginning."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn import functional as F

from sproutlm.config.load import load_recipe
from sproutlm.export.load import load
from sproutlm.model import Transformer
from sproutlm.pipeline.remap import plan_rows, remap_folder, with_rows
from sproutlm.pipeline.train import train
from sproutlm.tokenizer import Tokenizer, train_tokenizer


def silent(sentence: str) -> None:
    pass


def permuted(tokenizer: Tokenizer, seed: int) -> tuple[Tokenizer, dict[int, int]]:
    """The same tokens under other ids, control tokens too; and old id -> new id."""
    data = tokenizer.backend_json
    ids = list(range(tokenizer.vocab_size))
    shuffled = ids.copy()
    random.Random(seed).shuffle(shuffled)
    to = dict(zip(ids, shuffled, strict=True))
    data["model"]["vocab"] = {token: to[id_] for token, id_ in data["model"]["vocab"].items()}
    for token in data["added_tokens"]:
        token["id"] = to[token["id"]]
    data["added_tokens"].sort(key=lambda token: token["id"])
    return Tokenizer(json.dumps(data, ensure_ascii=False), tokenizer.config, where="permuted"), to


@torch.no_grad()
def test_a_permuted_vocabulary_gives_the_same_logits(finished: Path, sprout: Callable) -> None:
    model, old = load("run")
    assert old is not None
    new, to = permuted(old, 1)
    new.save("permuted")
    ran = sprout("tokenizer", "remap", "run", "permuted", "out", "--json", "r.json")
    assert ran.code == 0, ran.err
    assert json.loads(Path("r.json").read_text())["rows"] == {
        "copied": new.vocab_size, "mean of pieces": 0, "mean of all": 0
    }  # fmt: skip
    remapped, own = load("out")
    assert own is not None and own.fingerprint == new.fingerprint
    for text in ("the tree near a river 树在石旁边。", "unseen Ünï 👩 words"):
        ids, other = old.encode(text), new.encode(text)
        assert other == [to[i] for i in ids] and other != ids
        before, after = model(torch.tensor([ids])), remapped(torch.tensor([other]))
        order = torch.tensor([to[i] for i in range(old.vocab_size)])
        torch.testing.assert_close(after[..., order], before[..., : old.vocab_size])


def test_rows_are_copies_of_the_same_bytes_or_means_of_the_pieces() -> None:
    old = train_tokenizer(["the river and the hill and the river 春眠不觉晓，处处闻啼鸟。" * 3], 300)
    new = train_tokenizer(["rivers, riverside and hills; 春天的河边 " * 5], 320, kind="sentencepiece_bpe")
    rows, counts = plan_rows(old, new)
    assert len(rows) == new.vocab_size and counts.total() == new.vocab_size
    assert rows[new.eos_id] == [old.eos_id] and rows[new.token_id("<|im_end|>")] == [old.token_id("<|im_end|>")]
    by_bytes = {old.piece(i): i for i in range(old.vocab_size)}
    shared = [i for i in range(new.vocab_size) if new.piece(i) in by_bytes and new.piece(i)]
    assert len(shared) > 256
    assert all(old.piece(rows[i][0]) == new.piece(i) and len(rows[i]) == 1 for i in shared)
    pieces = [i for i in range(new.vocab_size) if len(rows[i]) > 1]
    assert pieces and all(b"".join(map(old.piece, rows[i])) == new.piece(i) for i in pieces)
    weights = torch.randn(old.vocab_size, 5)
    made = with_rows(weights, rows)
    assert torch.equal(made[shared[0]], weights[rows[shared[0]][0]])
    torch.testing.assert_close(made[pieces[0]], weights[rows[pieces[0]]].mean(0))
    torch.testing.assert_close(with_rows(weights, [[]])[0], weights.mean(0))


def test_part_of_a_character_is_made_of_its_bytes() -> None:
    old = train_tokenizer(["abc"], 300)
    new = train_tokenizer(["春眠不觉晓处处闻啼鸟春眠春眠春"], 300)
    parts = [i for i in range(new.vocab_size) if new.piece(i) == "春".encode()[:2]]
    rows, _ = plan_rows(old, new)
    for i in parts or [next(i for i in range(new.vocab_size) if len(new.piece(i)) == 3)]:
        assert b"".join(map(old.piece, rows[i])) == new.piece(i)


@torch.no_grad()
def bits_per_byte(model: Transformer, tokenizer: Tokenizer, texts: list[str]) -> float:
    nats, size = 0.0, 0
    for text in texts:
        ids = torch.tensor([[tokenizer.eos_id, *tokenizer.encode(text)]])[:, : model.config.max_seq_len]
        nats += float(F.cross_entropy(model(ids)[0, :-1], ids[0, 1:], reduction="sum"))
        size += len(tokenizer.decode_bytes(ids[0].tolist()))
    return nats / math.log(2) / size


def test_a_remapped_model_begins_far_better_than_with_random_rows(project: Path) -> None:
    changes = ["run=run", "train.steps=60", "train.batch_tokens=512", "model.dim=32"]
    train(load_recipe(Path("recipe.yaml"), changes), say=silent)
    texts = [json.loads(line)["text"] for line in Path("text.jsonl").read_text("utf-8").splitlines()]
    train_tokenizer(texts, 340, cjk="single").save("new")
    report = remap_folder(Path("run"), Path("new"), Path("out"), say=silent)
    assert report["rows"]["mean of pieces"] > 20
    model, old = load("run")
    remapped, new = load("out")
    assert old is not None and new is not None
    before, after = bits_per_byte(model, old, texts), bits_per_byte(remapped, new, texts)
    shuffled, _ = load("out")
    rows = shuffled.embed_tokens.weight
    with torch.no_grad():
        rows.copy_(rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))])
    random_rows = bits_per_byte(shuffled, new, texts)
    print(before, after, random_rows)
    assert before < after < random_rows - 0.3 * (random_rows - before)


def test_what_cannot_be_remapped_is_a_sentence_and_writes_nothing(finished: Path, sprout: Callable) -> None:
    Tokenizer.load("run").save("same")
    ran = sprout("tokenizer", "remap", "run", "same", "out")
    assert ran.code == 1 and "has already" in ran.err and not Path("out").exists()
    train_tokenizer(["other words altogether " * 20], 300).save("other")
    (Path("run") / "model" / "tokenizer.json").unlink()
    ran = sprout("tokenizer", "remap", "run", "other", "out")
    assert ran.code == 1 and "no tokenizer.json" in ran.err and not Path("out").exists()
    assert sprout("tokenizer", "remap", "run", "other", "run").code == 1
