"""Libraries of others, imported without what they say on their way in."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quietly() -> Iterator[None]:
    """Around an import: warnings, and messages that are no errors, are not shown.

    Where torchao is installed diffusers imports it: torchao then says which kernels of other devices it
    could not load, torch what torchao should no longer do, and diffusers what of torchao it cannot use.
    """
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(before)
