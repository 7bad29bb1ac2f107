"""What every section of a recipe has in common, and how a section says that its fields do not go together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError


@dataclass(frozen=True)
class Fault:
    """An impossible combination: the fields concerned (dotted, the one to mark first) and a sentence with the cure."""

    keys: tuple[str, ...]
    message: str


def refuse(faults: Sequence[Fault]) -> None:
    """Raise one validation error that carries every fault; ``config.problems`` finds their lines again."""
    if faults:
        text = "; ".join(f"{fault.keys[0]}: {fault.message}" for fault in faults)
        # Braces would be read as a template by PydanticCustomError.
        raise PydanticCustomError("combination", "{text}", {"text": text, "faults": list(faults)})


class Section(BaseModel):
    """Unknown keys are errors, and infinities are not numbers."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Strict(Section):
    """A section in which ``true`` is no number. (Pydantic allows no such check beside a discriminator: see ``Stage``.)"""

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_not_one(cls, value: Any, info: ValidationInfo) -> Any:
        """YAML reads ``yes`` and ``on`` as booleans, and Python would go on to read those as the number 1."""
        if isinstance(value, bool) and info.field_name is not None:
            kinds = _leaf_types(cls.model_fields[info.field_name].annotation)
            if bool not in kinds and kinds & {int, float}:
                raise PydanticCustomError("not_a_number", "must be a number")
        return value


def _leaf_types(annotation: Any) -> set[Any]:
    parts = get_args(annotation)
    return set().union(*(_leaf_types(part) for part in parts)) if parts else {annotation}
