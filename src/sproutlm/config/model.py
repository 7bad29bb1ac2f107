"""The shape of a model: one typed table that the model, the exporters and the planner all read."""

from __future__ import annotations

from typing import Any, Literal, get_args

from pydantic import ConfigDict, Field, field_validator, model_validator

from . import depth as dial, presets
from .families import EXPERTS, SHAPES, experts_of, misfits, parts_of
from .strict import Fault, Strict, refuse

Family = Literal[
    "qwen3", "llama", "gpt2", "qwen2", "mistral", "gemma", "gemma2", "qwen3_moe", "mixtral", "qwen2_moe", "dots1",
    "research",
]  # fmt: skip


ResearchPart = Literal["value_embeddings", "residual_lambdas", "x0_lambdas", "smear", "unet_skips"]


class RopeScaling(Strict):
    """How rotary frequencies are stretched for contexts longer than those of training."""

    model_config = ConfigDict(frozen=True)

    kind: Literal["linear", "dynamic", "yarn", "llama3"] = Field(
        description="linear: positions divided by factor; dynamic: NTK-aware base that grows with the length; yarn: "
        "NTK by parts (arXiv:2309.00071); llama3: by wavelength, as Llama 3.1."
    )
    factor: float = Field(ge=1, description="Times the original context.")
    original_max_seq_len: int | None = Field(None, gt=0, description="Context before stretching; default: max_seq_len.")
    low_freq_factor: float = Field(
        1.0, gt=0, description="llama3: wavelengths above original / this are divided whole."
    )
    high_freq_factor: float = Field(4.0, gt=0, description="llama3: wavelengths below original / this are left alone.")
    beta_fast: float = Field(32.0, gt=0, description="yarn: channels of more turns than this are left alone.")
    beta_slow: float = Field(1.0, gt=0, description="yarn: channels of fewer turns than this are divided whole.")
    attention_factor: float | None = Field(
        None, gt=0, description="yarn: scale of the tables; default 0.1 ln(factor) + 1."
    )
    mscale: float | None = Field(
        None, description="yarn: with mscale_all_dim, DeepSeek's form of the attention factor."
    )
    mscale_all_dim: float | None = None
    truncate: bool = Field(True, description="yarn: round the range of channels to whole ones.")


class MoEConfig(Strict):
    """Mixture of experts in place of the MLP: a router sends each token to a few of many narrow MLPs."""

    model_config = ConfigDict(frozen=True)

    n_experts: int = Field(gt=0, description="Routed experts per layer.")
    top_k: int = Field(2, gt=0, description="Experts that each token uses.")
    expert_dim: int = Field(gt=0, description="Inner width of one routed expert.")
    normalize: bool = Field(True, description="The chosen experts' weights sum to 1 (of top_k 1: see the router).")
    score: Literal["softmax", "sigmoid"] = Field("softmax", description="How router logits become weights.")
    scale: float = Field(1.0, gt=0, description="Factor on the routed experts' weights.")
    shared_dim: int = Field(0, ge=0, description="Inner width of the expert that every token uses; 0 = none.")
    shared_gate: bool = Field(False, description="The shared expert is weighted by a learnt sigmoid gate.")
    dense_layers: tuple[int, ...] = Field((), description="Numbers of the layers that keep a plain MLP.")
    balance: Literal["aux", "bias", "none"] = Field(
        "aux", description="aux: balancing loss; bias: loss-free, a bias per expert moved towards even load; none."
    )
    aux_weight: float = Field(0.001, ge=0, description="Weight of the balancing loss.")
    bias_rate: float = Field(0.001, ge=0, description="bias: how far an expert's bias moves in one step.")
    z_weight: float = Field(0.0, ge=0, description="Weight of the router z-loss (arXiv:2202.08906).")


