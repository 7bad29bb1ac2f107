"""Texts, and small SentencePiece models trained on them, for the tests of this room."""

from __future__ import annotations

import io
import random
from functools import lru_cache
from typing import Any

from sproutlm.tokenizer.probe_texts import HARD_TEXTS, SAMPLES, random_texts

TEXTS = [
    "The quick brown fox jumps over the lazy dog. It's the fox's day, isn't it?\n",
    "春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。\n",
    "床前明月光，疑是地上霜。举头望明月，低头思故乡。\n",
    "What is 2 + 2? The answer is 4. What is 12 + 30? The answer is 42.\n\n",
    "def add(a, b):\n    return a + b\n",
    "She said: “hello”, and the village answered with the same hello.\r\n",
] * 5


@lru_cache
def sentencepiece_model(kind: str = "bpe", **options: Any) -> bytes:
    """A small SentencePiece model's file, trained by the library itself."""
    import sentencepiece

    lines = [line for text in [*TEXTS, *SAMPLES.values()] for line in text.splitlines() if line]
    lines += ["    x    y", "哈哈哈哈哈", "==== ====", "aaaa aaa  aa", "１２３，ＡＢＣ！"] * 10
    proto = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=proto,
        model_type=kind,
        minloglevel=2,
        num_threads=1,
        hard_vocab_limit=False,
        **{
            "vocab_size": 900,
            "byte_fallback": True,
            "normalization_rule_name": "identity",
            "remove_extra_whitespaces": False,
            **options,
        },
    )
    return proto.getvalue()


def strings(count: int, seed: int = 0) -> list[str]:
    """Hard texts, samples, random strings of all planes, and random mixes of blanks, repeats, digits and line ends."""
    source = random.Random(seed)
    bits = ["a", "b", " ", "  ", "=", "哈", "\n", "\r\n", "\t", "don't", "'S", "12", "٣", "½", "/", "e\u0301", "\u00a0"]
    bits += ["\u3000", "\u0085", "Hello", "世界", "，", "Å", "ǅ", "🦊", "the ", " hello", "\u2028", "𠀀"]
    mixed = ("".join(source.choices(bits, k=source.randint(1, 20))) for _ in range(count // 2))
    texts = [*HARD_TEXTS.values(), *SAMPLES.values(), *random_texts(count // 2, seed), *mixed]
    return [
        text for text in texts if "▁" not in text
    ]  # SentencePiece writes its mark for a blank where it means itself
