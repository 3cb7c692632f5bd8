"""Commands in folders that are full, linked, read-only, gone or of others: one sentence, nothing lost."""

import errno
import fcntl
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from halfstep import capacity, files
from halfstep.cli import main
from halfstep.cli.console.progress import terminal
from halfstep.cli.console.run_lines import run_context
from halfstep.cli.console.run_plan import plan_only
from halfstep.cli.parse import parse
from halfstep.errors import CheckpointError
from halfstep.pipeline import Pipeline
from halfstep.training import checkpoint
from halfstep.workflows.report import save
from halfstep.workflows.train_denoiser import TrainDenoiserConfig
from tests.cli.commands import POINTS, TRAIN
from tests.support.disk import largest_file
from tests.support.evidence import evidence, pictures, typed
from tests.support.runs import everything, refused

KNOWLEDGE = (
    "distill knowledge --data digits --teacher {made}/clf --net shallow --updates 1 --batch-size 8 "
    "--cache out/kept --out out/s"
)
HALVE = (
    "distill progressive --teacher {made}/teacher --data two-moons --start 2 --stop 1 --updates 1 "
    "--batch-size 8 --tolerance 2 --until 1 --full 2 --samples 16 --out out"
)
COMMANDS = {
    "train": " ".join([*TRAIN, "--out", "out"]),
    "distill": HALVE,
    "classifier": "train classifier --data digits --net shallow --updates 1 --batch-size 8 --out out",
    "knowledge": KNOWLEDGE,
    "codec": "train codec --data digits --updates 1 --batch-size 8 --width 4 --out out",
    "latents": "latents --data digits --codec {made}/codec --shard 900 --out out",
    "sample": "sample {made}/teacher --n 2 --steps 1 --npz --out out",
    "encode": "encode {made}/teacher --images two-moons --n 2 --steps 1 --out out/noise.safetensors",
    "export": "export {made}/teacher --out out",
    "program": "export {made}/student --format torch-export --out out",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A teacher, its student, a classifier and a codec."""
    here = tmp_path_factory.mktemp("made")
    before = Path.cwd()
    os.chdir(here)
    try:
        assert main([*TRAIN, "--out", "teacher"]) == 0
        assert main(HALVE.format(made=here).replace("--out out", "--out student").split()) == 0
        assert main(COMMANDS["classifier"].replace("--out out", "--out clf").split()) == 0
        assert main(COMMANDS["codec"].replace("--out out", "--out codec").split()) == 0
    finally:
        os.chdir(before)
    return here


def words(name, made):
    return COMMANDS[name].format(made=made).split()


# -- full disks ------------------------------------------------------------------------------------


def failing(patched, out, at):
    """The disk is full when file number `at` below `out` is begun; the names of those that were begun."""
    begun, real = [], os.open

    def act(path, flags, *rest, **more):
        if flags & os.O_CREAT and str(Path(str(path)).absolute()).startswith(str(out)):
            begun.append(Path(path).name)
            if len(begun) > at >= 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(path, flags, *rest, **more)

    patched.setattr(os, "open", act)
    return begun


@pytest.mark.parametrize(
    "name", [n if n != "program" else pytest.param(n, marks=pytest.mark.slow) for n in COMMANDS]
)
def test_a_full_disk_at_any_file_is_one_sentence(name, made, cli, tmp_path):
    """And once there is room, the same command does what was asked."""
    typed, at = words(name, made), 0
    while True:
        with pytest.MonkeyPatch.context() as patched:
            begun = failing(patched, tmp_path / "out", at)
            got = cli(*typed)
        if got[0] == 0:
            break
        assert refused(got, "No space left on device"), begun[-1]
        assert not [
            p
            for p in (tmp_path / "out").rglob("*.part")
            if p.is_file() and files.PART.fullmatch(p.name)
        ]
        at += 1
    assert at == len(begun) > 0 or name in (
        "train",
        "distill",
        "knowledge",
        "codec",
        "classifier",
        "latents",
    )
    assert at > 0


@pytest.mark.parametrize("room", [0, 300, 2500])
def test_a_disk_that_is_full_within_a_file(room, made, cli, tmp_path):
    """What others' writers (Pillow, matplotlib, numpy, safetensors, torch) say of it is one sentence, too."""
    for name in ("sample", "encode", "export", "program", "latents"):
        with largest_file(room):
            got = cli(*words(name, made))
        assert (room and got[0] == 0) or refused(got, "File too large"), name
        shutil.rmtree(tmp_path / "out", ignore_errors=True)


def test_a_full_disk_at_any_file_of_a_report(tmp_path):
    """What was measured before is whole, or the new report is."""
    report = typed(evidence(), pictures())
    at = 0
    while True:
        try:
            with pytest.MonkeyPatch.context() as patched:
                begun = failing(patched, tmp_path, at)
                save(report, tmp_path)
            break
        except CheckpointError as error:
            assert "No space left" in str(error) and "\n" not in str(error)
            at += 1
    assert at == len(begun) == 3 == len(list(tmp_path.iterdir()))


def test_output_that_has_no_room_is_one_sentence(made):
    with open("/dev/full", "w") as full:
        got = subprocess.run(
            [sys.executable, "-m", "halfstep", "--help"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert got.returncode == 2 and got.stderr.startswith("halfstep: cannot write what it prints")


# -- links -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", [".lock", "metrics.jsonl", "checkpoints", "stages", "config.toml", "run.json"]
)
@pytest.mark.parametrize("begun", [False, True])
def test_a_run_writes_nothing_through_a_link(name, begun, cli, tmp_path):
    outside = tmp_path / "precious"
    outside.mkdir()
    (outside / ".mine").mkdir()
    for inner in ("a.safetensors", "b.part", ".mine/c"):
        (outside / inner).write_text("precious")
    (outside / "file").write_text("")
    if begun:
        assert cli(*TRAIN, "--out", "run")[0] == 0
    (tmp_path / "run").mkdir(exist_ok=True)
    place = tmp_path / "run" / name
    shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)
    place.symlink_to(outside / ("" if name in ("checkpoints", "stages") else "file"))
    before = everything(outside)
    status, _, err = cli(
        *POINTS, "--updates", "8", "--out", "run", *(["--extend"] if begun else [])
    )
    assert everything(outside) == before
    assert status in (0, 2) and err.count("\n") <= 1


@pytest.mark.parametrize("name", ["000001.png", "grid.png", "samples.npz"])
def test_pictures_replace_a_link(name, made, cli, tmp_path):
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).symlink_to(tmp_path / "precious")
    assert cli(*words("sample", made))[0] == 0
    assert (tmp_path / "precious").read_text() == "precious"


