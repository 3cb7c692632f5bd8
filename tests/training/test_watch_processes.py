"""Two processes that are watched: the first one writes, and the pictures are those of one process."""

import json

import numpy as np
import pytest
from PIL import Image

from tests.support.processes import launched
from tests.support.runs import bits
from tests.support.watched import pictured
from tests.training.test_trackers import events

SCRIPT = '''
"""Run by both processes."""

import os, sys
from pathlib import Path

from halfstep.training import trackers
from tests.support.watched import pictured

folder, rank = Path(sys.argv[1]), os.environ["RANK"]
real = trackers.start_tracker


def start(kind, *given, **options):
    (folder / f"started-{rank}").touch()
    return real(kind, *given, **options)


trackers.start_tracker = start
pictured(folder / "plain", samples_every=0)
pictured(folder / "watched", log=("tensorboard",))
pictured(folder / "sharded", shard=True)
pictured(folder / "sharded-plain", shard=True, samples_every=0)
'''


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    folder = tmp_path_factory.mktemp("both")
    (folder / "script.py").write_text(SCRIPT)
    status, out, err = launched(str(folder / "script.py"), str(folder))
    assert status == 0, out + err
    return folder


def pictures(run):
    return {
        path.name: np.asarray(Image.open(path)).astype(int) for path in (run / "samples").iterdir()
    }


def test_drawing_changes_no_bit_of_two_processes(both):
    assert bits(both / "plain") == bits(both / "watched")
    assert bits(both / "sharded-plain") == bits(both / "sharded")


def test_only_the_first_process_has_trackers(both):
    assert (both / "started-0").exists() and not (both / "started-1").exists()
    scalars, images = events(both / "watched")
    lines = map(json.loads, (both / "watched/metrics.jsonl").read_text().splitlines())
    losses = [line["loss"] for line in lines if "loss" in line]
    assert list(scalars["loss"].values()) == pytest.approx(losses, rel=1e-6)
    assert sorted(images["samples/0002-steps"]) == [10, 13, 16, 19, 21]


@pytest.mark.parametrize("name", ["watched", "sharded"])
def test_the_pictures_are_those_of_one_process(both, tmp_path, name):
    pictured(tmp_path / "one")
    expected, found = pictures(tmp_path / "one"), pictures(both / name)
    assert found.keys() == expected.keys()
    for key in expected:
        assert np.abs(found[key] - expected[key]).max() <= 1, (
            key
        )  # losses are added in another order
