"""Errors that a person can act on. The command line turns each into one message and an exit code, without a traceback."""


class SproutError(Exception):
    """A person's mistake: the message says what was wrong, where, what was expected and what to do."""

    exit_code = 1


class RecipeError(SproutError):
    """One or more faults in a recipe, all reported at once, one line each."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


class DataError(SproutError):
    """A data file or row that cannot be read as what it should be."""


class CheckpointError(SproutError):
    """A checkpoint that is damaged, missing, or belongs to another run, model, tokenizer or data set."""


class CheckFailed(SproutError):
    """A check ran to its end and what it checked does not hold."""

    exit_code = 2


class OutOfMemory(SproutError):
    """The run does not fit; the message ranks what would make it fit."""

    exit_code = 3


class RankLost(SproutError):
    """Another process of the run went away or did not answer: this one cannot go on, and the run can be started again."""

    exit_code = 4


class Interrupted(SproutError):
    """The run was asked to stop (SIGINT or SIGTERM) and saved first."""

    exit_code = 130
