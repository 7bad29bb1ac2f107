"""A tokenizer as llama.cpp reads it: tokens with types, merges or scores, the cut by its name there, special ids."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import SproutError
from ..tokenizer.spelling import SPACE_MARK, Spelling
from ..tokenizer.template import ChatTemplate
from ..tokenizer.text_only import BYTE_NAME_CUT, BYTE_TOKEN, model_ids, steps
from ..tokenizer.tokenizer import Tokenizer, token_name

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)

_CL = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_END = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_ENGLISH = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|"
GPT2_CUT = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# The steps of a tokenizer.json's cut, and llama.cpp's name for the same rule (tokenizer.ggml.pre).
CUTS: dict[tuple[str, ...], str] = {
    (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"[一-龥ࠀ-一가-퟿]+", "digits"): "deepseek-coder",
    (GPT2_CUT,): "gpt-2",
    (_ENGLISH + _CL + r"|\p{N}" + _END,): "qwen2",
    (_ENGLISH + _CL + r"|\p{N}{1,3}" + _END,): "llama-bpe",
    ("digits", GPT2_CUT): "smollm",
}


@dataclass
class Vocabulary:
    """What goes under ``tokenizer.ggml``. ``model``: gpt2 (byte-level BPE), llama (BPE by scores) or t5 (unigram)."""

    model: str
    pre: str
    tokens: list[str]
    types: list[int]
    merges: list[str] | None = None
    scores: list[float] | None = None
    add_space_prefix: bool = False
    remove_extra_whitespaces: bool = False
    charsmap: bytes | None = None
    ids: dict[str, int] = field(default_factory=dict)
    add_bos: bool = False
    chat_template: str | None = None
    notes: list[str] = field(default_factory=list)


def vocabulary(tokenizer: Tokenizer, n_rows: int, stop_ids: list[int]) -> Vocabulary:
    """``tokenizer`` for a model with ``n_rows`` rows of embeddings. SproutError where llama.cpp would give other ids."""
    data = tokenizer.backend_json
    kind = data["model"].get("type")
    if kind == "BPE" and Spelling.of(data).byte_level:
        made = _byte_level(tokenizer, data)
    elif kind == "BPE" and data["model"].get("byte_fallback"):
        made = _sentencepiece_bpe(tokenizer, data)
    elif kind == "Unigram":
        made = _unigram(tokenizer, data)
    else:
        raise SproutError(
            f"{tokenizer.where}: llama.cpp cannot be given a tokenizer of this kind ({kind}); byte-level BPE and "
            "SentencePiece's BPE and unigram can"
        )
    _fill_spare_rows(made, n_rows)
    _special(made, tokenizer, data, stop_ids)
    return made


def write(made: Vocabulary, writer: Any) -> None:
    """Put the vocabulary into a ``gguf.GGUFWriter``."""
    writer.add_tokenizer_model(made.model)
    writer.add_tokenizer_pre(made.pre)
    writer.add_token_list(made.tokens)
    writer.add_token_types(made.types)
    if made.merges is not None:
        writer.add_token_merges(made.merges)
    if made.scores is not None:
        writer.add_token_scores(made.scores)
        writer.add_add_space_prefix(made.add_space_prefix)
        writer.add_remove_extra_whitespaces(made.remove_extra_whitespaces)
    if made.charsmap is not None:
        writer.add_precompiled_charsmap(made.charsmap)
    for name, id_ in made.ids.items():
        getattr(writer, f"add_{name}_token_id")(id_)
    writer.add_add_bos_token(made.add_bos)
    writer.add_add_eos_token(False)
    if made.chat_template is not None:
        writer.add_chat_template(made.chat_template)


# --- the three kinds --------------------------------------------------------------------------------------------------


def _byte_level(tokenizer: Tokenizer, data: Mapping[str, Any]) -> Vocabulary:
    notes = []
    for step in steps(data.get("normalizer")):
        if step.get("type") != "NFC":
            raise _unlike(tokenizer, f"it rewrites text before encoding ({step.get('type')})")
        notes.append(
            "the tokenizer composes characters first (NFC), which llama.cpp does not: text in decomposed form, which is "
            "rare, gets other ids there"
        )
    pre = llama_cpp_cut(tokenizer, data)
    merges = [m if isinstance(m, str) else " ".join(m) for m in data["model"].get("merges") or []]
    return Vocabulary("gpt2", pre, *_tokens(tokenizer, data), merges=merges, notes=notes)


def llama_cpp_cut(tokenizer: Tokenizer, data: Mapping[str, Any]) -> str:
    """llama.cpp's name of the rule by which ``tokenizer`` cuts text; SproutError where it has none."""
    from ..tokenizer.tiktoken_import import ENCODINGS

    found: list[str] = []
    for step in steps(data.get("pre_tokenizer")):
        kind = step.get("type")
        if kind == "Split" and step.get("behavior") == "Isolated" and not step.get("invert"):
            pattern = step["pattern"]
            found.append(pattern.get("Regex") or pattern.get("String"))
        elif kind == "Digits" and step.get("individual_digits"):
            found.append("digits")
        elif kind == "ByteLevel" and not step.get("add_prefix_space"):
            found += [GPT2_CUT] if step.get("use_regex", True) else []
        else:
            raise _unlike(tokenizer, f"it cuts text by a rule that llama.cpp does not have ({kind})")
    # o200k_base's is there as gpt-4o, but takes combining marks otherwise: 27 of 1,000 strings with emoji differed.
    cuts = CUTS | {(ENCODINGS["cl100k_base"].cut,): "llama-bpe"}
    if tuple(found) not in cuts:
        raise _unlike(
            tokenizer,
            "llama.cpp has no name for its way of cutting text. Known are this program's own with the default rules "
            "(tokenizer.digits: single, spaces: single, cjk: runs), which it calls deepseek-coder, and those of GPT-2, "
            "Qwen2 and Llama 3",
        )
    pre = cuts[tuple(found)]
    if pre == "llama-bpe" and not data["model"].get("ignore_merges"):
        return "dbrx"  # the same cut, for vocabularies whose words all come from merges
    return pre


