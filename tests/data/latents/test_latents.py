"""Latents: encoded once, whatever happens meanwhile; read as the official code reads them, at speed."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from halfstep import storage
from halfstep.batch import Cond
from halfstep.cli import main
from halfstep.data import Dataset, load
from halfstep.data.latents import shards
from halfstep.data.latents.dataset import open_latents
from halfstep.data.latents.encoding import Captions, Layout, write_latents
from halfstep.data.latents.image_stream import AHEAD, Folder, ImagesDigest, ImagesInMemory, stream
from halfstep.data.latents.shards import Shards
from halfstep.data.sources import image_folder as folders
from halfstep.errors import CheckpointError, ConfigError, DataError, HalfstepError
from halfstep.models.autoencoder.kl import KLCodec
from halfstep.rng import Draw
from halfstep.workflows.locate import codec_of
from tests.support.denoisers import seeded
from tests.support.progress import Ledger
from tests.support.runs import everything, rewritten

ROOT = Path(__file__).parents[3]


class Tiny(nn.Module):
    """A codec that fits on a page: one convolution, 2 pixels to a side, 3 channels from RGB."""

    factor, channels = 2, 3

    def __init__(self, scale=0.7, seed=0, slow=0.0):
        super().__init__()
        self.scale, self.slow, self.calls = scale, slow, 0
        torch.manual_seed(seed)
        self.conv = nn.Conv2d(3, 6, 2, stride=2)
        self.drop = nn.Dropout(0.5)  # shows whether the codec is in eval mode

    def moments(self, images):
        self.calls += 1
        time.sleep(self.slow)
        return self.drop(self.conv(images))

    def save(self, folder):
        storage.save(folder / "codec", self.state_dict(), {"scale": self.scale})

    def digest(self):
        weights = torch.cat([p.detach().flatten() for p in self.parameters()])
        return hashlib.sha256(weights.numpy().tobytes()).hexdigest()


class Words:
    """Texts to states: 5 of width 4, a function of the text alone."""

    tokens, width = 5, 4

    def encode(self, texts):
        return torch.stack([torch.randn(5, 4, generator=seeded(len(text))) for text in texts])


def some_images(n=11, labels=True):
    """n images of 4 x 6 in three classes."""
    values = np.random.default_rng(1).integers(0, 256, (n, 3, 4, 6), dtype=np.uint8)
    classes = torch.arange(n) % 3 if labels else None
    names = ("ape", "bee", "cow") if labels else ()
    return ImagesInMemory(Dataset(torch.from_numpy(values), classes, names))


def said(n=11):
    """One to three captions an image, of different lengths."""
    return [tuple("x" * (1 + k + 20 * j) for j in range(1 + k % 3)) for k in range(n)]


def encoded(out, images=None, codec=None, *, half=False, mirror=True, shard=4, batch=3, **more):
    layout = Layout(half=half, mirror=mirror, shard=shard)
    images = images or some_images()
    return write_latents(images, codec or Tiny(), out, layout=layout, batch=batch, **more)


def captions(of=None, digest="words"):
    return Captions(Words(), of or said(), digest)


def refused(kind, *words):
    return pytest.raises(kind, match="(?s)" + ".*".join(re.escape(word) for word in words))


def moments_of(images, codec=None):
    """Of images and mirror images, computed at once: [N, 2, 6, h, w]."""
    x = images.data.batch(torch.arange(len(images))).x0
    codec = (codec or Tiny()).eval()
    with torch.no_grad():
        return torch.stack(
            [codec.moments(x), codec.moments(torch.stack(x.unbind(-1)[::-1], -1))], 1
        )


def about(out):
    return json.loads((out / "latents.json").read_text())


# -- what is encoded -------------------------------------------------------------------------------


@pytest.mark.parametrize("shard, batch", [(4, 3), (11, 64), (64, 1), (1, 5)])
def test_moments_of_images_and_mirror_images(tmp_path, shard, batch):
    images, codec = some_images(), Tiny()
    assert encoded(tmp_path / "l", images, codec, shard=shard, batch=batch)
    found, exact = open_latents(tmp_path / "l"), moments_of(images)
    assert found.moments.shape == (6, 2, 3) and found.shape == (3, 2, 3)
    torch.testing.assert_close(
        found.moments.rows(torch.arange(22)).unflatten(0, (11, 2)), exact, rtol=0, atol=1e-6
    )
    assert (len(found), found.flip, found.scale, found.is_images) == (11, True, 0.7, False)
    assert len(list((tmp_path / "l").glob("shard-*.npy"))) == -(-11 // shard)
    assert codec.calls == 1 + 2 * sum(
        -(-min(shard, 11 - low) // batch) for low in range(0, 11, shard)
    )
    assert found.folder == tmp_path / "l" and storage.verify(found.folder / "codec")["scale"] == 0.7


def test_half_as_large_and_read_in_full(tmp_path):
    encoded(tmp_path / "whole")
    encoded(tmp_path / "half", half=True)
    whole, half = open_latents(tmp_path / "whole"), open_latents(tmp_path / "half")
    assert half.nbytes * 2 == whole.nbytes == 22 * 36 * 4
    rows = torch.tensor([10, 0, 4, 4])
    found = half.batch(rows).x0
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, whole.batch(rows).x0, rtol=1e-3, atol=1e-3)
    assert half.training_batch(rows, Draw.all(seeded(), 4)).x0.dtype == torch.float32


def test_without_mirror_images(tmp_path):
    encoded(tmp_path / "l", mirror=False)
    found, exact = open_latents(tmp_path / "l"), moments_of(some_images())
    assert not found.flip and len(found) == 11 and len(found.moments) == 11
    x0 = found.training_batch(torch.tensor([7, 2]), Draw.all(seeded(3), 2)).x0
    noise = torch.randn(2, 3, 2, 3, generator=seeded(3))  # no draw goes to mirroring
    mean, logvar = exact[[7, 2], 0].chunk(2, 1)
    torch.testing.assert_close(x0, (mean + (logvar / 2).exp() * noise) * 0.7, rtol=0, atol=1e-6)


def test_classes_are_kept(tmp_path):
    encoded(tmp_path / "l")
    encoded(tmp_path / "bare", some_images(labels=False))
    found, bare = open_latents(tmp_path / "l"), open_latents(tmp_path / "bare")
    assert found.labels.tolist() == [k % 3 for k in range(11)]
    assert (found.names, found.num_classes) == (("ape", "bee", "cow"), 3)
    assert found.batch(torch.tensor([5, 0])).cond.label.tolist() == [2, 0]
    assert found.training_batch(torch.tensor([4]), Draw.all(seeded(), 1)).cond.label.tolist() == [1]
    assert (bare.labels, bare.names, bare.num_classes) == (None, (), 0)
    assert bare.batch(torch.tensor([5])).cond is None
    assert replace(found, labels=None, names=()).batch(torch.tensor([5])).cond is None
    assert replace(found, names=()).num_classes == 3


# -- what is read ----------------------------------------------------------------------------------


def test_a_draw_is_fresh_and_of_image_or_mirror_image(tmp_path):
    """(mean + exp(log-variance / 2) eps) scale, of the mirror image where the draw is below 1/2."""
    images = some_images()
    encoded(tmp_path / "l", images)
    found, exact = open_latents(tmp_path / "l"), moments_of(images)
    rows = torch.tensor([10, 3, 3, 0, 7, 9, 1])
    generator = seeded(5)
    for _ in range(3):  # the state of the generator goes on: each read has its own chance
        copy = torch.Generator()
        copy.set_state(generator.get_state())
        x0 = found.training_batch(rows, Draw.all(generator, 7)).x0
        mirrored = torch.rand(7, generator=copy, dtype=torch.float64) < 0.5
        noise = torch.randn(7, 3, 2, 3, generator=copy)
        mean, logvar = exact[rows, mirrored.long()].chunk(2, dim=1)
        assert 0 < mirrored.sum() < 7
        torch.testing.assert_close(x0, (mean + (logvar / 2).exp() * noise) * 0.7, rtol=0, atol=1e-6)


def test_slices_of_a_batch_draw_what_the_whole_draws(tmp_path):
    encoded(tmp_path / "l", captions=captions())
    found, rows = open_latents(tmp_path / "l"), torch.tensor([10, 3, 3, 0, 7])
    whole = found.training_batch(rows, Draw.all(seeded(2), 5))
    for part in (slice(0, 2), slice(2, 5)):
        some = found.training_batch(rows[part], Draw(seeded(2), 5, part))
        assert torch.equal(some.x0, whole.x0[part])
        assert torch.equal(some.cond.label, whole.cond.label[part])
        assert torch.equal(some.cond.encoder_hidden_states, whole.cond.encoder_hidden_states[part])


def test_extreme_log_variances_are_clamped(tmp_path):
    class Extreme(Tiny):
        def moments(self, images):
            mean = images[:, :, ::2, ::2]
            return torch.cat([mean, 100 * mean.sign()], 1)

    encoded(tmp_path / "l", codec=Extreme(scale=0.1))
    found = open_latents(tmp_path / "l")
    x0 = found.training_batch(torch.arange(11), Draw.all(seeded(), 11)).x0
    assert 1e3 < x0.abs().max() < np.exp(10) * 5 * 0.1


def test_a_batch_is_without_chance(tmp_path):
    encoded(tmp_path / "l")
    found, rows = open_latents(tmp_path / "l"), torch.tensor([9, 9, 0])
    expected = moments_of(some_images())[rows, 0, :3] * 0.7
    torch.testing.assert_close(found.batch(rows).x0, expected, rtol=0, atol=1e-6)
    found.batch(rows).x0.zero_()  # a batch is a copy
    found.moments.parts[0].zero_()  # and so is what is mapped: nothing reaches the files
    torch.testing.assert_close(
        open_latents(tmp_path / "l").batch(rows).x0, expected, rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("lengths", [(7,), (3, 3, 1), (1, 4, 2)])
def test_rows_across_shards(lengths):
    values = torch.randn(7, 2, 3, generator=seeded())
    shards = Shards(values.split(lengths))
    assert len(shards) == 7 and shards.shape == (2, 3) and shards.nbytes == 7 * 6 * 4
    for rows in ([6, 0, 3, 3, 2, 5], [4], [1, 1, 1], []):
        rows = torch.tensor(rows, dtype=torch.int64)
        assert torch.equal(shards.rows(rows), values[rows])
    assert shards.to("cpu") is shards
    assert shards.to("meta").parts[0].shape == (7, 2, 3)


def test_moving_keeps_everything(tmp_path):
    encoded(tmp_path / "l", captions=captions())
    found = open_latents(tmp_path / "l")
    moved = found.to("meta")
    assert (len(moved), moved.shape, moved.names) == (11, (3, 2, 3), found.names)
    assert moved.contexts.offsets.device.type == moved.labels.device.type == "meta"
    digest = Tiny().digest()
    assert found.codec == moved.codec == replace(found, labels=None).codec == digest
    encoded(tmp_path / "other", codec=Tiny(seed=1))
    assert open_latents(tmp_path / "other").codec == Tiny(seed=1).digest() != digest
    here = found.to("cpu")
    assert here.moments is found.moments and here.fingerprint() == found.fingerprint()


def test_fingerprint_sees_what_is_read(tmp_path):
    encoded(tmp_path / "a")
    encoded(tmp_path / "same")
    encoded(tmp_path / "codec", codec=Tiny(seed=1))
    encoded(tmp_path / "scale", codec=Tiny(scale=0.8))
    encoded(tmp_path / "images", some_images(10))
    encoded(tmp_path / "texts", captions=captions())
    a = open_latents(tmp_path / "a")
    assert a.fingerprint() == open_latents(tmp_path / "same").fingerprint()
    assert len(a.fingerprint()) == 64
    assert a.fingerprint() == open_latents(tmp_path / "a", verify=False).fingerprint()
    assert a.fingerprint() == replace(a, names=("A", "B", "C")).fingerprint()
    texts = open_latents(tmp_path / "texts")
    others = [open_latents(tmp_path / name) for name in ("codec", "scale", "images")]
    others += [a, texts, replace(texts, contexts=None), replace(a, labels=None, names=())]
    assert len({data.fingerprint() for data in others}) == 7


# -- texts -----------------------------------------------------------------------------------------


def test_one_of_several_captions_is_read(tmp_path):
    encoded(tmp_path / "l", captions=captions(), batch=2)
    found, of = open_latents(tmp_path / "l"), said()
    states = {text: Words().encode([text])[0] for texts in of for text in texts}
    first = found.batch(torch.tensor([8, 0, 10])).cond
    assert isinstance(first, Cond) and first.encoder_hidden_states.dtype == torch.float32
    expected = torch.stack([states[of[k][0]] for k in (8, 0, 10)])
    torch.testing.assert_close(first.encoder_hidden_states, expected, rtol=0, atol=2e-3)
    torch.testing.assert_close(found.null_context, Words().encode([""])[0], rtol=0, atol=2e-3)
    assert found.null_context.shape == (5, 4) and found.null_context.dtype == torch.float32

    rows, seen = torch.tensor([8] * 30 + [0, 4]), set()
    drawn = found.training_batch(rows, Draw.all(seeded(1), 32)).cond.encoder_hidden_states
    for row, state in zip(rows.tolist(), drawn, strict=True):
        near = [t for t in of[row] if (state - states[t]).abs().max() < 2e-3]
        assert len(near) == 1
        seen.add(near[0])
    assert set(of[8]) <= seen and len(of[8]) == 3


def test_captions_are_drawn_evenly_and_last(tmp_path):
    """With texts, latents are those that are drawn without."""
    encoded(tmp_path / "with", captions=captions())
    encoded(tmp_path / "without")
    found, bare = open_latents(tmp_path / "with"), open_latents(tmp_path / "without")
    rows = torch.full((3000,), 8)
    drawn = found.training_batch(rows, Draw.all(seeded(), 3000))
    assert torch.equal(drawn.x0, bare.training_batch(rows, Draw.all(seeded(), 3000)).x0)
    counts = drawn.cond.encoder_hidden_states[:, 0, 0].unique(return_counts=True)[1]
    assert len(counts) == 3 and (counts - 1000).abs().max() < 120
    assert bare.null_context is None and bare.contexts is None


def test_an_image_without_captions_has_the_empty_text(tmp_path):
    of = [(), *said()[1:]]
    encoded(tmp_path / "l", captions=captions(of))
    found = open_latents(tmp_path / "l")
    cond = found.batch(torch.tensor([0, 1])).cond
    assert torch.equal(cond.encoder_hidden_states[0], found.null_context)
    assert not torch.equal(cond.encoder_hidden_states[1], found.null_context)


# -- interrupted, and taken up again ---------------------------------------------------------------


class Gone(BaseException):
    """The process is gone."""


class Dying(Ledger):
    """The process is gone once more images than `last` are done."""

    def __init__(self, last):
        super().__init__()
        self.last = last

    def advance(self, steps=1):
        super().advance(steps)
        if self.done > self.last:
            raise Gone


@pytest.mark.parametrize("texts", [False, True])
def test_interrupted_anywhere_it_ends_the_same(tmp_path, texts):
    more = {"captions": captions()} if texts else {}
    encoded(tmp_path / "alone", **more)
    alone = everything(tmp_path / "alone")
    assert about(tmp_path / "alone")["complete"]
    for last in range(0, 11, 2):
        out, told = tmp_path / f"at-{last}", Ledger()
        with pytest.raises(Gone):
            encoded(out, progress=Dying(last), **more)
        with refused(CheckpointError, "latents: run the same halfstep latents command again"):
            open_latents(out)
        assert not about(out)["complete"]
        assert encoded(out, progress=told, **more)
        shards = last // 4  # that were finished
        assert told.each == [4] * shards + [3, 1, 3, 1, 3][2 * shards :]
        assert told.steps == 11 and everything(out) == alone


def test_a_finished_folder_is_left_as_it_is(tmp_path):
    codec = Tiny()
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
    told = Ledger()
    encoded(out, captions=captions(), progress=told)
    assert everything(out) == before and told.steps == 11


def test_a_batch_may_change_when_memory_runs_out(tmp_path):
    with pytest.raises(Gone):
        encoded(tmp_path / "l", progress=Dying(8))
    encoded(tmp_path / "l", batch=1)
    found = open_latents(tmp_path / "l").moments.rows(torch.arange(22)).unflatten(0, (11, 2))
    torch.testing.assert_close(found, moments_of(some_images()), rtol=0, atol=1e-6)


def encode_slowly(out):
    """For a process that is to be killed."""
    torch.set_num_threads(1)
    encoded(Path(out), codec=Tiny(slow=0.03), captions=captions())


def started(out):
    code = f"from tests.data.latents.test_latents import encode_slowly; encode_slowly({str(out)!r})"
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


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "other, words",
    [
        ({"codec": Tiny(seed=1)}, "another codec"),
        ({"codec": Tiny(scale=0.8)}, "another scale of the codec (0.7 there, 0.8 asked for)"),
        ({"half": True}, "another precision, --half,"),
        ({"mirror": False}, "another number of views, --mirror,"),
        ({"shard": 5}, "another size of shards, --shard, (4 there, 5 asked for)"),
        ({"captions": captions()}, "another encoder of texts"),
        ({"images": some_images(10)}, "other images or captions (shard-00002.npy"),
        ({"images": some_images(labels=False)}, "other images or captions (shard-00000.npy"),
        ({"images": some_images(4)}, "other images or captions (shard-00001.npy"),
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
    moved = [*said()]
    moved[1], moved[2] = moved[1][:1], (moved[1][1], *moved[2])  # the same texts, of other images
    for of in (moved, [("y",), *said()[1:]]):
        with refused(ConfigError, "other images or captions (context-00000.npy"):
            encoded(tmp_path / "l", captions=captions(of))
    with refused(ConfigError, "another encoder of texts"):
        encoded(tmp_path / "l", captions=captions(digest="others"))
    with refused(ConfigError, "10 captions for 11 images"):
        encoded(tmp_path / "m", captions=captions(said(10)))


def test_more_images_than_were_finished_are_refused(tmp_path):
    encoded(tmp_path / "l", some_images(8))
    more = np.concatenate([some_images(8).data.values, some_images(11).data.values[8:]])
    images = ImagesInMemory(
        Dataset(torch.from_numpy(more), torch.arange(11) % 3, ("ape", "bee", "cow"))
    )
    with refused(ConfigError, "other images or captions (8 there, 11 asked for)"):
        encoded(tmp_path / "l", images)


def test_a_folder_that_was_begun_in_vain_begins_anew(tmp_path):
    with pytest.raises(Gone):
        encoded(tmp_path / "l", half=True, progress=Dying(0))
    encoded(tmp_path / "l", codec=Tiny(seed=1))
    encoded(tmp_path / "alone", codec=Tiny(seed=1))
    assert everything(tmp_path / "l") == everything(tmp_path / "alone")


def test_folders_of_others(tmp_path):
    (tmp_path / "l").mkdir()
    (tmp_path / "l" / "thesis.tex").write_text("")
    with refused(ConfigError, "is not empty and holds no latents (it has 'thesis.tex')"):
        encoded(tmp_path / "l")
    (tmp_path / "file").write_text("")
    with refused(ConfigError, "cannot hold latents", "choose another --out"):
        encoded(tmp_path / "file" / "l")


@pytest.mark.parametrize("name", ["shard-00001.npy", "context-00000.npy", "labels.npy", "null.npy"])
def test_a_damaged_file_is_named(tmp_path, name):
    out = tmp_path / "l"
    encoded(out, captions=captions())
    whole = (out / name).read_bytes()
    (out / name).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with refused(
        CheckpointError, f"'{out / name}' is damaged: its checksum", "delete it, and run the same"
    ):
        open_latents(out)
    open_latents(out, verify=False)  # nobody looked
    for cut in (whole[:-1], whole + b"0", whole[:20], b""):
        (out / name).write_bytes(cut)
        for verify in (False, True):
            with refused(
                CheckpointError, f"'{out / name}' is damaged", "delete it, and run the same"
            ):
                open_latents(out, verify=verify)
    np.save(out / name, np.zeros((2, 3)))
    with refused(CheckpointError, f"'{out / name}' is damaged", "[2, 3] and float64"):
        open_latents(out, verify=False)


def test_what_was_verified_is_hashed_again_when_it_changed(tmp_path, monkeypatch):
    out, hashed, checksum = tmp_path / "l", [], storage.checksum

    def counted(path, **options):
        hashed.append(path.name)
        return checksum(path, **options)

    encoded(out, captions=captions())
    monkeypatch.setattr(storage, "checksum", counted)
    open_latents(out, verify=False)
    assert not (out / "verified.json").exists()
    for _ in range(2):  # the second time all is remembered
        told = Ledger()
        open_latents(out, progress=told)
        assert len(hashed) == len(set(hashed)) == told.steps == 9
    hashed.clear()

    shard = out / "shard-00001.npy"
    whole, date = shard.read_bytes(), shard.stat().st_mtime_ns
    shard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    os.utime(shard, ns=(date, date + 1))
    for times in (1, 2):  # a refusal is not forgotten
        with refused(CheckpointError, f"'{shard}' is damaged: its checksum"):
            open_latents(out)
        assert hashed == times * [shard.name]
    shard.write_bytes(whole[:-1])
    os.utime(shard, ns=(date, date))  # as if it had never changed
    for verify in (False, True, None):
        with refused(CheckpointError, f"'{shard}' is damaged"):
            open_latents(out, verify=verify)
    shard.unlink()
    with refused(CheckpointError, f"'{shard}' is missing"):
        open_latents(out)

    hashed.clear()
    encoded(out, captions=captions())  # made again, with what belongs to all images
    open_latents(out)
    assert shard.name in hashed and not {"shard-00000.npy", "context-00001.npy"} & set(hashed)
    assert not list(out.glob("*.part"))


def rotten(path):
    """One flipped bit, with the size and the time of change that it had; returns what undoes it."""
    stat, whole = path.stat(), path.read_bytes()
    with path.open("r+b") as file:
        file.write(whole[:-1] + bytes([whole[-1] ^ 1]))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)
    return whole


@pytest.mark.parametrize("name", ["shard-00001.npy", "labels.npy", "context-00000.npy", "null.npy"])
def test_a_flipped_bit_behind_an_old_date_is_found(tmp_path, name):
    out = tmp_path / "l"
    encoded(out, captions=captions())
    open_latents(out)
    rotten(out / name)
    for ask in (open_latents, load):
        with refused(CheckpointError, f"'{out / name}' is damaged: its checksum"):
            ask(str(out))


def test_another_file_behind_an_old_date_is_found(tmp_path):
    """Moved there and not written."""
    out = tmp_path / "l"
    encoded(out)
    open_latents(out)
    shutil.copy2(out / "shard-00001.npy", tmp_path / "other.npy")
    rotten(tmp_path / "other.npy")
    (tmp_path / "other.npy").replace(out / "shard-00001.npy")
    with refused(CheckpointError, "shard-00001.npy' is damaged: its checksum"):
        open_latents(out)


def test_a_disk_that_forgets_is_found_on_demand(tmp_path, monkeypatch):
    """Nothing was written as far as the system knows: only whoever reads all bytes can tell."""
    out = tmp_path / "l"
    encoded(out)
    open_latents(out)
    before = {path.name: shards._state(path) for path in out.iterdir()}
    whole = rotten(out / "shard-00001.npy")
    monkeypatch.setattr(shards, "_state", lambda path: before[path.name])
    open_latents(out)
    for ask in (partial(open_latents, verify=True), partial(load, verify=True)):
        with refused(CheckpointError, "shard-00001.npy' is damaged: its checksum"):
            ask(str(out))
    assert (
        main(["train", "denoiser", "--data", str(out), "--verify", "--out", str(tmp_path / "x")])
        == 2
    )
    assert not (tmp_path / "x").exists()
    (out / "shard-00001.npy").write_bytes(whole)
    assert len(open_latents(out, verify=True)) == 11


@pytest.mark.parametrize(
    "old, new",
    [('"scale": 0.7', '"scale": 0.8'), ('"scale": 0.7', '"scale": NaN'), ('"views": 2', '"views": 1'),
     ('"complete": true', '"complete": false'), ('"ape"', '"apes"'), ('"rows": 3', '"rows": 1e999')],
)  # fmt: skip
def test_one_changed_sign_of_latents_json_is_refused(tmp_path, old, new):
    encoded(tmp_path / "l")
    path = tmp_path / "l" / "latents.json"
    path.write_text(path.read_text().replace(old, new, 1))
    for ask in (open_latents, lambda out: encoded(out)):
        with refused(CheckpointError, "latents.json' is damaged"):
            ask(tmp_path / "l")


def test_the_codec_of_a_folder_is_the_one_that_made_it(tmp_path):
    for name in ("a", "b"):
        torch.manual_seed(ord(name))
        net = KLCodec.fresh({"block_out_channels": [4, 4], "norm_num_groups": 2}, 0.7)
        write_latents(some_images(), net, tmp_path / name)
    assert codec_of(open_latents(tmp_path / "a")).digest() == open_latents(tmp_path / "a").codec
    for file in ("codec.json", "codec.safetensors"):
        shutil.copy(tmp_path / "b" / file, tmp_path / "a")
    with refused(CheckpointError, "is not the one that made the latents"):
        codec_of(open_latents(tmp_path / "a"))


@pytest.mark.parametrize("stamp", ["{", "[]", '{"shard-00000.npy": 3}', None])
def test_nobody_remembers_what_was_verified(tmp_path, stamp):
    """A stamp that is none, or cannot be written, costs time and nothing else."""
    out = tmp_path / "l"
    encoded(out)
    if stamp is None:
        (out / "verified.json").mkdir()
    else:
        (out / "verified.json").write_text(stamp)
    names = {path.name for path in out.iterdir()}
    open_latents(out)
    assert {path.name for path in out.iterdir()} == names
    raw = bytearray((out / "shard-00000.npy").read_bytes())
    raw[-1] ^= 1
    (out / "shard-00000.npy").write_bytes(raw)
    os.utime(out / "shard-00000.npy", ns=(1, 1))
    with refused(CheckpointError, "shard-00000.npy' is damaged: its checksum"):
        open_latents(out)


def test_a_stamp_is_of_one_checksum(tmp_path):
    """Another latents.json is another matter."""
    encoded(tmp_path / "l")
    open_latents(tmp_path / "l")
    path = tmp_path / "l" / "latents.json"
    rewritten(path, lambda found: found["shards"][2].update(sha256="0" * 64))
    with refused(CheckpointError, "shard-00002.npy' is damaged: its checksum"):
        open_latents(tmp_path / "l")


def test_latents_json_that_cannot_be(tmp_path):
    with refused(CheckpointError, "latents.json' does not exist"):
        open_latents(tmp_path)
    encoded(tmp_path / "l")
    path = tmp_path / "l" / "latents.json"
    good = path.read_bytes()
    for wrong, words in (
        (lambda said: said.update(format="theirs 7"), "has format 'theirs 7'"),
        (lambda said: said.pop("shards"), "lacks shards"),
        (lambda said: said.update(latent=3), "latent must be a list"),
        (lambda said: said.update(shards=[]), "its shards are not of 11 images"),
        (lambda said: said["shards"][1].update(rows=None), "shards[1].rows must be"),
        (lambda said: said["shards"][1].update(file="../a.npy"), "outside its folder: '../a.npy'"),
    ):
        path.write_bytes(good)
        rewritten(path, wrong)
        with refused(CheckpointError, str(path), words):
            open_latents(tmp_path / "l")


def test_verification_is_told(tmp_path):
    encoded(tmp_path / "l")
    told = Ledger()
    open_latents(tmp_path / "l", progress=told)
    assert told.steps == 4  # three shards and the labels


def test_numbers_that_cannot_be_stored(tmp_path):
    class Large(Tiny):
        def moments(self, images):
            return 1e5 * super().moments(images)

    encoded(tmp_path / "full", codec=Large())
    with refused(ConfigError, "some moments are nan or too large for float16: leave --half out"):
        encoded(tmp_path / "half", codec=Large(), half=True)
    torch.nn.init.constant_((broken := Tiny()).conv.weight, torch.nan)
    with refused(ConfigError, "nan"):
        encoded(tmp_path / "nan", codec=broken)


def test_codecs_and_options_that_cannot_be(tmp_path):
    class Wrong(Tiny):
        channels = 2

    with refused(ConfigError, "moments of shape [6, 2, 3]", "say [4, 2, 3]"):
        encoded(tmp_path / "l", codec=Wrong())
    Wrong.channels, Wrong.factor = 3, 4
    with refused(ConfigError, "4 pixels to a side", "images of 4x6", "--size 4"):
        encoded(tmp_path / "l", codec=Wrong())
    for wrong, words in (({"batch": 0}, "--batch-size 64"), ({"shard": 0}, "shard")):
        with refused(ConfigError, words):
            encoded(tmp_path / "l", **wrong)
    assert not (tmp_path / "l" / "latents.json").exists()


# -- images that are streamed ----------------------------------------------------------------------


def photos(folder, n=7, side=6):
    """n colour images in two classes."""
    rng = np.random.default_rng(2)
    for k in range(n):
        place = folder / ("cats" if k < 3 else "dogs") / f"{k}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (side, side + k, 3), dtype=np.uint8)).save(place)
    return folder


@pytest.mark.parametrize("size, channels", [(None, None), (4, None), (8, 1)])
def test_a_folder_is_streamed_as_it_is_loaded(tmp_path, size, channels):
    place = str(photos(tmp_path / "photos"))
    images = stream(place, size=size, channels=channels)
    data = load(place, size=size, channels=channels)
    assert isinstance(images, Folder)
    assert (len(images), images.shape, images.names) == (7, data.shape, ("cats", "dogs"))
    assert torch.equal(images.labels, data.labels)
    parts = list(images.batches(range(1, 7), 4))
    assert [len(part) for part in parts] == [4, 2]
    assert torch.equal(torch.cat(parts), data.batch(torch.arange(1, 7)).x0)


def test_a_folder_is_never_held_in_memory(tmp_path, monkeypatch):
    images, seen = stream(str(photos(tmp_path / "photos", 40))), []
    read = folders.read
    monkeypatch.setattr(folders, "read", lambda *a: seen.append(a) or read(*a))
    batches = images.batches(range(40), 2)
    for done in range(1, 5):
        next(batches)
        assert len(seen) <= 2 * (done + AHEAD)
    batches.close()
    assert len(seen) <= 2 * (4 + AHEAD)


def test_other_sources_are_as_they_are_loaded(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((3, 1, 4, 4), np.uint8))
    images = stream(str(tmp_path / "x.npy"))
    assert (
        isinstance(images, ImagesInMemory) and images.shape == (1, 4, 4) and images.labels is None
    )
    assert stream("digits").names[3] == "3"
    with refused(ConfigError, "'two-moons' holds samples of shape [2], not images"):
        stream("two-moons")
    for wrong in ({"size": 0}, {"channels": 2}):
        with refused(ConfigError, next(iter(wrong))):
            stream(str(photos(tmp_path / "photos")), **wrong)
    with refused(HalfstepError, "there is no data set"):
        stream("nowhere")


def replaced(file, *, same_date=False):
    """Another picture in its place, of as many bytes; with another date unless told."""
    before, content = file.stat(), bytearray(file.read_bytes())
    content[-20] ^= 1
    file.write_bytes(content)
    later = before.st_mtime_ns + (0 if same_date else 1)
    os.utime(file, ns=(before.st_atime_ns, later))
    assert file.stat().st_size == before.st_size and file.stat().st_mtime_ns == later


def bitmaps(folder, n=7):
    """n images of as many bytes, in which any byte may change."""
    folder.mkdir()
    rng = np.random.default_rng(3)
    for k in range(n):
        pixels = rng.integers(0, 256, (6, 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{k}.bmp")
    return folder


@pytest.fixture
def reads(monkeypatch):
    """Ranges of images that were read to be compared."""
    seen, digest = [], Folder.digest
    monkeypatch.setattr(
        Folder, "digest", lambda self, rows: seen.append(rows) or digest(self, rows)
    )
    return seen


@pytest.mark.parametrize("missing", [(), (0,), (1,), (2, 3)])
def test_a_replaced_image_of_as_many_bytes_is_refused(tmp_path, reads, missing):
    """Whether its shard is there, is made again, or others are."""
    out, place = tmp_path / "l", bitmaps(tmp_path / "photos")
    encoded(out, stream(str(place), size=4), shard=2)
    for k in missing:
        (out / f"shard-{k:05d}.npy").unlink()
    replaced(place / "3.bmp")
    before = everything(out)
    with refused(ConfigError, "other images or captions (shard-00001.npy was made of others than"):
        encoded(out, stream(str(place), size=4), shard=2)
    assert everything(out) == before and reads == [range(2, 4)]


def test_a_shard_that_is_made_again_is_of_the_same_contents(tmp_path, reads):
    """Even where dates do not show the change: the bytes that are encoded are compared."""
    out, place = tmp_path / "l", bitmaps(tmp_path / "photos")
    encoded(out, stream(str(place), size=4), shard=2)
    good, whole = (place / "3.bmp").read_bytes(), everything(out)
    date = (place / "3.bmp").stat().st_mtime_ns
    replaced(place / "3.bmp", same_date=True)
    assert encoded(out, stream(str(place), size=4), shard=2) is False  # nothing shows it
    (out / "shard-00001.npy").unlink()
    before = everything(out)
    for _ in range(2):
        with refused(ConfigError, "images or captions (shard-00001.npy was made of others than"):
            encoded(out, stream(str(place), size=4), shard=2)
        assert everything(out) == before and not list(out.glob("*.part"))
    (place / "3.bmp").write_bytes(good)
    os.utime(place / "3.bmp", ns=(date, date))
    encoded(out, stream(str(place), size=4), shard=2)
    assert everything(out) == whole and reads == []


def test_images_that_were_touched_are_read_once(tmp_path, reads):
    out, place = tmp_path / "l", bitmaps(tmp_path / "photos")
    encoded(out, stream(str(place), size=4), shard=2)
    assert encoded(out, stream(str(place), size=4), shard=2) is False and reads == []
    date = (place / "6.bmp").stat().st_mtime_ns + 1
    os.utime(place / "6.bmp", ns=(date, date))
    for _ in range(2):
        assert encoded(out, stream(str(place), size=4), shard=2) is False
        assert reads == [range(6, 7)]
    encoded(tmp_path / "alone", stream(str(place), size=4), shard=2)
    assert everything(out) == everything(tmp_path / "alone")


def test_what_is_read_is_named_as_it_is_compared(tmp_path):
    """By the last batch, and of a folder and of images in memory alike."""
    for images in (stream(str(photos(tmp_path / "photos")), size=4), some_images()):
        found = ImagesDigest()
        batches = images.batches(range(2, 7), 2, found)
        for _ in range(3):
            next(batches)
        assert found == ImagesDigest()
        assert next(batches, None) is None
        rows = range(2, 7)
        assert found == ImagesDigest(images.digest(rows), images.stamp(rows))
        assert found.digest != images.digest(range(1, 6))
        assert found.stamp != images.stamp(range(1, 6))


def test_digests_see_names_contents_and_classes(tmp_path):
    place = photos(tmp_path / "photos")
    images = stream(str(place))  # which looks at the files when it is asked
    whole, some, first = (images.digest(range(n)) for n in (7, 5, 4))
    stamp = images.stamp(range(5))
    assert stream(str(place)).digest(range(7)) == whole
    assert images.digest(range(3)) != images.digest(range(1, 4))
    with (place / "dogs" / "5.png").open("ab") as file:
        file.write(b"0")
    assert images.digest(range(7)) != whole and images.digest(range(5)) == some
    replaced(place / "dogs" / "4.png", same_date=True)
    assert images.digest(range(5)) != some and images.digest(range(4)) == first
    assert images.stamp(range(5)) == stamp
    replaced(place / "dogs" / "4.png")  # back again, with another date
    assert images.digest(range(5)) == some and images.stamp(range(5)) != stamp
    assert replace(images, labels=images.labels + 1).digest(range(5)) != some
    (place / "cats").rename(place / "apes")
    assert stream(str(place)).digest(range(5)) != some
    (place / "apes" / "0.png").unlink()
    for look in (images.digest, images.stamp, lambda rows: next(images.batches(rows, 2))):
        with refused(DataError, "cats/0.png (No such file or directory)"):
            look(range(5))


def test_faulty_images_are_named_and_what_was_done_is_kept(tmp_path):
    """An image that is mended costs no shard that was finished before it."""
    place = photos(tmp_path / "photos")
    good = (place / "dogs" / "5.png").read_bytes()
    (place / "dogs" / "5.png").write_bytes(good[: len(good) // 2])
    with refused(DataError, f"in {place} cannot be read as images: ", "5.png (", "or remove"):
        encoded(tmp_path / "l", stream(str(place)), shard=2)
    kept = (tmp_path / "l" / "shard-00001.npy").stat().st_mtime_ns
    (place / "dogs" / "5.png").write_bytes(good)
    encoded(tmp_path / "l", stream(str(place)), shard=2)
    assert (tmp_path / "l" / "shard-00001.npy").stat().st_mtime_ns == kept
    encoded(tmp_path / "alone", stream(str(place)), shard=2)
    assert everything(tmp_path / "l") == everything(tmp_path / "alone")
    assert len(open_latents(tmp_path / "l")) == 7


def test_images_of_different_sizes_need_a_size(tmp_path):
    place = photos(tmp_path / "photos")
    Image.new("RGB", (9, 8)).save(place / "dogs" / "z.png")
    with refused(ConfigError, "differ in size (cats/0.png gives 6 pixels a side and dogs/z.png 8)"):
        encoded(tmp_path / "l", stream(str(place)))
    (place / "cats" / "0.png").write_text("no image")
    with refused(DataError, "0.png (not an image)"):
        stream(str(place))


# -- how fast --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_reading_is_held_to_twenty_times_what_a_step_needs(capsys):
    from benchmarks.latents import main

    few = [
        "--images",
        "96",
        "--shard",
        "20",
        "--batch-size",
        "6",
        "--rounds",
        "1",
        "--device",
        "cpu",
    ]
    for more in ([], ["--half"]):
        main([*few, *more, "--json"])
        found = json.loads(capsys.readouterr().out)
        assert found["shards"] == 5 and found["held_to"] == 20
        assert found["ratio"] == pytest.approx(found["read"] / found["needed"])
        assert found["ratio"] > 20
    main(few)
    assert "held to 20" in capsys.readouterr().out