class ModelConfig(Strict):
    """Shape of a ``Transformer``. Sizes count units (channels, heads, tokens), never bytes.

    ``family`` names the Hugging Face architecture the model is exported as; the shape itself is given by the other
    fields, whose defaults follow from the family (qwen3: QK-norm; gpt2: LayerNorm, learned positions, GELU, biases).
    """

    model_config = ConfigDict(frozen=True)

    preset: str | None = Field(
        None,
        exclude=True,  # taken apart before anything is checked, so that a stored config never depends on this table
        description="A known shape (sprout plan --list); fields given beside it come first. The vocabulary stays the "
        "tokenizer's unless vocab_size is given.",
        json_schema_extra={"examples": list(presets.PRESETS)},
    )
    depth: int | None = Field(
        None,
        exclude=True,  # as preset
        description="One number for the shape, and for batch, rates and length where the recipe leaves them out "
        "(sprout plan --depth N); fields given beside it come first.",
        json_schema_extra={"minimum": 1, "maximum": dial.MOST},
    )
    family: Family = Field("qwen3", description="Hugging Face architecture to export as.")
    vocab_size: int = Field(0, ge=0, description="Rows of the embedding; 0 = taken from the tokenizer.")
    dim: int = Field(256, gt=0, description="Width of the residual stream.")
    n_layers: int = Field(6, gt=0, le=16_384, description="Transformer blocks.")
    n_heads: int = Field(4, gt=0, description="Query heads.")
    n_kv_heads: int = Field(0, ge=0, description="Key/value heads (GQA; 1 = MQA); 0 = as many as query heads.")
    head_dim: int = Field(0, ge=0, description="Channels per head; 0 = dim / n_heads.")
    ffn_dim: int = Field(
        0, ge=0, description="Inner width of the MLP; 0 = 8/3 of dim (4 without a gate), rounded up to 64."
    )
    max_seq_len: int = Field(512, gt=1, description="Longest context in tokens.")
    positions: Literal["rope", "learned"] = Field("rope", description="Rotary, or a table of learned vectors (GPT-2).")
    rope_theta: float = Field(10_000.0, gt=0, description="Base of the rotary frequencies.")
    rope_fraction: float = Field(
        1.0, gt=0, le=1, description="Share of each head's channels that rotary positions turn."
    )
    rope_scaling: RopeScaling | None = Field(None, description="Stretched rotary frequencies, for longer contexts.")
    norm: Literal["rmsnorm", "layernorm"] = Field("rmsnorm", description="Normalisation everywhere but on q and k.")
    norm_eps: float = Field(1e-6, gt=0, description="Epsilon of the norms.")
    norm_offset: bool = Field(False, description="RMSNorm multiplies by 1 + weight (Gemma).")
    post_norm: bool = Field(False, description="A norm after each branch as well, before it is added (Gemma 2).")
    qk_norm: bool | None = Field(None, description="RMSNorm on queries and keys; default: the family's (qwen3 yes).")
    attention_bias: bool = Field(False, description="Biases on the q, k, v and output projections.")
    qkv_bias: bool = Field(False, description="Biases on the q, k and v projections only (Qwen2).")
    attention_scale: float | None = Field(
        None, gt=0, description="Factor on attention scores; default 1/sqrt(head_dim)."
    )
    attention_softcap: float = Field(0.0, ge=0, description="Scores are capped by s * tanh(score / s); 0 = not.")
    sliding_window: int = Field(
        0, ge=0, description="Keys that a windowed layer sees, the token's own included; 0 = all."
    )
    window_pattern: str = Field(
        "", pattern=r"^[SF]*$", description="Layers in turn: S sliding window, F full attention; empty = all S."
    )
    activation: Literal["silu", "gelu", "gelu_tanh", "relu2"] = Field("silu", description="Of the MLP.")
    gated: bool = Field(True, description="MLP with a gate (SwiGLU with silu); without: up, activation, down.")
    mlp_bias: bool = Field(False, description="Biases in the MLP.")
    moe: MoEConfig | None = Field(None, description="Experts in place of the MLPs.")
    tie_embeddings: bool = Field(True, description="The output head shares the embedding's weights.")
    embedding_norm: bool = Field(
        False,
        description="Each embedding is divided by its root-mean-square before anything reads it. Any family can have it: an "
        "export stores the divided rows, and beside a tied head the head's own.",
    )
    embedding_scale: float = Field(1.0, gt=0, description="Factor on the embeddings (Gemma: sqrt(dim)).")
    residual_scale: float = Field(1.0, gt=0, description="Factor on each branch before it is added.")
    logit_softcap: float = Field(0.0, ge=0, description="Logits are capped by s * tanh(logit / s); 0 = not.")
    research: tuple[ResearchPart, ...] = Field(
        (),
        description="family: research only, as no other program has them. value_embeddings: further embedding tables, "
        "added to the values of every second layer; residual_lambdas, x0_lambdas: each layer reads lambda * x + mu * "
        "embedding; smear: part of the embedding of the token before; unet_skips: late layers read early ones' outputs too.",
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on the two residual branches of each block.")

    @field_validator("research")
    @classmethod
    def _in_one_order(cls, parts: tuple[ResearchPart, ...]) -> tuple[ResearchPart, ...]:
        return tuple(part for part in get_args(ResearchPart) if part in parts)

    @model_validator(mode="before")
    @classmethod
    def _fill_derived_sizes(cls, values: object) -> object:
        """Resolve the zeros, so that a stored config is explicit and never depends on a later default."""
        if not isinstance(values, dict):
            return values
        values = _with_preset(_with_depth(dict(values)))
        dim, heads = _whole(values.get("dim", 256)), _whole(values.get("n_heads", 4))
        if not _whole(values.get("n_kv_heads", 0), otherwise=1):
            values["n_kv_heads"] = values.get("n_heads", 4)
        if not _whole(values.get("head_dim", 0), otherwise=1) and heads > 0 and dim % heads == 0:
            values["head_dim"] = dim // heads
        family = values.get("family", "qwen3")
        if family in SHAPES:
            for name, value in parts_of(family, dim).items():
                if values.get(name) is None:
                    values[name] = value
            if isinstance(values.get("moe"), dict):
                values["moe"] = experts_of(family) | values["moe"]
        if not _whole(values.get("ffn_dim", 0), otherwise=1):
            values["ffn_dim"] = dial.ffn_width(dim, values.get("gated", True))
        return values

    @model_validator(mode="after")
    def _possible(self) -> ModelConfig:
        faults = []
        if self.n_heads % self.n_kv_heads:
            divisors = [str(n) for n in range(1, self.n_heads + 1) if self.n_heads % n == 0]
            faults.append(
                Fault(
                    ("n_kv_heads", "n_heads"),
                    f"n_heads={self.n_heads} is not a multiple of n_kv_heads={self.n_kv_heads}; choose one of "
                    + ", ".join(divisors),
                )
            )
        if self.head_dim == 0:
            faults.append(
                Fault(
                    ("dim", "n_heads", "head_dim"),
                    f"dim={self.dim} is not a multiple of n_heads={self.n_heads}; change one of them, or give head_dim",
                )
            )
        elif self.positions == "rope" and self.rotary_dim % 2:
            faults.append(
                Fault(
                    ("head_dim", "dim", "n_heads", "rope_fraction"),
                    f"{self.rotary_dim} channels of each head are to be turned, an odd number, and rotary positions turn "
                    "them in pairs; make head_dim * rope_fraction even",
                )
            )
        if self.moe is None and self.family in EXPERTS:
            faults.append(
                Fault(("moe", "family"), f"a {self.family} model has experts; give moe: {{n_experts, expert_dim}}")
            )
        if self.moe is not None:
            faults += _moe_faults(self.moe, self.n_layers)
        if "S" in self.window_pattern and not self.sliding_window:
            faults.append(
                Fault(("window_pattern", "sliding_window"), "sliding_window is 0; say how many keys an S layer sees")
            )
        if self.qkv_bias and self.attention_bias:
            faults.append(
                Fault(("qkv_bias", "attention_bias"), "attention_bias puts biases on q, k, v already; drop one")
            )
        if "unet_skips" in self.research and not self.skip_from:
            faults.append(
                Fault(
                    ("research", "n_layers"),
                    f"unet_skips lead from the first half of the layers to the second, and of {self.n_layers} none is far "
                    "enough from another; take n_layers of 3 or more, or leave unet_skips out",
                )
            )
        faults += [Fault((name, "family"), sentence) for name, sentence in misfits(self.family, self)]
        refuse(faults)
        return self

    @property
    def rotary_dim(self) -> int:
        """Channels of each head that rotary positions turn."""
        return int(self.head_dim * self.rope_fraction)

    def window_of(self, layer: int) -> int:
        """Keys that a layer's queries see, their own included; 0 = all."""
        kind = self.window_pattern[layer % len(self.window_pattern)] if self.window_pattern else "S"
        return self.sliding_window if kind == "S" else 0

    def has_experts(self, layer: int) -> bool:
        return self.moe is not None and layer not in self.moe.dense_layers

    @property
    def value_layers(self) -> tuple[int, ...]:
        """Layers whose values are added to from a table of their own: every second one, the last included."""
        return tuple(range((self.n_layers - 1) % 2, self.n_layers, 2)) if "value_embeddings" in self.research else ()

    @property
    def skip_from(self) -> dict[int, int]:
        """Layer of the second half -> its mirror in the first, whose output it reads as well. The middle of an even number
        has none: its mirror's output is what it is given anyway."""
        late = range(self.n_layers // 2 + 1, self.n_layers) if "unet_skips" in self.research else ()
        return {layer: self.n_layers - 1 - layer for layer in late}


def _moe_faults(moe: MoEConfig, n_layers: int) -> list[Fault]:
    faults = []
    if moe.top_k > moe.n_experts:
        faults.append(
            Fault(("moe.top_k", "moe.n_experts"), f"top_k={moe.top_k} of {moe.n_experts} experts; lower top_k")
        )
    if moe.shared_gate and not moe.shared_dim:
        faults.append(
            Fault(("moe.shared_gate", "moe.shared_dim"), "there is no shared expert to weigh; give shared_dim")
        )
    beyond = [layer for layer in moe.dense_layers if not 0 <= layer < n_layers]
    if beyond:
        faults.append(
            Fault(("moe.dense_layers", "n_layers"), f"layer {beyond[0]} does not exist; there are {n_layers}")
        )
    return faults


def _with_depth(values: dict[str, Any]) -> dict[str, Any]:
    """``depth: N`` as the shape that the dial gives it; what is given beside it comes first."""
    depth = values.pop("depth", None)
    if depth is None:
        return values
    if values.get("preset") is not None:
        refuse([Fault(("depth", "preset"), dial.BOTH)])
    fault = dial.fault_of(depth)
    if fault is not None:
        refuse([Fault(("depth",), fault)])
    # A zero means that a size follows from others: those of the dial.
    shape = dial.shape(int(depth), values)
    return {**dial.EMBEDDING, **values, **{name: size for name, size in shape.items() if not values.get(name)}}


def _with_preset(values: dict[str, Any]) -> dict[str, Any]:
    """``preset: NAME`` as the fields it stands for; what is given beside it comes first, within experts too."""
    name = values.pop("preset", None)
    if name is None:
        return values
    if not isinstance(name, str) or presets.find(name) is None:
        refuse([Fault(("preset",), presets.unknown(name))])
    shape = presets.shape_of(name) | {"vocab_size": 0}
    for section in ("moe", "rope_scaling"):
        if isinstance(values.get(section), dict) and section in shape:
            values[section] = {**shape[section], **values[section]}
    return shape | values


def _whole(value: Any, otherwise: int = 0) -> int:
    """``value`` as a whole number where it is one, written as text or not; ``None`` is 0."""
    if value is None:
        return 0
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        return otherwise