def test_answers_and_latents_are_written_through_no_lock_that_is_a_link(made, cli, tmp_path):
    (tmp_path / "precious").write_text("precious")
    for name, place in (("knowledge", "out/kept"), ("latents", "out")):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / ".lock").symlink_to(tmp_path / "precious")
        assert refused(cli(*words(name, made)), "link")
        shutil.rmtree(tmp_path / "out")
    assert (tmp_path / "precious").read_text() == "precious"


# -- folders of others, or that may not be written -------------------------------------------------


def test_answers_are_not_kept_among_others_files(made, cli, tmp_path):
    photos = tmp_path / "out" / "kept"
    photos.mkdir(parents=True)
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(photos / "a.png")
    before = everything(tmp_path)
    typed = words("knowledge", made)
    for more in ([], ["--dry-run"]):
        assert refused(cli(*typed, *more), "a.png")
    assert everything(tmp_path) == before
    for place in (made / "clf", made / "clf" / "run.json"):
        typed[typed.index("--cache") + 1] = str(place)
        assert cli(*typed)[0] == 2
    (photos / "a.png").unlink()
    files.temporary_path(photos / "view-0000.json").write_text("{")  # what a crash left is ours
    (photos / ".lock").touch()
    assert cli(*words("knowledge", made))[0] == 0
    assert sorted(p.name for p in photos.iterdir()) == [
        ".lock",
        "view-0000.json",
        "view-0000.safetensors",
    ]


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("how", ["within a file", "not writable"])
def test_a_folder_that_cannot_be_written_is_refused_before_any_work(
    name, how, made, cli, tmp_path, monkeypatch
):
    if how == "within a file":
        (tmp_path / "out").write_text("mine")
    else:
        monkeypatch.setattr(os, "access", lambda path, mode: False)
    for owner, work in ((Pipeline, "sample"), (Pipeline, "encode"), (Pipeline, "load")):
        monkeypatch.setattr(owner, work, None)
    typed = words(name, made)
    for more in [[], ["--dry-run"]] if name in ("train", "codec", "classifier") else [[]]:
        status, _, err = cli(*typed, *more)
        assert status == 2 and err.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] in ([], ["out"])