def _sentencepiece_bpe(tokenizer: Tokenizer, data: Mapping[str, Any]) -> Vocabulary:
    _refuse_rewriting(tokenizer, data, allowed=())
    tokens, types = _tokens(tokenizer, data, blank=True)
    merges = [tuple(m.split(" ", 1)) if isinstance(m, str) else tuple(m) for m in data["model"].get("merges") or []]
    ids = model_ids(data)  # type: ignore[arg-type]
    scores = [-float(len(merges))] * len(tokens)
    for rank, (left, right) in reversed(list(enumerate(merges))):
        if left + right in ids:
            scores[ids[left + right]] = -float(rank)
    made = Vocabulary("llama", "default", tokens, types, scores=scores)
    made.add_space_prefix = tokenizer.dummy_blank != "none"
    made.notes += _blank_notes(tokenizer, data)
    return made


def _unigram(tokenizer: Tokenizer, data: Mapping[str, Any]) -> Vocabulary:
    _refuse_rewriting(tokenizer, data, allowed=("Precompiled", "Replace"))
    if data["model"].get("byte_fallback"):
        raise _unlike(
            tokenizer,
            "a unigram model has no bytes to fall back on there, so line breaks and rare characters would become the "
            "unknown token. Train with tokenizer.kind byte_bpe or sentencepiece_bpe, or use: sprout export hf",
        )
    tokens, types = _tokens(tokenizer, data, blank=True)
    scores = [float(score) for _, score in data["model"]["vocab"]] + [0.0] * len(tokens)
    made = Vocabulary("t5", "default", tokens, types, scores=scores[: len(tokens)])
    made.add_space_prefix = tokenizer.dummy_blank != "none"
    for step in steps(data.get("normalizer")):
        pattern = step.get("pattern") or {}
        if step.get("type") == "Precompiled":
            import base64

            made.charsmap = base64.b64decode(step["precompiled_charsmap"])
        elif "Regex" in pattern and "{2,}" in pattern["Regex"]:
            made.remove_extra_whitespaces = True
    made.notes += _blank_notes(tokenizer, data)
    return made


def _refuse_rewriting(tokenizer: Tokenizer, data: Mapping[str, Any], allowed: tuple[str, ...]) -> None:
    """SproutError for a rule on text that llama.cpp's SentencePiece does not have."""
    for step in steps(data.get("normalizer")):
        kind, pattern = step.get("type"), step.get("pattern") or {}
        blanks = kind == "Prepend" or (kind == "Replace" and pattern.get("String") == " ")
        if not blanks and kind not in allowed:
            raise _unlike(tokenizer, f"it rewrites text before encoding ({kind})")
    for step in steps(data.get("pre_tokenizer")):
        if step != BYTE_NAME_CUT and step.get("type") != "Metaspace":
            raise _unlike(tokenizer, f"it cuts text by a rule that llama.cpp does not have ({step.get('type')})")


def _blank_notes(tokenizer: Tokenizer, data: Mapping[str, Any]) -> list[str]:
    notes = []
    if Spelling.of(data).blank is None:  # type: ignore[arg-type]
        notes.append(
            f"llama.cpp takes the character {SPACE_MARK!r} (U+2581) in a text for a blank; here it is a letter"
        )
    if tokenizer.dummy_blank == "first":
        notes.append("llama.cpp puts a blank after every control token as well, not only before the whole text")
    return notes


