"""Trackers: what TensorBoard, Weights & Biases and Trackio read back, and how a missing one is told."""

import json
import os
import sqlite3
import struct
import subprocess
import sys
import time
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from halfstep.errors import ConfigError
from halfstep.evaluation.gate import Gate
from halfstep.evaluation.metrics.bootstrap import Interval
from halfstep.training import RunOptions, trackers as module
from halfstep.training.run_folder import RunFolder
from halfstep.training.trackers import Trackers
from tests.support.runs import At, bits, Crash, crash, halve, job
from tests.support.watched import pictured

ROOT = Path(__file__).parents[2]


def events(run):
    """The scalars and images of a run's TensorBoard files: {tag: {step: value}}."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0, "images": 0})
    log.Reload()
    scalars = {tag: {e.step: e.value for e in log.Scalars(tag)} for tag in log.Tags()["scalars"]}
    images = {
        tag: {
            e.step: np.asarray(Image.open(BytesIO(e.encoded_image_string))) for e in log.Images(tag)
        }
        for tag in log.Tags()["images"]
    }
    return scalars, images


def lines_by_step(run):
    """The lines of metrics.jsonl by the number of updates over both stages."""
    before = {"0004-steps": 0, "0002-steps": 7}
    lines = [line for line in RunFolder(run).metrics if "loss" in line]
    return {before[line["stage"]] + line["update"]: line for line in lines}


# TensorBoard.


def test_tensorboard_has_the_losses_and_the_pictures(tmp_path):
    pictured(tmp_path, log=("tensorboard",), samples_every=None)
    scalars, images = events(tmp_path)
    lines = lines_by_step(tmp_path)
    for ours, theirs in (
        ("loss", "loss"), ("rate", "learning_rate"), ("norm", "grad_norm"),
        ("samples_per_second", "samples_per_second"), ("memory", "memory"),
    ):  # fmt: skip
        expected = {step: line[ours] for step, line in lines.items()}
        assert scalars[theirs] == pytest.approx(expected, rel=1e-6)
    assert {k: sorted(v) for k, v in images.items()} == {
        "samples/0004-steps": [3, 6, 7], "samples/0002-steps": [10, 13, 16, 19, 21]
    }  # fmt: skip
    last = images["samples/0002-steps"][21]
    with Image.open(tmp_path / "samples/0002-steps-00000014.png") as opened:
        assert np.array_equal(
            np.asarray(opened)[::16, ::16], last[..., 0] if last.ndim == 3 else last
        )


def test_a_run_that_goes_on_is_one_curve(tmp_path):
    """Events after the checkpoint are hidden, as they are written again."""
    pictured(tmp_path / "a", log=("tensorboard",), log_every=1)
    with pytest.raises(Crash):
        pictured(
            tmp_path / "b", log=("tensorboard",), log_every=1, callback=At("0002-steps", 9, crash)
        )
    pictured(tmp_path / "b", log=("tensorboard",), log_every=1)
    (one, _), (two, pictures) = events(tmp_path / "a"), events(tmp_path / "b")
    assert one["loss"] == two["loss"] and sorted(two["loss"]) == list(range(1, 22))
    assert sorted(pictures["samples/0002-steps"]) == [10, 13, 16, 19, 21]


def test_the_gate_s_decisions_are_logged_once(tmp_path):
    """Also that on a stage which was trained before a crash; a finished run logs nothing again."""
    crashes = [Crash]

    def measure(student, n):
        if crashes:
            raise crashes.pop()
        return Interval(1.0, 0.9, 1.25)

    def run():
        pictured(tmp_path, gate=Gate(measure, 2.0, tmp_path / "gate.json"), log=("tensorboard",))

    with pytest.raises(Crash):
        run()
    run()
    files = sorted((tmp_path / "tensorboard").iterdir())
    run()
    assert sorted((tmp_path / "tensorboard").iterdir()) == files
    scalars, _ = events(tmp_path)
    assert scalars["gate/ratio"] == {7: 1.0, 21: 1.0}
    assert scalars["gate/high"] == {7: 1.25, 21: 1.25}
    assert scalars["gate/passed"] == {7: 1.0, 21: 1.0}


# Weights & Biases, offline.


def records(content):
    """The records of a .wandb file, a log as LevelDB writes it: blocks of 32 KiB, records in pieces."""
    place, parts = 7, []  # after the file's own header
    while place + 7 <= len(content):
        room = 32768 - place % 32768
        if room < 7:
            place += room
            continue
        size, kind = struct.unpack("<HB", content[place + 4 : place + 7])
        parts.append(content[place + 7 : place + 7 + size])
        place += 7 + size
        if kind in (1, 4):  # whole, or the last piece
            yield b"".join(parts)
            parts = []


def history(folder):
    """The rows that W&B would upload: (step, {name: value}); its own process writes them a moment later."""
    from wandb.proto.wandb_internal_pb2 import Record

    [file] = folder.glob("wandb/offline-run-*/*.wandb")
    for _ in range(300):
        found = [Record.FromString(content) for content in records(file.read_bytes())]
        if found and found[-1].HasField("exit"):
            break
        time.sleep(0.1)
    for record in found:
        if record.HasField("history"):
            items = record.history.item
            row = {x.key or "/".join(x.nested_key): json.loads(x.value_json) for x in items}
            yield row["_step"], row


def test_wandb_offline(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    pictured(tmp_path / "r", log=("wandb",), samples_every=7)
    rows = list(history(tmp_path / "r"))
    losses = {step: row["loss"] for step, row in rows if "loss" in row}
    expected = {step: line["loss"] for step, line in lines_by_step(tmp_path / "r").items()}
    assert losses == pytest.approx(expected)
    drawn = {step for step, row in rows for name in row if name.startswith("samples/")}
    assert drawn == {7, 14, 21}
    [folder] = (tmp_path / "r/wandb").glob("offline-run-*")
    assert folder.name.endswith(RunFolder.open(tmp_path / "r").id)
    assert len(list(folder.glob("files/media/images/samples/*.png"))) == 3


# Trackio, whose folder is chosen before it is imported.

TRACKIO = """
import sys
from tests.support.watched import pictured
from pathlib import Path

