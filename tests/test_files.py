"""Files are whole or not there, no link is followed, and what the disk refuses is one sentence."""

import ast
import errno
import fcntl
import os
import shutil
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TypedDict

import pytest

from halfstep import files, storage
from halfstep.errors import CheckpointError, ConfigError
from halfstep.folder_lock import FolderLock
from tests.support.runs import Crash, everything

PACKAGE = Path(files.__file__).parent


def refusing(monkeypatch, owner, name, code, of=lambda *args: True):
    """Let a function of the system refuse, with this number, what `of` says."""
    real = getattr(owner, name)

    def act(*args, **kwargs):
        if of(*args):
            raise OSError(code, os.strerror(code))
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, act)


# -- whole or not at all ---------------------------------------------------------------------------


def test_several_files_get_their_names_in_order_once_all_are_filled(tmp_path, monkeypatch):
    names = []
    real = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (names.append(Path(b).name), real(a, b)))
    with files.replacing(tmp_path / "a", tmp_path / "b") as (one, two):
        one.write_text("1")
        two.write_text("2")
        assert not (tmp_path / "a").exists() and not (tmp_path / "b").exists()
    assert everything(tmp_path) == {"a": b"1", "b": b"2"} and names == ["a", "b"]


@pytest.mark.parametrize("raised", [ConfigError("no"), KeyboardInterrupt(), ZeroDivisionError()])
def test_whatever_interrupts_leaves_what_was_there(tmp_path, raised):
    (tmp_path / "a").write_text("before")
    with pytest.raises(type(raised)), files.replacing(tmp_path / "a") as (part,):
        part.write_text("half")
        raise raised
    assert everything(tmp_path) == {"a": b"before"}


@pytest.mark.parametrize("durable", [True, False])
@pytest.mark.parametrize("call", ["open", "replace", "fsync"])
def test_a_full_disk_at_any_moment_leaves_what_was_there(tmp_path, monkeypatch, call, durable):
    (tmp_path / "a").write_text("before")
    with monkeypatch.context() as patched:
        refusing(patched, os, call, errno.ENOSPC)
        if call == "fsync" and not durable:
            pytest.skip("is not asked for")
        replaced = files.replacing(tmp_path / "a", durable=durable)
        with pytest.raises(CheckpointError, match="make room"), replaced as (part,):
            part.write_text("after")
    assert everything(tmp_path) == {"a": b"before"}


@pytest.mark.parametrize(
    "code, says",
    [
        (errno.ENOSPC, "room"),
        (errno.EDQUOT, "room"),
        (errno.EACCES, "writable"),
        (errno.EROFS, "writable"),
        (errno.EPERM, "writable"),
        (errno.ENOENT, "does not exist"),
        (errno.ESTALE, "does not exist"),
        (errno.EIO, "mend"),
    ],
)
def test_what_to_do_is_what_helps(tmp_path, monkeypatch, code, says):
    refusing(monkeypatch, os, "open", code)
    with pytest.raises(CheckpointError, match=says) as caught:
        files.write_text(tmp_path / "a", "text")
    assert ("room" in str(caught.value)) == (says == "room") and "\n" not in str(caught.value)


def test_two_that_write_one_file_do_not_meet(tmp_path):
    """Each writes whole files, and the last one's is there."""
    failed, path = [], tmp_path / "report.html"

    def write(letter):
        try:
            for _ in range(60):
                files.write_text(path, letter * 20_000)
                text = path.read_text()
                assert text in ("a" * 20_000, "b" * 20_000)
        except Exception as error:
            failed.append(error)

    both = [threading.Thread(target=write, args=(letter,)) for letter in "ab"]
    for one in both:
        one.start()
    for one in both:
        one.join()
    assert not failed and sorted(everything(tmp_path)) == ["report.html"]


