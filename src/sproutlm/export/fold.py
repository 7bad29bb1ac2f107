"""A model as the families that others know it by compute it: what can be written into the weights is."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ..config.model import ModelConfig

EMBEDDING, HEAD = "embed_tokens.weight", "lm_head.weight"


def folded(config: ModelConfig, state: Mapping[str, Tensor]) -> tuple[ModelConfig, Mapping[str, Tensor]]:
    """The same function of the tokens without ``embedding_norm``: rows of the table divided beforehand.

    The norm of a row depends on nothing but the row. A head that is tied to the table reads the rows as they were, so that
    it becomes a matrix of its own. Any other config and state are given back as they are.
    """
    if not config.embedding_norm:
        return config, state
    table = state[EMBEDDING]
    rows = table.double()
    rows = rows / (rows.square().mean(-1, keepdim=True) + config.norm_eps).sqrt()
    changed = {**state, EMBEDDING: rows.to(table.dtype)}
    if config.tie_embeddings:
        changed[HEAD] = table
    return config.model_copy(update={"embedding_norm": False, "tie_embeddings": False}), changed
