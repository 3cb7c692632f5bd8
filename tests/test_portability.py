"""What Windows and macOS lack is not needed, and heavy libraries are loaded by what uses them."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import halfstep

PACKAGE = Path(halfstep.__file__).parent

# The package's own view of the system becomes that of Windows: other libraries keep theirs, since they
# have a version of themselves for it.
WINDOWS = """
import builtins, os, signal, sys, time, types
from importlib import import_module

LACKS = {
    "os": {
        "O_NOFOLLOW", "O_CLOEXEC", "O_DIRECTORY", "O_NONBLOCK", "O_SYNC", "O_DSYNC", "O_TMPFILE", "O_PATH",
        "ST_RDONLY", "statvfs", "fstatvfs", "chown", "lchown", "fchown", "fchmod", "chroot", "confstr",
        "fork", "forkpty", "geteuid", "getuid", "getgid", "getegid", "getgroups", "getpgid", "getsid",
        "killpg", "setsid", "nice", "uname", "mkfifo", "mknod", "symlink", "sched_getaffinity", "sync",
        "sched_setaffinity", "sysconf", "pathconf", "getloadavg", "pread", "pwrite", "sendfile", "fdatasync",
        "posix_fadvise", "posix_fallocate", "copy_file_range", "getxattr", "setxattr", "memfd_create",
        "wait3", "wait4", "WNOHANG", "WEXITSTATUS", "openpty", "ttyname", "ctermid", "getrandom",
    },
    "signal": {
        "SIGHUP", "SIGKILL", "SIGALRM", "SIGUSR1", "SIGUSR2", "SIGPIPE", "SIGQUIT", "SIGCHLD", "SIGCONT",
        "SIGSTOP", "SIGTSTP", "SIGWINCH", "alarm", "setitimer", "pause", "sigwait", "pthread_kill",
        "pthread_sigmask", "siginterrupt",
    },
    "time": {"tzset", "clock_gettime", "clock_settime", "CLOCK_MONOTONIC", "CLOCK_REALTIME"},
}
ABSENT = {"fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "posix", "syslog", "readline", "curses"}
asked = []


class View(types.ModuleType):
    def __init__(self, module, **others):
        super().__init__(module.__name__)
        vars(self).update(_module=module, **others)

    def __getattr__(self, name):
        if name in LACKS[self.__name__]:
            asked.append(name)
            raise AttributeError(f"module '{self.__name__}' has no attribute '{name}' on Windows")
        return getattr(self._module, name)


def opened(path, flags, mode=0o777):
    if os.path.isdir(path):
        raise PermissionError(13, "Permission denied", str(path))
    return os.open(path, flags, mode)


def flushed(descriptor):
    import fcntl

    if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        asked.append("fsync of what is only read")
        raise OSError(9, "Bad file descriptor")
    os.fsync(descriptor)


VIEWS = {
    "os": View(os, name="nt", open=opened, fsync=flushed),
    "signal": View(signal),
    "time": View(time),
}
imported = builtins.__import__


def windows(name, globals=None, locals=None, fromlist=(), level=0):
    if not (globals or {}).get("__name__", "").startswith("halfstep"):
        return imported(name, globals, locals, fromlist, level)
    if name.partition(".")[0] in ABSENT:
        raise ModuleNotFoundError(f"No module named '{name}'", name=name)
    return VIEWS.get(name) or imported(name, globals, locals, fromlist, level)


builtins.__import__ = windows


def in_use(path):
    # A file that this process holds open, or mapped, cannot be replaced or removed on Windows.
    try:
        there = os.stat(path, follow_symlinks=False)
    except OSError:
        return False
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.path.samestat(os.stat(f"/proc/self/fd/{name}"), there):
                return True
        except OSError:
            pass
    with open("/proc/self/maps") as maps:
        return any(line.split(maxsplit=5)[4] == str(there.st_ino) for line in maps)


def guarded(function, *which):
    def call(*paths, **options):
        for k in which:
            if in_use(paths[k]):
                raise PermissionError(13, "The process cannot access the file", str(paths[k]))
        return function(*paths, **options)

    return call


os.replace, os.unlink = guarded(os.replace, 0, 1), guarded(os.unlink, 0)
"""

EVERY_MODULE = """
import pkgutil

import halfstep

for found in pkgutil.walk_packages(halfstep.__path__, "halfstep."):
    if found.name != "halfstep.__main__":
        import_module(found.name)
"""

# An update, a second one that goes on from it, a student, and what is read again.
TRAINS = """
from pathlib import Path

import torch

import halfstep
from halfstep.training.stages import RunOptions

torch.manual_seed(0)
data = halfstep.Dataset(torch.rand(40, 2) * 2 - 1)
net = halfstep.build("mlp", {"dim": 2, "width": 8, "depth": 1})
fresh = halfstep.Pipeline(halfstep.Denoiser(net, halfstep.Cosine(), halfstep.V()), (2,))
training = halfstep.TrainingConfig(batch_size=4, save_every=1, log_every=1, ema=0.9)
for updates in 1, 2:
    halfstep.train(
        fresh, data, "run", method=halfstep.Denoising(updates=updates), training=training,
        job=RunOptions(device="cpu", extend=updates == 2),
    )
teacher = halfstep.RunFolder.open(Path("run")).student()
method = halfstep.Progressive(start=4, stop=2, updates=(2,))
halfstep.distill(teacher, data, "student", method=method, training=training, job=RunOptions(device="cpu"))
student = halfstep.RunFolder.open(Path("student")).student(2)
student.save("again")
samples = halfstep.Pipeline.load("again").sample(3, steps=2, seed=1)
assert samples.shape == (3, 2) and samples.isfinite().all()
"""


REFUSES = """
from pathlib import Path

from halfstep import files
from halfstep.errors import ConfigError
from halfstep.folder_lock import FolderLock

VIEWS["os"].access = lambda path, mode: False
Path("folder").mkdir()
Path("folder/.lock").symlink_to(Path("elsewhere").absolute())
for refused, given in (files.check_writable, ["run", "choose another"]), (FolderLock, ["folder"]):
    try:
        refused(Path(given[0]), *given[1:])
    except ConfigError as error:
        print(error)
assert not Path("elsewhere").exists()
"""


LAZY = """
import sys

import halfstep

for name in halfstep.__all__:
    getattr(halfstep, name)


def print_loaded():
    heavy = "accelerate diffusers jinja2 matplotlib PIL scipy sklearn transformers".split()
    print(*[name for name in heavy if name in sys.modules])

"""
PICTURES = """
import halfstep.data.sources.digits
import halfstep.report.images.png

print_loaded()
"""


@pytest.fixture(scope="module")
def on_windows(tmp_path_factory):
    """The folder in which it was all done with what Windows has, and what was printed."""
    folder = tmp_path_factory.mktemp("windows")
    program = WINDOWS + EVERY_MODULE + TRAINS + "print(*sorted(set(asked)))" + REFUSES
    return folder, python(folder, program)


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """The same training with what this system has."""
    folder = tmp_path_factory.mktemp("here")
    return folder, python(folder, LAZY + TRAINS + "print_loaded()" + PICTURES)


def python(folder, program):
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        capture_output=True,
        text=True,
        env={"OMP_NUM_THREADS": "1", "PYTHONPATH": str(PACKAGE.parent), "PATH": ""},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()


def test_with_what_windows_has_every_module_loads_and_a_student_is_trained_alike(on_windows, here):
    folder, printed = on_windows
    assert printed[0] == "O_NOFOLLOW SIGHUP"  # asked for, and done without
    files = sorted(folder.rglob("*.safetensors"))
    assert len(files) > 3
    for path in files:
        assert path.read_bytes() == (here[0] / path.relative_to(folder)).read_bytes()
    for path in folder.rglob("*.json*"):
        assert b"\r" not in path.read_bytes()


def test_with_what_windows_has_folders_and_links_are_refused_alike(on_windows):
    unwritable, link = on_windows[1][1:]
    assert "Permission denied" in unwritable and "is a link" in link


def test_training_and_sampling_load_torch_and_no_library_that_they_do_not_use(here):
    assert here[1][0] == ""


def test_pictures_and_digits_load_what_draws_curves_and_what_has_them_when_it_is_needed(here):
    assert here[1][1] == ""


def test_text_files_are_opened_in_utf_8():
    """Windows has another encoding by default."""
    for path in PACKAGE.rglob("*.py"):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and method_of(call) in TEXT:
                modes = [arg.value for arg in call.args if isinstance(arg, ast.Constant)]
                binary = any(isinstance(mode, str) and "b" in mode for mode in modes)
                has_encoding = any(keyword.arg == "encoding" for keyword in call.keywords)
                assert binary or has_encoding, (
                    f"{path.relative_to(PACKAGE)}:{call.lineno} names no encoding"
                )


TEXT = {"open", "read_text", "write_text", "fdopen", "TextIOWrapper"}
OTHERS = {"os", "files", "storage", "Image", "tarfile", "zip", "RunFolder", "Run", "Folder"}
OTHERS |= {"ImageStream", "FolderImages", "ShardImages", "TableImages"}


def method_of(call):
    """The name of what is called, unless it is a function of another kind of the same name."""
    match call.func:
        case ast.Name(name):
            return name if name == "open" else None
        case ast.Attribute(ast.Name(owner) | ast.Attribute(_, owner), name) if owner in OTHERS:
            return None
        case ast.Attribute(_, name):
            return name
