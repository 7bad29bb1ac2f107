"""The names that a recipe knows, and the nearest of them to one that it does not."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from typing import Any, get_args

from pydantic import BaseModel

from .document import Key


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """The sections inside a type: those of a list's items, of each member of a union."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in models_in(part)]


def sections_at(root: type[BaseModel], key: Key, data: Any) -> list[type[BaseModel]]:
    """The sections that may stand at ``key``; ``data`` tells which kind of stage it is."""
    sections: list[type[BaseModel]] = [root]
    for part in key:
        data = _child(data, part)
        if isinstance(part, str):
            fields = [section.model_fields[part] for section in sections if part in section.model_fields]
            sections = [model for field in fields for model in models_in(field.annotation)]
        kind = data.get("do") if isinstance(data, dict) else None
        named = [section for section in sections if kind in _kinds(section)]
        sections = named or sections
    return sections


def _child(data: Any, part: str | int) -> Any:
    try:
        return data[part]
    except (KeyError, IndexError, TypeError):
        return None


def _kinds(section: type[BaseModel]) -> tuple[Any, ...]:
    return get_args(section.model_fields["do"].annotation) if "do" in section.model_fields else ()


def all_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every dotted key below ``model`` that is reached without a list."""
    for name, field in model.model_fields.items():
        yield prefix + name
        arguments = get_args(field.annotation)
        children = [field.annotation] if not arguments else [part for part in arguments if isinstance(part, type)]
        for child in children:
            if isinstance(child, type) and issubclass(child, BaseModel):
                yield from all_keys(child, f"{prefix}{name}.")


def nearest_name(
    name: str,
    sections: Iterable[type[BaseModel]] = (),
    root: type[BaseModel] | None = None,
    *,
    choices: Iterable[str] = (),
) -> str | None:
    """The likeliest name meant: in the same section first, then the same name in another section, dotted."""
    here = [*choices, *(field for section in sections for field in section.model_fields)]
    close = difflib.get_close_matches(name.lower(), here, n=1, cutoff=0.65)
    if close:
        return close[0]
    elsewhere = [key for key in all_keys(root) if key.rpartition(".")[2] == name] if root else []
    return elsewhere[0] if elsewhere else None
