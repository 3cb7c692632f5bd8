"""Import other libraries without their warnings and messages."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quietly() -> Iterator[None]:
    """Hide warnings, and log messages below errors, around an import.

    diffusers imports torchao where it is installed: torchao then reports the kernels of other devices that
    it could not load, torch reports torchao's deprecated calls, and diffusers the torchao features that it
    cannot use.
    """
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(before)
