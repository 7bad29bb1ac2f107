"""The part of a recipe that says what is read: sources, rows, packing, the tokenizer and the chat template."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag

from .strict import Strict


def _text_of_number(value: Any) -> Any:
    """``eos: 50256`` is a number to YAML."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


class SourceConfig(Strict):
    """Where rows come from: a file, a glob, a folder, or ``synth:KIND`` (a file of the embedded world)."""

    path: str = Field(description="File, glob or folder; relative to the recipe; ${VARIABLES} are filled in.")
    format: str = Field(
        "auto",
        description="auto, or a format's name, tokens (.bin, .ds, Megatron), or package.module:attribute for one of your own.",
    )
    columns: dict[str, Annotated[str, BeforeValidator(_text_of_number)]] = Field(
        default_factory=dict,
        description="Field name the format expects -> column's name; of token files: dtype and eos (an id).",
    )
    encoding: str = Field("utf-8", description="Text encoding of the files.")
    max_rows: int | None = Field(None, gt=0, description="Read only the first N rows.")
    repeat: int = Field(1, ge=1, description="Times the rows of this source enter one epoch.")
    role_order: Literal["strict", "any"] = Field(
        "strict",
        description="strict: user and assistant take turns, a user first; any: conversations are taken as they come.",
    )
    fill: dict[str, str] = Field(
        default_factory=dict,
        description="Placeholder name -> text: {name: Sprout} puts Sprout where rows say {{name}}.",
    )


class HoldoutConfig(Strict):
    """Validation rows taken from the end of the training sources."""

    rows: int = Field(
        gt=0, description="Rows held out, from the end of data.train; never trained, nor seen by the tokenizer."
    )


def _validation_kind(value: Any) -> str:
    return "rows" if isinstance(value, dict | HoldoutConfig) else "sources"


# The tag keeps the errors of one kind apart from those of the other.
Validation = Annotated[
    Annotated[HoldoutConfig, Tag("rows")] | Annotated[list[SourceConfig], Tag("sources")],
    Discriminator(_validation_kind),
]


class DataConfig(Strict):
    train: list[SourceConfig] = Field(min_length=1, description="Training rows, one or more sources.")
    validation: Validation | None = Field(None, description="Held-out rows: {rows: N} or sources.")
    seq_len: int = Field(256, gt=1, description="Tokens in one packed row.")
    packing: Literal["best_fit", "stream", "none"] = Field(
        "best_fit",
        description="best_fit: rows begin at a document's start; stream: concatenate and cut; none: one document a row.",
    )
    stride: int | None = Field(
        None,
        gt=0,
        description="Sliding windows: a row begins every N tokens of the text (packing: stream) or of each document "
        "(packing: none); default: seq_len, so that windows do not overlap.",
    )
    document_mask: bool = Field(True, description="Tokens attend within their own document only.")
    on_bad_row: Literal["error", "skip"] = Field("error", description="What happens at a row that cannot be read.")
    on_long: Literal["auto", "error", "truncate", "split", "drop"] = Field(
        "auto",
        description="What happens to a row longer than seq_len; auto: split for text, truncate for chat (its end token is kept). "
        "split cuts a chat between exchanges, its system message in each part.",
    )
    cache: str | None = Field(None, description="Folder for token shards; default: data/ in the run folder.")
    shard_tokens: int = Field(50_000_000, gt=0, description="Tokens per shard.")
    workers: int = Field(0, ge=0, description="Tokenising processes; 0 = all cores.")


class TokenizerConfig(Strict):
    path: str | None = Field(
        None, description="A tokenizer's folder, a run folder or a Hugging Face folder; unset: one is trained."
    )
    kind: Literal["byte_bpe", "sentencepiece_bpe", "sentencepiece_unigram"] = Field(
        "byte_bpe", description="What is trained: byte-level BPE, or SentencePiece with byte fallback."
    )
    vocab_size: int = Field(6400, gt=0, description="Size when one is trained, special tokens included.")
    digits: Literal["single", "groups", "free"] = Field(
        "single", description="single: each digit a token; groups: up to three together; free: as merges go."
    )
    spaces: Literal["single", "runs"] = Field(
        "single", description="single: a blank joins the word after it; runs: indentation may be a token."
    )
    cjk: Literal["runs", "single", "free"] = Field(
        "runs",
        description="Chinese, Japanese, Korean letters: runs apart from Latin ones; single: one by one; free: no rule.",
    )
    new_tokens: list[str] = Field(
        default_factory=list,
        description="Control tokens to add to the tokenizer at `path`; the model gets rows for them.",
    )
    train_on: list[SourceConfig] = Field(default_factory=list, description="Rows to train it on; default: data.train.")
    max_bytes: int = Field(200_000_000, gt=0, description="Text bytes used for training it.")
    sample: Literal["spread", "first"] = Field(
        "spread", description="Where the texts exceed max_bytes: an even sample of all of them, or their beginning."
    )


class TemplateConfig(Strict):
    """How conversations are written as tokens. ``use`` and ``system`` are stored with the model, so that chat and export
    write the same; ``thinking`` decides what is trained and belongs to the run alone."""

    use: str | None = Field(
        None,
        description="chatml, qwen3, llama2, llama3, alpaca, plain, or a Jinja file; unset: the tokenizer's own template.",
    )
    system: str | None = Field(None, description="System message of conversations that have none.")
    thinking: Literal["keep", "drop", "mask"] = Field(
        "keep", description="reasoning_content: trained (keep), left out (drop), shown but not trained (mask)."
    )
