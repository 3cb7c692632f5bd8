"""Images that cannot be decoded: refused by name, or skipped, listed, and the same again."""

import numpy as np
import pytest
import torch

from halfstep.data import load
from halfstep.data.latents.captions import captions_of
from halfstep.data.latents.image_stream import ImageStream, stream
from halfstep.data.skipped import Skipped
from halfstep.errors import DataError
from tests.support import data_forms as forms
from tests.support.latents import encoded
from tests.support.progress import Ledger
from tests.support.refusals import refused
from tests.support.runs import everything

BAD = (1, 6)
GOOD = [k for k in range(9) if k not in BAD]


@pytest.fixture(params=["folder", "parquet", "shards"])
def place(request, tmp_path, monkeypatch):
    """Nine images, of which two are damaged."""
    monkeypatch.setenv("HALFSTEP_CACHE", str(tmp_path / "cache"))
    pixels = forms.some_pixels()
    contents = [forms.png(image) for image in pixels]
    for k in BAD:
        contents[k] = contents[k][:60]
    where = tmp_path / "data"
    if request.param == "folder":
        forms.folder(where, pixels)
        for k, file in enumerate(sorted(where.glob("*/*.png"))):
            file.write_bytes(contents[k])
    else:
        getattr(forms, request.param)(where, contents)
    return str(where)


def test_the_rest_is_read_with_its_labels_and_captions(place):
    with refused(DataError, "2 of 9 files", "--skip-bad"):
        load(place)
    data = load(place, skip_bad=True, progress=(ledger := Ledger()))
    pixels = torch.from_numpy(np.moveaxis(forms.some_pixels(), -1, 1).copy())
    assert torch.equal(data.values, pixels[GOOD])
    assert data.labels.tolist() == [forms.labels_of(9)[k] for k in GOOD]
    assert data.skipped.images == 9 and len(data.skipped.faults) == 2
    assert [note for note in ledger.notes if note.startswith("2 of 9 images cannot be read")]
    images = stream(place, skip_bad=True)
    assert captions_of(images) == [(forms.captions_of(9)[k],) for k in GOOD]
    assert torch.equal(torch.cat(list(images.batches(range(7), 3))), data.batch(torch.arange(7)).x0)
    assert images.skipped.faults == data.skipped.faults


def test_latents_list_what_was_skipped_and_go_on_with_the_same(place, tmp_path, monkeypatch):
    out, looks = tmp_path / "latents", []
    fault = ImageStream._fault
    monkeypatch.setattr(ImageStream, "_fault", lambda s, k: looks.append(k) or fault(s, k))

    def images():
        return stream(place, skip_bad=True, listed=out)

    encoded(out, images(), shard=2)
    assert len(looks) == 9
    lines = (out / "skipped.txt").read_text().splitlines()
    assert lines[0].startswith("# 2 of 9 images") and len(lines) == 3
    whole = everything(out)
    (out / "shard-00001.npy").unlink()
    assert encoded(out, images(), shard=2) and len(looks) == 9  # the list holds
    assert everything(out) == whole
    (out / "skipped.txt").unlink()
    assert not encoded(out, images(), shard=2) and len(looks) == 18
    assert everything(out) == whole


def test_images_of_one_name_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.setenv("HALFSTEP_CACHE", str(tmp_path / "cache"))
    pixels, out = forms.some_pixels(4), tmp_path / "latents"
    for k, folder in enumerate(("a", "b")):
        members = {f"{n}.png": forms.png(pixels[2 * k + n]) for n in range(2)}
        members["0.png"] = members["0.png"][: None if k else 60]
        forms.shard(tmp_path / "data" / folder / "0.tar", members)
    place = str(tmp_path / "data")
    want = load(place, skip_bad=True)
    assert len(want) == 3
    for _ in range(2):  # the second time with the list of the first
        images = stream(place, skip_bad=True, listed=out)
        assert list(images.rows) == [1, 2, 3] and images.skipped.faults == want.skipped.faults
        encoded(out, images)


def test_nothing_that_can_be_read_is_no_data(tmp_path):
    (tmp_path / "a.png").write_text("no image")
    for read in (load, stream):
        with refused(DataError, "1 of 1 files", "give other images"):
            read(str(tmp_path), skip_bad=True)


def test_a_list_is_of_the_same_images(tmp_path):
    skipped = Skipped(9, (("a\n.png", "no\timage"),), "abc")
    assert Skipped().write(tmp_path) is None and not list(tmp_path.iterdir())
    skipped.write(tmp_path)
    assert Skipped.read(tmp_path, 9, "abc").faults == ((r"a\n.png", r"no\timage"),)
    assert Skipped.read(tmp_path, 8, "abc") is None and Skipped.read(tmp_path, 9, "ab") is None
    assert Skipped.read(tmp_path / "no", 9, "abc") is None
