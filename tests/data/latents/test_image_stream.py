"""Streams of images: folders, digests, and encoding from them."""

import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from halfstep.data import load
from halfstep.data.latents.dataset import open_latents
from halfstep.data.latents.image_stream import ImagesDigest, ImagesInMemory, ImageStream, stream
from halfstep.data.sources import decoding, image_files
from halfstep.errors import ConfigError, DataError, HalfstepError
from tests.support.latents import encoded, photos, refused, some_images
from tests.support.runs import everything


@pytest.mark.parametrize("size, channels", [(None, None), (4, None), (8, 1)])
def test_a_folder_is_streamed_as_it_is_loaded(tmp_path, size, channels):
    place = str(photos(tmp_path / "photos"))
    images = stream(place, size=size, channels=channels)
    data = load(place, size=size, channels=channels)
    assert isinstance(images, ImageStream)
    assert (len(images), images.shape, images.names) == (7, data.shape, ("cats", "dogs"))
    assert torch.equal(images.labels, data.labels)
    parts = list(images.batches(range(1, 7), 4))
    assert [len(part) for part in parts] == [4, 2]
    assert torch.equal(torch.cat(parts), data.batch(torch.arange(1, 7)).x0)


def test_a_folder_is_never_held_in_memory(tmp_path, monkeypatch):
    images, reads = stream(str(photos(tmp_path / "photos", 40))), []
    read = decoding.read
    monkeypatch.setattr(image_files, "AHEAD", 4)
    monkeypatch.setattr(decoding, "read", lambda *a: reads.append(a) or read(*a))
    batches = images.batches(range(40), 2)
    for done in range(1, 5):
        next(batches)
        assert len(reads) <= 2 * done + 4
    batches.close()
    assert len(reads) <= 2 * 4 + 4


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
    reads, digest = [], ImageStream.digest
    monkeypatch.setattr(
        ImageStream, "digest", lambda self, rows: reads.append(rows) or digest(self, rows)
    )
    return reads


@pytest.mark.parametrize("missing", [(), (0,), (1,), (2, 3)])
def test_a_replaced_image_of_as_many_bytes_is_refused(tmp_path, reads, missing):
    """Whether its shard is there, is made again, or others are."""
    out, place = tmp_path / "l", bitmaps(tmp_path / "photos")
    encoded(out, stream(str(place), size=4), shard=2)
    for k in missing:
        (out / f"shard-{k:05d}.npy").unlink()
    replaced(place / "3.bmp")
    before = everything(out)
    with refused(ConfigError, "other images or captions (the images of shard-00001.npy"):
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
        with refused(ConfigError, "images or captions (the images of shard-00001.npy"):
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
        digest = ImagesDigest()
        batches = images.batches(range(2, 7), 2, digest)
        for _ in range(3):
            next(batches)
        assert digest == ImagesDigest()
        assert next(batches, None) is None
        rows = range(2, 7)
        assert digest == ImagesDigest(images.digest(rows), images.stamp(rows))
        assert digest.digest != images.digest(range(1, 6))
        assert digest.stamp != images.stamp(range(1, 6))


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
    time = (tmp_path / "l" / "shard-00001.npy").stat().st_mtime_ns
    (place / "dogs" / "5.png").write_bytes(good)
    encoded(tmp_path / "l", stream(str(place)), shard=2)
    assert (tmp_path / "l" / "shard-00001.npy").stat().st_mtime_ns == time
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
