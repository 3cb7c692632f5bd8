"""A disk that is full, and crashes at a change to the disk."""

import os
import resource
import shutil
from contextlib import contextmanager
from pathlib import Path

from halfstep import files, storage
from halfstep.training import run_identity
from halfstep.training.run_folder import RunFolder
from tests.support.runs import Crash


@contextmanager
def largest_file(size):
    """No file of this process may grow beyond `size` bytes: a full disk, as far as it can tell."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def torn(real, *args):
    """A write without the end of the file."""
    real(*args)
    paths = [args[0].folder / "metrics.jsonl"] if isinstance(args[0], RunFolder) else args
    path = next(path for path in paths if isinstance(path, Path))
    path.write_bytes(path.read_bytes()[:-5])


def remove_one_file(real, folder, **options):
    """Remove one file of a folder."""
    for path in sorted(Path(folder).glob("*"))[:1]:
        path.unlink()


def crashing(patched, at):
    """Let the change of number `at` to the disk fail, before it or half way; returns the changes."""
    changes = []

    def counted(owner, name, half=None):
        real = getattr(owner, name)

        def act(*args, **kwargs):
            for when in ("before", "within") if half else ("before",):
                changes.append(f"{when} {name}")
                if len(changes) - 1 == at:
                    if when == "within":
                        half(real, *args)
                    raise Crash
            return real(*args, **kwargs)

        patched.setattr(owner, name, act)

    patched.setattr(os, "fsync", lambda descriptor: None)  # slow
    patched.setattr(run_identity, "_commit", lambda: None)  # calls git
    for name in ("replace", "unlink", "mkdir", "chmod"):
        counted(Path, name)
    counted(os, "fsync")
    counted(storage, "save_file", torn)
    counted(files, "fill", torn)
    counted(shutil, "rmtree", remove_one_file)
    counted(RunFolder, "log", torn)
    return changes
