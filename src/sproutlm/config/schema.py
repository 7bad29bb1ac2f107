"""The recipe: everything a run depends on, as typed models. An unknown key is an error, everywhere."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from .model import ModelConfig


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class SourceConfig(Strict):
    """Where rows come from: a file, a glob, a folder, or ``synth:KIND`` (a file of the embedded world)."""

    path: str = Field(description="File, glob or folder; relative to the recipe; ${VARIABLES} are filled in.")
    format: str = Field(
        "auto", description="auto, or a format's name, or package.module:attribute for a format of your own."
    )
    columns: dict[str, str] = Field(default_factory=dict, description="Field name the format expects -> column's name.")
    encoding: str = Field("utf-8", description="Text encoding of the files.")
    max_rows: int | None = Field(None, gt=0, description="Read only the first N rows.")
    repeat: int = Field(1, ge=1, description="Times the rows of this source enter one epoch.")


class HoldoutConfig(Strict):
    """Validation rows taken from the end of the training sources."""

    rows: int = Field(gt=0, description="Rows held out, from the end of data.train; never trained, nor seen by the tokenizer.")


class DataConfig(Strict):
    train: list[SourceConfig] = Field(min_length=1, description="Training rows, one or more sources.")
    validation: HoldoutConfig | list[SourceConfig] | None = Field(None, description="Held-out rows: {rows: N} or sources.")
    seq_len: int = Field(256, gt=1, description="Tokens in one packed row.")
    packing: Literal["best_fit", "stream", "none"] = Field(
        "best_fit", description="best_fit: rows begin at a document's start; stream: concatenate and cut; none: one document a row."
    )
    document_mask: bool = Field(True, description="Tokens attend within their own document only.")
    on_bad_row: Literal["error", "skip"] = Field("error", description="What happens at a row that cannot be read.")
    on_long: Literal["auto", "error", "truncate", "split", "drop"] = Field(
        "auto", description="What happens to a row longer than seq_len; auto: split for text, truncate for chat (its end token is kept)."
    )
    cache: str | None = Field(None, description="Folder for token shards; default: data/ in the run folder.")
    shard_tokens: int = Field(50_000_000, gt=0, description="Tokens per shard.")
    workers: int = Field(0, ge=0, description="Tokenising processes; 0 = all cores.")


class TokenizerConfig(Strict):
    path: str | None = Field(None, description="A tokenizer's folder, a run folder or a Hugging Face folder; unset: one is trained.")
    vocab_size: int = Field(6400, gt=0, description="Size when one is trained, special tokens included.")
    train_on: list[SourceConfig] = Field(default_factory=list, description="Rows to train it on; default: data.train.")
    max_bytes: int = Field(200_000_000, gt=0, description="Text bytes read for training it.")


class OptimizerConfig(Strict):
    """Rates are those at the peak of the schedule. ``muon`` puts the blocks' matrices on Muon, all else on AdamW."""

    name: Literal["muon", "adamw"] = "muon"
    lr: float = Field(0.01, gt=0, description="muon: rate of the matrices; adamw: rate of everything.")
    embedding_lr: float = Field(0.005, gt=0, description="muon: AdamW rate of the embedding and of an untied head.")
    scalar_lr: float = Field(0.005, gt=0, description="muon: AdamW rate of norms, biases and other vectors.")
    betas: tuple[float, float] = Field((0.9, 0.95), description="AdamW's running-average factors.")
    eps: float = Field(1e-10, gt=0)
    weight_decay: float = Field(0.0, ge=0, description="On matrices only; muon applies it where update and weight agree in sign.")
    momentum: float = Field(0.95, ge=0, lt=1, description="muon: momentum after its warm-up.")
    momentum_start: float = Field(0.85, ge=0, lt=1)
    momentum_warmup: float = Field(0.15, ge=0, le=1, description="muon: share of the run over which momentum rises.")


class ScheduleConfig(Strict):
    name: Literal["wsd", "cosine", "linear"] = "wsd"
    warmup: float = Field(40, ge=0, description="Steps (>= 1) or share of the run (< 1).")
    decay: float = Field(0.65, gt=0, le=1, description="wsd: share of the run, at its end, over which the rate falls.")
    final: float = Field(0.05, ge=0, le=1, description="Rate at the last step, as a share of the peak.")


class TrainConfig(Strict):
    steps: int | None = Field(None, gt=0, description="Optimizer steps; give exactly one of steps, tokens, epochs.")
    tokens: int | None = Field(None, gt=0, description="Tokens to train on, rounded down to whole steps.")
    epochs: float | None = Field(None, gt=0, description="Passes over the packed rows.")
    batch_tokens: int = Field(8192, gt=0, description="Tokens per optimizer step over all devices (a multiple of seq_len).")
    micro_batch: int = Field(0, ge=0, description="Rows per forward pass; 0 = the whole share of the step.")
    clip: float = Field(1.0, ge=0, description="Gradient-norm limit; 0 = none.")
    compute: Literal["auto", "bf16", "float32"] = Field("auto", description="Type of the forward and backward pass; masters are float32.")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    log_every: int = Field(10, gt=0)
    validate_every: int = Field(0, ge=0, description="Steps between validations; 0 = at the end only.")
    validation_rows: int = Field(0, ge=0, description="Packed rows per validation; 0 = all.")
    sample_every: int = Field(0, ge=0, description="Steps between samples; 0 = at the end only.")
    save_every: int = Field(200, gt=0, description="Steps between checkpoints (one is always saved at the end).")
    keep_last: int = Field(2, gt=0, description="Checkpoints kept, the best one not counted.")
    early_stop: int = Field(0, ge=0, description="Stop after this many validations without a new best; 0 = never.")


