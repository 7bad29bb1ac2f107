"""Texts and conversations that tokenizers are tried on."""

from __future__ import annotations

import random
from collections.abc import Iterator

# Texts on which tokenizers are known to break, by what breaks them.
HARD_TEXTS: dict[str, str] = {
    "full-width punctuation": "“春眠不觉晓，处处闻啼鸟。”（孟浩然《春晓》）：１２３，ＡＢＣ！？；～",
    "emoji": "👩‍👩‍👧‍👦 👍🏽 🇨🇳 🏳️‍🌈 ❤️ 1️⃣",
    "line ends": "one\r\ntwo\n\nthree\rfour\r\n\r\n",
    "blanks": "\ttab\t\ttabs  two   three    \u00a0no-break \u3000ideographic \u2009thin  end   ",
    "zero width": "a\u200bb\u200cc\u200dd\ufeffe\u2060f",
    "combining marks": "e\u0301 n\u0303 o\u0308\u0323 क्षि กำ ﷺ ﬁ ½ ㎏ Å \u212b",
    "control characters": "".join(chr(code) for code in range(32)) + "\x7f\x80\x9f",
    "rare characters": "𠀀𪚥 𝒳 \U0010fffd \ufffd \ufdd0",
    "hash marks": "## ##ing # ## ### un##able",
    "numbers": "3.14159 + 2,718 = ?  -0.5e-10  0x1F  ２０２５年１２月",
    "nothing": "",
}

SAMPLES: dict[str, str] = {
    "zh": (
        "清晨的市场里，卖豆腐的老人把木板擦得发亮。他说，好豆腐只要三样东西：新鲜的豆子、干净的水，还有耐心。"
        "孩子们放学后总爱围过来，听他讲年轻时走南闯北的故事。雨下大了，大家就挤在同一把旧伞下面，笑声一直传到街的另一头。"
    ),
    "en": (
        "The lighthouse keeper wrote one line in his book every evening: the wind, the tide, and the name of each ship "
        "that passed. After forty years the shelves were full. When a storm took the roof, the whole village came with "
        "ladders and dry cloth, and not one page was lost."
    ),
    "code": (
        "def mean(values: list[float]) -> float:\n    total = 0.0\n    for value in values:\n        total += value\n"
        '    if not values:\n        raise ValueError("no values")\n    return total / len(values)\n'
    ),
}

CONVERSATIONS: tuple[list[dict[str, str]], ...] = (
    [{"role": "user", "content": "你好，今天天气怎么样？"}, {"role": "assistant", "content": "晴，微风🌤️。"}],
    [
        {"role": "system", "content": "Answer in one word."},
        {"role": "user", "content": "Capital of France?"},
        {"role": "assistant", "content": "Paris"},
        {"role": "user", "content": " and of Japan ?\n\n"},
        {"role": "assistant", "content": "\n Tokyo "},
    ],
)


def random_texts(count: int, seed: int = 0) -> Iterator[str]:
    """Random strings from all planes, half of them random bytes of which the decodable parts are kept."""
    source = random.Random(seed)
    planes = (
        (0, 0x7F),
        (0, 0x7FF),
        (0x800, 0xFFFF),
        (0x3000, 0x9FFF),
        (0xFF00, 0xFFEF),
        (0x1F300, 0x1FAFF),
        (0, 0x10FFFF),
    )
    for i in range(count):
        length = source.randint(1, 40)
        if i % 2:
            yield source.randbytes(3 * length).decode("utf-8", errors="ignore")
        else:
            codes = (source.randint(*source.choice(planes)) for _ in range(length))
            yield "".join(chr(code) for code in codes if not 0xD800 <= code <= 0xDFFF)
