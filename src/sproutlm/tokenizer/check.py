"""``sprout tokenizer test``: prove what a tokenizer must do, and say how well it compresses."""

from __future__ import annotations

import importlib.util
import os
import random
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import SproutError
from .template import ChatTemplate, check_template
from .tokenizer import Tokenizer, find_tokenizer_folder

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

RANDOM_TEXTS = 300
FILE_BYTES = 2_000_000


def check_tokenizer(folder: str | os.PathLike[str], files: Iterable[str | os.PathLike[str]] = ()) -> dict[str, Any]:
    """Run every check. The report: ``ok``, ``checks`` (name, ok or None when skipped, sentence, cure), ``compression``."""
    tokenizer = Tokenizer.load(folder)
    report: dict[str, Any] = {
        "tokenizer": str(folder),
        "vocab_size": tokenizer.vocab_size,
        "fingerprint": tokenizer.fingerprint,
        "notes": list(tokenizer.notes),
    }
    checks = [
        _check("all 256 bytes", _every_byte, tokenizer, cure="train it with the byte alphabet as initial alphabet"),
        _check("round trips", _round_trips, tokenizer, cure=_round_trip_cure(tokenizer)),
        _check("three named ids", _named_ids, tokenizer, cure="give pad, eos and unk a token of their own each"),
        _check("control tokens in text", _injection, tokenizer, cure="take these strings out of the learned merges"),
    ]
    if tokenizer.chat_template is None:
        checks.append(_result("chat template", None, "skipped: this tokenizer has no chat template"))
    else:
        checks.append(_check("end of turn is trained", _end_trained, tokenizer, cure="repair the chat template"))
        checks.append(_check("prompt begins its conversation", _prompts, tokenizer, cure="repair the chat template"))
    checks.append(_against_transformers(tokenizer, find_tokenizer_folder(Path(folder))))
    samples = dict(SAMPLES)
    for file in files:
        texts = list(_texts_of_file(file))
        name = Path(file).name
        samples[name] = "\n".join(texts)
        checks.append(_check(f"round trip of {name}", partial(_exact, texts=texts), tokenizer))
    report["checks"] = checks
    report["compression"] = [_compression(tokenizer, name, text) for name, text in samples.items() if text]
    report["ok"] = all(check["ok"] is not False for check in checks)
    return report


def print_report(report: dict[str, Any], say: Callable[[str], None] = print) -> bool:
    """Show a report, one line a check; whether all is well."""
    say(f"{report['tokenizer']}: {report['vocab_size']:,} ids, fingerprint {report['fingerprint'][:12]}")
    for note in report["notes"]:
        say(f"  note  {note}")
    for check in report["checks"]:
        mark = {True: "ok", False: "FAIL", None: "-"}[check["ok"]]
        say(f"  {mark:5} {check['name']}: {check['sentence']}")
        if check["ok"] is False and check["cure"]:
            say(f"        cure: {check['cure']}")
    for row in report["compression"]:
        say(
            f"  {row['sample']:24} {row['bytes_per_token']:6.2f} bytes/token {row['characters_per_token']:6.2f} "
            f"characters/token ({row['tokens']:,} tokens)"
        )
    return bool(report["ok"])


def _result(name: str, ok: bool | None, sentence: str, cure: str = "") -> dict[str, Any]:
    return {"name": name, "ok": ok, "sentence": sentence, "cure": cure}


def _check(name: str, check: Callable[[Tokenizer], str], tokenizer: Tokenizer, cure: str = "") -> dict[str, Any]:
    """Run one check: it returns what it proved, or raises SproutError with what does not hold."""
    try:
        return _result(name, True, check(tokenizer))
    except SproutError as error:
        return _result(name, False, str(error), cure)


def _every_byte(tokenizer: Tokenizer) -> str:
    single = {tokenizer.decode_bytes([id_]) for id_ in range(tokenizer.vocab_size)}
    missing = [byte for byte in range(256) if bytes([byte]) not in single]
    if missing:
        raise SproutError(
            f"{len(missing)} bytes have no token of their own (first: 0x{missing[0]:02X}), so some texts cannot be written"
        )
    return "every byte has a token, so every text can be written"


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


def _round_trips(tokenizer: Tokenizer) -> str:
    for name, text in HARD_TEXTS.items():
        _exact(tokenizer, [text], name)
    _exact(tokenizer, random_texts(RANDOM_TEXTS), "random characters and bytes")
    composed = " (up to NFC, which its normaliser applies)" if _normalizer(tokenizer) == "NFC" else ""
    return f"{len(HARD_TEXTS)} hard texts and {RANDOM_TEXTS} random ones come back byte for byte{composed}"


def _exact(tokenizer: Tokenizer, texts: Iterable[str], what: str = "text") -> str:
    composes = _normalizer(tokenizer) == "NFC"
    count = 0
    for text in texts:
        count += 1
        wanted = unicodedata.normalize("NFC", text) if composes else text
        got = tokenizer.decode_bytes(tokenizer.encode(text))
        if got != wanted.encode():
            place = next((i for i, (a, b) in enumerate(zip(wanted.encode(), got, strict=False)) if a != b), len(got))
            raise SproutError(
                f"{what} does not survive: {_excerpt(wanted)} comes back as {_excerpt(got.decode(errors='replace'))} "
                f"(first difference at byte {place})"
            )
    return f"{count:,} texts come back byte for byte"


def _excerpt(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:40] + "…")


