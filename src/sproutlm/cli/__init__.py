"""The ``sprout`` command: one file per group of verbs. Nothing heavy is imported before a verb needs it."""

from __future__ import annotations

import errno
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.main import get_command

from .. import __version__
from ..errors import Interrupted, RankLost, RecipeError, SproutError
from . import data, doctor, download, exchange, launch, plan, recipes, report, tokenizer, use, verify

app = typer.Typer(
    name="sprout",
    help="From raw text to a language model that people can talk to.",
    epilog="Begin with: sprout quickstart",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # plain help: importing rich would triple the time that --help takes
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def _sprout(version: Annotated[bool, typer.Option("--version", help="Print the version and end.")] = False) -> None:
    if version:
        typer.echo(f"sproutlm {__version__}")
        raise typer.Exit()


for part in (recipes, launch, plan, data, download, tokenizer, use, exchange, doctor, report, verify):
    part.add_to(app)

# click's own classes, wherever this version of typer keeps them.
_ClickException: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")

DONE, MISTAKE, OUT_OF_MEMORY, INTERRUPTED = 0, 1, 3, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 1 a mistake, 2 a failed check, 3 out of memory, 130 interrupted.

    What a person can act on is one message on stderr; anything else is a fault of ours and keeps its traceback.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the shell (>&-): what is printed goes nowhere
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # A terminal that cannot show Chinese shows a substitute and does not end the run.
            stream.reconfigure(errors="replace")
    warnings.showwarning = _one_line
    try:
        code = get_command(app).main(
            args=None if arguments is None else list(arguments), prog_name="sprout", standalone_mode=False
        )
        sys.stdout.flush()
        # typer answers Ctrl-C itself, with this code and without a word.
        return _fail("interrupted", INTERRUPTED) if code == INTERRUPTED else int(code or DONE)
    except SproutError as error:
        rank = os.environ.get("RANK", "0")  # of several processes
        if rank != "0" and isinstance(error, RecipeError | Interrupted):
            return error.exit_code  # all of them end so: the first says it
        whose = "" if rank == "0" or isinstance(error, RankLost) else f"rank {rank}: "
        return _fail(whose + _message(error), error.exit_code)
    except _ClickException as error:
        return _usage(error)
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted", INTERRUPTED)
    except BrokenPipeError:
        return _broken_pipe()
    except SystemExit as end:  # click ends so when the reader of a pipe went away
        return end.code if isinstance(end.code, int) else DONE
    except OSError as error:
        if error.errno == errno.ENOSPC:
            return _fail(f"the disk is full ({error.filename or 'while writing'}); make room and start again", MISTAKE)
        raise
    except (MemoryError, RuntimeError) as error:
        if _is_out_of_memory(error):
            first_line = (str(error).splitlines() or ["no memory left"])[0]
            return _fail(
                f"out of memory: {first_line}. Lower train.micro_batch, then data.seq_len, then the model's size",
                OUT_OF_MEMORY,
            )
        raise


def _one_line(message: Warning | str, *_: Any, **__: Any) -> None:
    """A warning as a person reads it: the sentence, without the line of code that gave it."""
    print(f"warning: {message}", file=sys.stderr, flush=True)


def _fail(message: str, code: int) -> int:
    print(f"error: {message}", file=sys.stderr, flush=True)
    return code


def _message(error: SproutError) -> str:
    if isinstance(error, RecipeError) and len(error.problems) > 1:
        return "\n  ".join([f"{len(error.problems)} problems", *error.problems])
    return str(error)


def _usage(error: Any) -> int:
    """A command line that cannot be read is a person's mistake (1); 2 is kept for failed checks."""
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        print(error.format_message())
        return DONE
    see = f" (see: {context.command_path} --help)" if context is not None else ""
    return _fail(error.format_message().rstrip(".") + see, MISTAKE)


def _broken_pipe() -> int:
    """The reader went away, as ``head`` does: end quietly, also when Python flushes at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return DONE


def _is_out_of_memory(error: BaseException) -> bool:
    torch = sys.modules.get("torch")
    if isinstance(error, MemoryError) or (torch is not None and isinstance(error, torch.OutOfMemoryError)):
        return True
    # The CPU allocator raises a plain RuntimeError.
    return "DefaultCPUAllocator" in str(error) or "not enough memory" in str(error)


__all__ = ["app", "main"]
