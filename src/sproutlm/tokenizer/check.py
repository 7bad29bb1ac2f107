"""``sprout tokenizer test``: prove what a tokenizer must do, and say how well it compresses."""

from __future__ import annotations

import importlib.util
import json
import os
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import SproutError
from .locate import find_tokenizer
from .probe_texts import CONVERSATIONS, HARD_TEXTS, SAMPLES, random_texts
from .stream import StreamDecoder
from .template import PROBE, ChatTemplate, check_template
from .tokenizer import Tokenizer, token_name

RANDOM_TEXTS = 300
FILE_BYTES = 2_000_000
ROWS_CURE = "use the tokenizer that the model was trained with; size the embedding by the largest id plus one"

# The fault of docs/pitfalls.md that each check keeps out.
PITFALLS = {
    "all 256 bytes": 8,
    "round trips": 8,
    "three named ids": 1,
    "special ids": 9,
    "ids below the size": 9,
    "streaming": 10,
    "control tokens in text": 4,
    "chat template": 14,
    "end of turn is trained": 1,
    "prompt begins its conversation": 6,
    "first token": 7,
    "same ids as transformers": 6,
}


def check_tokenizer(folder: str | os.PathLike[str], files: Iterable[str | os.PathLike[str]] = ()) -> dict[str, Any]:
    """Run every check, on a tokenizer of any kind.

    The report: ``ok``, ``checks`` (name; ok, or None when skipped; ``warn`` where it is well but worth knowing; sentence;
    cure; pitfall), ``compression``.
    """
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
        _check("special ids", _special_ids, tokenizer, cure="give each control token an id of its own"),
        _check("ids below the size", partial(_ids, rows=model_rows(folder)), tokenizer, cure=ROWS_CURE),
        _check(
            "streaming",
            _streaming,
            tokenizer,
            cure="use a tokenizer whose tokens are bytes: byte-level or byte fallback",
        ),
        _check("control tokens in text", _injection, tokenizer, cure="take these strings out of the learned merges"),
    ]
    if tokenizer.chat_template is None:
        checks.append(_result("chat template", None, "skipped: this tokenizer has no chat template"))
    else:
        checks.append(_check("end of turn is trained", _end_trained, tokenizer, cure="repair the chat template"))
        checks.append(_check("prompt begins its conversation", _prompts, tokenizer, cure="repair the chat template"))
        checks.append(first_token(tokenizer))
        checks += _linted(tokenizer)
    checks.append(_against_transformers(tokenizer, folder))
    samples = dict(SAMPLES)
    for file in files:
        texts = list(texts_of_file(file))
        name = Path(file).name
        samples[name] = "\n".join(texts)
        checks.append(_check(f"round trip of {name}", partial(_exact, texts=texts), tokenizer))
    report["checks"] = checks
    report["byte_exact"] = tokenizer.byte_exact
    report["compression"] = [_compression(tokenizer, name, text) for name, text in samples.items() if text]
    report["ok"] = all(check["ok"] is not False for check in checks)
    return report


def print_report(report: dict[str, Any], say: Callable[[str], None] = print) -> bool:
    """Show a report, one line a check; whether all is well."""
    say(f"{report['tokenizer']}: {report['vocab_size']:,} ids, fingerprint {report['fingerprint'][:12]}")
    for note in report["notes"]:
        say(f"  note  {note}")
    for check in report["checks"]:
        mark = "warn" if check["warn"] else {True: "ok", False: "FAIL", None: "-"}[check["ok"]]
        say(f"  {mark:5} {check['name']}: {check['sentence']}")
        if (check["ok"] is False or check["warn"]) and check["cure"]:
            say(f"        cure: {check['cure']}")
    print_compression(report["compression"], say)
    return bool(report["ok"])


def print_compression(rows: list[dict[str, Any]], say: Callable[[str], None] = print) -> None:
    for row in rows:
        say(
            f"  {row['sample']:24} {row['bytes_per_token']:6.2f} bytes/token {row['characters_per_token']:6.2f} "
            f"characters/token ({row['tokens']:,} tokens)"
        )


def _result(name: str, ok: bool | None, sentence: str, cure: str = "", *, warn: bool = False) -> dict[str, Any]:
    return {"name": name, "ok": ok, "warn": warn, "sentence": sentence, "cure": cure, "pitfall": PITFALLS.get(name)}


