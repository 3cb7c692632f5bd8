"""Writing to the disk: files that are whole or not there, folders, and the lock of a folder.

All that halfstep writes passes here, so that the same is true of every file: it has a temporary name
of its own until it is whole and on the disk, two processes that write it do not meet, no link is
followed, and what the disk refuses is one sentence.  Texts are UTF-8 in every locale.
"""

import errno
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path
from types import TracebackType
from typing import Self

from filelock import lock_descriptor

from halfstep.errors import CheckpointError, ConfigError

LOCK = ".lock"
PART = re.compile(r"(?P<name>.+)\.[0-9a-f]{12}\.part")
STALE = 3600.0
"""Seconds after which nobody is writing a temporary file any more."""

UNSUPPORTED = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF)
"""What file systems answer that cannot do what was asked, and lose nothing by it."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
GONE = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Around writing `path`: what the disk refuses becomes one sentence."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error).partition("\n")[0]
        raise CheckpointError(
            f"cannot write '{path}': {reason}; what was saved before is untouched: {_advice(error.errno)}"
        ) from error


def _advice(code: int | None) -> str:
    if code in FORBIDDEN:
        return "make the folder writable, or choose another"
    if code in GONE:
        return "its folder does not exist (any more): choose another, or run the same command again"
    if code in FULL:
        return "make room and run the same command again"
    return "mend that and run the same command again"


@contextmanager
def replacing(*paths: Path, durable: bool = True) -> Iterator[tuple[Path, ...]]:
    """Empty files to be filled, which get these names, in this order, once the block has ended.

    When it raises, what had these names before is untouched, and they are removed; what a crash leaves of
    them `tidy` removes.

    durable  the files survive a power cut; pictures by the thousand need not, which is faster
    """
    parts = tuple(map(temporary_path, paths))
    try:
        with writing(paths[0]):
            for part in parts:
                os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
            yield parts
            for part in parts if durable else ():
                flush(part)
            for part, path in zip(parts, paths, strict=True):
                part.replace(path)
                if durable:
                    flush_folder(path.parent)
    except (Exception, KeyboardInterrupt):
        for part in parts:
            with suppress(OSError):
                part.unlink()
        raise


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8; all or nothing.  `ConfigError` names what is no Unicode."""
    content = encoded(text, f"cannot write '{path}'")
    with replacing(path) as (part,):
        fill(part, content)


def fill(part: Path, content: bytes | memoryview) -> None:
    """Put this into one of the files that `replacing` gives."""
    part.write_bytes(content)


def encoded(text: str, what: str) -> bytes:
    """The text in UTF-8; `ConfigError`, which begins with `what`, where a name in it is none."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        around = text[max(0, error.start - 20) : error.end + 20].split("\n")
        word = next(line for line in around if not is_text(line))
        raise ConfigError(
            f"{what}: {word!a} holds a name that is not UTF-8: rename that file or folder"
        ) from None


def name_of(folder: Path) -> str:
    """A folder's own name as text, in which "?" stands for what is no Unicode."""
    return folder.resolve().name.encode(errors="replace").decode()


def is_text(name: str) -> bool:
    """Whether a name, as the system gives it, is Unicode."""
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


def append(path: Path, text: str) -> None:
    """Add to the end of a file of ours, which is made where there is none."""
    content = encoded(text, f"cannot write '{path}'")
    with writing(path):
        descriptor = _open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            if os.fstat(descriptor).st_nlink > 1:  # a copy by hard links keeps what it has
                with replacing(path) as (part,):
                    fill(part, path.read_bytes())
                shared, descriptor = descriptor, _open(path, os.O_WRONLY | os.O_APPEND)
                os.close(shared)
            while content:
                content = content[os.write(descriptor, content) :]
        finally:
            os.close(descriptor)


