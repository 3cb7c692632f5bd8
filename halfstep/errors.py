"""What halfstep says when it refuses.

HalfstepError
  ConfigError       an option that cannot be: says what to write instead
  DataError         images or labels that cannot be read
  CheckpointError   a file of weights or a run folder that is damaged or belongs to something else
  NonFinite         a loss or gradient that is nan or infinite

The command line prints these as one line and exits with 2.  Any other exception is a bug of ours and
keeps its traceback.
"""

from collections.abc import Iterable
from difflib import get_close_matches


def printable(text: str) -> str:
    """In one line, with nothing that a terminal would obey: that is written as Python writes it."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class HalfstepError(ValueError):
    """The user can mend this: the message says how, in one line, in which names from files are text."""

    def __str__(self) -> str:
        return printable(super().__str__())


class ConfigError(HalfstepError):
    """An option that cannot be."""


class DataError(HalfstepError):
    """Images or labels that cannot be read."""


class CheckpointError(HalfstepError):
    """Weights or a run folder that are damaged, or belong to something else."""


class NonFinite(HalfstepError):
    """A loss or gradient is nan or infinite."""


class Stopped(Exception):
    """The user or the machine asked a run to stop; it is saved and can go on.

    Not a `HalfstepError`: a script that catches those around a run must not swallow a SIGTERM.
    """


def unknown(kind: str, name: object, known: Iterable[str]) -> ConfigError:
    """The error for a name that is not one of `known`: suggests the nearest, lists them all."""
    names = sorted(known)
    near = get_close_matches(str(name), names, n=1)
    hint = f"perhaps you meant '{near[0]}'; " if near else ""
    return ConfigError(f"there is no {kind} '{name}': {hint}choose from {', '.join(names)}")
