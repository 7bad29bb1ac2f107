"""The recipe: everything a run depends on, as typed models. An unknown key is an error, everywhere."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from .data import DataConfig, HoldoutConfig, SourceConfig, TemplateConfig, TokenizerConfig, Validation
from .dialled import dialled
from .model import ModelConfig
from .parallel import ParallelConfig, parallel_faults
from .strict import Fault, Section, Strict, refuse

__all__ = ["DataConfig", "HoldoutConfig", "SourceConfig", "TemplateConfig", "TokenizerConfig", "Validation"]

LENGTHS = ("train.steps", "train.tokens", "train.epochs")


class OptimizerConfig(Strict):
    """Rates are those at the peak of the schedule. ``muon`` puts the blocks' matrices on Muon, all else on AdamW."""

    name: Literal["muon", "adamw"] = "muon"
    lr: float = Field(0.01, gt=0, description="muon: rate of the matrices; adamw: rate of everything.")
    embedding_lr: float = Field(0.005, gt=0, description="muon: AdamW rate of the embedding and of an untied head.")
    scalar_lr: float = Field(0.005, gt=0, description="muon: AdamW rate of norms, biases and other vectors.")
    betas: tuple[float, float] = Field((0.9, 0.95), description="AdamW's running-average factors.")
    eps: float = Field(1e-10, gt=0)
    state_dtype: Literal["float32", "int8"] = Field(
        "float32",
        description="How AdamW keeps its averages: int8 takes a quarter of the memory (muon: of embeddings and an untied head "
        "alone), and more time on a CPU.",
    )
    weight_decay: float = Field(
        0.0, ge=0, description="On matrices only; muon applies it where update and weight agree in sign."
    )
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
    batch_tokens: int = Field(
        8192, gt=0, description="Tokens per optimizer step over all devices (a multiple of seq_len)."
    )
    micro_batch: int = Field(
        0, ge=0, description="Rows per forward pass; 0 = the step's rows, shared out over streams."
    )
    streams: int = Field(
        0,
        ge=0,
        description="CPU: micro-batches computed side by side, a core each; 0 = one per core for models below 50 M.",
    )
    clip: float = Field(1.0, ge=0, description="Gradient-norm limit; 0 = none.")
    z_loss: float = Field(
        0.0,
        ge=0,
        description="Weight of log(Z)^2 per target, Z the softmax's denominator: keeps logits from drifting (PaLM: 1e-4). "
        "In the gradient only: the printed loss stays the language model's.",
    )
    checkpointing: Literal["none", "blocks", "selective"] = Field(
        "none",
        description="Compute again in the backward pass, for less memory and the same gradients: whole blocks, or (selective) "
        "what is no matrix product in them.",
    )
    compile: Literal["auto", "none", "blocks"] = Field(
        "auto",
        description="torch.compile for the blocks while training: auto = on a GPU. On a CPU it takes a minute once (kept for the "
        "next run) for steps faster by about a tenth.",
    )
    loss_chunk: int = Field(
        0, ge=0, description="Tokens whose logits exist at once; 0 = as many as 64 MB of them hold."
    )
    compute: Literal["auto", "bf16", "fp16", "float32"] = Field(
        "auto",
        description="Type of the forward and backward pass; masters are float32. fp16, with a scaled loss, is for cards without "
        "bf16 units.",
    )
    device: Literal["auto", "cpu", "cuda"] = "auto"
    force_memory: bool = Field(
        False, description="Begin on a CPU although the plan exceeds the memory that is there (see `sprout plan`)."
    )
    log_every: int = Field(10, gt=0)
    validate_every: int = Field(0, ge=0, description="Steps between validations; 0 = at the end only.")
    validation_rows: int = Field(0, ge=0, description="Packed rows per validation; 0 = all.")
    sample_every: int = Field(0, ge=0, description="Steps between samples; 0 = at the end only.")
    save_every: int = Field(200, gt=0, description="Steps between checkpoints (one is always saved at the end).")
    keep_last: int = Field(2, gt=0, description="Checkpoints kept, the best one not counted.")
    async_save: bool = Field(
        False,
        description="Write checkpoints beside the next steps, from a copy in memory (weights and optimizer state); the last "
        "one of a run is waited for.",
    )
    early_stop: int = Field(0, ge=0, description="Stop after this many validations without a new best; 0 = never.")
    trackers: list[Literal["tensorboard", "wandb", "swanlab"]] = Field(
        default_factory=list, description="Where figures go beside metrics.jsonl; no account or network ends a run."
    )
    tracker_project: str = Field(
        "sproutlm", min_length=1, max_length=100, pattern=r"^[\w.-]+$", description="wandb, swanlab: the project."
    )
    tracker_name: str | None = Field(
        None, min_length=1, max_length=100, description="wandb, swanlab: the run's name; default: the recipe's."
    )

    @field_validator("trackers")
    @classmethod
    def _each_once(cls, value: list[str]) -> list[str]:
        if len(set(value)) != len(value):
            raise PydanticCustomError("twice", "names a tracker twice; name each once")
        return value


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
    template: TemplateConfig = Field(default_factory=TemplateConfig)
    model: ModelConfig | None = Field(None, description="Shape; taken from init_from where that is given.")
    init_from: str | None = Field(
        None, description="Run folder, checkpoint or Hugging Face folder to start from; 'random' says so on purpose."
    )
    objective: str = Field("next_token", description="next_token, or package.module:attribute for one of your own.")
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = Field(default_factory=ScheduleConfig)
    train: TrainConfig
    parallel: ParallelConfig = Field(default_factory=ParallelConfig)
    sample: SampleConfig = Field(default_factory=SampleConfig)

    @model_validator(mode="before")
    @classmethod
    def _turn_the_dial(cls, values: object) -> object:
        """``model: {depth: N}`` chooses batch, rates and length where the recipe leaves them out."""
        return dialled(values) if isinstance(values, dict) else values

    @model_validator(mode="after")
    def _possible(self) -> Recipe:
        train, data = self.train, self.data
        faults = []
        given = [key for key in ("steps", "tokens", "epochs") if getattr(train, key) is not None]
        if len(given) != 1:
            faults.append(
                Fault(
                    (f"train.{given[-1]}" if given else "train", *LENGTHS, "model.depth"),
                    f"give exactly one of steps, tokens, epochs (given: {', '.join(given) or 'none'}); "
                    "on the command line, train.steps=null takes one away",
                )
            )
        if train.batch_tokens % data.seq_len:
            nearest = max(round(train.batch_tokens / data.seq_len), 1) * data.seq_len
            faults.append(
                Fault(
                    ("train.batch_tokens", "data.seq_len"),
                    f"{train.batch_tokens} is not a multiple of data.seq_len={data.seq_len}; the nearest is {nearest}",
                )
            )
        if data.stride is not None and data.packing == "best_fit":
            faults.append(
                Fault(
                    ("data.stride", "data.packing"),
                    "best_fit fills rows with documents and has no sliding windows; set data.packing to stream (over the "
                    "whole text) or none (over each document)",
                )
            )
        if data.stride is not None and data.stride > data.seq_len:
            faults.append(
                Fault(
                    ("data.stride", "data.seq_len"),
                    f"{data.stride} is more than data.seq_len={data.seq_len}: the tokens between two windows would never "
                    "be trained; set it to at most data.seq_len",
                )
            )
        if self.model is None and self.init_from in (None, "random"):
            faults.append(
                Fault(("model", "init_from"), "missing; give a shape, or init_from: a run or a Hugging Face folder")
            )
        if train.z_loss and self.objective != "next_token":
            faults.append(
                Fault(
                    ("train.z_loss", "objective"),
                    f"only next_token knows of it, and objective is {self.objective}; remove train.z_loss, or put the term "
                    "into your objective",
                )
            )
        if train.loss_chunk and self.objective != "next_token":
            faults.append(
                Fault(
                    ("train.loss_chunk", "objective"),
                    f"only next_token knows of it, and objective is {self.objective}; remove train.loss_chunk, or give "
                    "cross_entropy_sum its chunk in your objective",
                )
            )
        if self.stage == "sft" and self.init_from is None:
            faults.append(
                Fault(
                    ("stage", "init_from"),
                    "sft needs init_from: the run or Hugging Face folder to start from (or 'random', on purpose)",
                )
            )
        if self.model is not None and data.seq_len > self.model.max_seq_len:
            faults.append(
                Fault(
                    ("data.seq_len", "model.max_seq_len"),
                    f"{data.seq_len} exceeds model.max_seq_len={self.model.max_seq_len}; lower one or raise the other",
                )
            )
        refuse([*faults, *parallel_faults(self)])
        return self


