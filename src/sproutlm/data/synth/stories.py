"""Small stories without facts of the world, and labelled reviews."""

from __future__ import annotations

import random

PARTS: dict[str, tuple[tuple[str, ...], ...]] = {
    "zh": (
        ("从前，", "很久以前，", "有一天，", "去年夏天，", "一个下雪的早晨，", "昨天晚上，", "春天来了，", "在遥远的地方，"),
        ("一只小熊", "一位老奶奶", "一个小男孩", "一个小女孩", "一头小象", "一匹小马", "两个旅人", "一群大雁", "一条小船", "一位老爷爷"),
        ("走进了山谷", "来到了河边", "在路上迷了路", "看见了一道彩虹", "发现了一扇小门", "爬上了高高的山坡", "听见了奇怪的声音", "遇到了一阵大风"),
        ("。天上的云很低。", "。四周静悄悄的。", "。太阳照得暖暖的。", "。远处传来了歌声。", "。地上开满了小花。", "。星星一颗颗亮起来。", "。风轻轻地吹着。"),
        ("休息了一会儿，又继续往前走。", "等到天亮，才找到回家的路。", "高兴极了，一直待到天黑。", "把这件事记在了心里。", "从那以后，再也不怕黑了。",
         "回到家里，做了一个好梦。", "想了很久，终于笑了起来。", "第二天，又来到了同一个地方。"),
    ),
    "en": (
        ("Once upon a time, ", "Long ago, ", "One day, ", "Last summer, ", "One snowy morning, ", "Last night, ", "When spring came, ", "Far away, "),
        ("a little bear ", "an old woman ", "a small boy ", "a small girl ", "a young elephant ", "a little horse ", "two travellers ",
         "a flock of wild birds ", "a small boat ", "an old man "),
        ("went into the valley. ", "came to the water. ", "got lost on the road. ", "saw a rainbow. ", "found a tiny door. ",
         "reached the top of a hill. ", "heard a strange sound. ", "was caught in a strong wind. "),
        ("The clouds were low. ", "All was quiet. ", "The sun was warm. ", "Someone was humming far away. ", "Small flowers covered the ground. ",
         "The stars came out one by one. ", "A soft wind was blowing. "),
        ("After a short rest, the journey went on.", "Only at dawn was the way home found.", "It was so nice that nobody wanted to leave.",
         "That day was never forgotten.", "From then on, the dark was not so frightening.", "That night brought a good dream.",
         "After some thought, there was a smile.", "The next day, it all began again."),
    ),
}  # fmt: skip

REVIEWS: dict[str, dict[str, tuple[str, ...]]] = {
    "zh": {
        "subject": ("这家饭馆", "这部电影", "这家旅店", "这本书", "这首歌", "这家商店", "这趟旅行", "这部手机", "这个游戏", "这堂课", "这件外套", "这场演出"),
        "positive": ("真不错", "让我很满意", "比我想的好得多", "非常好", "让人开心", "值得推荐", "好极了", "我很喜欢"),
        "negative": ("真糟糕", "让我很失望", "比我想的差得多", "非常差", "让人生气", "不值这个价", "差极了", "我很讨厌"),
        "more_positive": ("下次还要来。", "我会告诉朋友们。", "每一分钟都很愉快。", "钱花得值。", "没有什么可挑剔的。", "我还想再来一次。", "一点也不后悔。"),
        "more_negative": ("再也不来了。", "我会劝朋友们别去。", "每一分钟都很难受。", "钱白花了。", "没有一样让人满意。", "我只想快点结束。", "真后悔。"),
    },
    "en": {
        "subject": ("The restaurant", "The film", "The hotel", "The book", "The song", "The shop", "The trip", "The phone", "The game", "The lesson", "The coat",
                    "The concert"),
        "positive": ("was wonderful", "made me happy", "was much better than I had hoped", "was very good", "was a joy", "was worth the price",
                     "was excellent", "was just what I wanted"),
        "negative": ("was terrible", "made me angry", "was much worse than I had feared", "was very bad", "was a disappointment",
                     "was not worth the price", "was awful", "was not at all what I wanted"),
        "more_positive": ("I will come back.", "I will tell all my friends.", "I enjoyed every minute.", "The money was well spent.",
                          "I have nothing to complain about.", "I would do it again.", "I regret nothing."),
        "more_negative": ("I will never come back.", "I will warn all my friends.", "I hated every minute.", "The money was wasted.",
                          "I could complain all day.", "I would never do it again.", "I regret it."),
    },
}  # fmt: skip


def small_story(language: str, rng: random.Random) -> str:
    return "".join(rng.choice(part) for part in PARTS[language])


def reviews(language: str, count: int, rng: random.Random) -> list[tuple[str, str]]:
    """``count`` different reviews with their sentiment, both labels equally often."""
    words = REVIEWS[language]
    joints, space = (("，", "。"), "") if language == "zh" else ((". ", "; "), " ")
    found: dict[str, str] = {}
    while len(found) < count:
        label = ("positive", "negative")[len(found) % 2]
        subject, verdict, more = (
            rng.choice(words["subject"]),
            rng.choice(words[label]),
            rng.choice(words[f"more_{label}"]),
        )
        found.setdefault(subject + space + verdict + rng.choice(joints) + more, label)
    return [(label, text) for text, label in found.items()]