RUNS = ["train", "distill", "classifier", "knowledge", "codec"]


@pytest.mark.parametrize("name", RUNS)
def test_a_rehearsal_refuses_the_folder_that_the_run_would_refuse(name, made, cli, tmp_path):
    typed = words(name, made)
    assert cli(*typed, "--dry-run")[0] == 0
    assert list(tmp_path.iterdir()) == []
    assert cli(*typed)[0] == 0
    before = everything(tmp_path)
    assert cli(*typed, "--dry-run")[0] == 0
    more = [word if word != "--updates" else "--updates=9" for word in typed]
    more.pop(more.index("--updates=9") + 1)
    other = words("classifier" if name == "train" else "train", made)
    other[other.index("--out") + 1] = typed[typed.index("--out") + 1]
    for wrong, message in (
        ([*typed, "--seed", "1"], "seed = 0"),
        (more, "--extend"),
        (other, "a run of"),
    ):
        rehearsed = cli(*wrong, "--dry-run")
        assert refused(rehearsed, message) and rehearsed[2] == cli(*wrong)[2]
    assert cli(*more, "--extend", "--dry-run")[0] == 0
    assert everything(tmp_path) == before


def test_a_rehearsal_is_asked_all_that_the_run_is_asked():
    """Several processes compare it, whether they run or only print the plan."""
    words = [*TRAIN[2:], "--out", "r", "--extend", "--from-previous", "--device", "cpu"]
    options, jobs = parse(TrainDenoiserConfig, words, prog="halfstep train denoiser"), []
    assert plan_only(terminal(), options, jobs.append) == 0
    with run_context(options.folder, options, terminal()) as job:
        jobs.append(replace(job, callback=jobs[0].callback))
    rehearsed, run = jobs
    assert replace(rehearsed, dry_run=None) == run
    assert (
        run.extend and run.from_previous and run.device == "cpu" and run.shared["batch_size"] == 8
    )


@contextmanager
def held(run):
    """By another process."""
    with (run / ".lock").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def damaged(path):
    path.write_text("{")
    yield


@contextmanager
def linked(path):
    path.rename(path.with_suffix(".old"))
    path.symlink_to(path.with_suffix(".old"))
    yield


@pytest.mark.parametrize(
    "how, more, message",
    [
        (lambda run: held(run), [], "another process"),
        (lambda run: damaged(run / "gate.json"), [], "gate.json"),
        (lambda run: damaged(run / "run.json"), [], "run.json"),
        (lambda run: damaged(run / "stages" / "0001-steps" / "stage.json"), [], "stage.json"),
        (lambda run: linked(run / ".lock"), [], "link"),
        (lambda run: nullcontext(), ["--tolerance", "3"], "tolerance"),
        (lambda run: nullcontext(), ["--samples", "17"], "samples"),
        (lambda run: nullcontext(), ["--gate-seed", "1"], "seed"),
    ],
)
def test_a_rehearsal_refuses_what_lies_in_the_folder_as_the_run_would(
    how, more, message, made, cli, tmp_path
):
    shutil.copytree(made / "student", tmp_path / "out")
    typed = [*words("distill", made), *more]
    with how(tmp_path / "out"):
        before = everything(tmp_path)
        rehearsed = cli(*typed, "--dry-run")
        assert refused(rehearsed, message) and cli(*typed)[2].startswith(rehearsed[2].strip())
    assert everything(tmp_path) == before