# --- several stages in order ------------------------------------------------------------------------------------------


# A stage's name is its folder below the run's, and the NAME of ``stage:NAME``.
StageName = Annotated[
    str, Field(min_length=1, pattern=r"^[\w.-]+$", description="Folder of the stage below the run's.")
]


class SynthStage(Section):
    """Write the embedded world's files to ``<run>/NAME``."""

    do: Literal["synth"]
    name: StageName
    seed: int | None = None
    size: Literal["tiny", "small"] = "small"


class TokenizerStage(Section):
    """Train a tokenizer into ``<run>/NAME``."""

    do: Literal["tokenizer"]
    name: StageName
    tokenizer: TokenizerConfig


class TrainStage(Section):
    """One training run in ``<run>/NAME``; the fields are a recipe's. ``stage:OTHER`` in a path names another stage's folder."""

    do: Literal["train"]
    name: StageName
    recipe: dict[str, Any] = Field(description="A recipe's fields (validated as one).")


class EvalStage(Section):
    do: Literal["eval"]
    name: StageName
    model: str = Field(description="stage:NAME, a run folder or a Hugging Face folder.")
    questions: str | None = Field(None, description="questions.jsonl; checked answers by kind.")
    text: str | None = Field(
        None, description="Held-out text for bits-per-byte; default: the run's own validation rows."
    )
    max_questions: int | None = Field(None, gt=0, description="Questions per kind; default all.")
    kinds: list[str] | None = Field(None, description="Only these kinds of question.")
    control: bool = Field(False, description="Reported as the control; never required of.")
    require: dict[Literal["overall", "each_kind", "stop_rate"], float] = Field(
        default_factory=dict, description="overall, each_kind, stop_rate: least values; below = exit code 2."
    )


