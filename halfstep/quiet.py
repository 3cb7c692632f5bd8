"""Import other libraries without their warnings and messages."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

_LOCK = Lock()
_BEFORE = list[int]()
"""What was disabled before each import that is under way; threads may end in another order."""


@contextmanager
def quietly() -> Iterator[None]:
    """Hide warnings, and log messages below errors, around an import.

    diffusers imports torchao where it is installed: torchao then reports the kernels of other devices that
    it could not load, torch reports torchao's deprecated calls, and diffusers the torchao features that it
    cannot use.
    """
    with _LOCK:
        before = _BEFORE[0] if _BEFORE else logging.root.manager.disable
        _BEFORE.append(before)
        logging.disable(max(before, logging.WARNING))
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        with _LOCK:
            _BEFORE.pop()
            if not _BEFORE:
                logging.disable(before)
