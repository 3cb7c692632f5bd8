"""The errors that halfstep raises.

HalfstepError
  ConfigError       an invalid option: the message says what to write instead
  DataError         images or labels that cannot be read
  CheckpointError   weights or a run folder that are damaged or belong to something else
  NonFinite         a loss or gradient that is nan or infinite

The command line prints these as one line and exits with 2.  Any other exception is a bug in halfstep and
keeps its traceback.
"""

from collections.abc import Iterable
from difflib import get_close_matches


def printable(text: str) -> str:
    """The text in one line, with control characters escaped as Python does."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class HalfstepError(ValueError):
    """An error that the user can mend; the message says how, in one line without control characters.

    Its kinds are `ConfigError`, `DataError`, `CheckpointError` and `NonFinite`.
    """

    def __str__(self) -> str:
        return printable(super().__str__())


class ConfigError(HalfstepError):
    """An invalid option."""


class DataError(HalfstepError):
    """Images or labels that cannot be read."""


class CheckpointError(HalfstepError):
    """Weights or a run folder that are damaged, or belong to something else."""


class NonFinite(HalfstepError):
    """A loss or gradient is nan or infinite."""


class Stopped(Exception):
    """A run was stopped by the user or the machine; it is saved and can be resumed.

    Not a `HalfstepError`: a script that catches those around a run must not swallow a SIGTERM.
    """


def unknown(kind: str, name: object, known: Iterable[str]) -> ConfigError:
    """The error for a name that is not in `known`: it suggests the nearest and lists them all."""
    names = sorted(known)
    near = get_close_matches(str(name), names, n=1)
    hint = f"perhaps you meant '{near[0]}'; " if near else ""
    return ConfigError(f"there is no {kind} '{name}': {hint}choose from {', '.join(names)}")
