"""The lock of a folder that one process works in."""

import os
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from filelock import lock_descriptor

from halfstep import files
from halfstep.errors import CheckpointError, ConfigError

MOMENT = 0.05
"""Seconds after which a held lock is tried once more."""


def is_held(folder: Path) -> bool:
    """Whether a process holds the lock of a folder; nothing is written.

    False on a file system without locks.
    """
    path = folder / files.LOCK
    try:
        writable = os.access(path, os.W_OK)  # some network file systems lock only writable files
        descriptor = files.open_file(path, os.O_RDWR if writable else os.O_RDONLY)
    except OSError:
        return False
    try:
        return not lock_descriptor(descriptor, blocking=False)
    except OSError:
        return False
    finally:
        os.close(descriptor)


class FolderLock:
    """The lock of a folder, held until it is closed or the process ends.

    `ConfigError` if another process holds it, unless `wait` is set.  `notes` has a sentence for the user if
    the file system has no locks.
    """

    def __init__(self, folder: Path, *, wait: bool = False):
        self.folder, self.notes = folder, list[str]()
        self._file = os.fdopen(files.open_file(folder / files.LOCK, os.O_RDWR | os.O_CREAT), "rb")
        try:
            free = lock_descriptor(self._file.fileno(), blocking=wait)
            if not free:  # `is_held` may have it for a moment
                time.sleep(MOMENT)
                free = lock_descriptor(self._file.fileno(), blocking=False)
        except OSError as error:
            self.notes.append(
                f"this file system has no locks ({error.strerror}): start no second process"
            )
            return
        if not free:
            self.close()
            raise ConfigError(
                f"another process is working on '{folder}': wait for it, or choose another --out"
            )

    def check(self) -> None:
        """`CheckpointError` if the folder was removed or replaced since."""
        try:
            stat = os.stat(self.folder / files.LOCK, follow_symlinks=False)
        except OSError:
            stat = None
        if stat is None or not os.path.samestat(stat, os.fstat(self._file.fileno())):
            raise CheckpointError(
                f"'{self.folder}' was moved or deleted while this process worked in it: put it back, or "
                "run the same command again to begin anew"
            )

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()