def _check(name: str, check: Callable[[Tokenizer], str], tokenizer: Tokenizer, cure: str = "") -> dict[str, Any]:
    """Run one check: it returns what it proved, or raises SproutError with what does not hold."""
    try:
        return _result(name, True, check(tokenizer))
    except SproutError as error:
        return _result(name, False, str(error), cure)


def _every_byte(tokenizer: Tokenizer) -> str:
    single = {tokenizer.piece(id_) for id_ in range(tokenizer.vocab_size)}
    missing = [byte for byte in range(256) if bytes([byte]) not in single]
    if missing:
        raise SproutError(
            f"{len(missing)} bytes have no token of their own (first: 0x{missing[0]:02X}), so some texts cannot be written"
        )
    return "every byte has a token, so every text can be written"


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
    if tokenizer.pad_id == tokenizer.unk_id != tokenizer.eos_id and tokenizer.byte_exact:
        return f"{shown}: pad and unk are one, which harms nothing here: every byte has a token, so no text holds unk"
    if len(set(named.values())) < 3:
        raise SproutError(f"{shown}: they must be three different ids, or a loss that ignores pad also ignores the end")
    return shown


def _special_ids(tokenizer: Tokenizer) -> str:
    """pitfall 9: two names for one id, or a control token that a text's tokens share."""
    by_id: dict[int, str] = {}
    for name, id_ in tokenizer.control_tokens.items():
        if id_ in by_id:
            raise SproutError(f"{by_id[id_]!r} and {name!r} have the same id, {id_}")
        by_id[id_] = name
    return f"{len(by_id)} control tokens, each with an id of its own"


def model_rows(folder: str | os.PathLike[str]) -> int | None:
    """``vocab_size`` of the model's config beside a tokenizer; None where there is none."""
    file = Path(find_tokenizer(folder).file)
    for name in ("config.json", "model_config.json"):
        try:
            rows = json.loads((file.parent / name).read_text(encoding="utf-8")).get("vocab_size")
        except (OSError, ValueError, AttributeError):
            continue
        if isinstance(rows, int):
            return rows
    return None


def _ids(tokenizer: Tokenizer, rows: int | None) -> str:
    """pitfall 9: every id that a text or a template can give has a row."""
    limit = tokenizer.vocab_size if rows is None else min(rows, tokenizer.vocab_size)
    named = [*tokenizer.control_tokens.values(), *tokenizer.stop_ids, tokenizer.pad_id, tokenizer.unk_id]
    texts = [*HARD_TEXTS.values(), *SAMPLES.values(), *random_texts(RANDOM_TEXTS)]
    highest = max([*named, *(id_ for text in texts for id_ in tokenizer.encode(text))])
    if rows is not None and rows < tokenizer.vocab_size:
        raise SproutError(
            f"the model beside it has {rows:,} rows, but the tokenizer {tokenizer.vocab_size:,} ids (0 to "
            f"{tokenizer.vocab_size - 1:,})"
        )
    if highest >= limit:
        raise SproutError(f"it gives the id {highest:,}, but its size is {limit:,}")
    beside = "" if rows is None else f"; the model beside it has {rows:,} rows"
    return f"all ids are below {tokenizer.vocab_size:,}{beside}"


def _streaming(tokenizer: Tokenizer) -> str:
    """pitfall 10: ids one by one give what they give together, and never a half character."""
    count = 0
    for text in [*HARD_TEXTS.values(), *SAMPLES.values(), *random_texts(RANDOM_TEXTS)]:
        ids = tokenizer.encode(text)
        decoder = StreamDecoder(tokenizer)
        shown = [decoder.push(id_) for id_ in ids]
        whole = tokenizer.decode(ids)
        if "".join(shown) + decoder.flush() != whole:
            raise SproutError(f"{_excerpt(text)} streamed id by id is not what its ids decode to together")
        if sum(piece.count("\ufffd") for piece in shown) > text.count("\ufffd"):
            raise SproutError(f"{_excerpt(text)} streamed id by id shows U+FFFD, half a character")
        count += 1
    return f"{count} texts come whole, id by id, without half a character"


