"""Conversations, pairs and rated answers: turns out of order, calls without results, sides that differ in their wrapper."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ..data.conversations import check_role_order, says_something
from ..data.fields import RowError
from ..data.records import Message, Preference, Tools
from .finding import Examination, counted, do

if TYPE_CHECKING:
    from .scan import Scan

ONE_VERDICT_SHARE = 0.95  # of rated answers with the same verdict, above which they teach little else

# name, of one, of several, cure, pitfall
TURNS = (
    ("repeated role", "has two turns of one role in a row", "have two turns of one role in a row",
     "join them, or put in the turn that is missing; training takes them only with role_order: any", 13),
    ("assistant first", "begins with the assistant, whose first words then answer nothing",
     "begin with the assistant, whose first words then answer nothing",
     "cut that turn; training takes them only with role_order: any", 13),
    ("stray result", "has a tool's result without its call before it, or without an answer after it",
     "have a tool's result without its call before it, or without an answer after it",
     "put in the turn that is missing; training takes them only with role_order: any", 13),
    ("call without a result", "goes on after a tool call without the tool's result",
     "go on after a tool call without the tool's result",
     "put in the results (role: tool), or the model learns to make them up", 13),
    ("unknown tool", "calls a tool that its tools do not list", "call a tool that their tools do not list",
     "list the tool in the row's tools, or take the call out: the model learns to call what is not offered", None),
    ("user last", "ends with the user, whose last words train nothing", "end with the user, whose last words train nothing",
     "cut that turn, or add the answer", 13),
    ("empty answer", "holds an empty answer, which trains the model to say nothing",
     "hold an empty answer, which trains the model to say nothing", "take these turns out", 1),
    ("nothing trained", "trains nothing, by its train or weight fields; it is dropped",
     "train nothing, by their train or weight fields; they are dropped",
     "take them out, or set train: true on an answer", 23),
)  # fmt: skip


# --- of one record ----------------------------------------------------------------------------------------------------


def faults_of_turns(messages: Sequence[Message], tools: Tools = ()) -> Iterator[str]:
    """Names of what is unusual in a conversation."""
    turns = [message for message in messages if message.role != "system"]
    roles = [message.role for message in turns]
    if any(a == b != "tool" for a, b in itertools.pairwise(roles)):  # several calls have several results
        yield "repeated role"
    if roles[:1] == ["assistant"]:
        yield "assistant first"
    fault = order_fault(messages)
    if fault:
        yield "out of order"
    if "tool" in fault or _answers_another_call(messages):
        yield "stray result"
    if any(a.tool_calls and b.role != "tool" for a, b in itertools.pairwise(turns)):  # a call may stand last
        yield "call without a result"
    known = {tool.get("function", tool).get("name") for tool in tools if isinstance(tool.get("function", tool), dict)}
    if known and any(call.name not in known for turn in turns for call in turn.tool_calls):
        yield "unknown tool"
    if roles[-1:] == ["user"]:
        yield "user last"
    if any(message.role == "assistant" and not says_something(message) for message in turns):
        yield "empty answer"
    if not any(m.train if m.train is not None else m.role == "assistant" for m in messages):
        yield "nothing trained"
    if any(m.train and m.role != "assistant" for m in messages):
        yield "others trained"


def order_fault(messages: Sequence[Message]) -> str:
    """The reason for which ``role_order: strict`` refuses a conversation; empty where it takes it."""
    try:
        check_role_order(messages)
    except RowError as error:
        return error.reason
    return ""


def _answers_another_call(messages: Sequence[Message]) -> bool:
    """Whether a tool's result names a call that the turn before it did not make."""
    asked: set[str | None] = set()
    for turn in messages:
        if turn.role == "assistant":
            asked = {call.id for call in turn.tool_calls}
        elif (
            turn.role == "tool" and turn.tool_call_id and asked and None not in asked and turn.tool_call_id not in asked
        ):
            return True
    return False


def faults_of_pair(pair: Preference) -> Iterator[str]:
    """Names of what is unusual in a pair."""
    thoughts = [any(turn.reasoning_content is not None for turn in side) for side in (pair.chosen, pair.rejected)]
    if thoughts[0] != thoughts[1]:
        yield "think in chosen only" if thoughts[0] else "think in rejected only"
    if pair.chosen == pair.rejected:
        yield "equal sides"
    for side in (pair.chosen, pair.rejected):
        if order_fault((*pair.prompt, *side)) not in ("", "empty turn"):
            yield "turns out of order"
            return


# --- of all -----------------------------------------------------------------------------------------------------------


