"""Folders of images: formats, pixels, classes, and damaged files."""

import numpy as np
import pytest
import torch
from PIL import features, Image

from halfstep.data import load
from halfstep.errors import ConfigError, DataError
from tests.support.pictures import chw, pixels, save
from tests.support.progress import Ledger
from tests.support.refusals import refused


def test_lossless_formats_are_exact(tmp_path):
    colour, gray = pixels(7, 7, 3), pixels(7, 7)
    for k, kind in enumerate(("png", "bmp", "tiff", "ppm", "tga")):
        save(tmp_path / f"{k}.{kind}", colour)
    if features.check("webp"):
        save(tmp_path / "5.webp", colour, lossless=True)
    save(tmp_path / "6.gif", gray)
    save(tmp_path / "7.PNG", gray)
    data = load(str(tmp_path))
    files = sorted(path.name for path in tmp_path.iterdir())
    assert len(data) == len(files) and data.shape == (3, 7, 7) and data.labels is None
    for name, actual in zip(files, data.values, strict=True):
        want = chw(gray).expand(3, 7, 7) if name[0] in "67" else chw(colour)
        assert torch.equal(actual, want), name


def test_lossy_formats_are_near(tmp_path):
    smooth = np.add.outer(np.arange(16) * 6, np.arange(16) * 7).astype(np.uint8)
    save(tmp_path / "a.jpg", smooth, quality=95)
    save(tmp_path / "b.jpeg", np.stack([smooth, smooth // 2, 255 - smooth], -1), quality=95)
    if features.check("webp"):
        save(tmp_path / "c.webp", np.stack([smooth] * 3, -1), quality=95)
    actual = load(str(tmp_path)).values.int()
    assert (actual[0] - torch.from_numpy(smooth).int()).abs().max() <= 6
    assert (actual[1, 2] - (255 - torch.from_numpy(smooth).int())).abs().max() <= 20
    assert (actual[-1, 0] - torch.from_numpy(smooth).int()).abs().max() <= 20


def test_gray_stays_gray_unless_asked(tmp_path):
    gray = pixels(6, 6)
    save(tmp_path / "a.png", gray)
    Image.fromarray(gray > 127).save(tmp_path / "b.png")  # one bit a pixel
    data = load(str(tmp_path))
    assert torch.equal(data.values[0], chw(gray))
    assert torch.equal(data.values[1, 0], torch.from_numpy((gray > 127) * np.uint8(255)))
    assert torch.equal(load(str(tmp_path), channels=3).values[0], chw(gray).expand(3, 6, 6))
    colour = np.broadcast_to(np.array([255, 0, 0], np.uint8), (6, 6, 3)).copy()
    save(tmp_path / "c.png", colour)
    assert load(str(tmp_path)).shape == (3, 6, 6)
    assert load(str(tmp_path), channels=1).values[2].unique().tolist() == [76]  # luma of red, .299
    with refused(ConfigError, "1 channel or 3", "2"):
        load(str(tmp_path), channels=2)


def test_palettes(tmp_path):
    index = np.array([[0, 1], [2, 0]], np.uint8)
    picture = Image.fromarray(index)
    picture.putpalette([10, 20, 30, 200, 100, 50, 0, 0, 255])
    picture.save(tmp_path / "a.png")
    picture.save(tmp_path / "b.png", transparency=1)
    picture.save(tmp_path / "c.png", transparency=bytes([255, 255, 0]))
    picture.save(tmp_path / "d.gif", transparency=0)
    table = [[10, 20, 30], [200, 100, 50], [0, 0, 255]]
    for actual, clear in zip(load(str(tmp_path)).values, (None, 1, 2, 0), strict=True):
        shown = [[255] * 3 if k == clear else row for k, row in enumerate(table)]
        assert torch.equal(actual, chw(np.array(shown, np.uint8)[index]))


def test_transparency_is_put_on_white(tmp_path):
    colour = np.array([[[10, 20, 30]] * 4] * 4, np.uint8)
    alpha = np.array([[0], [64], [128], [255]], np.uint8).repeat(4, 1)
    save(tmp_path / "a.png", np.dstack([colour, alpha]))
    save(tmp_path / "b.png", np.dstack([colour[..., 0], alpha]))  # gray with alpha
    expected = 255 + (colour.astype(float) - 255) * (alpha[..., None] / 255)
    actual = load(str(tmp_path)).values.double()
    torch.testing.assert_close(
        actual[0], torch.from_numpy(expected).permute(2, 0, 1), rtol=0, atol=1
    )
    torch.testing.assert_close(
        actual[1], torch.from_numpy(expected[None, ..., 0]).expand(3, 4, 4), rtol=0, atol=1
    )
    assert actual[0, :, 0].unique().tolist() == [255] and actual[0, :, 3, 0].tolist() == [
        10,
        20,
        30,
    ]
    assert torch.equal(load(str(tmp_path), channels=1).values[1, 0].double(), actual[1, 0])
    save(tmp_path / "c.png", colour, transparency=(10, 20, 30))  # one colour is the transparent one
    assert load(str(tmp_path)).values[2].unique().tolist() == [255]


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    wide = np.array([[0, 257, 128 * 257], [65535, 300, 129], [128, 40000, 65534]], np.uint16)
    save(tmp_path / "a.png", wide)
    save(tmp_path / "b.tiff", wide)
    save(tmp_path / "c.pgm", wide)
    data = load(str(tmp_path))
    for actual in data.values:
        assert actual[0].tolist() == [[0, 1, 128], [255, 1, 1], [0, 156, 255]]
    assert torch.equal(load(str(tmp_path), channels=3).values[0, 2], data.values[0, 0])


@pytest.mark.parametrize("mode", ["F", "I"])
def test_pixels_of_unknown_range_are_refused(tmp_path, mode):
    Image.new(mode, (4, 4)).save(tmp_path / "a.tiff")
    with refused(DataError, "a.tiff", "save it with 8 bits"):
        load(str(tmp_path))


def test_exif_orientation(tmp_path):
    picture = pixels(4, 4, 3)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its left side: shown after a quarter turn clockwise
    save(tmp_path / "a.png", picture, exif=exif)
    assert torch.equal(load(str(tmp_path)).values[0], chw(np.rot90(picture, -1)))


def test_the_central_square_is_kept(tmp_path):
    tall, broad = pixels(9, 4), pixels(4, 7)
    save(tmp_path / "a.png", tall)
    save(tmp_path / "b.png", broad)
    data = load(str(tmp_path))
    assert torch.equal(data.values[0, 0], torch.from_numpy(tall[2:6]))
    assert torch.equal(data.values[1, 0], torch.from_numpy(broad[:, 1:5]))
    assert torch.equal(load(str(tmp_path), size=4).values, data.values)


def test_resizing_is_antialiased(tmp_path):
    stripes = np.zeros((64, 64), np.uint8)
    stripes[:, ::2] = 255  # at every second pixel a nearest neighbour would see one colour only
    save(tmp_path / "a.png", stripes)
    save(tmp_path / "b.png", np.full((20, 30), 77, np.uint8))
    actual = load(str(tmp_path), size=16).values.int()
    assert actual.shape == (2, 1, 16, 16)
    assert (actual[0, 0, :, 2:-2] - 127).abs().max() <= 3
    assert actual[1].unique().tolist() == [77]
    assert load(str(tmp_path), size=40).values[1].unique().tolist() == [77]
    with refused(ConfigError, "a.png", "64", "b.png", "20", "say size="):
        load(str(tmp_path))


def test_sub_folders_are_classes_in_sorted_order(tmp_path):
    arrays = {}
    for name in ("dog/2.png", "cat/b.png", "cat/a/deep.png", "Zebra/1.png"):
        arrays[name] = pixels(5, 5)
        save(tmp_path / name, arrays[name])
    data = load(str(tmp_path), flip=True)
    assert data.names == ("Zebra", "cat", "dog") and data.labels.tolist() == [0, 1, 1, 2]
    order = ("Zebra/1.png", "cat/a/deep.png", "cat/b.png", "dog/2.png")
    for actual, name in zip(data.values, order, strict=True):
        assert torch.equal(actual, chw(arrays[name])), name


def test_what_is_no_image_is_left_aside(tmp_path):
    save(tmp_path / "a.png", pixels(5, 5))
    for name in (
        ".hidden.png",
        "notes.txt",
        "labels.JSON",
        ".thumbs/x.png",
        "__MACOSX/a.png",
        "t/x.csv",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"no image")
    data = load(str(tmp_path))
    assert len(data) == 1 and data.labels is None
    (tmp_path / "a.png").rename(tmp_path / "a")  # the content decides, not the extension
    assert torch.equal(load(str(tmp_path)).values, data.values)


def damaged(tmp_path):
    picture = Image.fromarray(pixels(64, 64, 3))
    picture.save(tmp_path / "good.png")
    for name, options in (("cut.png", {}), ("cut.jpg", {}), ("cut.gif", {}), ("cut.bmp", {})):
        picture.save(tmp_path / name, **options)
        raw = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(raw[: len(raw) // 2])
    raw = bytearray((tmp_path / "good.png").read_bytes())
    raw[len(raw) // 2] ^= 0xFF
    (tmp_path / "bits.png").write_bytes(raw)
    (tmp_path / "text.png").write_text("I am a picture")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "other.xyz").write_bytes(b"what?")
    return sorted(path.name for path in tmp_path.iterdir() if path.name != "good.png")


def test_every_damaged_file_is_found(tmp_path):
    names = damaged(tmp_path)
    assert len(names) == 8
    with pytest.raises(DataError) as caught:
        load(str(tmp_path), size=8)
    message = str(caught.value)
    assert f"8 of 9 files in {tmp_path} cannot be read" in message and "and 3 more" in message
    assert [name for name in names if name in message] == names[:5] and "\n" not in message
    for name in names:  # each is refused by itself, with a reason
        for other in tmp_path.iterdir():
            if other.name not in (name, "good.png"):
                other.rename(other.with_name("." + other.name.lstrip(".")))
        hidden = tmp_path / f".{name}"
        if hidden.exists():
            hidden.rename(tmp_path / name)
        with refused(DataError, "1 of 2 files", f": {name} (", "); replace"):
            load(str(tmp_path), size=8)


def test_folders_that_cannot_be(tmp_path):
    with refused(DataError, "no images in"):
        load(str(tmp_path))
    (tmp_path / "notes.txt").write_text("none here")
    (tmp_path / "cats").mkdir()
    with refused(DataError, "no images in"):
        load(str(tmp_path))
    save(tmp_path / "dogs/a.png", pixels(5, 5))
    with refused(DataError, "sub-folder 'cats'", "without images"):
        load(str(tmp_path))
    save(tmp_path / "loose.png", pixels(5, 5))
    with refused(DataError, "loose.png", "beside", "dogs"):
        load(str(tmp_path))
    with refused(ConfigError, "no split 'test'"):
        load(str(tmp_path), split="test")


def test_splits_are_not_taken_for_classes(tmp_path):
    for name in ("test/cat/a.png", "train/cat/a.png", "train/dog/a.png"):
        save(tmp_path / name, pixels(5, 5))
    with refused(DataError, "test and train", "look like splits", str(tmp_path / "t")):
        load(str(tmp_path))
    assert load(str(tmp_path / "train")).names == ("cat", "dog")


def test_progress_is_told(tmp_path):
    for k in range(4):
        save(tmp_path / f"{k}.png", pixels(5, 5))
    ledger = Ledger()
    load(str(tmp_path), progress=ledger)
    assert ledger.steps == 4
