"""A disk that is full."""

import resource
from contextlib import contextmanager


@contextmanager
def largest_file(size):
    """No file of this process may grow beyond `size` bytes: a full disk, as far as it can tell."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
