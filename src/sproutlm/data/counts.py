"""What became of every row, and what the records hold: filled where rows are read, merged in order, printed for a person."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from .records import Chat, Preference, Record, UnpairedPreference, messages_of

EXAMPLES = 5  # bad rows shown to the person
_COUNTERS = ("dropped", "schemas", "special", "filled")


@dataclass
class Counts:
    """What became of every row. Workers fill their own and the parent merges them, in order."""

    rows_in: int = 0
    records_out: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    truncated: int = 0
    examples: list[str] = field(default_factory=list)  # first bad rows, as file:line: sentence
    ignored_files: int = 0  # in folders and globs, for their suffix
    schemas: Counter[str] = field(default_factory=Counter)  # records by the schema of their row
    special: Counter[str] = field(default_factory=Counter)  # records with tools, tool calls, thinking, train
    placeholders: int = 0  # records with a {{name}} that stands
    placeholder_example: str = ""  # the first one, as file:line: {{name}}
    filled: Counter[str] = field(default_factory=Counter)  # rows in which each name of `fill` was replaced, zeros too
    notes: list[str] = field(default_factory=list)  # what was judged and not told, such as which column is the label

    def drop(self, reason: str, example: str = "") -> None:
        """Count a row that went in and will not come out."""
        self.dropped[reason] += 1
        if example and len(self.examples) < EXAMPLES:
            self.examples.append(example)

    def withdraw(self, reason: str, example: str = "") -> None:
        """Count a record that had come out as dropped after all (by a later step, such as one too long)."""
        self.records_out -= 1
        self.drop(reason, example)

    def come_out(self, record: Record, schema: str) -> None:
        """Count a record, its row's schema, and what it has beside text."""
        self.records_out += 1
        self.schemas[schema] += 1
        found = special_things(record)
        if found:
            self.special.update(found)

    def note(self, sentence: str) -> None:
        """Keep a sentence for the person, once."""
        if sentence and sentence not in self.notes:
            self.notes.append(sentence)

    def merge(self, other: Counts) -> None:
        """Add another's figures to these."""
        self.rows_in += other.rows_in
        self.records_out += other.records_out
        self.truncated += other.truncated
        self.placeholders += other.placeholders
        self.placeholder_example = self.placeholder_example or other.placeholder_example
        for name in _COUNTERS:
            getattr(self, name).update(getattr(other, name))
        self.examples = (self.examples + other.examples)[:EXAMPLES]
        self.ignored_files += other.ignored_files
        for sentence in other.notes:
            self.note(sentence)

    def check(self) -> None:
        """Assert that no row was lost: in = out + dropped."""
        lost = self.rows_in - self.records_out - self.dropped.total()
        assert lost == 0, f"{lost} of {self.rows_in} rows are neither records nor counted as dropped: {self}"

    def as_dict(self) -> dict[str, Any]:
        return {
            "rows_in": self.rows_in,
            "records_out": self.records_out,
            "dropped": dict(sorted(self.dropped.items())),
            "truncated": self.truncated,
            "examples": list(self.examples),
            "ignored_files": self.ignored_files,
            "schemas": dict(sorted(self.schemas.items())),
            "special": dict(sorted(self.special.items())),
            "placeholders": self.placeholders,
            "placeholder_example": self.placeholder_example,
            "filled": dict(sorted(self.filled.items())),
            "notes": list(self.notes),
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Counts:
        return cls(**{**values, **{name: Counter(values.get(name, {})) for name in _COUNTERS}})

    def lines(self) -> list[str]:
        """What a person should be told, one sentence each."""
        said = [f"{self.rows_in:,} rows read, {self.records_out:,} records"]
        if self.dropped:
            said.append(f"{self.dropped.total():,} rows dropped ({_listed(self.dropped)})")
        said += [f"  {example}" for example in self.examples]
        if len(self.schemas) > 1:
            said.append(f"rows by schema: {_listed(self.schemas)}")
        if self.special:
            said.append(f"records with {_listed(self.special)}")
        said += self.notes
        said += self._placeholder_lines()
        if self.truncated:
            said.append(f"{self.truncated:,} records truncated")
        if self.ignored_files:
            said.append(f"{self.ignored_files:,} files ignored: their suffix is not known")
        return said

    def _placeholder_lines(self) -> Iterable[str]:
        used = Counter({name: count for name, count in self.filled.items() if count})
        if used:
            yield f"placeholders filled, in rows: {_listed(used)}"
        unused = [name for name, count in self.filled.items() if not count]
        if unused:
            yield f"fill: no row has {', '.join(f'{{{{{name}}}}}' for name in sorted(unused))}; is the name spelt as in the rows?"
        if self.placeholders:
            name = self.placeholder_example.rpartition("{{")[2].strip("} \t")
            yield (
                f"{self.placeholders:,} records hold a placeholder that would be trained as it stands, first at "
                f"{self.placeholder_example}; to put text there, set fill: {{{name}: TEXT}} on the source"
            )


def _listed(counter: Counter[str]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counter.most_common())


def special_things(record: Record) -> list[str]:
    """What a record has that a person may want to know of: tools, tool calls, thinking, train."""
    if not isinstance(record, Chat | Preference | UnpairedPreference):
        return []
    calls = thinking = train = False
    for part in messages_of(record):
        for turn in part:
            if turn.tool_calls:
                calls = True
            if turn.reasoning_content:
                thinking = True
            if turn.train is not None:
                train = True
    if not (calls or thinking or train or record.tools):
        return []
    there = (("tools", bool(record.tools)), ("tool calls", calls), ("thinking", thinking), ("train or weight", train))
    return [name for name, found in there if found]
