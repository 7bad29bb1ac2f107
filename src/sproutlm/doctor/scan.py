"""One streaming pass over the rows of a source: how many have what, and where the first few of them are."""

from __future__ import annotations

import hashlib
import itertools
import re
from dataclasses import dataclass, field

from ..config.schema import SourceConfig
from ..data.conversations import check_role_order, says_something
from ..data.fields import RowError
from ..data.records import Chat, Labelled, Message, Preference, Record, Text, UnpairedPreference, texts_of
from ..data.sources import Counts, open_source, record_from

PLACES = 3  # file:line shown of each fault
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

    format: str = ""
    kinds: dict[str, int] = field(default_factory=dict)
    counts: Counts = field(default_factory=Counts)
    hashes: set[bytes] = field(default_factory=set)
    tallies: dict[str, Tally] = field(default_factory=dict)
    cut_short: bool = False

    def add(self, name: str, where: str) -> None:
        self.tallies.setdefault(name, Tally()).add(where)

    def tally(self, name: str) -> Tally:
        return self.tallies.get(name, Tally())


def scan_rows(source: SourceConfig, rows: int) -> Scan:
    """Count what is in the first ``rows`` rows. SproutError where reading cannot go on."""
    scan = Scan()
    # As they come: what is out of order is shown here as what it is, not as a row that cannot be read.
    opened = open_source(source.model_copy(update={"role_order": "any"}), scan.counts)
    scan.format = f"format {opened.door.format.name}"
    for raw in itertools.islice(opened.rows, rows):
        record = record_from(raw, opened.door, "skip", scan.counts)
        if record is not None:
            look_at(scan, record, f"{raw.path}:{raw.line}")
    scan.counts.check()
    scan.cut_short = next(opened.rows, None) is not None
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
    for name, present in (
        ("replacement", any("\ufffd" in text for text in texts)),
        ("crlf", any("\r\n" in text for text in texts)),
        ("lf", any("\n" in text.replace("\r\n", "") for text in texts)),
        ("mark", any("\ufeff" in text for text in texts)),
        ("markup", any(MARKUP.search(text) for text in texts)),
    ):
        if present:
            scan.add(name, where)
    if isinstance(record, Text) and _JSON_CHAT.match(record.text):
        scan.add("json chat", where)
    if isinstance(record, Chat):
        look_at_turns(scan, record.messages, where)
    if isinstance(record, Preference):
        thoughts = [side[-1].reasoning_content for side in (record.chosen, record.rejected)]
        sides = [thought is not None and not thought.strip() for thought in thoughts]
        if sides[0] != sides[1]:
            scan.add("one-sided think", where)
        if record.chosen == record.rejected:
            scan.add("equal sides", where)


def look_at_turns(scan: Scan, messages: tuple[Message, ...], where: str) -> None:
    turns = [message for message in messages if message.role != "system"]
    roles = [message.role for message in turns]
    if any(a == b != "tool" for a, b in itertools.pairwise(roles)):  # several calls have several results
        scan.add("repeated role", where)
    if roles[0] == "assistant":
        scan.add("assistant first", where)
    try:
        check_role_order(messages)
    except RowError as error:
        if "tool" in error.reason:
            scan.add("stray result", where)
    if roles[-1] == "user":
        scan.add("user last", where)
    if any(message.role == "assistant" and not says_something(message) for message in turns):
        scan.add("empty answer", where)
    trained = [m.train if m.train is not None else m.role == "assistant" for m in messages]
    if not any(trained):
        scan.add("nothing trained", where)
    if any(m.train and m.role != "assistant" for m in messages):
        scan.add("others trained", where)