def conversation_faults(found: Examination, scan: Scan) -> None:
    chats = scan.kinds["conversations"]
    clean = True
    for name, one, several, cure, pitfall in TURNS:
        tally = scan.tally(name)
        if tally.count:
            clean = False
            what = f"{tally.count:,} of {counted(chats, 'conversation')} {do(tally.count, several, one)}: {tally}"
            found.warn(name, what, cure, pitfall)
    if clean:
        what = (
            f"all {chats:,} conversations take turns and end" if chats > 1 else "the conversation takes turns and ends"
        )
        found.ok("turns", f"{what} with an answer", 13)
    others = scan.tally("others trained")
    if others.count:
        what = f"{counted(others.count, 'conversation')} {do(others.count, 'ask', 'asks')} to train turns of others: {others}"
        found.ok("turns of others", what, 3)


def order_refused(found: Examination, scan: Scan, on_bad_row: str) -> None:
    """What a recipe with ``role_order: strict`` makes of conversations that do not take turns."""
    tally = scan.tally("out of order")
    if not tally.count:
        return
    what = f"{tally.count:,} of {counted(scan.kinds['conversations'], 'conversation')} {do(tally.count, 'are', 'is')} refused by role_order: strict"
    cure = "mend them, or set role_order: any on the source to take them as they come"
    if on_bad_row == "error":
        found.fail(
            "role order", f"{what}, and training stops at the first: {tally}", f"{cure}, or data.on_bad_row: skip", 13
        )
    else:
        found.warn("role order", f"{what} and dropped (data.on_bad_row: skip): {tally}", cure, 13)


def without_answers(found: Examination, scan: Scan) -> None:
    """Rows of turns in which nobody answers: they were dropped at the door."""
    dropped = scan.counts.dropped["no assistant turn"]
    if dropped:
        what = f"{counted(dropped, 'conversation')} {do(dropped, 'have', 'has')} no assistant turn and cannot train anything"
        found.warn("assistant turns", what, "add the answers, or take them out; is `from: gpt` spelt otherwise?", 3)


def pair_faults(found: Examination, scan: Scan) -> None:
    pairs = scan.kinds["pairs"]
    of_all = f"of {counted(pairs, 'pair')}"
    clean = True
    for side in ("chosen", "rejected"):
        think = scan.tally(f"think in {side} only")
        if think.count:
            clean = False
            found.warn(
                "one-sided wrapper",
                f"{think.count:,} {of_all} {do(think.count, 'have', 'has')} a think block on the {side} side only: {think}",
                "write it on both sides or on none, or the model learns the wrapper and not the answer",
                6,
            )
    for name, several, one, cure in (
        (
            "equal sides",
            "have equal sides",
            "has equal sides",
            "take them out: nothing tells the better from the worse",
        ),
        (
            "turns out of order",
            "have turns out of order",
            "has turns out of order",
            "mend them, or set role_order: any",
        ),
    ):
        tally = scan.tally(name)
        if tally.count:
            clean = False
            found.warn(name, f"{tally.count:,} {of_all} {do(tally.count, several, one)}: {tally}", cure)
    if clean:
        what = f"the two sides of all {pairs:,} pairs" if pairs > 1 else "the two sides of the pair"
        found.ok("pairs", f"{what} differ, and think on both sides or on none", 6)


def rated_faults(found: Examination, scan: Scan) -> None:
    """Rated answers of which all have one verdict cannot teach the difference."""
    rated, liked = scan.kinds["rated answers"], scan.tally("desirable").count
    what = f"{counted(rated, 'rated answer')}, {liked:,} liked and {rated - liked:,} not"
    if max(liked, rated - liked) > ONE_VERDICT_SHARE * rated and rated > 1:
        cure = "give answers of both kinds; are true and false what they should be?"
        found.warn("verdicts", f"{what}: hardly anything tells a good answer from a bad one", cure)
    else:
        found.ok("verdicts", what)


def label_faults(found: Examination, scan: Scan) -> None:
    """How the classes are shared out."""
    labels, texts = scan.labels, scan.kinds["labelled texts"]
    shown = ", ".join(f"{label} {n:,}" for label, n in labels.most_common(6)) + (", ..." if len(labels) > 6 else "")
    if len(labels) == 1 and texts > 1:
        cure = "is this the label's column? name it: columns: {label: COLUMN, text: COLUMN}"
        found.warn("labels", f"every text has the same label ({shown}), so there is nothing to tell apart", cure)
        return
    if len(labels) > max(20, texts // 2):
        cure = "is this the label's column? name it: columns: {label: COLUMN, text: COLUMN}"
        found.warn(
            "labels", f"{len(labels):,} labels in {counted(texts, 'text')}, as if each were one of its own", cure
        )
        return
    rare = [label for label, n in labels.items() if n == 1 and texts >= 50]
    if rare:
        cure = "give more of them, or take them out; a part that lacks them cannot be judged on them"
        found.warn(
            "labels",
            f"{counted(len(rare), 'label')} {do(len(rare), 'have', 'has')} one text only: {', '.join(rare[:3])}",
            cure,
        )
        return
    found.ok("labels", shown)
