"""A tokenizer's folder: ends that are never trained, text that does not come back, first tokens that double."""

from __future__ import annotations

from pathlib import Path

from ..errors import SproutError
from ..tokenizer.check import check_tokenizer, model_rows
from ..tokenizer.text_only import model_ids
from ..tokenizer.tokenizer import Tokenizer, token_name
from .finding import Examination


def examine_tokenizer(path: Path) -> Examination:
    """Examine a tokenizer's folder, or the tokenizer of a run or a Hugging Face folder."""
    found = Examination(str(path), "tokenizer")
    cure = "use a byte-level BPE tokenizer, or train one with `sprout tokenizer train`"
    read, tokenizer = found.attempt("loads", cure, 8, lambda: loaded_from(path))
    if not read:
        return found
    found.notes.append(f"{tokenizer.vocab_size:,} ids, fingerprint {tokenizer.fingerprint[:12]}")
    report = check_tokenizer(path)
    for check in report["checks"]:
        if check["name"] == "chat template":
            found.warn(
                "chat template",
                "there is none: texts can be trained with it, and a conversation is refused",
                "add chat_template to tokenizer_config.json before fine-tuning",
                check["pitfall"],
            )
        elif check["ok"] is False:
            found.fail(check["name"], check["sentence"], check["cure"], check["pitfall"])
        elif check["warn"]:
            found.warn(check["name"], check["sentence"], check["cure"], check["pitfall"])
        else:
            found.ok(check["name"], check["sentence"], check["pitfall"])
    found.notes += report["notes"]
    written_config(found, tokenizer)
    ids(found, tokenizer)
    rows = model_rows(path)
    if rows is not None:
        vocabulary(found, rows, tokenizer, "the model's config beside it")
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
    data = tokenizer.backend_json
    vocabulary = set(model_ids(data).values()) | {t["id"] for t in data["added_tokens"]}
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