def test_two_that_save_one_pair_do_not_meet(tmp_path):
    import torch

    first = files.temporary_path(tmp_path / "a.safetensors")
    first.write_text("another process is at it")
    storage.save(tmp_path / "a", {"w": torch.ones(2)}, {"n": 1})
    assert first.read_text() == "another process is at it"
    assert storage.load(tmp_path / "a")[1] == {"n": 1}


# -- what a crash leaves ---------------------------------------------------------------------------


def left_behind(path, hours):
    part = files.temporary_path(path)
    part.write_text("half")
    then = time.time() - 3600 * hours
    os.utime(part, (then, then))
    return part


def test_what_a_crash_left_goes_when_nobody_writes_it(tmp_path):
    with pytest.raises(Crash), files.replacing(tmp_path / "a") as (part,):
        raise Crash
    assert part.exists()
    old, young = left_behind(tmp_path / "b", 1.1), left_behind(tmp_path / "b", 0.9)
    (tmp_path / "mine.part").write_text("a film that is being fetched")
    os.utime(tmp_path / "mine.part", (0, 0))
    files.make_folder(tmp_path)
    assert not old.exists() and young.exists() and part.exists()
    files.tidy(tmp_path, "a")
    assert not part.exists() and young.exists()
    files.tidy(tmp_path, "[a-c]")
    assert sorted(everything(tmp_path)) == ["mine.part"]


def test_a_temporary_name_is_known_again(tmp_path):
    name = files.temporary_path(tmp_path / "view-0001.json").name
    assert files.matches_names(name, "view-*.json") and files.matches_names(
        "view-1.json", "view-*.json"
    )
    assert not files.matches_names(name, "view-*.npy") and not files.matches_names("a.part", "a")


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_a_link_is_removed_and_not_what_it_leads_to(tmp_path, kind):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "mine").write_text("mine")
    place = tmp_path / "x"
    if kind == "link":
        place.symlink_to(tmp_path / "kept")
    elif kind == "folder":
        shutil.copytree(tmp_path / "kept", place)
    else:
        place.write_text("x")
    files.remove(place)
    assert not os.path.lexists(place)
    files.remove(place)  # nor is it wrong where there is nothing
    assert everything(tmp_path) == {"kept/mine": b"mine"}


# -- links -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("there", [True, False])
def test_nothing_is_appended_through_a_link(tmp_path, there):
    outside = tmp_path / "precious"
    if there:
        outside.write_text("precious")
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "metrics.jsonl").symlink_to(outside)
    with pytest.raises(ConfigError, match="link"):
        files.append(tmp_path / "r" / "metrics.jsonl", "line\n")
    assert outside.exists() == there and (not there or outside.read_text() == "precious")


def test_a_copy_by_hard_links_keeps_what_it_has(tmp_path):
    files.append(tmp_path / "log", "one\n")
    os.link(tmp_path / "log", tmp_path / "copy")
    files.append(tmp_path / "log", "two\n")
    files.append(tmp_path / "log", "é\n")
    assert (tmp_path / "copy").read_bytes() == b"one\n"
    assert (tmp_path / "log").read_bytes() == "one\ntwo\né\n".encode()


def test_a_line_for_which_there_is_no_room_is_refused_by_its_reason(tmp_path, monkeypatch):
    """Of a file that has two names, which is copied first; no descriptor is closed twice."""
    log, copy = tmp_path / "log", tmp_path / "copy"
    log.write_text("one\n")
    os.link(log, copy)
    closed, close = [], os.close
    monkeypatch.setattr(os, "close", lambda d: (closed.append(d), close(d)))
    with monkeypatch.context() as full:
        refusing(full, files, "fill", errno.ENOSPC)
        with pytest.raises(CheckpointError, match="room"):
            files.append(log, "two\n")
    assert len(closed) == len(set(closed)) and log.read_text() == "one\n"
    files.append(log, "two\n")
    assert (log.read_text(), copy.read_text()) == ("one\ntwo\n", "one\n")