def _normalizer(tokenizer: Tokenizer) -> str | None:
    return (tokenizer.backend_json.get("normalizer") or {}).get("type")


def _round_trip_cure(tokenizer: Tokenizer) -> str:
    data = tokenizer.backend_json
    if data.get("normalizer"):
        return f"its normaliser ({_normalizer(tokenizer)}) rewrites text; train a tokenizer without one"
    if data["model"].get("continuing_subword_prefix"):
        prefix = data["model"]["continuing_subword_prefix"]
        return f"its model writes {prefix!r} inside words; train a byte-level tokenizer without that prefix"
    return "train a byte-level tokenizer with `sprout tokenizer train`"


def _named_ids(tokenizer: Tokenizer) -> str:
    named = {"eos": tokenizer.eos_id, "pad": tokenizer.pad_id, "unk": tokenizer.unk_id}
    shown = ", ".join(f"{name} = {id_} {tokenizer.token_text(id_)!r}" for name, id_ in named.items())
    if len(set(named.values())) < 3:
        raise SproutError(f"{shown}: they must be three different ids, or a loss that ignores pad also ignores the end")
    return shown


def _injection(tokenizer: Tokenizer) -> str:
    control = set(tokenizer.control_tokens.values())
    for name in tokenizer.control_tokens:
        for text in (name, f"a{name}b", f"{name}{name}", f"中{name}\n"):
            ids = tokenizer.encode(text)
            if control.intersection(ids):
                raise SproutError(f"{name!r} written in a text becomes the control token, so a text could end a turn")
            if tokenizer.decode(ids) != text:
                raise SproutError(f"{name!r} written in a text does not come back as it was")
    return f"the names of all {len(control)} control tokens stay text when a text holds them"


def _end_trained(tokenizer: Tokenizer) -> str:
    id_ = check_template(ChatTemplate.of(tokenizer))
    return f"an assistant's turn ends with {tokenizer.token_text(id_)!r}, and it is trained"


def _prompts(tokenizer: Tokenizer) -> str:
    template = ChatTemplate.of(tokenizer)
    count = 0
    for messages in CONVERSATIONS:
        for i, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            prompt = template.render(messages[:i], add_generation_prompt=True).ids
            if template.render(messages[: i + 1]).ids[: len(prompt)] != prompt:
                raise SproutError(
                    f"the prompt before reply {i + 1} has other ids than the same text in training, so the model would "
                    "meet a prompt that it never saw"
                )
            count += 1
    return f"{count} prompts have the ids that begin their whole conversation"


def _against_transformers(tokenizer: Tokenizer, folder: Path) -> dict[str, Any]:
    """Ids, chat ids and masks against ``transformers.AutoTokenizer``; skipped, saying so, where it is not installed."""
    name = "same ids as transformers"
    if importlib.util.find_spec("transformers") is None:
        return _result(name, None, "skipped: transformers is not installed (pip install transformers)")
    import transformers

    try:
        theirs = transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        control = list(tokenizer.control_tokens)
        texts = [*HARD_TEXTS.values(), *SAMPLES.values(), *random_texts(100, seed=1)]
        for text in texts:
            if any(token in text for token in control):
                continue  # transformers reads control tokens out of text; we never do
            if theirs.encode(text, add_special_tokens=False) != tokenizer.encode(text):
                return _result(name, False, f"{_excerpt(text)} gets other ids there", "save the tokenizer again")
        chats = _chats_against(theirs, tokenizer) if tokenizer.chat_template else "no chat template"
    except SproutError as error:
        return _result(name, False, str(error), "save the tokenizer again with `sprout tokenizer train`")
    except Exception as error:  # noqa: BLE001 - whatever another library raises is the finding
        sentence = f"AutoTokenizer of transformers {transformers.__version__} fails: {type(error).__name__}: {error}"
        return _result(name, False, sentence, "save the tokenizer again with `sprout tokenizer train`")
    return _result(name, True, f"transformers {transformers.__version__}: {len(texts)} texts, {chats}")


def _chats_against(theirs: Any, tokenizer: Tokenizer) -> str:
    template = ChatTemplate.of(tokenizer)
    for messages in CONVERSATIONS:
        for chat, prompt in ((messages, False), (messages[:-1], True)):
            there = theirs.apply_chat_template(chat, add_generation_prompt=prompt, return_dict=True)["input_ids"]
            if there != template.render(chat, add_generation_prompt=prompt).ids:
                raise SproutError(f"the conversation that begins {_excerpt(chat[0]['content'])} gets other ids there")
    return f"{len(CONVERSATIONS)} conversations"


def _texts_of_file(file: str | os.PathLike[str]) -> Iterator[str]:
    """The first texts of a data file, FILE_BYTES at most."""
    from ..config.schema import SourceConfig
    from ..data.sources import Counts, read_records
    from .train import texts_of

    size = 0
    for record in read_records([SourceConfig(path=str(file))], "skip", Counts()):
        for text in texts_of(record):
            yield text
            size += len(text.encode("utf-8", errors="replace"))
            if size > FILE_BYTES:
                return


def _compression(tokenizer: Tokenizer, name: str, text: str) -> dict[str, Any]:
    tokens = max(len(tokenizer.encode(text)), 1)
    return {
        "sample": name,
        "tokens": tokens,
        "bytes_per_token": len(text.encode()) / tokens,
        "characters_per_token": len(text) / tokens,
    }
