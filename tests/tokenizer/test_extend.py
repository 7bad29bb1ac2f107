"""New tokens: old ids keep their meaning, new ones are never read out of text, a model starts from what it knew."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from sproutlm.config.model import ModelConfig
from sproutlm.errors import SproutError
from sproutlm.model import Transformer
from sproutlm.model.init import resize_vocab
from sproutlm.tokenizer import ChatTemplate, Tokenizer
from sproutlm.tokenizer.extend import extend, new_ids

TEXT = "春眠不觉晓 <|tool|> the fox's day, 12 + 30 <|reserved_0|>\n"
NEW = ["<|tool|>", "<|sprout|>"]


def test_old_ids_keep_their_meaning_and_new_ones_follow(tokenizer: Tokenizer, tmp_path: Path) -> None:
    longer = extend(tokenizer, NEW)
    assert [longer.token_id(name) for name in NEW] == [tokenizer.vocab_size, tokenizer.vocab_size + 1]
    assert longer.vocab_size == tokenizer.vocab_size + 2
    assert longer.encode(TEXT) == tokenizer.encode(TEXT)
    assert longer.decode(longer.encode(TEXT)) == TEXT
    assert (longer.eos_id, longer.pad_id, longer.unk_id) == (tokenizer.eos_id, tokenizer.pad_id, tokenizer.unk_id)
    longer.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert again.fingerprint == longer.fingerprint != tokenizer.fingerprint
    assert again.control_tokens == longer.control_tokens
    assert new_ids(tokenizer, again) == {tokenizer.vocab_size: NEW[0], tokenizer.vocab_size + 1: NEW[1]}


def test_names_of_new_tokens_in_texts_stay_text(tokenizer: Tokenizer) -> None:
    """Pitfall 4: a token added later cannot be written by a user either."""
    longer = extend(tokenizer, NEW)
    assert not set(longer.encode(TEXT)) & set(longer.control_tokens.values())
    prompt = ChatTemplate.of(longer).render([{"role": "user", "content": "<|sprout|>"}])
    assert longer.token_id("<|sprout|>") not in prompt.ids


def test_transformers_gives_new_tokens_the_same_ids(tokenizer: Tokenizer, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    longer = extend(tokenizer, NEW, text_tokens=["fox's day"])
    longer.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    assert theirs.convert_tokens_to_ids(NEW) == [longer.token_id(name) for name in NEW]
    assert len(theirs) == longer.vocab_size
    assert theirs.encode("the fox's day") == longer.encode("the fox's day")


def test_a_token_that_is_there_already_is_left_as_it_is(tokenizer: Tokenizer) -> None:
    assert extend(tokenizer, ["<think>"]).fingerprint == tokenizer.fingerprint
    once = extend(tokenizer, NEW)
    assert extend(once, [*NEW, *NEW]).fingerprint == once.fingerprint


def test_reserved_ids_are_taken_in_order_and_then_new_ones(tokenizer: Tokenizer, tmp_path: Path) -> None:
    names = [f"<|own_{i}|>" for i in range(6)]
    longer = extend(tokenizer, names, take_reserved=True)
    assert [longer.token_id(name) for name in names] == [11, 12, 13, 14, 15, tokenizer.vocab_size]
    assert longer.encode("<|reserved_0|><|own_0|>") == tokenizer.encode("<|reserved_0|><|own_0|>")
    assert new_ids(tokenizer, longer) == {**{11 + i: names[i] for i in range(5)}, tokenizer.vocab_size: names[5]}
    longer.save(tmp_path)
    decoder = json.loads((tmp_path / "tokenizer_config.json").read_text("utf-8"))["added_tokens_decoder"]
    assert decoder["11"]["content"] == "<|own_0|>"
    assert Tokenizer.load(tmp_path).control_tokens == longer.control_tokens


def test_text_tokens_are_found_in_texts_and_come_back(tokenizer: Tokenizer) -> None:
    longer = extend(tokenizer, [], text_tokens=["SproutLM", "处处闻"])
    ids = longer.encode("xSproutLM 处处闻啼鸟")
    assert {tokenizer.vocab_size, tokenizer.vocab_size + 1} < set(ids)
    assert longer.decode(ids) == "xSproutLM 处处闻啼鸟"
    assert longer.control_tokens == tokenizer.control_tokens


@pytest.mark.parametrize(
    ("control", "text", "words"),
    [
        (["the"], [], "ordinary text"),
        ([" <|a|>"], [], "blanks at its ends"),
        ([""], [], "printable"),
        (["a\nb"], [], "printable"),
        ([], ["the"], "one token already"),
        ([], ["<|mark|>"], "looks like a mark"),
    ],
)
def test_names_that_cannot_become_tokens_are_refused(
    tokenizer: Tokenizer, control: list[str], text: list[str], words: str
) -> None:
    with pytest.raises(SproutError, match=words):
        extend(tokenizer, control, text_tokens=text)


def test_another_tokenizer_is_no_extension(tokenizer: Tokenizer) -> None:
    """Pitfall 9: rows must not change their meaning unseen."""
    data = tokenizer.backend_json
    vocab = data["model"]["vocab"]
    last, before = sorted(vocab, key=vocab.__getitem__)[-1], sorted(vocab, key=vocab.__getitem__)[-2]
    vocab[last], vocab[before] = vocab[before], vocab[last]
    other = Tokenizer(json.dumps(data), tokenizer.config, where="other")
    with pytest.raises(SproutError, match="not .* with tokens added"):
        new_ids(tokenizer, other)


def model_of(tokenizer: Tokenizer, tied: bool, spare: int = 0) -> Transformer:
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size + spare, dim=32, n_layers=2, n_heads=2, tie_embeddings=tied
    )  # fmt: skip
    model = Transformer(config).init_weights(seed=3)
    generator = torch.Generator().manual_seed(5)
    for parameter in model.parameters():  # beyond the start, where the residual writers are zero
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("spare", [0, 1, 8])
def test_a_model_keeps_its_logits_and_new_rows_are_means(tokenizer: Tokenizer, tied: bool, spare: int) -> None:
    """Tied and untied, with rows to add, with spare rows for one of two tokens, with spare rows for both."""
    longer = extend(tokenizer, NEW)
    model = model_of(tokenizer, tied, spare)
    written = {id_: tokenizer.encode(name) for id_, name in new_ids(tokenizer, longer).items()}
    state, config = resize_vocab(model.state_dict(), model.config, written)
    grown = Transformer(config)
    grown.load_state_dict(state)
    grown.eval()
    assert config.vocab_size == max(longer.vocab_size, model.config.vocab_size)
    ids = torch.tensor([tokenizer.encode("the fox 春眠 12")])
    before, after = model(ids)[..., : tokenizer.vocab_size], grown(ids)[..., : tokenizer.vocab_size]
    hidden = [m(ids, head=lambda h, w: h) for m in (model, grown)]
    assert torch.equal(*hidden)
    assert torch.equal(before, after)
    for name in ("embed_tokens.weight", "lm_head.weight")[: 1 if tied else 2]:
        for id_, ids_ in written.items():
            assert len(ids_) > 1
            expected = sum(model.state_dict()[name][i].double() for i in ids_) / len(ids_)
            torch.testing.assert_close(state[name][id_].double(), expected, rtol=0, atol=1e-7)


def test_a_token_that_was_written_as_nothing_gets_the_mean_of_all_rows(tokenizer: Tokenizer) -> None:
    model = model_of(tokenizer, True)
    size = tokenizer.vocab_size
    state, config = resize_vocab(model.state_dict(), model.config, {size + 2: [], size: [size + 1]})
    assert config.vocab_size == size + 3
    mean = model.embed_tokens.weight.mean(0)
    for id_ in (size, size + 1, size + 2):  # one of no known ids, one that no token has, one of none
        torch.testing.assert_close(state["embed_tokens.weight"][id_], mean)