def _unlike(tokenizer: Tokenizer, why: str) -> SproutError:
    return SproutError(f"{tokenizer.where}: in llama.cpp this tokenizer would give other ids: {why}")


# --- tokens and special ids -------------------------------------------------------------------------------------------


def _tokens(tokenizer: Tokenizer, data: Mapping[str, Any], blank: bool = False) -> tuple[list[str], list[int]]:
    """Text and type of every id. ``blank``: pieces of SentencePiece, where "▁" stands for a blank."""
    model = data["model"]
    unknown = model.get("unk_token")
    tokens = [f"[PAD{id_}]" for id_ in range(tokenizer.vocab_size)]
    types = [UNUSED] * tokenizer.vocab_size
    real_blanks = blank and Spelling.of(data).blank is None  # type: ignore[arg-type]
    for text, id_ in model_ids(data).items():  # type: ignore[arg-type]
        if real_blanks and SPACE_MARK in text:
            raise _unlike(tokenizer, f"its token {text!r} holds the character that stands for a blank there")
        tokens[id_] = text.replace(" ", SPACE_MARK) if real_blanks else text
        types[id_] = BYTE if blank and BYTE_TOKEN.fullmatch(text) else NORMAL
    for added in data.get("added_tokens", []):
        tokens[added["id"]] = added["content"]
        types[added["id"]] = CONTROL if added.get("special") else USER_DEFINED
    unk_ids = [model["unk_id"]] if isinstance(model.get("unk_id"), int) else []
    unk_ids += [id_ for text, id_ in model_ids(data).items() if blank and text == unknown]  # type: ignore[arg-type]
    for id_ in unk_ids:
        types[id_] = UNKNOWN
    return tokens, types


def _fill_spare_rows(made: Vocabulary, n_rows: int) -> None:
    """llama.cpp wants one token per row of the embedding."""
    spare = range(len(made.tokens), n_rows)
    made.tokens += [f"[PAD{id_}]" for id_ in spare]
    made.types += [UNUSED] * len(spare)
    if made.scores is not None:
        made.scores += [0.0] * len(spare)
    if spare:
        made.notes.append(f"{len(spare)} rows of the embedding without a token are called [PAD…] and never written")


def _special(made: Vocabulary, tokenizer: Tokenizer, data: Mapping[str, Any], stop_ids: list[int]) -> None:
    bos = tokenizer.control_tokens.get(token_name(tokenizer.config.get("bos_token")) or "")
    made.ids = {"bos": tokenizer.eos_id if bos is None else bos, "eos": tokenizer.eos_id}
    made.ids |= {"pad": tokenizer.pad_id, "unk": tokenizer.unk_id}
    others = [id_ for id_ in stop_ids if id_ != tokenizer.eos_id]
    made.ids |= dict(zip(("eot", "eom"), others, strict=False))
    for id_ in others[2:]:
        made.notes.append(f"llama.cpp has room for three stop tokens; {tokenizer.token_text(id_)!r} is left out")
    made.add_bos = bos is not None and _begins_with(data, tokenizer.config, bos)
    made.chat_template = None if tokenizer.chat_template is None else _template(tokenizer, bos)


_ASK = ({"role": "user", "content": "?"},)


def _template(tokenizer: Tokenizer, bos: int | None) -> str:
    """The chat template, with the values that it would be given here and llama.cpp gives otherwise.

    llama.cpp always has a first token, and asks every template that knows ``enable_thinking`` for thinking.
    """
    source = tokenizer.chat_template or ""
    head = ""
    if bos is None and "bos_token" in source:
        head += "{%- set bos_token = '' %}"
    if "enable_thinking" in source:
        template = ChatTemplate.of(tokenizer)
        given: list[dict[str, Any]] = [{}, {"enable_thinking": True}, {"enable_thinking": False}]
        usual, on, off = (template.render(_ASK, add_generation_prompt=True, **each).text for each in given)
        if on != usual == off:
            head += "{%- set enable_thinking = false %}"
    return head + source


def _begins_with(data: Mapping[str, Any], config: Mapping[str, Any], bos: int) -> bool:
    """Whether other programs put the first token before every text with this tokenizer."""
    if isinstance(config.get("add_bos_token"), bool):
        return bool(config["add_bos_token"])
    text = next((t["content"] for t in data.get("added_tokens", []) if t["id"] == bos), None)
    parts = [data.get("post_processor") or {}]
    parts += parts[0].get("processors") or []
    singles = [piece for part in parts for piece in (part.get("single") or [])[:1]]
    return any((piece.get("SpecialToken") or {}).get("id") == text for piece in singles)
