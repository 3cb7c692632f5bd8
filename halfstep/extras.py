"""Libraries that are extras: a missing one is a sentence with the line that installs it."""

from collections.abc import Iterator
from contextlib import contextmanager

from halfstep.errors import ConfigError
from halfstep.quiet import quietly


@contextmanager
def needed(extra: str, purpose: str) -> Iterator[None]:
    """Import an extra's library inside, quietly; `ConfigError` where it is not installed.

    purpose  what it is needed for, as "to read parquet files"
    """
    try:
        with quietly():
            yield
    except ImportError as error:
        raise ConfigError(
            f"halfstep needs {extra} {purpose} ({error}): pip install 'halfstep[{extra}]'"
        ) from None