def _open(path: Path, flags: int) -> int:
    """A descriptor of a file itself; `ConfigError` where a link has its name."""
    if not hasattr(os, "O_NOFOLLOW"):  # Windows
        refuse_link(path)
    special = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    try:
        return os.open(path, flags | special, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _linked(path) from None
        raise


def refuse_link(path: Path) -> None:
    """`ConfigError` where a link has this name: what is written there would lie elsewhere."""
    if path.is_symlink():
        raise _linked(path)


def _linked(path: Path) -> ConfigError:
    return ConfigError(
        f"'{path}' is a link, and halfstep writes only into the folder itself: delete the link"
    )


def read_text(path: Path) -> str:
    """A text file in UTF-8, with or without a byte order mark; the reader names what it cannot read."""
    return path.read_text(encoding="utf-8-sig")


# -- folders ---------------------------------------------------------------------------------------


def make_folder(folder: Path) -> Path:
    """Make it where there is none, and remove temporary files that a crash left in it."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    tidy(folder)
    return folder


def subfolder(folder: Path, *names: str) -> Path:
    """A folder within one that exists, made where there is none; `ConfigError` where one is a link."""
    for name in names:
        folder = folder / name
        refuse_link(folder)
        with writing(folder):
            folder.mkdir(exist_ok=True)
    tidy(folder)
    return folder


def check_writable(folder: Path, instead: str) -> None:
    """Refuse a folder, made or not, that surely cannot be written, before hours of work are put into it.

    instead  what to do, as the sentence ends: "choose another --out"
    """
    place = folder.absolute()
    while not os.path.lexists(place) and place != place.parent:
        place = place.parent
    if not place.is_dir():
        reason = os.strerror(errno.ENOTDIR)
    elif not os.access(place, os.W_OK | os.X_OK):
        reason = os.strerror(errno.EROFS if _read_only(place) else errno.EACCES)
    else:
        return
    raise ConfigError(f"'{folder}' cannot be written ('{place}': {reason}): {instead}")


def _read_only(place: Path) -> bool:
    if hasattr(os, "statvfs") and hasattr(os, "ST_RDONLY"):  # Windows has neither
        with suppress(OSError):
            return bool(os.statvfs(place).f_flag & os.ST_RDONLY)
    return False


def tidy(folder: Path, *own: str) -> None:
    """Remove temporary files that nobody writes any more.

    own  names, or patterns, of the files that this process alone writes: theirs are removed at once
    """
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if (found := PART.fullmatch(entry.name)) is None:
                continue
            with suppress(OSError):
                old = time.time() - entry.stat(follow_symlinks=False).st_mtime > STALE
                if old or any(fnmatchcase(found["name"], name) for name in own):
                    os.unlink(entry.path)


def remove(path: Path) -> None:
    """Remove a file, a folder with all that is in it, or a link and not what it leads to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def temporary_path(path: Path) -> Path:
    """A temporary name beside `path` that nobody else has."""
    return path.with_name(f"{path.name}.{uuid.uuid4().hex[:12]}.part")


def matches_names(name: str, *own: str) -> bool:
    """Whether a file has one of these names, or patterns, or a temporary one of theirs."""
    found = PART.fullmatch(name)
    return any(fnmatchcase(found["name"] if found else name, one) for one in own)


def flush(path: Path) -> None:
    """See to it that a file is on the disk."""
    # Windows flushes only what may be written, and has no flag of this kind for folders.
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
    finally:
        os.close(descriptor)


def flush_folder(folder: Path) -> None:
    """Make a rename in this folder survive a power cut, where the file system can."""
    with suppress(PermissionError):  # a folder that may be written and not listed
        flush(folder)


def apply_umask(path: Path) -> None:
    """Let others read a file as the umask has it."""
    mask = os.umask(0o022)  # which can only be read by setting it
    os.umask(mask)
    with suppress(OSError):  # a file system without modes
        path.chmod(0o666 & ~mask)


class Lock:
    """A folder in which one process works at a time: held until it is closed, or the process ends.

    `ConfigError` where another process holds it, unless it is to be waited for.
    `notes` says so where the file system has no locks.
    """

    def __init__(self, folder: Path, *, wait: bool = False):
        self.folder, self.notes = folder, list[str]()
        self._file = os.fdopen(_open(folder / LOCK, os.O_RDWR | os.O_CREAT), "rb")
        try:
            free = lock_descriptor(self._file.fileno(), blocking=wait)
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
        """`CheckpointError` where the folder is gone since, or another took its place."""
        try:
            there = os.stat(self.folder / LOCK, follow_symlinks=False)
        except OSError:
            there = None
        if there is None or not os.path.samestat(there, os.fstat(self._file.fileno())):
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