def test_a_link_is_replaced_and_not_followed(tmp_path):
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "a").symlink_to(tmp_path / "precious")
    files.write_text(tmp_path / "a", "ours")
    assert (tmp_path / "precious").read_text() == "precious"
    assert not (tmp_path / "a").is_symlink() and (tmp_path / "a").read_text() == "ours"


def test_a_lock_that_is_a_link_is_refused(tmp_path):
    (tmp_path / "precious").write_text("precious")
    (tmp_path / ".lock").symlink_to(tmp_path / "precious")
    with pytest.raises(ConfigError, match="link"):
        FolderLock(tmp_path)
    (tmp_path / ".lock").unlink()
    os.link(tmp_path / "precious", tmp_path / ".lock")
    FolderLock(tmp_path).close()
    assert (tmp_path / "precious").read_text() == "precious"


def test_folders_within_are_no_links_and_have_a_folder_around_them(tmp_path):
    assert files.subfolder(tmp_path, "a", "b").is_dir()
    assert files.subfolder(tmp_path, "a") == tmp_path / "a"
    (tmp_path / "link").symlink_to(tmp_path / "a")
    for names in (["link"], ["link", "b"], ["a", "..", "link"]):
        with pytest.raises(ConfigError, match="link"):
            files.subfolder(tmp_path, *names)
    with pytest.raises(CheckpointError, match="does not exist"):
        files.subfolder(tmp_path / "gone", "a")
    assert not (tmp_path / "gone").exists()


# -- file systems that cannot ----------------------------------------------------------------------


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF])
@pytest.mark.parametrize("of", ["folders", "files"])
def test_what_cannot_be_flushed_is_written_all_the_same(tmp_path, monkeypatch, code, of):
    def it(descriptor):
        return stat.S_ISDIR(os.fstat(descriptor).st_mode) == (of == "folders")

    refusing(monkeypatch, os, "fsync", code, it)
    files.write_text(tmp_path / "a", "text")
    assert everything(tmp_path) == {"a": b"text"}


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_what_was_lost_when_flushed_is_said(tmp_path, monkeypatch, code):
    refusing(monkeypatch, os, "fsync", code)
    with pytest.raises(CheckpointError, match="cannot write"):
        files.write_text(tmp_path / "a", "text")
    assert not everything(tmp_path)


def test_a_folder_that_may_be_written_and_not_listed(tmp_path, monkeypatch):
    refusing(monkeypatch, os, "open", errno.EACCES, lambda path, flags, *mode: path == tmp_path)
    files.write_text(tmp_path / "a", "text")
    assert everything(tmp_path) == {"a": b"text"}


def test_a_file_system_without_modes(tmp_path, monkeypatch):
    import torch

    refusing(monkeypatch, os, "chmod", errno.EPERM)
    storage.save(tmp_path / "a", {"w": torch.ones(2)}, {})
    assert sorted(everything(tmp_path)) == ["a.json", "a.safetensors"]


@pytest.mark.parametrize("wait", [True, False])
@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL])
def test_a_file_system_without_locks_is_a_note(tmp_path, monkeypatch, code, wait):
    refusing(monkeypatch, fcntl, "flock", code)
    with FolderLock(tmp_path, wait=wait) as lock:
        assert len(lock.notes) == 1 and "no locks" in lock.notes[0]
        lock.check()


def test_one_at_a_time(tmp_path):
    with FolderLock(tmp_path) as lock:
        assert not lock.notes
        with pytest.raises(ConfigError, match="another process"):
            FolderLock(tmp_path)
        waited = threading.Thread(target=lambda: FolderLock(tmp_path, wait=True).close())
        waited.start()
        waited.join(0.1)
        assert waited.is_alive()
    waited.join()
    FolderLock(tmp_path).close()


