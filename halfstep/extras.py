"""Libraries that are extras: a missing one is a sentence with the line that installs it."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from halfstep.errors import ConfigError
from halfstep.quiet import quietly


@contextmanager
def needed(extra: str, purpose: str, *, library: str | None = None) -> Iterator[None]:
    """Import an extra's library inside, quietly; `ConfigError` where it is not installed.

    purpose  what it is needed for, as "to read parquet files"
    library  its name, if the extra has another
    """
    try:
        with quietly():
            yield
    except ImportError as error:
        raise ConfigError(
            f"halfstep needs {library or extra} {purpose} ({error}): pip install 'halfstep[{extra}]'"
        ) from None


def installed(library: str) -> bool:
    """Whether a library can be imported; it is not imported here."""
    return find_spec(library) is not None
