"""The errors that a person can meet, each with the exit code that the command line ends with.

Raise these for what the user can mend (the message names the file, the line or key, what was met and what was
wanted); use ``assert`` for what only a programmer can. Exit codes follow sysexits where it has one:
0 done, 1 run failed, 2 usage or configuration, 3 data, 4 a gate said no, 75 stopped but resumable,
130 and 143 after SIGINT and SIGTERM.
"""


class WhippetError(Exception):
    """A run failed for a reason that the message states. Exit code 1."""

    exit_code = 1


class UsageError(WhippetError, ValueError):
    """A wrong argument, recipe key, model folder or output folder. Exit code 2."""

    exit_code = 2


class ModelError(UsageError):
    """A checkpoint, tokenizer or template that cannot be used: missing, corrupt, unknown or unsafe. Exit code 2."""


class MissingExtra(UsageError):
    """An optional package is needed and absent; the message holds its pip command. Exit code 2."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs the package '{package}'. Install it with: pip install 'whippet[{extra}]'")


class DataError(WhippetError, ValueError):
    """Training data that cannot be used. Exit code 3."""

    exit_code = 3


class GateError(WhippetError):
    """A check that was asked for said no (evaluation regression, export parity, guard). Exit code 4."""

    exit_code = 4


class StoppedResumable(WhippetError):
    """The run stopped before its end with a complete checkpoint; the same command goes on. Exit code 75."""

    exit_code = 75