def test_a_gate_s_last_look_has_to_fit_too(made, cli, tmp_path, monkeypatch):
    """Of 8 times as many points as its first, 2 floats each."""
    typed = words("distill", made)
    typed[typed.index("--samples") + 1] = "100000"
    for most, status in ((8 * 100_000 * 8, 0), (8 * 100_000 * 8 - 1, 2)):
        monkeypatch.setattr(capacity, "memory", lambda most=most: most)
        got = cli(*typed, "--dry-run")
        assert got[0] == status and (status == 0 or "--samples" in got[2]), got


@pytest.mark.parametrize("verb", ["evaluate", "compress"])
def test_a_run_that_cannot_be_written_is_not_measured(verb, made, cli, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    more = ["--prune", "0.5"] if verb == "compress" else []
    assert refused(cli(verb, made / "student", *more), "cannot be written")


def test_a_finished_run_that_cannot_be_written_can_be_read(made, cli, tmp_path, monkeypatch):
    run = tmp_path / "run"
    shutil.copytree(made / "student", run)
    before = everything(run)
    real = os.open

    def act(path, flags, *rest, **more):
        if str(path).startswith(str(run)) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return real(path, flags, *rest, **more)

    monkeypatch.setattr(os, "open", act)
    assert len(Pipeline.load(run / "stages" / "0001-steps").sample(2)) == 2
    assert cli("sample", run, "--n", "2", "--out", "samples")[0] == 0
    assert cli("export", run, "--out", "alone")[0] == 0
    typed = HALVE.format(made=made).replace("--out out", f"--out {run}").split()
    assert refused(cli(*typed), "Read-only file system")
    assert everything(run) == before


# -- a folder that goes away -----------------------------------------------------------------------


def test_a_command_whose_output_is_closed_does_its_work(made, tmp_path, monkeypatch):
    """As that of a daemon, or after >&- in a shell."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdout", None)
    assert main(words("sample", made)) == 0
    assert any((tmp_path / "out").iterdir())


@pytest.mark.parametrize("how", ["deleted", "moved", "replaced"])
@pytest.mark.parametrize("when", ["checkpoint", "metrics", "stage", "options"])
def test_a_run_whose_folder_went_away_says_so(how, when, cli, tmp_path, monkeypatch):
    """It makes no other folder in its place, and the same command begins anew."""
    gone, run = [], tmp_path / "run"
    owner, name = {
        "checkpoint": (checkpoint, "write"),
        "metrics": (files, "append"),
        "stage": (Pipeline, "save"),
        "options": (files, "write_text"),
    }[when]
    real = getattr(owner, name)

    def act(*args, **kwargs):
        if not gone and run.exists():
            gone.append(1)
            run.rename(tmp_path / "elsewhere")
            if how == "deleted":
                shutil.rmtree(tmp_path / "elsewhere")
            if how == "replaced":
                run.mkdir()
                (run / "other").write_text("another's")
        return real(*args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(owner, name, act)
        got = cli(*TRAIN, "--out", "run")
    assert gone and got[0] == 2 and got[2].count("\n") == 1
    if how == "replaced":
        assert (run / "other").exists()
    else:
        assert not run.exists()
        assert cli(*TRAIN, "--out", "run")[0] == 0


# -- no locks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP])
@pytest.mark.parametrize("name", ["train", "knowledge", "latents"])
def test_without_locks_there_is_a_note(name, code, made, cli, monkeypatch):
    def refuse(*args):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    status, out, err = cli(*words(name, made))
    assert status == 0 and "no locks" in out and not err