pictured(Path(sys.argv[1]), log=("trackio",), samples_every=7)
"""


def test_trackio(tmp_path):
    environment = {**os.environ, "TRACKIO_DIR": str(tmp_path / "trackio"), "PYTHONPATH": str(ROOT)}
    environment |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", TRACKIO, str(tmp_path / "r")],
        env=environment, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr
    with sqlite3.connect(tmp_path / "trackio/halfstep.db") as base:
        rows = base.execute("select step, metrics from metrics").fetchall()
    losses = {step: json.loads(text)["loss"] for step, text in rows if "loss" in json.loads(text)}
    expected = {step: line["loss"] for step, line in lines_by_step(tmp_path / "r").items()}
    assert losses == pytest.approx(expected)
    assert len(list((tmp_path / "trackio").rglob("*.png"))) == 3


# Names, packages, failures.


def test_an_unknown_tracker_is_refused_with_a_suggestion(tmp_path):
    with pytest.raises(
        ConfigError, match="no tracker 'tensorbord': perhaps you meant 'tensorboard'"
    ):
        RunOptions(log=("wandb", "tensorbord"))


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
@pytest.mark.parametrize("folder", [False, True])
def test_a_missing_package_is_one_sentence(tmp_path, monkeypatch, name, folder):
    """Also where a folder of its name is found, as wandb makes one."""
    spec = type("Spec", (), {"origin": None})() if folder else None
    monkeypatch.setattr(module, "find_spec", lambda asked: spec)
    with pytest.raises(
        ConfigError, match=rf"needs the package {name}.*pip install 'halfstep\[track\]'"
    ):
        halve(tmp_path / "r", job=job(log=(name,)))
    assert not (tmp_path / "r").exists()


def test_no_package_is_imported_unless_asked_for(tmp_path):
    code = (
        "import sys; from tests.support.watched import pictured; from pathlib import Path\n"
        "pictured(Path(sys.argv[1]))\n"
        "print({'tensorboard', 'wandb', 'trackio'} & set(sys.modules))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "r")],
        env=environment, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.stdout == "set()\n", done.stdout + done.stderr


def test_a_tracker_that_cannot_start_is_one_sentence(tmp_path, monkeypatch):
    def start(kind, project, /, **options):
        raise RuntimeError("No API key configured.\nUse `wandb login`")

    monkeypatch.setattr(module, "start_tracker", start)
    with pytest.raises(
        ConfigError, match=r"'wandb' could not start \(No API key.*set WANDB_MODE=offline"
    ):
        halve(tmp_path, job=job(log=("wandb",)))
    halve(tmp_path)  # the same run goes on without it


class Fails:
    """A tracker that loses its connection."""

    def __init__(self):
        self.logged, self.finished = [], 0

    def log(self, values, step):
        self.logged.append(step)
        if len(self.logged) > 1:
            raise ConnectionError("gone")

    def finish(self):
        self.finished += 1


def test_a_tracker_that_fails_does_not_end_the_run(tmp_path, monkeypatch):
    tracker, notes = Fails(), At("", 0, None)
    monkeypatch.setattr(module, "start_tracker", lambda *a, **k: tracker)
    halve(tmp_path / "a", job=job(log=("trackio",), callback=notes))
    halve(tmp_path / "b")
    assert bits(tmp_path / "a") == bits(tmp_path / "b")
    assert len(tracker.logged) == 2 and not tracker.finished
    [note] = notes.notes
    assert note.startswith("the tracker 'trackio' failed (gone): the run goes on without it")


def test_trackers_are_ended_whatever_happens(tmp_path, monkeypatch):
    tracker = Fails()
    monkeypatch.setattr(module, "start_tracker", lambda *a, **k: tracker)
    with pytest.raises(Crash):
        halve(tmp_path, job=job(log=("trackio",), callback=At("0004-steps", 2, crash)))
    assert tracker.finished == 1


def test_each_tracker_is_started_once_and_silently(tmp_path, monkeypatch, capsys):
    started = []

    def start(kind, project, /, **options):
        print("welcome")
        started.append((kind, project, options))
        return Fails()

    monkeypatch.setattr(module, "start_tracker", start)
    monkeypatch.setenv("TRACKIO_PROJECT", "mine")
    trackers = Trackers(("trackio", "tensorboard", "trackio"), tmp_path, "ab" * 16, {"a": 1}, print)
    trackers.start(7)
    trackers.start(9)
    assert [(kind, project) for kind, project, _ in started] == [
        ("trackio", "mine"), ("tensorboard", "tensorboard")
    ]  # fmt: skip
    assert started[0][2]["name"] == f"{tmp_path.name}-abababab" and started[0][2]["config"] == {
        "a": 1
    }
    assert started[1][2] == {"logging_dir": tmp_path, "purge_step": 8}
    assert capsys.readouterr().out == ""
