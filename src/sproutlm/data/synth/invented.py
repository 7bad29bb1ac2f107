"""Names and words that mean nothing: each is seen a few times at most, so a text about them can only be followed by
looking back and copying. That skill is what carries a held entity's name from a question into its answer."""

from __future__ import annotations

import random

from sproutlm.data.synth.lexicon import Lexicon
from sproutlm.data.synth.texts import FactWriter, say
from sproutlm.data.synth.world import Entity, Fact, World

ZH_SURNAMES = "赵钱孙吴郑冯陈蒋沈韩秦尤吕孔曹严金魏陶姜戚谢邹柏水章云苏潘葛范彭鲁韦马苗方俞任柳"
ZH_GIVEN = "安北冰长晨成川春大东方芳飞风高光海和河红华辉佳江金静军君开兰乐立丽林龙梅美明宁平青清秋山石书水思松天田文西喜小晓心新秀雪阳玉远月云"
ZH_WORDS = "山水石木花草风云月日天地东西南北大小长高黑白金玉心手口门车马牛鱼鸟虫米豆茶灯书笔刀弓船桥路田土沙雨雪火冰"
EN_ONSETS = ("b", "d", "f", "g", "h", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z", "br", "dr", "st", "tr", "pl")
EN_MIDDLES = ("a", "e", "i", "o", "u", "an", "el", "in", "or", "um", "ar", "en", "il", "on", "us")


class Inventor:
    """Draws names and words of one language that are in no relation to the world's own."""

    def __init__(self, lexicon: Lexicon, world: World, rng: random.Random) -> None:
        self.lexicon, self.rng = lexicon, rng
        values = [v for attributes in lexicon.attributes.values() for a in attributes for v in a.values]
        self.taken = [t.lower() for t in [*values, *(e.name for e in world.entities)]]

    def _free(self, text: str) -> bool:
        """Neither a part of a real name or value, nor holding one."""
        low = text.lower()
        return not any(low in taken or taken in low for taken in self.taken)

    def _draw(self, chinese: tuple[str, ...]) -> str:
        while True:
            if self.lexicon.language == "zh":
                text = "".join(self.rng.choice(pool) for pool in chinese)
            else:
                text = "".join(
                    self.rng.choice(EN_ONSETS) + self.rng.choice(EN_MIDDLES) for _ in range(self.rng.choice((2, 2, 3)))
                )
            if self._free(text):
                return text

    def name(self) -> str:
        return self._draw((ZH_SURNAMES, ZH_GIVEN, ZH_GIVEN)).capitalize()

    def word(self) -> str:
        return self._draw((ZH_WORDS, ZH_WORDS))

    def entity(self, kind: str) -> Entity:
        language = self.lexicon.language
        name = self.word() if kind == "thing" else self.name()
        shown = self.lexicon.thing_form.format(name) if kind == "thing" else name
        return Entity(language, kind, name, shown, self.rng.choice("fm") if kind == "person" else "t", "invented")

    def fact(self, entity: Entity) -> Fact:
        attribute = self.rng.choice(self.lexicon.attributes[entity.kind])
        value = self.entity(attribute.refers).name if attribute.refers else self.rng.choice(attribute.values)
        return Fact(entity, attribute, value)


def reading(inventor: Inventor, writer: FactWriter) -> tuple[str, str, str]:
    """A few statements about invented entities, then a question about one of them and its answer."""
    rng, world = inventor.rng, writer.world
    kind = rng.choice(("person", "person", "place", "thing"))
    facts = [inventor.fact(inventor.entity(kind)) for _ in range(rng.choice((1, 2, 2, 3)))]
    told = writer.join([writer.sentence(fact) for fact in facts])
    writer.told.clear()  # nothing of the world was told
    asked = rng.choice(facts)
    question = say(rng.choice(asked.attribute.questions), world, asked)
    answer = say(asked.attribute.answers[0 if rng.random() < 0.85 else 1], world, asked)
    return told, question, answer


def reading_document(inventor: Inventor, writer: FactWriter) -> str:
    told, question, answer = reading(inventor, writer)
    return writer.join([told, inventor.rng.choice(writer.lexicon.asked).format(q=question, a=answer)])