class SampleConfig(Strict):
    prompts: list[str] = Field(default_factory=lambda: [""], description="Shown to the model while training.")
    max_tokens: int = Field(64, gt=0)
    temperature: float = Field(0.8, ge=0)


class Recipe(Strict):
    """One training run."""

    name: str = Field(min_length=1, pattern=r"^[\w.-]+$")
    stage: Literal["pretrain", "sft"] = "pretrain"
    run: str | None = Field(None, description="Run folder; default runs/NAME below the current folder.")
    seed: int = Field(1, ge=0)
    data: DataConfig
    tokenizer: TokenizerConfig = Field(default_factory=TokenizerConfig)
    model: ModelConfig | None = Field(None, description="Shape; taken from init_from where that is given.")
    init_from: str | None = Field(None, description="Run folder, checkpoint or Hugging Face folder to start from; 'random' says so on purpose.")
    objective: str = Field("next_token", description="next_token, or package.module:attribute for one of your own.")
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = Field(default_factory=ScheduleConfig)
    train: TrainConfig
    sample: SampleConfig = Field(default_factory=SampleConfig)

    @model_validator(mode="after")
    def _possible(self) -> Recipe:
        given = [k for k in ("steps", "tokens", "epochs") if getattr(self.train, k) is not None]
        if len(given) != 1:
            raise ValueError(f"train: give exactly one of steps, tokens, epochs (given: {', '.join(given) or 'none'})")
        if self.train.batch_tokens % self.data.seq_len:
            raise ValueError(
                f"train.batch_tokens={self.train.batch_tokens} is not a multiple of data.seq_len={self.data.seq_len}"
            )
        if self.model is None and self.init_from in (None, "random"):
            raise ValueError("model: missing; give a shape, or init_from: a run or Hugging Face folder")
        if self.stage == "sft" and self.init_from is None:
            raise ValueError(
                "stage sft needs init_from: the run or Hugging Face folder to start from (or 'random', on purpose)"
            )
        if self.model is not None and self.data.seq_len > self.model.max_seq_len:
            raise ValueError(f"data.seq_len={self.data.seq_len} exceeds model.max_seq_len={self.model.max_seq_len}")
        return self


# --- several stages in order ------------------------------------------------------------------------------------------


class SynthStage(Strict):
    """Write the embedded world's files to ``<run>/NAME``."""

    do: Literal["synth"]
    name: str
    seed: int | None = None
    size: Literal["tiny", "small"] = "small"


class TokenizerStage(Strict):
    """Train a tokenizer into ``<run>/NAME``."""

    do: Literal["tokenizer"]
    name: str
    tokenizer: TokenizerConfig


class TrainStage(Strict):
    """One training run in ``<run>/NAME``; the fields are a recipe's. ``stage:OTHER`` in a path names another stage's folder."""

    do: Literal["train"]
    name: str
    recipe: dict[str, Any] = Field(description="A recipe's fields (validated as one).")


class EvalStage(Strict):
    do: Literal["eval"]
    name: str
    model: str = Field(description="stage:NAME, a run folder or a Hugging Face folder.")
    questions: str | None = Field(None, description="questions.jsonl; checked answers by kind.")
    text: str | None = Field(None, description="Held-out text for bits-per-byte; default: the run's own validation rows.")
    max_questions: int | None = Field(None, gt=0, description="Questions per kind; default all.")
    kinds: list[str] | None = Field(None, description="Only these kinds of question.")
    require: dict[str, float] = Field(default_factory=dict, description="overall, each_kind, stop_rate: least values; below = exit code 2.")


class ExportStage(Strict):
    do: Literal["export"]
    name: str
    model: str


class ChatStage(Strict):
    """A short scripted conversation, printed."""

    do: Literal["chat"]
    name: str
    model: str
    says: list[str] = Field(min_length=1, description="What the person says, turn by turn; '/reset' starts over.")


Stage = Annotated[
    SynthStage | TokenizerStage | TrainStage | EvalStage | ExportStage | ChatStage, Field(discriminator="do")
]


class Pipeline(Strict):
    """Several stages in order, for ``sprout run``."""

    name: str = Field(min_length=1, pattern=r"^[\w.-]+$")
    run: str | None = None
    seed: int = 1
    stages: list[Stage] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_are_unique(self) -> Pipeline:
        seen: set[str] = set()
        for stage in self.stages:
            if stage.name in seen:
                raise ValueError(f"stages: the name {stage.name!r} is used twice")
            seen.add(stage.name)
        return self
