"""Files are whole or are not there; what is damaged is named."""

import json
import os
import stat
from functools import partial
from typing import TypedDict

import pytest
import torch
from torch import nn

from halfstep import storage
from halfstep.errors import CheckpointError
from tests.support.disk import largest_file
from tests.support.runs import Crash, everything

TENSORS = {
    "w": torch.arange(30, dtype=torch.float32).reshape(5, 3, 2),
    "step": torch.tensor(7.0),
    "half": torch.tensor([0.1, -2.0], dtype=torch.bfloat16),
    "exact": torch.tensor([1 / 3], dtype=torch.float64),
    "empty": torch.empty(0, 4),
    "count": torch.tensor([2**40, -1]),
}


def same(actual, expected):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert actual[name].dtype == value.dtype and actual[name].shape == value.shape
        assert torch.equal(actual[name], value), name


def test_what_is_saved_is_loaded(tmp_path):
    storage.save(tmp_path / "a", TENSORS, {"update": 3, "betas": [0.9, 0.99]})
    tensors, about = storage.load(tmp_path / "a")
    same(tensors, TENSORS)
    assert about == {"update": 3, "betas": [0.9, 0.99]}
    assert sorted(everything(tmp_path)) == ["a.json", "a.safetensors"]


def test_views_strides_and_tied_weights(tmp_path):
    wide = torch.arange(24.0).reshape(2, 3, 4)
    mixed = {"a": wide, "b": wide, "row": wide[1], "turned": wide.permute(2, 0, 1)}
    mixed["spread"] = torch.tensor([[5.0], [6.0]]).expand(2, 3)
    storage.save(tmp_path / "a", mixed, {})
    same(storage.load(tmp_path / "a")[0], mixed)
    tied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    tied[1].weight = tied[0].weight
    storage.save(tmp_path / "tied", tied.state_dict(), {})
    fresh = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    fresh[1].weight = fresh[0].weight
    storage.load_into(fresh, storage.load(tmp_path / "tied")[0], "tied")
    same(fresh.state_dict(), tied.state_dict())


def test_others_may_read_what_the_mask_allows(tmp_path):
    before = os.umask(0o027)
    try:
        storage.save(tmp_path / "a", TENSORS, {})
        assert os.umask(0o027) == 0o027  # it was only looked at
    finally:
        os.umask(before)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == {0o640}


@pytest.mark.parametrize("at", [0, 60, -1])
def test_one_flipped_bit_is_named(tmp_path, at):
    storage.save(tmp_path / "a", TENSORS, {})
    path = tmp_path / "a.safetensors"
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"a\.safetensors' is damaged: its checksum"):
        storage.load(tmp_path / "a")


@pytest.mark.parametrize(
    "text, says",
    [
        ("", "is damaged: Expecting value"),
        ('{"sha256": "', "is damaged: Unterminated"),
        ("[1]", "must be a table"),
        ("\ufeff{}", "lacks sha256"),
        ("{}", "lacks sha256"),
        ('{"sha256": 3}', "sha256 must be text"),
        ('{"sha256": "3"}', "no checksum"),
        ('{"sha256": "3", "checksum": "4"}', "its checksum"),
        ('{"sha256": "3", "checksum": NaN}', "NaN is no number"),
    ],
)
def test_a_damaged_json_is_named(tmp_path, text, says):
    storage.save(tmp_path / "a", TENSORS, {})
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(CheckpointError, match=says) as caught:
        storage.load(tmp_path / "a")
    assert "a.json" in str(caught.value)


def test_bytes_that_are_no_text_are_named(tmp_path):
    (tmp_path / "a.json").write_bytes(b"\x80\xff")
    with pytest.raises(CheckpointError, match=r"a\.json' is damaged"):
        storage.read_json(tmp_path / "a.json", dict)


