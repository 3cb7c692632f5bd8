"""Write files atomically, make folders, and tidy them.

Every file that halfstep writes is written here: under a temporary name until it is whole and on the disk, so
that two writers do not collide; no link is followed, and an error of the disk becomes one sentence.  Texts
are UTF-8 in every locale.
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

from halfstep.errors import CheckpointError, ConfigError

LOCK = ".lock"
PART = re.compile(r"(?P<name>.+)\.[0-9a-f]{12}\.part")
STALE = 3600.0
"""Seconds after which a temporary file is abandoned."""

UNSUPPORTED = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF)
"""Errors of file systems without fsync, which can be ignored."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
GONE = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn errors of the disk into one sentence, around writing `path`."""
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
    """Give empty files to fill, which get these names, in this order, at the end of the block.

    If the block raises, the old files are untouched and the new ones removed; `tidy` removes those that a
    crash leaves.

    durable  whether the files survive a power cut; without it writing many small files is faster
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
    """Write a UTF-8 text file; all or nothing.  `ConfigError` names text that is not Unicode."""
    content = encoded(text, f"cannot write '{path}'")
    with replacing(path) as (part,):
        fill(part, content)


def fill(part: Path, content: bytes | memoryview) -> None:
    """Write the content of a file that `replacing` gives."""
    part.write_bytes(content)


def encoded(text: str, what: str) -> bytes:
    """The text in UTF-8; `ConfigError`, which begins with `what`, if it holds a name that is not Unicode."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        around = text[max(0, error.start - 20) : error.end + 20].split("\n")
        word = next(line for line in around if not is_text(line))
        raise ConfigError(
            f"{what}: {word!a} holds a name that is not UTF-8: rename that file or folder"
        ) from None


def name_of(folder: Path) -> str:
    """A folder's name, with "?" for characters that are not Unicode."""
    return folder.resolve().name.encode(errors="replace").decode()


def is_text(name: str) -> bool:
    """Whether a name from the file system is Unicode."""
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


def append(path: Path, text: str) -> None:
    """Append to a file, which is created if it is missing."""
    content = encoded(text, f"cannot write '{path}'")
    with writing(path):
        descriptor = open_file(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            if (
                os.fstat(descriptor).st_nlink > 1
            ):  # a copy of the folder by hard links is left alone
                with replacing(path) as (part,):
                    fill(part, path.read_bytes())
                shared, descriptor = descriptor, open_file(path, os.O_WRONLY | os.O_APPEND)
                os.close(shared)
            while content:
                content = content[os.write(descriptor, content) :]
        finally:
            os.close(descriptor)


def open_file(path: Path, flags: int) -> int:
    """Open a file as a descriptor; `ConfigError` if it is a link."""
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
    """`ConfigError` if the path is a link, through which writing would leave the folder."""
    if path.is_symlink():
        raise _linked(path)


def _linked(path: Path) -> ConfigError:
    return ConfigError(
        f"'{path}' is a link, and halfstep writes only into the folder itself: delete the link"
    )


def read_text(path: Path) -> str:
    """Read a UTF-8 text file, with or without a byte order mark."""
    return path.read_text(encoding="utf-8-sig")


# -- folders ---------------------------------------------------------------------------------------


def make_folder(folder: Path) -> Path:
    """Create a folder unless it exists, and remove temporary files that a crash left in it."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    tidy(folder)
    return folder


def subfolder(folder: Path, *names: str) -> Path:
    """Create nested folders in an existing one, unless they exist; `ConfigError` if one is a link."""
    for name in names:
        folder = folder / name
        refuse_link(folder)
        with writing(folder):
            folder.mkdir(exist_ok=True)
    tidy(folder)
    return folder


def check_writable(folder: Path, instead: str) -> None:
    """Refuse a folder, existing or not, that cannot be written, before hours of work are lost.

    instead  how the error's sentence ends: "choose another --out"
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


def tidy(folder: Path, *patterns: str) -> None:
    """Remove abandoned temporary files.

    patterns  of files that only this process writes: their temporary files are removed at once
    """
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if (part := PART.fullmatch(entry.name)) is None:
                continue
            with suppress(OSError):
                old = time.time() - entry.stat(follow_symlinks=False).st_mtime > STALE
                if old or any(fnmatchcase(part["name"], pattern) for pattern in patterns):
                    os.unlink(entry.path)


def cache_folder() -> Path:
    """The cache folder: HALFSTEP_CACHE, or halfstep in XDG_CACHE_HOME or ~/.cache."""
    if folder := os.environ.get("HALFSTEP_CACHE"):
        return Path(folder).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "halfstep"


def remove(path: Path) -> None:
    """Remove a file, a folder with its content, or a link but not its target."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def temporary_path(path: Path) -> Path:
    """A unique temporary path beside `path`."""
    return path.with_name(f"{path.name}.{uuid.uuid4().hex[:12]}.part")


def matches_names(name: str, *patterns: str) -> bool:
    """Whether a name, or the final name of a temporary file, matches one of these patterns."""
    part = PART.fullmatch(name)
    return any(fnmatchcase(part["name"] if part else name, pattern) for pattern in patterns)


def flush(path: Path) -> None:
    """Flush a file to the disk."""
    # Windows flushes only writable descriptors, and has no such call for folders.
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
    finally:
        os.close(descriptor)


def flush_folder(folder: Path) -> None:
    """Flush a folder, so that a rename in it survives a power cut."""
    with suppress(PermissionError):  # a folder that may be written but not listed
        flush(folder)


def apply_umask(path: Path) -> None:
    """Give a file the permissions that the umask leaves."""
    mask = os.umask(0o022)  # it can only be read by setting it
    os.umask(mask)
    with suppress(OSError):  # a file system without modes
        path.chmod(0o666 & ~mask)
