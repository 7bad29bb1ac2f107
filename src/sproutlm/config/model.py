"""The shape of a model: one typed table that the model, the exporters and the planner all read."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field, model_validator

from .strict import Fault, Strict, refuse


class ModelConfig(Strict):
    """Shape of a ``Transformer``. Sizes count units (channels, heads, tokens), never bytes.

    ``family`` names the Hugging Face architecture the model is exported as; the shape itself is given by the other
    fields (Qwen3 = RMSNorm, GQA, QK-norm, RoPE, SwiGLU; Llama = the same without QK-norm).
    """

    model_config = ConfigDict(frozen=True)

    family: Literal["qwen3", "llama"] = Field("qwen3", description="Hugging Face architecture to export as.")
    vocab_size: int = Field(0, ge=0, description="Rows of the embedding; 0 = taken from the tokenizer.")
    dim: int = Field(256, gt=0, description="Width of the residual stream.")
    n_layers: int = Field(6, gt=0, description="Transformer blocks.")
    n_heads: int = Field(4, gt=0, description="Query heads.")
    n_kv_heads: int = Field(0, ge=0, description="Key/value heads (GQA); 0 = as many as query heads.")
    head_dim: int = Field(0, ge=0, description="Channels per head; 0 = dim / n_heads.")
    ffn_dim: int = Field(0, ge=0, description="Inner width of the MLP; 0 = 8/3 of dim, rounded up to a multiple of 64.")
    max_seq_len: int = Field(512, gt=1, description="Longest context in tokens.")
    rope_theta: float = Field(10_000.0, gt=0, description="Base of the rotary frequencies.")
    norm_eps: float = Field(1e-6, gt=0, description="Epsilon of RMSNorm.")
    qk_norm: bool | None = Field(None, description="RMSNorm on queries and keys; default: the family's (qwen3 yes).")
    attention_bias: bool = Field(False, description="Biases on the q, k, v and output projections.")
    tie_embeddings: bool = Field(True, description="The output head shares the embedding's weights.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on the two residual branches of each block.")

    @model_validator(mode="before")
    @classmethod
    def _fill_derived_sizes(cls, values: object) -> object:
        """Resolve the zeros, so that a stored config is explicit and never depends on a later default."""
        if not isinstance(values, dict):
            return values
        values = dict(values)
        dim, heads = _whole(values.get("dim", 256)), _whole(values.get("n_heads", 4))
        if not _whole(values.get("n_kv_heads", 0), otherwise=1):
            values["n_kv_heads"] = values.get("n_heads", 4)
        if not _whole(values.get("head_dim", 0), otherwise=1) and heads > 0 and dim % heads == 0:
            values["head_dim"] = dim // heads
        if not _whole(values.get("ffn_dim", 0), otherwise=1):
            values["ffn_dim"] = max(-(-dim * 8 // 3 // 64) * 64, 0)
        if values.get("qk_norm") is None:
            values["qk_norm"] = values.get("family", "qwen3") == "qwen3"
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
        elif self.head_dim % 2:
            faults.append(
                Fault(
                    ("head_dim", "dim", "n_heads"),
                    f"head_dim={self.head_dim} is odd, and rotary positions turn channels in pairs; make it even",
                )
            )
        if self.family == "qwen3" and not self.qk_norm:
            faults.append(
                Fault(("qk_norm", "family"), "a qwen3 checkpoint always has QK-norm; drop qk_norm or set family: llama")
            )
        if self.family == "llama" and self.qk_norm:
            faults.append(
                Fault(("qk_norm", "family"), "a llama checkpoint has no QK-norm; drop qk_norm or set family: qwen3")
            )
        refuse(faults)
        return self


def _whole(value: Any, otherwise: int = 0) -> int:
    """``value`` as a whole number where it is one, written as text or not; ``None`` is 0."""
    if value is None:
        return 0
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        return otherwise
