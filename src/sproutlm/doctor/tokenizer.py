"""A tokenizer's folder: ends that are never trained, text that does not come back, first tokens that double."""

from __future__ import annotations

import json
from pathlib import Path

from ..errors import SproutError
from ..tokenizer.check import check_tokenizer
from ..tokenizer.tokenizer import Tokenizer, find_tokenizer_folder, token_name
from .finding import Examination

# The checks of `sprout tokenizer test`, and the pitfall that each keeps out.
PITFALLS = {
    "all 256 bytes": 8,
    "round trips": 8,
    "three named ids": 1,
    "control tokens in text": 4,
    "chat template": 14,
    "end of turn is trained": 1,
    "prompt begins its conversation": 6,
    "same ids as transformers": 6,
}


def examine_tokenizer(path: Path) -> Examination:
    """Examine a tokenizer's folder, or the tokenizer of a run or a Hugging Face folder."""
    found = Examination(str(path), "tokenizer")
    cure = "use a byte-level BPE tokenizer, or train one with `sprout tokenizer train`"
    read, loaded = found.attempt("loads", cure, 8, lambda: (find_tokenizer_folder(path), loaded_from(path)))
    if not read:
        return found
    folder, tokenizer = loaded
    found.notes.append(f"{tokenizer.vocab_size:,} ids, fingerprint {tokenizer.fingerprint[:12]}")
    report = check_tokenizer(folder)
    for check in report["checks"]:
        pitfall = PITFALLS.get(check["name"])
        if check["ok"] is False:
            found.fail(check["name"], check["sentence"], check["cure"], pitfall)
        elif check["name"] == "chat template":
            found.warn(
                "chat template",
                "there is none: texts can be trained with it, and a conversation is refused",
                "add chat_template to tokenizer_config.json before fine-tuning",
                14,
            )
        else:
            found.ok(check["name"], check["sentence"], pitfall)
    found.notes += report["notes"]
    written_config(found, tokenizer)
    ids(found, tokenizer)
    model_rows(found, folder, tokenizer)
    first_token(found, tokenizer)
    return found


def loaded_from(path: Path) -> Tokenizer:
    """``Tokenizer.load``; what the tokenizers library cannot even build (merges that contradict a prefix) is a sentence."""
    try:
        return Tokenizer.load(path)
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # Rust's own kind of error, which is no Exception
            raise
        raise SproutError(f"{path}: the tokenizers library cannot build this tokenizer ({error})") from None


def written_config(found: Examination, tokenizer: Tokenizer) -> None:
    """What tokenizer_config.json itself says: other programs take it by its word."""
    named = {key: token_name(tokenizer.config.get(f"{key}_token")) for key in ("eos", "pad", "unk")}
    for key in ("pad", "unk"):
        if named["eos"] is not None and named[key] == named["eos"]:
            found.warn(
                f"{key} = eos",
                f"tokenizer_config.json names {named['eos']!r} both {key} and eos; here another token serves, but a "
                "trainer that ignores pad in the loss would never train the end",
                f"name another {key}_token in tokenizer_config.json",
                1,
            )


def ids(found: Examination, tokenizer: Tokenizer) -> None:
    """pitfall 9: gaps make the number of tokens differ from the largest id plus one."""
    vocabulary = set(tokenizer.backend_json["model"].get("vocab", {}).values()) | set(tokenizer.control_tokens.values())
    gaps = tokenizer.vocab_size - len(vocabulary)
    if gaps > 0:
        missing = sorted(set(range(tokenizer.vocab_size)) - vocabulary)
        found.warn(
            "ids",
            f"{gaps:,} of the ids below {tokenizer.vocab_size:,} belong to no token (first: {missing[0]:,}), so a model "
            "sized by the number of tokens is too small",
            f"size the embedding by the largest id plus one: {tokenizer.vocab_size:,}",
            9,
        )
    else:
        found.ok("ids", f"0 to {tokenizer.vocab_size - 1:,}, without a gap", 9)


def model_rows(found: Examination, folder: Path, tokenizer: Tokenizer) -> None:
    """pitfall 9: the model's config beside the tokenizer must have a row for each id."""
    for name in ("config.json", "model_config.json"):
        try:
            rows = json.loads((folder / name).read_text(encoding="utf-8")).get("vocab_size")
        except (OSError, ValueError, AttributeError):
            continue
        if isinstance(rows, int):
            vocabulary(found, rows, tokenizer, name)


def vocabulary(found: Examination, rows: int, tokenizer: Tokenizer, where: str) -> None:
    """Compare a model's embedding with the tokenizer."""
    size = tokenizer.vocab_size
    if rows >= size:
        spare = f", {rows - size:,} of them spare" if rows > size else ""
        found.ok("vocabulary", f"{where}: {rows:,} rows for {size:,} ids{spare}", 9)
        return
    guess = ": the largest id was taken for the size" if rows == size - 1 else ""
    what = f"{where}: vocab_size is {rows:,}, but the tokenizer has {size:,} ids (0 to {size - 1:,}){guess}"
    found.fail("vocabulary", what, "use the tokenizer that the model was trained with", 9)


def first_token(found: Examination, tokenizer: Tokenizer) -> None:
    """pitfall 7: a first token written by the template and added again when the rendered text is tokenised."""
    import tokenizers

    from ..tokenizer.template import PROBE, ChatTemplate

    if tokenizer.chat_template is None:
        return
    try:
        rendered = ChatTemplate.of(tokenizer).render(PROBE[:2]).ids
    except SproutError:
        return  # reported by the checks of the template
    full = tokenizers.Tokenizer.from_str(json.dumps(tokenizer.backend_json, ensure_ascii=False))
    added = first_added(full.encode("a").ids, full.encode("a", add_special_tokens=False).ids)
    bos = tokenizer.control_tokens.get(token_name(tokenizer.config.get("bos_token")) or "", added)
    if bos is not None and rendered[:2] == [bos, bos]:
        found.fail(
            "first token",
            f"the chat template writes {tokenizer.token_text(bos)!r} twice at the start of a conversation",
            "take one out of chat_template",
            7,
        )
    elif added is not None and rendered[:1] == [added]:
        found.warn(
            "first token",
            f"the chat template writes {tokenizer.token_text(added)!r} and the tokenizer adds it again to any text that "
            "is tokenised: never here, but twice in programs that tokenise the rendered text",
            "there, tokenise with add_special_tokens=False; or take it out of the template",
            7,
        )
    else:
        found.ok("first token", "no first token is written twice", 7)


def first_added(full: list[int], bare: list[int]) -> int | None:
    """The id that the tokenizer puts before a text by itself; None where it puts none."""
    return full[0] if full != bare and full[:1] != bare[:1] else None


def same_tokenizer(found: Examination, check: str, ours: str | None, theirs: str | None, what: str) -> None:
    """Compare two fingerprints; None where one is not known."""
    if ours is None or theirs is None:
        return
    if ours == theirs:
        found.ok(check, f"{what}: the same tokenizer", 9)
    else:
        found.fail(
            check,
            f"{what}: another tokenizer ({theirs[:12]} there, {ours[:12]} here), so ids mean other things",
            "use one tokenizer for data and model; prepare the data again",
            9,
        )
