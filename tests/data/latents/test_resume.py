"""Encoding that is interrupted and resumed, and folders of other latents."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from halfstep.data import Dataset
from halfstep.data.latents.dataset import open_latents
from halfstep.data.latents.image_stream import ImagesInMemory
from halfstep.errors import CheckpointError, ConfigError
from tests.support.latents import (
    about,
    caption_texts,
    captions,
    encoded,
    moments_of,
    refused,
    some_images,
    TinyCodec,
)
from tests.support.progress import Ledger
from tests.support.runs import everything

ROOT = Path(__file__).parents[3]


class Killed(BaseException):
    """The process is gone."""


class Dying(Ledger):
    """The process is gone once more images than `last` are done."""

    def __init__(self, last):
        super().__init__()
        self.last = last

    def advance(self, steps=1):
        super().advance(steps)
        if self.done > self.last:
            raise Killed


@pytest.mark.parametrize("texts", [False, True])
def test_interrupted_anywhere_it_ends_the_same(tmp_path, texts):
    def more():
        return {"captions": captions()} if texts else {}

    encoded(tmp_path / "alone", **more())
    alone = everything(tmp_path / "alone")
    assert about(tmp_path / "alone")["complete"]
    for last in range(0, 11, 2):
        out, ledger = tmp_path / f"at-{last}", Ledger()
        with pytest.raises(Killed):
            encoded(out, progress=Dying(last), **more())
        with refused(CheckpointError, "latents: run the same halfstep latents command again"):
            open_latents(out)
        assert not about(out)["complete"]
        assert encoded(out, progress=ledger, **more())
        shards = last // 4  # that were finished
        assert ledger.each == [4] * shards + [3, 1, 3, 1, 3][2 * shards :]
        assert ledger.steps == 11 and everything(out) == alone


def test_a_finished_folder_is_left_as_it_is(tmp_path):
    codec = TinyCodec()
    encoded(tmp_path / "l", codec=codec)
    before, calls = everything(tmp_path / "l"), codec.calls
    assert encoded(tmp_path / "l", codec=codec) is False
    assert everything(tmp_path / "l") == before and codec.calls == calls


@pytest.mark.parametrize(
    "name", ["shard-00001.npy", "context-00002.npy", "labels.npy", "null.npy", "codec.json"]
)
def test_a_file_that_was_deleted_is_made_again(tmp_path, name):
    out = tmp_path / "l"
    encoded(out, captions=captions())
    before = everything(out)
    (out / name).unlink()
    if name != "codec.json":
        with refused(CheckpointError, name, "is missing: run the same halfstep latents command"):
            open_latents(out)
    ledger = Ledger()
    encoded(out, captions=captions(), progress=ledger)
    assert everything(out) == before and ledger.steps == 11


def test_a_batch_may_change_when_memory_runs_out(tmp_path):
    with pytest.raises(Killed):
        encoded(tmp_path / "l", progress=Dying(8))
    encoded(tmp_path / "l", batch=1)
    moments = open_latents(tmp_path / "l").moments.rows(torch.arange(22)).unflatten(0, (11, 2))
    torch.testing.assert_close(moments, moments_of(some_images()), rtol=0, atol=1e-6)


def started(out):
    code = f"from tests.support.latents import encode_slowly; encode_slowly({str(out)!r})"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=environment)


@pytest.mark.slow
def test_killed_and_alone_on_its_folder(tmp_path):
    """kill -9 twice, at other places; a second process is refused meanwhile; the bytes are the same."""
    out, until = tmp_path / "l", time.monotonic() + 120
    encoded(tmp_path / "alone", captions=captions())
    for name in ("shard-00000.npy", "context-00001.npy"):
        process = started(out)
        try:
            while not (out / name).exists():
                assert process.poll() is None and time.monotonic() < until
                time.sleep(0.002)
            with refused(ConfigError, f"another process is working on '{out}': wait for it"):
                encoded(out)
        finally:
            process.send_signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
        assert not about(out)["complete"]
    encoded(out, captions=captions())
    assert everything(out) == everything(tmp_path / "alone")


@pytest.mark.parametrize(
    "other, words",
    [
        ({"codec": TinyCodec(seed=1)}, "another codec"),
        ({"codec": TinyCodec(scale=0.8)}, "another scale of the codec (0.7, not 0.8)"),
        ({"half": True}, "another precision, --half,"),
        ({"mirror": False}, "another number of views, --mirror,"),
        ({"shard": 5}, "another size of shards, --shard, (4, not 5)"),
        ({"captions": captions()}, "another encoder of texts"),
        ({"images": some_images(10)}, "other images or captions (the images of shard-00002.npy"),
        (
            {"images": some_images(labels=False)},
            "other images or captions (the images of shard-00000.npy",
        ),
        ({"images": some_images(4)}, "other images or captions (the images of shard-00001.npy"),
    ],
)
def test_another_that_does_not_belong_there(tmp_path, other, words):
    encoded(tmp_path / "l")
    before = everything(tmp_path / "l")
    with refused(
        ConfigError, f"'{tmp_path / 'l'}' holds latents of ", words, "choose another --out"
    ):
        encoded(tmp_path / "l", **other)
    assert everything(tmp_path / "l") == before


def test_other_captions_do_not_belong_there(tmp_path):
    encoded(tmp_path / "l", captions=captions())
    moved = [*caption_texts()]
    moved[1], moved[2] = moved[1][:1], (moved[1][1], *moved[2])  # the same texts, of other images
    for of in (moved, [("y",), *caption_texts()[1:]]):
        with refused(ConfigError, "other images or captions (the images of context-00000.npy"):
            encoded(tmp_path / "l", captions=captions(of))
    with refused(ConfigError, "another encoder of texts"):
        encoded(tmp_path / "l", captions=captions(digest="others"))
    with refused(ConfigError, "10 captions for 11 images"):
        encoded(tmp_path / "m", captions=captions(caption_texts(10)))


def test_more_images_than_were_finished_are_refused(tmp_path):
    encoded(tmp_path / "l", some_images(8))
    more = np.concatenate([some_images(8).data.values, some_images(11).data.values[8:]])
    images = ImagesInMemory(
        Dataset(torch.from_numpy(more), torch.arange(11) % 3, ("ape", "bee", "cow"))
    )
    with refused(ConfigError, "other images or captions (it has 8, not 11)"):
        encoded(tmp_path / "l", images)


def test_a_folder_that_was_begun_in_vain_begins_anew(tmp_path):
    with pytest.raises(Killed):
        encoded(tmp_path / "l", half=True, progress=Dying(0))
    encoded(tmp_path / "l", codec=TinyCodec(seed=1))
    encoded(tmp_path / "alone", codec=TinyCodec(seed=1))
    assert everything(tmp_path / "l") == everything(tmp_path / "alone")


def test_folders_of_others(tmp_path):
    (tmp_path / "l").mkdir()
    (tmp_path / "l" / "thesis.tex").write_text("")
    with refused(ConfigError, "is not empty and holds no latents (it has 'thesis.tex')"):
        encoded(tmp_path / "l")
    (tmp_path / "file").write_text("")
    with refused(ConfigError, "cannot hold latents", "choose another --out"):
        encoded(tmp_path / "file" / "l")
