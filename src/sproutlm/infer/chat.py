"""The terminal conversation: lines in, streamed answers out. The same in a pipe, where only answers are written."""

from __future__ import annotations

import builtins
import difflib
import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

from ..errors import SproutError
from .conversation import RESET, Conversation, converse
from .generate import open_model, stage_of
from .sampling import SamplingParams

__all__ = ["Conversation", "Terminal", "chat", "converse"]

HELP = """\
/reset         forget what was said and start over
/system TEXT   set the system prompt; without TEXT, remove it
/save FILE     add this conversation to FILE, a .jsonl that fine-tuning reads
/help          show this
/exit          leave (so does Ctrl-D)
Ctrl-C stops an answer; twice, it leaves. Anything else is said to the model."""
COMMANDS = (RESET, "/system", "/save", "/help", "/exit")
PROMPT = "you: "


def chat(
    path: Path | str,
    *,
    system: str | None = None,
    params: SamplingParams | None = None,
    greedy: bool = False,
    input: TextIO | None = None,
    output: TextIO | None = None,
    **sampling: Any,
) -> None:
    """Talk to the model at ``path`` until the input ends.

    Sampling comes as ``params``, or as fields of ``SamplingParams`` by name, which go before. Answers go to ``output``;
    what the program itself says goes to stderr, so that a pipe carries the answers alone.
    """
    params = replace(params or SamplingParams(), **sampling)
    model, tokenizer = open_model(path)
    conversation = Conversation(model, tokenizer, replace(params, temperature=0.0) if greedy else params, system)
    terminal = Terminal(conversation, input or sys.stdin, output or sys.stdout)
    if stage_of(path) == "pretrain":
        terminal.note("this model was only pretrained: it has learned to continue text, not to answer")
    if terminal.interactive:
        terminal.note(f"{path}: say something; /help shows what else you can type")
    terminal.run()


class Terminal:
    """Reads lines from ``input`` and writes answers to ``output`` until the input ends or the person leaves."""

    def __init__(
        self,
        conversation: Conversation,
        input: TextIO,
        output: TextIO,
        note: Callable[[str], None] | None = None,
    ) -> None:
        self.conversation, self.input, self.output = conversation, input, output
        self.note = note or (lambda sentence: print(sentence, file=sys.stderr, flush=True))
        self.interactive = input.isatty() and output.isatty()
        for stream in (input, output):
            if hasattr(stream, "reconfigure"):
                # A broken byte in a pipe becomes a substitute character and does not end the conversation.
                stream.reconfigure(errors="replace")
        if self.interactive:
            try:
                import readline  # noqa: F401 - gives input() its line editing and history
            except ImportError:
                pass

    def run(self) -> None:
        interrupts = 0
        while interrupts < 2:
            try:
                line = self.read()
            except KeyboardInterrupt:
                interrupts += 1
                self.write("\n")
                if interrupts < 2:
                    self.note("Ctrl-C again, or /exit, leaves")
                continue
            if line is None:
                if self.interactive:
                    self.write("\n")
                return
            line = line.strip()
            if line.startswith("/"):
                if not self.command(line):
                    return
            elif line:
                interrupts = 0 if self.say(line) else 1
                continue
            interrupts = 0

    def read(self) -> str | None:
        """The next line; None at the end of the input."""
        if self.interactive and self.input is sys.stdin:
            try:
                line = builtins.input(PROMPT)
            except EOFError:
                return None
        else:
            if self.interactive:
                self.write(PROMPT)
            line = self.input.readline()
            if not line:
                return None
        # Some terminals pass bytes that they cannot read as lone surrogates, which no tokenizer takes.
        return line.encode("utf-16", "surrogatepass").decode("utf-16", "replace").lstrip("\ufeff")

    def say(self, text: str) -> bool:
        """Say ``text`` and write the answer as it comes. False when the person stopped it."""
        pieces = self.conversation.answer(text)
        try:
            if self.interactive:
                self.write("model: ")
            self.write_all(pieces)
        except KeyboardInterrupt:
            pieces.close()
            self.write("\n")
            self.note("stopped")
            return False
        except SproutError as error:
            if self.interactive:
                self.write("\n")
            self.note(f"not said: {error}")
            return True
        self.write("\n")
        completion = self.conversation.completion
        if completion is not None and completion.finish_reason == "length":
            self.note(f"the answer was cut at {len(completion.ids)} tokens")
        if self.conversation.dropped:
            self.note(f"the context is full: the oldest {self.conversation.dropped} messages were left out")
        return True

    def write_all(self, pieces: Iterable[str]) -> None:
        for piece in pieces:
            self.write(piece)

    def write(self, text: str) -> None:
        self.output.write(text)
        self.output.flush()

    # --- commands -------------------------------------------------------------------------------------------------------

    def command(self, line: str) -> bool:
        """Do one ``/command``. False when it is the one that leaves."""
        name, _, argument = line.partition(" ")
        argument = argument.strip()
        if name == "/exit":
            return False
        if name == "/help":
            self.note(HELP)
        elif name == RESET:
            self.conversation.reset()
            self.note("started over")
        elif name == "/system":
            self.conversation.system = argument or None
            self.note("the system prompt is set" if argument else "the system prompt is removed")
        elif name == "/save":
            self.save(argument)
        else:
            near = difflib.get_close_matches(name, COMMANDS, n=1)
            self.note(f"{name} is no command; {f'did you mean {near[0]}?' if near else '/help shows them all'}")
        return True

    def save(self, file: str) -> None:
        """Add the conversation to ``file`` as one row that trains again; answers without an end are marked."""
        conversation = self.conversation
        if not file or not conversation.messages:
            self.note("there is nothing to save yet" if file else "/save needs a file: /save talks.jsonl")
            return
        head = [{"role": "system", "content": conversation.system}] if conversation.system else []
        row = json.dumps({"messages": [*head, *conversation.messages]}, ensure_ascii=False)
        target = Path(file).expanduser()
        try:
            with open(target, "a", encoding="utf-8", newline="\n") as rows:
                rows.write(row + "\n")
        except OSError as error:
            self.note(f"{target}: cannot be written ({error.strerror}); name another file")
        else:
            self.note(f"added to {target}")
