"""A vocabulary cut down to what texts use: the same pieces, the same logits, and any text still comes back."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from sproutlm.config.model import ModelConfig
from sproutlm.errors import CheckFailed, SproutError
from sproutlm.export.load import load, load_state
from sproutlm.model import Transformer
from sproutlm.pipeline import shrink as shrink_module
from sproutlm.pipeline.extend import extend_folder
from sproutlm.pipeline.remap import remap_folder, write_model
from sproutlm.pipeline.shrink import shrink_folder
from sproutlm.tokenizer import Tokenizer, train_tokenizer
from sproutlm.tokenizer.shrink import always_kept, choose, count_ids, shrink

WORDS = "the tree river stone bird house sings grows falls runs near under and a 树 河 石 鸟 在 旁边 春眠不觉晓".split()
HARD = ["", " ", "\r\n\t", "Ünï 👩‍👩‍👧", "１２３，。！", "<|im_end|> as text", "x" * 50, "\x00\x01"]


def silent(sentence: str) -> None:
    pass


def texts(seed: int, words: list[str], n: int = 60) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choice(words) for _ in range(rng.randint(1, 30))) for _ in range(n)]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(texts(0, WORDS, 400), 420)


def test_a_text_of_kept_tokens_has_the_same_pieces_and_every_text_comes_back(tokenizer: Tokenizer) -> None:
    """Whatever is kept: merges keep their order and each kept token all that it is made of."""
    rng, same, other = random.Random(1), 0, 0
    for _ in range(30):
        counts = [rng.randint(0, 3) for _ in range(tokenizer.vocab_size)]
        kept = choose(tokenizer, counts, keep=rng.randint(len(choose(tokenizer, [0] * 420)), 400))
        new, to = shrink(tokenizer, kept), {old: number for number, old in enumerate(kept)}
        for text in [*texts(rng.randint(0, 9**9), WORDS, 20), *HARD]:
            ids, fewer = tokenizer.encode(text), new.encode(text)
            assert new.decode_bytes(fewer) == text.encode()
            if all(id_ in to for id_ in ids):
                assert fewer == [to[id_] for id_ in ids]
                same += 1
            else:
                assert len(fewer) > len(ids)
                other += 1
    assert same > 50 and other > 50


def test_every_merge_that_is_left_has_its_parts_and_no_token_is_out_of_reach(tokenizer: Tokenizer) -> None:
    kept = choose(tokenizer, count_ids(tokenizer, ["the river sings"]).tolist())
    data = shrink(tokenizer, kept).backend_json
    vocabulary = data["model"]["vocab"]
    made = {
        left + right for left, right in (m if isinstance(m, list) else m.split(" ") for m in data["model"]["merges"])
    }
    assert all(
        {left, right, left + right} <= vocabulary.keys()
        for left, right in (m if isinstance(m, list) else m.split(" ") for m in data["model"]["merges"])
    )
    names = {token["content"] for token in data["added_tokens"]}
    assert {token for token in vocabulary if len(token) > 1 and token not in names} == made
    assert sorted(vocabulary.values()) == list(range(len(kept)))


def test_control_tokens_bytes_and_what_the_template_writes_stay(tokenizer: Tokenizer) -> None:
    kept = choose(tokenizer, [0] * tokenizer.vocab_size)
    new = shrink(tokenizer, kept)
    assert set(new.control_tokens) == set(tokenizer.control_tokens)
    assert [new.token_text(i) for i in (new.eos_id, new.pad_id, new.unk_id)] == [
        tokenizer.token_text(i) for i in (tokenizer.eos_id, tokenizer.pad_id, tokenizer.unk_id)
    ]
    assert {new.piece(i) for i in range(new.vocab_size)} >= {bytes([byte]) for byte in range(256)}
    role = tokenizer.encode("the")  # one token there, and a role's name in this template
    assert len(role) == 1 and role[0] not in kept
    asking = tokenizer.with_chat_template(
        "{% for m in messages %}<|im_start|>the\n{{ m.content }}<|im_end|>{% endfor %}"
    )
    assert role[0] in always_kept(asking)


def test_most_used_tokens_come_first_and_too_small_a_number_is_a_sentence(tokenizer: Tokenizer) -> None:
    counts = count_ids(tokenizer, [" river river river river stone"]).tolist()
    base = len(choose(tokenizer, [0] * tokenizer.vocab_size))
    all_of_it = choose(tokenizer, counts)
    fewer = choose(tokenizer, counts, keep=len(all_of_it) - 1)
    river, stone = (tokenizer.encode(f" {word}")[0] for word in ("river", "stone"))
    assert river in fewer and stone in all_of_it and stone not in fewer
    assert stone not in choose(tokenizer, counts, min_count=2)
    with pytest.raises(SproutError, match=f"--keep {base - 1}: .*{base} ids already; give {base} or more"):
        choose(tokenizer, counts, keep=base - 1)


def test_first_token_of_a_post_processor_gets_its_new_number(tokenizer: Tokenizer) -> None:
    """Llama 3's files add one by its id; with the old number, other programs would begin each text with a wrong token."""
    data = tokenizer.backend_json
    moved = tokenizer.vocab_size
    data["added_tokens"].append({**data["added_tokens"][0], "id": moved, "content": "<|begin|>"})
    piece = {"SpecialToken": {"id": "<|begin|>", "type_id": 0}}
    data["post_processor"] = {
        "type": "TemplateProcessing", "single": [piece, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [piece, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|begin|>": {"id": "<|begin|>", "ids": [moved], "tokens": ["<|begin|>"]}},
    }  # fmt: skip
    config = {**tokenizer.config, "added_tokens_decoder": {str(moved): {"content": "<|begin|>", "special": True}}}
    old = Tokenizer(json.dumps(data), config, where="begun")
    new = shrink(old, choose(old, [0] * old.vocab_size))
    id_ = new.token_id("<|begin|>")
    assert id_ == new.vocab_size - 1 < moved
    assert new.backend_json["post_processor"]["special_tokens"]["<|begin|>"]["ids"] == [id_]
    assert list(new.config["added_tokens_decoder"]) == [str(id_)]


@torch.no_grad()
def test_a_shrunk_model_gives_the_same_logits_over_the_kept_ids(finished: Path, sprout: Callable) -> None:
    Path("few.txt").write_text("the tree near a river")
    ran = sprout("tokenizer", "shrink", "run", "out", "--data", "few.txt", "--json", "r.json")
    assert ran.code == 0, ran.err
    report = json.loads(Path("r.json").read_text())
    model, old = load("run")
    smaller, new = load("out")
    assert old is not None and new is not None and new.vocab_size == report["vocab_size"] < old.vocab_size
    assert report["texts_same"] == report["texts_tried"] == 1 and report["tokens_dropped"] == 0
    assert report["logits_differ"] < 1e-6 and "logits of the kept ids differ by up to" in ran.out
    assert smaller.config.vocab_size == len(smaller.embed_tokens.weight) == new.vocab_size
    kept = [next(i for i in range(old.vocab_size) if old.token_text(i) == new.token_text(n) and old.piece(i) == new.piece(n))
            for n in range(new.vocab_size)]  # fmt: skip
    assert torch.equal(smaller.embed_tokens.weight, model.embed_tokens.weight[kept])
    ids, fewer = old.encode("the tree near a river"), new.encode("the tree near a river")
    torch.testing.assert_close(smaller(torch.tensor([fewer])), model(torch.tensor([ids]))[..., kept])
    assert sprout("generate", "out", "the tree", "--greedy", "--max-tokens", "3").code == 0


def test_the_tokenizer_alone_is_shrunk_where_asked_or_where_there_is_no_model(finished: Path, sprout: Callable) -> None:
    Path("few.txt").write_text("the tree near a river")
    assert sprout("tokenizer", "shrink", "run", "a", "--data", "few.txt", "--tokenizer-only").code == 0
    Tokenizer.load("run").save("tok")
    ran = sprout("tokenizer", "shrink", "tok", "b", "--data", "few.txt")
    assert ran.code == 0 and "parameters" not in ran.out
    for out in ("a", "b"):
        assert sorted(p.name for p in Path(out).iterdir()) == ["tokenizer.json", "tokenizer_config.json"]
        assert sprout("tokenizer", "test", out).code == 0


def test_what_cannot_be_shrunk_is_a_sentence_and_writes_nothing(
    finished: Path, sprout: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("few.txt").write_text("the tree")
    Path("none.txt").write_text("\n")
    train_tokenizer(["春天 the river " * 20], 320, kind="sentencepiece_bpe").save("spm")
    for source, data, sentence in (
        ("spm", "few.txt", "only byte-level BPE can be shrunk"),
        ("run", "none.txt", "none.txt"),
        ("run", "nothing.txt", "nothing.txt"),
        ("nowhere", "few.txt", "no such folder"),
    ):
        ran = sprout("tokenizer", "shrink", source, "out", "--data", data)
        assert ran.code == 1 and sentence in ran.err and not Path("out").exists(), ran.err
    assert sprout("tokenizer", "shrink", "run", "once", "--data", "few.txt").code == 0
    ran = sprout("tokenizer", "shrink", "once", "out", "--data", "few.txt")
    assert ran.code == 1 and "would be kept; nothing was written" in ran.err and not Path("out").exists()
    monkeypatch.setattr(shrink_module, "with_rows", lambda tensor, rows: tensor[: len(rows)])  # the wrong rows
    with pytest.raises(CheckFailed, match="logits of the kept ids differ.*nothing was written"):
        shrink_folder(Path("run"), [Path("few.txt")], Path("out"), say=silent)
    assert not Path("out").exists()


# --- every verb on every kind of model ------------------------------------------------------------------------------------


def model_of(tokenizer: Tokenizer, **parts: Any) -> tuple[ModelConfig, dict[str, torch.Tensor]]:
    shape = {"vocab_size": tokenizer.vocab_size, "dim": 16, "n_layers": 1, "n_heads": 2, "ffn_dim": 32, **parts}
    config = ModelConfig(**shape)
    return config, dict(Transformer(config).init_weights(1).state_dict())


@pytest.mark.parametrize("verb", ["shrink", "remap", "extend"])
def test_a_model_of_a_research_shape_comes_out_as_a_run_to_start_from(
    verb: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """No Hugging Face folder holds such a shape, and its vocabulary can be changed all the same."""
    config, state = model_of(tokenizer, family="research", tie_embeddings=False, research=("value_embeddings", "smear"))
    state["research.value_gates"].fill_(0.3)  # else the tables say nothing
    state["layers.0.attention.o_proj.weight"].normal_()
    write_model(config, state, tokenizer, tmp_path / "in")
    out = tmp_path / "out"
    (tmp_path / "few.txt").write_text("the tree")
    if verb == "shrink":
        shrink_folder(tmp_path / "in", [tmp_path / "few.txt"], out, say=silent)
    elif verb == "remap":
        train_tokenizer(texts(4, WORDS), 300).save(tmp_path / "new")
        remap_folder(tmp_path / "in", tmp_path / "new", out, say=silent)
    else:
        extend_folder(tmp_path / "in", out, ["<|a|>"], model=tmp_path / "in", say=silent)
    resized, changed, new = load_state(out)
    assert new is not None and resized.family == "research" and resized.vocab_size == new.vocab_size
    tables = [name for name, it in state.items() if it.ndim == 2 and len(it) == tokenizer.vocab_size]
    assert changed.keys() == state.keys() and len(tables) == 3
    assert all(len(changed[name]) == new.vocab_size != tokenizer.vocab_size for name in tables)
    assert torch.equal(changed["layers.0.mlp.up_proj.weight"], state["layers.0.mlp.up_proj.weight"])


@pytest.mark.parametrize("verb", ["shrink", "remap", "extend"])
def test_weights_stay_of_their_own_type(verb: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    config, state = model_of(tokenizer)
    write_model(config, {name: it.bfloat16() for name, it in state.items()}, tokenizer, tmp_path / "in")
    (tmp_path / "few.txt").write_text("the tree")
    if verb == "shrink":
        shrink_folder(tmp_path / "in", [tmp_path / "few.txt"], tmp_path / "out", say=silent)
    elif verb == "remap":
        train_tokenizer(texts(4, WORDS), 300).save(tmp_path / "new")
        remap_folder(tmp_path / "in", tmp_path / "new", tmp_path / "out", say=silent)
    else:
        extend_folder(tmp_path / "in", tmp_path / "out", ["<|a|>"], model=tmp_path / "in", say=silent)
    assert {it.dtype for it in load_state(tmp_path / "out", None)[1].values()} == {torch.bfloat16}


def test_gpt2s_old_names_are_read_and_shrunk(tokenizer: Tokenizer, tmp_path: Path) -> None:
    config, state = model_of(tokenizer, family="gpt2")
    write_model(config, state, tokenizer, tmp_path / "in")
    from safetensors.torch import load_file

    held = load_file(tmp_path / "in" / "model.safetensors")
    save_file(
        {name.removeprefix("transformer."): it for name, it in held.items()}, tmp_path / "in" / "model.safetensors"
    )
    (tmp_path / "few.txt").write_text("the tree")
    report = shrink_folder(tmp_path / "in", [tmp_path / "few.txt"], tmp_path / "out", say=silent)
    assert report["logits_differ"] < 1e-6
