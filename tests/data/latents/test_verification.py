"""Verification of latents: damaged files, checksums and latents.json."""

import os
import shutil
from functools import partial

import numpy as np
import pytest
import torch

from halfstep import storage
from halfstep.data import load
from halfstep.data.latents import shards
from halfstep.data.latents.dataset import open_latents
from halfstep.data.latents.encoding import write_latents
from halfstep.errors import CheckpointError
from halfstep.models.autoencoder.kl import KLCodec
from halfstep.workflows.locate import codec_of
from tests.support.latents import captions, encoded, refused, some_images
from tests.support.progress import Ledger
from tests.support.runs import rewritten


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
        ledger = Ledger()
        open_latents(out, progress=ledger)
        assert len(hashed) == len(set(hashed)) == ledger.steps == 9
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
    """Nothing was written as far as the system knows: only reading all bytes shows it."""
    out = tmp_path / "l"
    encoded(out)
    open_latents(out)
    before = {path.name: shards._state(path, "") for path in out.iterdir()}
    whole = rotten(out / "shard-00001.npy")
    monkeypatch.setattr(shards, "_state", lambda path, again: before[path.name])
    open_latents(out)
    for ask in (partial(open_latents, verify=True), partial(load, verify=True)):
        with refused(CheckpointError, "shard-00001.npy' is damaged: its checksum"):
            ask(str(out))
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
    rewritten(path, lambda content: content["shards"][2].update(sha256="0" * 64))
    with refused(CheckpointError, "shard-00002.npy' is damaged: its checksum"):
        open_latents(tmp_path / "l")


def test_latents_json_that_cannot_be(tmp_path):
    with refused(CheckpointError, "latents.json' does not exist"):
        open_latents(tmp_path)
    encoded(tmp_path / "l")
    path = tmp_path / "l" / "latents.json"
    good = path.read_bytes()
    for wrong, words in (
        (lambda content: content.update(format="theirs 7"), "has format 'theirs 7'"),
        (lambda content: content.pop("shards"), "lacks shards"),
        (lambda content: content.update(latent=3), "latent must be a list"),
        (lambda content: content.update(shards=[]), "11 images"),
        (lambda content: content["shards"][1].update(rows=None), "shards[1].rows must be"),
        (
            lambda content: content["shards"][1].update(file="../a.npy"),
            "outside its folder: '../a.npy'",
        ),
    ):
        path.write_bytes(good)
        rewritten(path, wrong)
        with refused(CheckpointError, str(path), words):
            open_latents(tmp_path / "l")


def test_verification_is_told(tmp_path):
    encoded(tmp_path / "l")
    ledger = Ledger()
    open_latents(tmp_path / "l", progress=ledger)
    assert ledger.steps == 4  # three shards and the labels