@pytest.mark.parametrize("how", ["deleted", "moved", "another's", "lock deleted"])
def test_a_folder_that_went_away_is_noticed(tmp_path, how):
    folder = tmp_path / "r"
    folder.mkdir()
    with FolderLock(folder) as lock:
        lock.check()
        if how == "lock deleted":
            (folder / ".lock").unlink()
        elif how == "deleted":
            shutil.rmtree(folder)
        else:
            folder.rename(tmp_path / "elsewhere")
        if how == "another's":
            folder.mkdir()
            (folder / ".lock").touch()
        with pytest.raises(CheckpointError, match="moved or deleted"):
            lock.check()


# -- folders that may not be written ---------------------------------------------------------------


@pytest.mark.parametrize("name", ["file", "file/a", "file/a/b"])
def test_what_lies_in_a_file_is_refused(tmp_path, name):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match="Not a directory"):
        files.check_writable(tmp_path / name, "choose another --out")
    with pytest.raises(CheckpointError, match="cannot write"):
        files.make_folder(tmp_path / name)


@pytest.mark.parametrize("name", ["", "new", "new/er"])
def test_a_folder_that_may_not_be_written_is_refused_before_it_is_needed(
    tmp_path, monkeypatch, name
):
    files.check_writable(tmp_path / name, "choose another --out")
    assert not list(tmp_path.iterdir())  # it was only looked at
    checked = []
    monkeypatch.setattr(os, "access", lambda path, mode: checked.append(path))
    with pytest.raises(ConfigError, match=r"Permission denied.*choose another --out"):
        files.check_writable(tmp_path / name, "choose another --out")
    assert checked == [tmp_path]


def test_a_link_that_leads_nowhere_is_no_folder(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "none")
    with pytest.raises(ConfigError, match="cannot be written"):
        files.check_writable(tmp_path / "link" / "r", "choose another --out")


# -- texts -----------------------------------------------------------------------------------------


class Named(TypedDict):
    name: str


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_text_is_utf_8_with_a_mark_or_without(tmp_path, mark):
    text = '{"name": "é\u2019\u2028"}'
    (tmp_path / "a.json").write_bytes(mark + text.encode())
    assert files.read_text(tmp_path / "a.json") == text
    assert storage.read_unsealed_json(tmp_path / "a.json", Named) == {"name": "é\u2019\u2028"}


@pytest.mark.parametrize("write", [files.write_text, files.append])
def test_a_name_that_is_no_unicode_is_one_sentence(tmp_path, write):
    name = os.fsdecode(b"caf\xe9")
    with pytest.raises(ConfigError, match=r"caf\\udce9.*not UTF-8") as caught:
        write(tmp_path / "a", f"line\ndata = '{name}'\n")
    str(caught.value).encode()  # can be printed
    assert not everything(tmp_path)
    assert files.is_text("é\u2019\U0001f642") and not files.is_text(name)


def test_the_name_of_a_folder_can_be_written(tmp_path, monkeypatch):
    os.mkdir(os.fsencode(tmp_path) + b"/caf\xe9")
    monkeypatch.chdir(os.fsencode(tmp_path) + b"/caf\xe9")
    assert files.name_of(Path(".")) == "caf?"


IN_OTHER_LOCALES = """
import json, sys
from pathlib import Path
from halfstep import files, storage
from halfstep.config.preset_files import preset_names
from halfstep.config.toml import from_file
from halfstep.training.run_config import write_config
from halfstep.workflows.options import DataOptions
from halfstep.data.latents.captions import read_captions
from halfstep.report.templates import write_page
from halfstep.training.run_folder import RunFolder

here = Path(sys.argv[1])
text = "Fr\\xe9chet distance of the teacher\\u2019s samples"
write_page(here / "report.html", text, limit=10**6, name="the report", instead="less")
line = {"stage": text, "update": 1, "loss": 0.5, "norm": 1.0, "rate": 0.1}
files.append(here / "metrics.jsonl", json.dumps(line, ensure_ascii=False) + "\\n")
write_config(here, {"data": "caf\\xe9"})
(here / "a.txt").write_bytes(b"\\xef\\xbb\\xbf" + text.encode())
found = [
    (here / "report.html").read_bytes().decode("utf-8") == text,
    RunFolder(here).metrics == [line],
    from_file(DataOptions, here / "config.toml")["data"] == "caf\\xe9",
    read_captions(here, [here / "a.png"]) == [(text,)],
    len(preset_names()) > 5,
]
assert all(found), found
"""