class ExportStage(Section):
    do: Literal["export"]
    name: StageName
    model: str


class ChatStage(Section):
    """A short scripted conversation, printed."""

    do: Literal["chat"]
    name: StageName
    model: str
    says: list[str] = Field(min_length=1, description="What the person says, turn by turn; '/reset' starts over.")


Stage = Annotated[
    SynthStage | TokenizerStage | TrainStage | EvalStage | ExportStage | ChatStage, Field(discriminator="do")
]


class Pipeline(Strict):
    """Several stages in order, for ``sprout run``."""

    name: str = Field(min_length=1, pattern=r"^[\w.-]+$")
    run: str | None = Field(
        None, description="Folder of the stages' folders; default runs/NAME below the current folder."
    )
    seed: int = Field(1, ge=0)
    stages: list[Stage] = Field(min_length=1)

    @model_validator(mode="after")
    def _possible(self) -> Pipeline:
        faults: list[Fault] = []
        before: list[str] = []
        for number, stage in enumerate(self.stages):
            if stage.name in before:
                faults.append(Fault((f"stages.{number}.name",), f"{stage.name!r} is used twice; rename one of them"))
            for key, name in _references(stage.model_dump()):
                if name not in before:
                    earlier = f"the earlier ones are {', '.join(before)}" if before else "there is none before this one"
                    faults.append(Fault((f"stages.{number}.{key}",), f"stage:{name} names no earlier stage; {earlier}"))
            before.append(stage.name)
        refuse(faults)
        return self


def _references(value: Any, key: str = "") -> list[tuple[str, str]]:
    """Every ``stage:NAME`` or ``stage:NAME/file`` inside a stage, as (dotted key, NAME). What is said in a chat is none."""
    if isinstance(value, str):
        return [(key, value.removeprefix("stage:").split("/")[0])] if value.startswith("stage:") else []
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [
        found
        for name, child in children
        if name not in ("says", "prompts")
        for found in _references(child, f"{key}.{name}" if key else str(name))
    ]