def first_token(tokenizer: Tokenizer) -> dict[str, Any]:
    """pitfall 7: a first token written by the template and added again when the rendered text is tokenised."""
    import tokenizers

    name = "first token"
    try:
        rendered = ChatTemplate.of(tokenizer).render(PROBE[:2]).ids
    except SproutError:
        return _result(name, None, "skipped: the chat template fails")  # reported by the checks of the template
    full = tokenizers.Tokenizer.from_str(json.dumps(tokenizer.backend_json, ensure_ascii=False))
    with_added, bare = full.encode("a").ids, full.encode("a", add_special_tokens=False).ids
    added = with_added[0] if with_added != bare and with_added[:1] != bare[:1] else None
    if added is None and tokenizer.config.get("add_bos_token") is True:  # transformers adds it by this word alone
        added = tokenizer.control_tokens.get(token_name(tokenizer.config.get("bos_token")) or "")
    bos = tokenizer.control_tokens.get(token_name(tokenizer.config.get("bos_token")) or "", added)
    if bos is not None and rendered[:2] == [bos, bos]:
        what = f"the chat template writes {tokenizer.token_text(bos)!r} twice at the start of a conversation"
        return _result(name, False, what, "take one out of chat_template")
    if added is not None and rendered[:1] == [added]:
        return _result(
            name,
            True,
            f"the chat template writes {tokenizer.token_text(added)!r} and the tokenizer adds it again to any text that "
            "is tokenised: never here, but twice in programs that tokenise the rendered text",
            "there, tokenise with add_special_tokens=False; or take it out of the template",
            warn=True,
        )
    return _result(name, True, "no first token is written twice")


def _linted(tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """The template's linter: one line for what it refuses, one for each of its notes."""
    from .lint import lint_template

    try:
        found = lint_template(ChatTemplate.of(tokenizer))
    except SproutError as error:
        return [_result("template", False, str(error), "repair the chat template")]
    if not found:
        return [_result("template", True, "the linter has nothing to say")]
    return [
        {
            **_result(f"template: {f.rule}", f.level != "fail", f.sentence, f.cure, warn=f.level == "warn"),
            "pitfall": f.pitfall,
        }
        for f in found
    ]


def _injection(tokenizer: Tokenizer) -> str:
    control = set(tokenizer.control_tokens.values())
    # Without a token for every byte, what cannot be written becomes the unknown token; that is another check's.
    allowed = set() if tokenizer.byte_exact else {tokenizer.unk_id}
    for name in tokenizer.control_tokens:
        for text in (name, f"a{name}b", f"{name}{name}", f"中{name}\n"):
            ids = tokenizer.encode(text)
            if control.intersection(ids) - allowed:
                raise SproutError(f"{name!r} written in a text becomes the control token, so a text could end a turn")
            if tokenizer.byte_exact and tokenizer.decode(ids) != text:
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


def _against_transformers(tokenizer: Tokenizer, where: str | os.PathLike[str]) -> dict[str, Any]:
    """Ids, chat ids and masks against ``transformers.AutoTokenizer``; skipped, saying so, where it is not installed."""
    name = "same ids as transformers"
    if importlib.util.find_spec("transformers") is None:
        return _result(name, None, "skipped: transformers is not installed (pip install transformers)")
    place = find_tokenizer(where)
    if place.kind != "json":
        return _result(name, None, f"skipped: transformers reads no {place.kind} file by itself")
    import transformers

    folder = Path(place.file).parent
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


def texts_of_file(file: str | os.PathLike[str], max_bytes: int = FILE_BYTES) -> Iterator[str]:
    """The first texts of a data file, ``max_bytes`` at most; a file of another kind (code, say) as one text."""
    from ..config.schema import SourceConfig
    from ..data.files import kind_of
    from ..data.records import texts_of
    from ..data.sources import Counts, read_records

    path, size = Path(file), 0
    if path.is_file() and kind_of(path) is None:
        with path.open("rb") as stream:
            yield stream.read(max_bytes).decode("utf-8", errors="ignore")
        return
    for record in read_records([SourceConfig(path=str(file), role_order="any")], "skip", Counts()):
        for text in texts_of(record):
            yield text
            size += len(text.encode("utf-8", errors="replace"))
            if size > max_bytes:
                return


def compression(tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """Bytes and characters per token of the samples that stand in the package."""
    return [_compression(tokenizer, name, text) for name, text in SAMPLES.items()]


def _compression(tokenizer: Tokenizer, name: str, text: str) -> dict[str, Any]:
    tokens = max(len(tokenizer.encode(text)), 1)
    return {
        "sample": name,
        "tokens": tokens,
        "bytes_per_token": len(text.encode()) / tokens,
        "characters_per_token": len(text) / tokens,
    }