@pytest.mark.parametrize("text", [b"{", b"", b"[1]", b"\x80", b'{"a": NaN}', b"[" * 99_999, b"{}"])
def test_what_is_no_json_of_ours_says_what_to_do(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_bytes(text)
    for read, mend in (
        (partial(storage.read_json, path, dict), "copy it back, or make it again"),
        (partial(storage.read_json, path, dict, mend="mend it"), "mend it"),
        (partial(storage.read_about, tmp_path / "a"), "copy it back from where it is whole"),
        (partial(storage.read_unsealed_json, path, Needs), "copy it from where it is whole"),
    ):
        if read.func is storage.read_unsealed_json and text == b"{}":
            continue  # which may say anything besides
        with pytest.raises(CheckpointError, match=f"; {mend}$"):
            read()


def test_a_json_of_others_of_another_kind_says_what_to_do(tmp_path):
    (tmp_path / "a.json").write_text('{"width": "x", "more": 1}')
    with pytest.raises(CheckpointError, match=r"is invalid: width .*; copy it"):
        storage.read_unsealed_json(tmp_path / "a.json", Needs)


class Needs(TypedDict):
    width: int


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"a\.json' does not exist"):
        storage.load(tmp_path / "a")
    storage.save(tmp_path / "a", TENSORS, {})
    (tmp_path / "a.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"a\.safetensors' is missing"):
        storage.load(tmp_path / "a")
    with pytest.raises(CheckpointError, match=r"cannot read '.*': Is a directory"):
        storage.read_json(tmp_path, dict)


@pytest.mark.parametrize("room", [0, 100, 3000])
def test_a_full_disk_leaves_what_was_there(tmp_path, room):
    big = {"w": torch.zeros(40, 50)}
    storage.save(tmp_path / "a", TENSORS, {"old": True})
    before = everything(tmp_path)
    with largest_file(room), pytest.raises(CheckpointError) as caught:
        storage.save(tmp_path / "a", big, {})
    assert everything(tmp_path) == before  # and no .part is left
    message = str(caught.value)
    assert (
        message.startswith(f"cannot write '{tmp_path / 'a.safetensors'}'") and "\n" not in message
    )
    assert "File too large" in message and "make room and run the same command again" in message
    storage.save(tmp_path / "a", big, {})
    same(storage.load(tmp_path / "a")[0], big)


def test_no_room_for_the_json_spoils_neither_file(tmp_path):
    storage.save(tmp_path / "a", TENSORS, {"old": True})
    before = everything(tmp_path)
    with largest_file(3000), pytest.raises(CheckpointError, match="File too large"):
        storage.save(tmp_path / "a", TENSORS, {"text": "x" * 4000})
    assert everything(tmp_path) == before


@pytest.mark.parametrize("content", ["x" * 9000, "short"])
def test_a_text_is_replaced_whole_or_not_at_all(tmp_path, content):
    storage.write_text(tmp_path / "a.txt", "before\n")
    with largest_file(2), pytest.raises(CheckpointError, match="cannot write"):
        storage.write_text(tmp_path / "a.txt", content)
    assert everything(tmp_path) == {"a.txt": b"before\n"}
    storage.write_text(tmp_path / "a.txt", content)
    assert everything(tmp_path) == {"a.txt": content.encode()}


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(CheckpointError, match=r"cannot write '.*a\.json': No such file"):
        storage.write_json(tmp_path / "none" / "a.json", {})


def test_the_json_gets_its_name_last(tmp_path, monkeypatch):
    """A crash between the two names leaves a pair that is not there, never one that does not fit."""
    names = []

    def replace(self, target):
        names.append(target.name)
        if len(names) == 2:
            raise Crash
        os.replace(self, target)

    with monkeypatch.context() as patched:
        patched.setattr("pathlib.Path.replace", replace)
        with pytest.raises(Crash):
            storage.save(tmp_path / "a", TENSORS, {})
    assert names == ["a.safetensors", "a.json"]
    assert (tmp_path / "a.safetensors").exists() and not (tmp_path / "a.json").exists()
    with pytest.raises(CheckpointError, match="does not exist"):
        storage.load(tmp_path / "a")


def test_checksum_is_of_the_bytes_on_the_disk(tmp_path):
    import hashlib

    storage.save(tmp_path / "a", TENSORS, {})
    recorded = json.loads((tmp_path / "a.json").read_text())["sha256"]
    assert recorded == hashlib.sha256((tmp_path / "a.safetensors").read_bytes()).hexdigest()


@pytest.mark.parametrize(
    "change, says",
    [
        ({"weight": None}, r"lacks 1 tensors \(weight\)"),
        ({"bias": None, "weight": None}, r"lacks 2 tensors \(bias, weight\)"),
        ({"more": torch.zeros(1)}, r"has besides 1 tensors \(more\)"),
        ({"weight": torch.zeros(4, 3)}, r"has other shapes of 1 tensors \(weight\)"),
        ({f"x{k}": torch.zeros(1) for k in range(5)}, r"has besides 5 tensors \(x0, x1, x2, ...\)"),
    ],
)
def test_weights_that_do_not_fit_are_named(change, says):
    module = nn.Linear(4, 2)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    tensors = {k: v for k, v in {**before, **change}.items() if v is not None}
    with pytest.raises(CheckpointError, match=f"here does not fit this network: it {says}"):
        storage.load_into(module, tensors, "here")
    same(module.state_dict(), before)
