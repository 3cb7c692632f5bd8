"""The same images in every form: a folder, tables, tar shards, an array and a torch Dataset."""

import io

import numpy as np
import pytest
import torch

from halfstep.data import as_data, load
from halfstep.data.latents.captions import captions_of
from halfstep.data.latents.image_stream import stream
from halfstep.diffusion.denoiser import Denoiser
from halfstep.diffusion.prediction import V
from halfstep.diffusion.schedules import Cosine
from halfstep.errors import ConfigError, DataError
from halfstep.methods import Denoising
from halfstep.models import build
from halfstep.pipeline import Pipeline
from halfstep.training import train, TrainingConfig
from tests.support import data_forms as forms
from tests.support.latents import encoded
from tests.support.refusals import refused
from tests.support.runs import bits, losses

UVIT = {
    "img_size": 8, "patch_size": 4, "in_chans": 3, "embed_dim": 16, "depth": 2, "num_heads": 2,
    "num_classes": 4,
}  # fmt: skip


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """The forms by name, each as `--data` takes it."""
    place, pixels = tmp_path_factory.mktemp("forms"), forms.some_pixels()
    contents = [forms.png(image) for image in pixels]
    forms.folder(place / "folder", pixels)
    forms.saved(place / "saved", contents)
    forms.parquet(place / "parquet", contents)
    forms.shards(place / "shards", contents)
    forms.parquet(place / "one", contents, parts=1)
    arrays = [np.ascontiguousarray(image) for image in pixels]
    streams = []
    for array in arrays:
        file = io.BytesIO()
        np.save(file, array)
        streams.append(file.getvalue())
    members = {f"{k}.npy": content for k, content in enumerate(streams)}
    members |= {f"{k}.json": f'{{"label": {c}}}'.encode() for k, c in enumerate(forms.labels_of(9))}
    forms.shard(place / "arrays.tar", dict(sorted(members.items())))
    np.savez(place / "x.npz", images=pixels, labels=np.array(forms.labels_of(9)))
    import datasets

    datasets.DatasetDict({"train": forms.table(contents)}).save_to_disk(place / "dict")
    return {
        "folder": str(place / "folder"),
        "saved": str(place / "saved"),
        "splits": str(place / "dict"),
        "parquet": str(place / "parquet"),
        "file": str(place / "one" / "part-00000.parquet"),
        "pattern": str(place / "parquet" / "part-*.parquet"),
        "arrow": str(place / "saved" / "data-00000-of-00001.arrow"),
        "shards": str(place / "shards"),
        "range": str(place / "shards" / "{000..001}.tar"),
        "arrays": str(place / "arrays.tar"),
        "npz": str(place / "x.npz"),
    }


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HALFSTEP_CACHE", str(tmp_path / "cache"))


def test_every_form_holds_the_same_images_and_labels(places):
    pixels = torch.from_numpy(np.moveaxis(forms.some_pixels(), -1, 1).copy())
    for name, place in places.items():
        data = load(place)
        assert torch.equal(data.values, pixels), name
        assert data.labels.tolist() == forms.labels_of(9), name
        assert data.fingerprint() == load(places["folder"]).fingerprint(), name
    assert load(places["parquet"]).names == load(places["folder"]).names == forms.CLASSES


@pytest.mark.parametrize(
    "names",
    [["shards"], pytest.param(["saved", "parquet", "npz", "torch"], marks=pytest.mark.slow)],
    ids=len,
)
def test_every_form_trains_to_the_same_bits(names, places, tmp_path):
    torch.manual_seed(0)
    denoiser = Denoiser(build("uvit", UVIT), Cosine(), V())
    blank = Pipeline(denoiser, (3, 8, 8), class_names=forms.CLASSES, null=3)
    want = None
    sources = {**places, "torch": forms.Torch(forms.some_pixels())}
    for name in ("folder", *names):
        out = tmp_path / name
        train(
            blank, as_data(sources[name]), out, method=Denoising(updates=3, drop_labels=0.5),
            training=TrainingConfig(batch_size=4, log_every=1),
        )  # fmt: skip
        got = losses(out), bits(out)
        assert len(got[0]) == 3 and all(map(np.isfinite, got[0])), name
        want = want or got
        assert got == want, name


def test_every_form_is_streamed_with_its_captions(places, tmp_path):
    for name in ("folder", "saved", "parquet", "shards"):
        images = stream(places[name], size=4)
        data = load(places[name], size=4)
        parts = torch.cat(list(images.batches(range(9), 4)))
        assert torch.equal(parts, data.batch(torch.arange(9)).x0), name
        assert captions_of(images) == [(text,) for text in forms.captions_of(9)], name
        out = tmp_path / name
        assert encoded(out, images) and not encoded(out, stream(places[name], size=4)), name
        shard = (out / "shard-00000.npy").read_bytes()
        assert shard == (tmp_path / "folder" / "shard-00000.npy").read_bytes(), name


def test_places_that_are_open_are_refused(tmp_path):
    contents = [forms.png(image) for image in forms.some_pixels(2)]
    forms.table(contents).to_parquet(tmp_path / "both" / "train-0.parquet")
    forms.table(contents).to_parquet(tmp_path / "both" / "test-0.parquet")
    with refused(DataError, "several splits", "*test*.parquet"):
        load(str(tmp_path / "both"))
    assert len(load(str(tmp_path / "both" / "*train*.parquet"))) == 2
    (tmp_path / "both" / "a.png").write_bytes(contents[0])
    with refused(DataError, "a.png beside"):
        load(str(tmp_path / "both"))
    with refused(DataError, "lambdalabs/pokemon", "save_to_disk"):
        load("lambdalabs/pokemon")
    with refused(ConfigError, "no file matches"):
        load(str(tmp_path / "both" / "*.tar"))
    with refused(ConfigError, "'image=' in"):
        load(f"{tmp_path / 'both'}:image=")
    with refused(ConfigError, "':size=8' in", "image=, label= or text="):
        load(f"{tmp_path / 'both'}:size=8")
    with refused(ConfigError, "no range"):
        load(str(tmp_path / "{9..0}.tar"))
    with refused(DataError, "there is no file", "0.tar"):
        load(str(tmp_path / "{0..1}.tar"))