def test_files_are_utf_8_in_a_locale_that_is_not(tmp_path):
    """C without Python's UTF-8 mode: what is opened without an encoding is ASCII."""
    env = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-X", "warn_default_encoding", "-c", IN_OTHER_LOCALES, str(tmp_path)]
    got = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert got.returncode == 0, got.stderr
    ours = str(Path(files.__file__).parent)  # no EncodingWarning of ours
    assert ours not in got.stderr, got.stderr


# -- nobody writes beside it -----------------------------------------------------------------------

WRITES = {
    "write_bytes", "touch", "mkdir", "makedirs", "rmtree", "unlink", "rename", "fsync", "flock",
    "symlink_to", "hardlink_to", "mkstemp", "NamedTemporaryFile", "rmdir",
}  # fmt: skip
ALLOWED = {
    ("training/run_folder.py", "rmdir"),
    ("training/run_folder.py", "mkdir"),  # it says "choose another --out" of the run's own folder
    ("data/latents/resume.py", "mkdir"),  # so does that of latents
    ("training/checkpoint.py", "unlink"),
}


def written_beside(name, source):
    """What a source writes, or reads as text, past `halfstep.files`; (line, what)."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            call = node.func.attr
            if (name, call) not in ALLOWED and _past(call, ast.unparse(node.func.value), node):
                yield node.lineno, call


def _past(call, owner, node):
    given = [*node.args, *(keyword.value for keyword in node.keywords)]
    words = [value.value for value in given if isinstance(value, ast.Constant)]
    if call in ("write_text", "read_text"):
        return owner not in ("files", "storage") and not words  # without an encoding
    if call == "open":
        modes = [word for word in words if isinstance(word, str) and set(word) <= set("rwaxbt+")]
        return owner != "part" and any("b" not in mode or set(mode) & set("wax+") for mode in modes)
    if call in ("savefig", "save", "savez", "savez_compressed"):
        at = {"np": 0, "figure": 0, "image": 0, "torch": 1, "torch.export": 1}.get(owner)
        return at is not None and ast.unparse(node.args[at]) not in (
            "part",
            "file",
            "held",
            "buffer",
        )
    return call in WRITES


def test_all_that_is_written_passes_through_one_module():
    sources = {path.relative_to(PACKAGE).as_posix(): path for path in PACKAGE.rglob("*.py")}
    del sources["files.py"]
    lines_of = {
        name: list(written_beside(name, path.read_text(encoding="utf-8")))
        for name, path in sources.items()
    }
    assert len(lines_of) > 150 and not {name: lines for name, lines in lines_of.items() if lines}


@pytest.mark.parametrize(
    "source, found",
    [
        ("path.write_bytes(x)", 1),
        ("path.open('w')", 1),
        ("path.open(mode='a')", 1),
        ("path.open('wb')", 1),
        ("path.read_text()", 1),
        ("path.read_text(encoding='utf-8')", 0),
        ("path.open('rb')", 0),
        ("path.open('r')", 1),
        ("part.open('wb')", 0),
        ("files.write_text(path, x)", 0),
        ("image.save(path)", 1),
        ("np.savez(file, x=x)", 0),
        ("figure.savefig(part, format='png')", 0),
        ("shutil.rmtree(path)", 1),
        ("folder.mkdir()", 1),
        ("fcntl.flock(lock, 2)", 1),
    ],
)
def test_what_is_written_past_it_is_found(source, found):
    assert len(list(written_beside("x.py", source))) == found
