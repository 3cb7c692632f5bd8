"""Tar shards: the index, the members of a sample, and shards that are refused."""

import os

import pytest
import torch

from halfstep.data import load
from halfstep.data.latents.captions import captions_of
from halfstep.data.latents.image_stream import stream
from halfstep.data.sources import tar_shards
from halfstep.errors import ConfigError, DataError
from tests.support import data_forms as forms
from tests.support.progress import Ledger
from tests.support.refusals import refused

CONTENTS = [forms.png(image) for image in forms.some_pixels(6)]


@pytest.fixture(autouse=True)
def scans(tmp_path, monkeypatch):
    """The shards that were scanned."""
    monkeypatch.setenv("HALFSTEP_CACHE", str(tmp_path / "cache"))
    scans, members = [], tar_shards._members
    monkeypatch.setattr(tar_shards, "_members", lambda *a: scans.append(a[0].name) or members(*a))
    return scans


def test_a_shard_is_scanned_once_until_it_changes(tmp_path, scans):
    place = forms.shards(tmp_path / "shards", CONTENTS)
    before, progress = load(str(place), progress=(ledger := Ledger())), scans.copy()
    assert scans == progress == ["000.tar", "001.tar"] and ledger.done == 2 + len(CONTENTS)
    assert load(str(place)).fingerprint() == before.fingerprint() and len(scans) == 2
    assert len(load(str(place / "001.tar"))) == 3 and len(scans) == 2
    stat = (place / "001.tar").stat()
    os.utime(place / "001.tar", ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    load(str(place))
    assert scans[2:] == ["001.tar"]
    for index in (tmp_path / "cache" / "shards").iterdir():
        index.write_text("{")  # a damaged index is made again
    assert load(str(place)).fingerprint() == before.fingerprint() and len(scans) == 5
    assert not [p for p in place.iterdir() if p.suffix != ".tar"]  # nothing lies beside the data


def test_a_sample_is_the_members_of_one_key(tmp_path):
    members = {
        "__meta__/x.json": b"not json",
        "a/1.2.png": b"",
        "a/2.PNG": CONTENTS[0], "a/2.txt": b"one\n two \n", "a/2.cls": b"dog",
        "b/2.jpg": CONTENTS[1], "b/2.json": b'{"caption": ["x", "y"], "class": "cat", "url": "u"}',
        "c.webp": CONTENTS[2], "c.json": b'{"text": "z"}', "c.xmp": b"?",
    }  # fmt: skip
    del members["a/1.2.png"]
    data = load(place := str(forms.shard(tmp_path / "x.tar", members)))
    assert data.names == ("cat", "dog") and data.labels.tolist() == [1, 0, -1]
    assert captions_of(stream(place)) == [("one", "two"), ("x", "y"), ("z",)]
    both = {"1.left.png": CONTENTS[0], "1.right.png": CONTENTS[1], "1.cls": b"0"}
    place = str(forms.shard(tmp_path / "y" / "x.tar", both))
    with refused(DataError, "images left.png, right.png", ":image=left.png"):
        load(place)
    left, right = load(f"{place}:image=left.png"), load(f"{place}:image=right.png")
    assert not torch.equal(left.values, right.values)
    with refused(DataError, "sample 1 of", "no .up"):
        load(f"{place}:image=up")


@pytest.mark.parametrize("kind", ["pyd", "pkl", "pickle", "pth"])
def test_pickles_are_refused(tmp_path, kind):
    place = forms.shard(tmp_path / "x.tar", {"1.png": CONTENTS[0], f"1.{kind}": b"cos\nsystem\n"})
    with refused(DataError, f"1.{kind}", "pickle"):
        load(str(place))


def test_damaged_shards_are_refused(tmp_path):
    place = forms.shards(tmp_path / "shards", CONTENTS, parts=1) / "000.tar"
    content = place.read_bytes()
    ends = [k for k in range(512, len(content), 512)]
    for end in (0, 100, *ends[:-1:3]):
        whole = content[:end]
        if not content[end:].strip(b"\0"):
            break
        place.write_bytes(whole)
        with refused(DataError, "000.tar"):
            load(str(place))
    for k in (0, 1024, 2048):  # a header in the middle is no end
        place.write_bytes(content[:k] + bytes([content[k] ^ 255]) + content[k + 1 :])
        with refused(DataError, "cannot read"):
            load(str(place))
    place.write_bytes(__import__("gzip").compress(content))
    with refused(DataError, "uncompressed"):
        load(str(place))


@pytest.mark.parametrize(
    "members, words",
    [
        ({"1.png": CONTENTS[0], "1.PNG": CONTENTS[0]}, "two members"),
        ({"1.cls": b"3"}, "no image"),
        ({"readme.md": b""}, "no samples"),
        ({"1.png": CONTENTS[0], "1.json": b"{"}, "JSON"),
        ({"1.png": CONTENTS[0], "1.json": b"[1]"}, "no table"),
        ({"1.png": CONTENTS[0], "1.json": b'{"label": [1]}'}, "label"),
        ({"1.png": CONTENTS[0], "1.cls": b"-3"}, "labels from -3"),
        ({"1.png": CONTENTS[0], "1.txt": b"\xff"}, "UTF-8"),
        ({"1.png": CONTENTS[0], "1.txt": b"x" * (2**20 + 1)}, "at most"),
    ],
)
def test_samples_that_cannot_be_read_are_refused(tmp_path, members, words):
    with refused(DataError, words):
        load(str(forms.shard(tmp_path / "x.tar", members)))


def test_links_are_not_followed(tmp_path):
    import tarfile

    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        link = tarfile.TarInfo("1.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        tar.addfile(link)
    with refused(DataError, "no plain file"):
        load(str(tmp_path / "x.tar"))


def test_a_missing_library_is_a_sentence(tmp_path, monkeypatch):
    place = forms.shards(tmp_path / "shards", CONTENTS)
    monkeypatch.setitem(__import__("sys").modules, "webdataset.tariterators", None)
    with refused(ConfigError, "pip install 'halfstep[webdataset]'"):
        load(str(place))
