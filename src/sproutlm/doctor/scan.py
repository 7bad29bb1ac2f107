"""One streaming pass over the rows of a source: how many have what, and where the first few of them are."""

from __future__ import annotations

import hashlib
import re
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from ..config.schema import SourceConfig
from ..data.records import Chat, Labelled, Preference, Record, Text, UnpairedPreference, texts_of
from ..data.sources import Counts, Row, open_source, record_from
from ..data.verbs.rows import content_of, hash64
from .turns import faults_of_pair, faults_of_turns

PLACES = 3  # file:line shown of each fault
TEXT_CHARACTERS = 48_000_000  # looked at in one pass: some seconds
KEPT_RECORDS, KEPT_CHARACTERS = 2_000, 1_500_000  # kept, to be tokenised as well
MOST_LABELS = 10_000
# Names that chat templates in use write around turns. In content they are nothing but text here (pitfall 4).
MARKUP = re.compile(
    r"<\|(?:im_start|im_end|endoftext|eot_id|start_header_id|end_header_id|user|assistant)\|>|\[/?INST\]"
)
_JSON_CHAT = re.compile(r'\s*(?:\[\s*)?\{\s*"(?:messages|conversations|role|from)"\s*:')


@dataclass
class Tally:
    """How many rows have something, and where the first few of them are."""

    count: int = 0
    places: list[str] = field(default_factory=list)

    def add(self, where: str) -> None:
        self.count += 1
        if len(self.places) < PLACES:
            self.places.append(where)

    def __str__(self) -> str:
        return f"{', '.join(self.places)}{', ...' if self.count > len(self.places) else ''}"


@dataclass
class Scan:
    """Figures of one pass over the rows."""

    path: str = ""
    format: str = ""
    kinds: dict[str, int] = field(default_factory=dict)
    counts: Counts = field(default_factory=Counts)
    hashes: set[bytes] = field(default_factory=set)
    content: array[int] = field(default_factory=lambda: array("Q"))  # of each record: what leaks into another part
    places: list[str] = field(default_factory=list)  # of the records in ``content``
    labels: Counter[str] = field(default_factory=Counter)
    label_at: dict[str, str] = field(default_factory=dict)
    tallies: dict[str, Tally] = field(default_factory=dict)
    kept: list[tuple[str, Record]] = field(default_factory=list)
    kept_characters: int = 0
    characters: int = 0
    cut_short: bool = False

    def add(self, name: str, where: str) -> None:
        self.tallies.setdefault(name, Tally()).add(where)

    def tally(self, name: str) -> Tally:
        return self.tallies.get(name, Tally())


def scan_rows(source: SourceConfig, rows: int) -> Scan:
    """Count what is in the first ``rows`` rows, or in the first of them that hold ``TEXT_CHARACTERS``.

    SproutError where reading cannot go on.
    """
    scan = Scan(source.path)
    # As they come: what is out of order is shown here as what it is, not as a row that cannot be read.
    opened = open_source(source.model_copy(update={"role_order": "any"}), scan.counts)
    scan.format = f"format {opened.door.format.name}"
    for raw in opened.rows:
        if scan.counts.rows_in >= rows or scan.characters >= TEXT_CHARACTERS:
            scan.cut_short = True
            break
        record = record_from(raw, opened.door, "skip", scan.counts)
        if record is not None:
            look_at(scan, record, f"{raw.path}:{raw.line}")
            scan.content.append(hash64(content_of(Row(raw.path, raw.line, None), record)))
            scan.places.append(f"{raw.path}:{raw.line}")
    scan.counts.check()
    return scan


_KINDS = {
    Text: "documents",
    Chat: "conversations",
    Preference: "pairs",
    UnpairedPreference: "rated answers",
    Labelled: "labelled texts",
}


def look_at(scan: Scan, record: Record, where: str) -> None:
    kind = _KINDS[type(record)]
    scan.kinds[kind] = scan.kinds.get(kind, 0) + 1
    digest = hashlib.blake2b(repr(record).encode("utf-8", "surrogatepass"), digest_size=8).digest()
    if digest in scan.hashes:
        scan.add("duplicate", where)
    scan.hashes.add(digest)
    texts = list(texts_of(record))
    size = sum(map(len, texts))
    scan.characters += size
    if len(scan.kept) < KEPT_RECORDS and scan.kept_characters < KEPT_CHARACTERS:
        scan.kept.append((where, record))
        scan.kept_characters += size
    for name in (*faults_of_text(texts), *faults_of_record(record)):
        scan.add(name, where)
    if isinstance(record, Labelled):
        label = str(record.label)
        if label in scan.labels or len(scan.labels) < MOST_LABELS:
            scan.labels[label] += 1
            scan.label_at.setdefault(label, where)


def faults_of_text(texts: list[str]) -> Iterator[str]:
    if any("\ufffd" in text for text in texts):
        yield "replacement"
    if any("\ufeff" in text for text in texts):
        yield "mark"
    if any(MARKUP.search(text) for text in texts):
        yield "markup"
    if any("\r\n" in text for text in texts):
        yield "crlf"
    if any("\n" in text.replace("\r\n", "") for text in texts):
        yield "lf"


def faults_of_record(record: Record) -> Iterator[str]:
    if isinstance(record, Text) and _JSON_CHAT.match(record.text):
        yield "json chat"
    if isinstance(record, Chat):
        yield from faults_of_turns(record.messages, record.tools)
    if isinstance(record, Preference):
        yield from faults_of_pair(record)
    if isinstance(record, UnpairedPreference):
        yield "desirable" if record.desirable else "undesirable"
