"""A stream of ids never shows half a character."""

from __future__ import annotations

from hypothesis import given, settings, strategies as st

from sproutlm.tokenizer import StreamDecoder, Tokenizer

TEXT = st.text(alphabet=st.characters(exclude_categories=("Cs",), exclude_characters="\ufffd"), max_size=40)


@settings(max_examples=150, deadline=None)
@given(text=TEXT)
def test_stream_never_shows_a_broken_character(tokenizer: Tokenizer, text: str) -> None:
    """Pitfall 10."""
    stream = StreamDecoder(tokenizer)
    pieces = [stream.push(id_) for id_ in tokenizer.encode(text)]
    assert not any("\ufffd" in piece for piece in pieces)
    assert "".join(pieces) + stream.flush() == text


def test_characters_of_several_tokens_come_whole(tokenizer: Tokenizer) -> None:
    """Pitfall 10: the emoji is four byte tokens here; decoding them singly would print four U+FFFD."""
    ids = tokenizer.encode("🦊")
    assert len(ids) == 4
    assert [tokenizer.decode([id_]) for id_ in ids] == ["\ufffd"] * 4
    stream = StreamDecoder(tokenizer)
    assert [stream.push(id_) for id_ in ids] == ["", "", "", "🦊"]


def test_unfinished_character_is_dropped_at_the_end(tokenizer: Tokenizer) -> None:
    stream = StreamDecoder(tokenizer)
    ids = tokenizer.encode("fox🦊")[:-1]
    assert "".join(stream.push(id_) for id_ in ids) + stream.flush() == "fox"
    assert "".join(stream.push(id_) for id_ in tokenizer.encode("next")) == "next"  # nothing is left over


def test_bytes_that_can_be_no_character_are_replaced_once_certain(tokenizer: Tokenizer) -> None:
    byte = {tokenizer.decode_bytes([i]): i for i in range(tokenizer.vocab_size)}
    stream = StreamDecoder(tokenizer)
    assert stream.push(byte[b"\xf0"]) == ""
    assert stream.push(byte[b"A"]) == "\ufffdA"


def test_control_tokens_give_no_text_even_inside_a_character(tokenizer: Tokenizer) -> None:
    stream = StreamDecoder(tokenizer)
    ids = tokenizer.encode("春🦊")
    ids.insert(-1, tokenizer.token_id("<|im_end|>"))
    assert "".join(stream.push(id_) for id_ in ids) == "春🦊"
