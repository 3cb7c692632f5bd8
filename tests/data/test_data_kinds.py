"""Of what kinds data may be: latents of any range, torch's data sets, folders' classes, headers that lie."""

import io
import struct
import sys
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset as Theirs,
    IterableDataset,
    Subset,
    TensorDataset,
)

from halfstep.data import as_data, Dataset, load
from halfstep.data.latents.image_stream import stream
from halfstep.data.sources.torch_dataset import collected
from halfstep.diffusion.denoiser import Denoiser
from halfstep.diffusion.prediction import V
from halfstep.diffusion.schedules import Cosine
from halfstep.errors import ConfigError, DataError
from halfstep.methods import Denoising
from halfstep.models import build
from halfstep.models.classifiers.registry import refuse_other_classes
from halfstep.pipeline import Pipeline
from halfstep.training import train, TrainingConfig
from halfstep.training.checks.data import read_by
from halfstep.training.classifiers.api import held_out_dataset, train_classifier
from halfstep.training.classifiers.distillation import distill_classifier

# -- latents ---------------------------------------------------------------------------------------


def drawn(*shape, scale=3.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "shape",
    [(40, 4, 8, 8), (40, 16, 4, 6), (40, 8, 1, 1), (5, 8, 3, 3), (5, 4, 2, 8, 8), (5, 2, 8, 8)],
)
def test_latents_have_any_range(shape):
    values = drawn(*shape)
    data = Dataset(values)
    assert torch.equal(data.batch(torch.arange(3)).x0, values[:3]) and not data.is_images
    with pytest.raises(DataError, match="flip"):
        Dataset(values, flip=True)


@pytest.mark.parametrize(
    "values",
    [
        drawn(5, 1, 8, 8),
        drawn(5, 3, 8, 8),
        drawn(5, 8, 6, 3),  # channels last
        drawn(5, 8, 6, 1),
        drawn(5, 2),
        drawn(5, 7, 9),
        torch.arange(5 * 4 * 8 * 8).remainder(256).float().reshape(5, 4, 8, 8),  # with transparency
        drawn(5, 3, 2, 8, 8),
    ],
)
def test_pixels_and_points_have_not(values):
    with pytest.raises(DataError, match="scale"):
        Dataset(values)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_latents_are_finite(bad):
    values = drawn(5, 4, 8, 8)
    values[2, 1, 3, 4] = bad
    with pytest.raises(DataError, match=r"nan|finite"):
        Dataset(values)


def test_images_in_range_stay_images_whatever_their_channels():
    for channels in (1, 3, 4):
        assert Dataset(drawn(5, channels, 8, 8).clamp(-1, 1)).is_images
    assert not Dataset(drawn(5, 7).clamp(-1, 1)).is_images


@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
def test_latents_are_loaded_from_arrays(tmp_path, name):
    values = drawn(5, 4, 6, 8).numpy()
    (np.save if name == "a.npy" else np.savez)(tmp_path / name, values.astype(">f8"))
    assert np.array_equal(load(str(tmp_path / name)).values.numpy(), values)


# -- torch's data sets -----------------------------------------------------------------------------


class Pairs(Theirs):
    """Of these items, each as `change` makes it."""

    def __init__(self, items, classes=()):
        self.items, self.classes = items, classes

    def __len__(self):
        return len(self.items)

    def __getitem__(self, k):
        item = self.items[k]
        return item() if callable(item) else item


class Endless(IterableDataset):
    def __iter__(self):
        yield torch.zeros(2)


class Uncounted(Theirs):
    def __getitem__(self, k):
        return torch.zeros(2)


POINTS = torch.linspace(-1, 1, 12).reshape(6, 2)
IMAGES = torch.arange(6 * 64).remainder(256).to(torch.uint8).reshape(6, 1, 8, 8)
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])


@pytest.mark.parametrize(
    "data, values, labels, names",
    [
        (Pairs(list(POINTS)), POINTS, None, ()),
        (TensorDataset(POINTS), POINTS, None, ()),
        (TensorDataset(IMAGES, LABELS), IMAGES, LABELS, ()),
        (Pairs([(x, int(y)) for x, y in zip(IMAGES, LABELS, strict=True)], ["a", "b", "c"]),
         IMAGES, LABELS, ("a", "b", "c")),
        (Pairs([[x.numpy(), np.int32(y)] for x, y in zip(IMAGES, LABELS, strict=True)]),
         IMAGES, LABELS, ()),
        (Pairs([x.numpy().astype(">f4") for x in POINTS]), POINTS, None, ()),
        (Subset(TensorDataset(IMAGES, LABELS), [4, 1]), IMAGES[[4, 1]], LABELS[[4, 1]], ()),
        (ConcatDataset([TensorDataset(POINTS), TensorDataset(POINTS)]),
         torch.cat([POINTS, POINTS]), None, ()),
    ],
)  # fmt: skip
def test_torch_datasets_are_read_once(data, values, labels, names):
    dataset = as_data(data)
    assert torch.equal(dataset.values, values) and dataset.names == names
    assert (dataset.labels is None) if labels is None else torch.equal(dataset.labels, labels)


@pytest.mark.parametrize(
    "data, word",
    [
        (None, "NoneType"),
        (3, "int"),
        (POINTS, "halfstep.Dataset\\(values\\)"),
        (POINTS.numpy(), "from_numpy"),
        (list(POINTS), "list"),
        ({"train": POINTS}, "dict"),
        ((x for x in POINTS), "generator"),
        (b"digits", "bytes"),
        (DataLoader(TensorDataset(POINTS)), "loader.dataset"),
        (Endless(), "Endless"),
        (Uncounted(), "length"),
        (Pairs([]), "no samples"),
        (Pairs([lambda: torch.randn(2)]), "Augmentation"),
        (Pairs([{"image": IMAGES[0]}]), "dict"),
        (Pairs([Image.new("L", (8, 8))]), "Image"),
        (Pairs([(POINTS[0], "cat")]), "cat"),
        (Pairs([(POINTS[0], 0.5)]), "0.5"),
        (Pairs([(POINTS[0], LABELS[:2])]), "label"),
        (Pairs([(POINTS[0], 0, 1)]), "tuple"),
        (Pairs([(POINTS[0], 0), (POINTS[1],)]), "no label"),
        (Pairs([POINTS[0], POINTS[1, :1]]), "sample 1"),
        (Pairs([POINTS[0], POINTS[1].double()]), "sample 1"),
        (Pairs([POINTS[0].double()]), "float64"),
        (Pairs([POINTS[0] * 9]), "scale"),
        (Pairs([torch.rand(1, 8, 8).round()] * 2), "2 \\* x - 1"),
        (Pairs([torch.zeros(1).expand(2**30, 2**30)] * 2), "memory"),
        (Pairs([POINTS[0] * torch.nan] * 2), "nan"),
        (Pairs([lambda: torch.stack([torch.tensor(torch.nan), torch.rand(())])]), "Augmentation"),
        (Pairs([lambda: torch.zeros(torch.randint(2, 99, ()))]), "Augmentation"),
        (Pairs([POINTS[0] * torch.inf] * 2), "inf"),
        (Pairs([(POINTS[0], 2**70)] * 2), "64 bits"),
        (Pairs([(POINTS[0], -(2**70))] * 2), "64 bits"),
        (Pairs([(POINTS[0], np.uint64(2**63))] * 2), "64 bits"),
        (Pairs([(POINTS[0], -(2**63))] * 2), "-1"),
        (Pairs([(POINTS[0], True)] * 2), "True"),
        (Pairs([(POINTS[0], torch.tensor(True))] * 2), "True"),
        (Pairs([(POINTS[0], np.bool_(True))] * 2), "True"),
        (Pairs([(POINTS[0], torch.tensor(1.0))] * 2), "1.0"),
        (Pairs([()]), "tuple"),
        (Pairs([torch.zeros(0)]), "no samples"),
        (Pairs([POINTS[0].to_sparse()]), "dense"),
        (Pairs([POINTS[0].to("meta")]), "dense"),
        (Pairs([np.array([None])]), "ndarray"),
        (Pairs([np.array(["a"])]), "ndarray"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*not writable")
def test_what_is_no_data_is_refused_in_a_sentence(data, word):
    with pytest.raises(DataError, match=word):
        as_data(data)


def fresh(tmp_path):
    return Pipeline(Denoiser(build("mlp", {"width": 8, "depth": 1}), Cosine(), V()), shape=(2,))


def test_torch_datasets_and_paths_are_trained_on(tmp_path):
    np.save(tmp_path / "points.npy", POINTS.numpy())
    method, training = Denoising(updates=2), TrainingConfig(batch_size=4)
    students = [
        train(fresh(tmp_path), data, tmp_path / str(k), method=method, training=training)
        for k, data in enumerate([TensorDataset(POINTS), tmp_path / "points.npy"])
    ]
    assert students[0].shape == students[1].shape == (2,)


@pytest.mark.parametrize("data", [None, POINTS, Endless(), [1, 2]])
def test_what_is_no_data_leaves_no_folder(tmp_path, data):
    out, net = tmp_path / "r", build("mlp", {"width": 8})
    calls = (
        lambda: train(fresh(tmp_path), data, out, method=Denoising(updates=1)),
        lambda: train_classifier("cnn", data, out),
        lambda: train_classifier(
            "cnn", Dataset(IMAGES, LABELS), out, held_out=3 if data is None else data
        ),
        lambda: distill_classifier(net, net, data, out),
    )
    for call in calls:
        with pytest.raises(DataError):
            call()
    assert not out.exists()


def test_a_path_is_a_place_and_never_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    picture(tmp_path / "digits" / "a.png")
    from pathlib import Path

    assert len(as_data(Path("digits"))) == 1 and len(as_data("digits")) > 1


# -- folders ---------------------------------------------------------------------------------------


def picture(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8), value, np.uint8)).save(path)


JUNK = (
    "@eaDir/cat.png/SYNOFILE_THUMB_M.png", "cat/@eaDir/0.png/SYNOPHOTO_THUMB_B.jpg", "@EADIR/a.png",
    "#recycle/old.png", "@Recycle/old.png", "$RECYCLE.BIN/S-1-5/$R1.png", "lost+found/a.png",
    "System Volume Information/a.png", "__MACOSX/cat/._0.png", ".ipynb_checkpoints/a-checkpoint.png",
    "cat/.ipynb_checkpoints/0-checkpoint.png", ".AppleDouble/0.png", ".@__thumb/s1000.png",
    "@Recently-Snapshot/GMT/a.png", "#snapshot/cat/0.png", "Catalog Previews.lrdata/root.png",
)  # fmt: skip
FILES = (
    "Thumbs.db", "cat/Thumbs.db", "desktop.ini", "cat/.DS_Store", "cat/._0.png", "cat/0.xmp", "cat/0.AAE",
    "Icon\r", "cat/Picasa.ini", "cat/Shortcut.lnk",
)  # fmt: skip


@pytest.mark.parametrize("read", [load, stream], ids=["load", "stream"])
def test_what_systems_leave_behind_is_no_class_and_no_image(tmp_path, read):
    for name in ("cat/0.png", "dog/0.png", *JUNK):
        picture(tmp_path / name) if name.endswith(("png", "jpg")) else None
    for name in FILES:
        (tmp_path / name).write_bytes(b"no image")
    data = read(str(tmp_path))
    assert data.names == ("cat", "dog") and data.labels.tolist() == [0, 1] and len(data) == 2


@pytest.mark.parametrize("read", [load, stream], ids=["load", "stream"])
def test_waste_is_a_class(tmp_path, read):
    for name in ("recycled", "organic", "recycler"):
        picture(tmp_path / name / "0.png")
    assert read(str(tmp_path)).names == ("organic", "recycled", "recycler")


def test_what_systems_leave_behind_makes_no_folder_of_classes(tmp_path):
    for name in ("0.png", "1.png", *JUNK):
        picture(tmp_path / name) if "cat/" not in name else None
    data = load(str(tmp_path))
    assert len(data) == 2 and data.labels is None


@pytest.mark.parametrize(
    "names, order",
    [
        (map(str, range(12)), [str(k) for k in range(12)]),
        (["00", "02", "01", "10"], ["00", "01", "02", "10"]),
        (["2", "10", "1"], ["1", "2", "10"]),
        (["100", "20", "3"], ["3", "20", "100"]),
        (["-1", "-2", "10", "9"], ["-1", "-2", "10", "9"]),  # no whole numbers: by code point
        (["10", "9", "other"], ["10", "9", "other"]),
        (["1.5", "10", "9"], ["1.5", "10", "9"]),
    ],
)
@pytest.mark.parametrize("read", [load, stream], ids=["load", "stream"])
def test_classes_that_are_numbers_are_in_their_order(tmp_path, names, order, read):
    for k, name in enumerate(order):
        picture(tmp_path / name / "0.png", 20 * k)
    data = read(str(tmp_path))
    assert list(data.names) == order and data.labels.tolist() == list(range(len(order)))
    if read is load:
        assert data.values[:, 0, 0, 0].tolist() == [20 * k for k in range(len(order))]


def test_folders_of_numbers_are_the_numbered_labels(tmp_path):
    """Class 10 is class 10, whether labels are numbers or the names of folders."""
    for c in range(12):
        picture(tmp_path / "f" / str(c) / "0.png", 20 * c)
    images = np.stack([np.full((1, 8, 8), 20 * c, np.uint8) for c in range(12)])
    np.savez(tmp_path / "a.npz", images=images[::-1], labels=np.arange(12)[::-1])
    held_out = held_out_dataset(tmp_path / "f", load(str(tmp_path / "a.npz")))
    assert [int(x[0, 0, 0]) // 20 for x in held_out.values] == held_out.labels.tolist()


NUMBERED = ("0", "1", "2")


@pytest.mark.parametrize(
    "names, other_names",
    [
        ((), ("1", "2", "3")),
        (NUMBERED, ("1", "2", "3")),
        (("0", "2"), NUMBERED),
        (("0", "2"), ()),
        (("0", "1", "10", "2"), ()),
        ((), ("cat", "7")),
        (("cat", "dog"), ("dog", "cat")),
        (("cat", "dog"), ("cat",)),
        (("00", "01"), ("cat", "dog")),
    ],
)
def test_classes_of_another_number_are_refused(names, other_names):
    for one, other in ((names, other_names), (other_names, names)):
        with pytest.raises(ConfigError, match="class"):
            refuse_other_classes(one, other, "the training data", "the held-out data")


@pytest.mark.parametrize(
    "names, other_names",
    [((), NUMBERED), (NUMBERED, ("0", "1")), (NUMBERED, ("00", "01", "02")), ((), ("cat", "dog")),
     (NUMBERED, ("cat", "dog", "pig")), ((), ()), (("cat",), ("cat",))],
)  # fmt: skip
def test_numbers_are_no_names(names, other_names):
    for one, other in ((names, other_names), (other_names, names)):
        refuse_other_classes(one, other, "the training data", "the held-out data")


@pytest.mark.parametrize("names", [("b", "a"), ("a", "c"), ("c",), ("other", "a")])
def test_a_class_that_network_and_data_know_has_one_number(names):
    net = build("mlp", {"width": 8, "num_classes": 3})
    pipeline = Pipeline(Denoiser(net, Cosine(), V()), shape=(2,), class_names=("a", "b", "c"))
    labels = torch.arange(6) % len(names)
    with pytest.raises(ConfigError, match="number"):
        read_by(pipeline, Dataset(POINTS, labels, names))
    assert read_by(pipeline, Dataset(POINTS, LABELS, ("a", "b", "x"))).labels is not None


# -- headers that lie ------------------------------------------------------------------------------


def header(shape, descr="|u1", order="False"):
    text = f"{{'descr': '{descr}', 'fortran_order': {order}, 'shape': {shape}, }}".encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


LIES = [
    header("(1000000000000, 3, 8, 8)"),
    header("(1000000, 1000000, 1000000, 1000000)"),
    header("(5, 1, 8, 8)") + bytes(5 * 64 - 1),
    header("(1000000000, 2)", "<f4"),
    header("(10000000000, 64)", "<f8", "True"),
    header("(-1, 1, 8, 8)") + bytes(64),
    header("(-5, -1, 8, 8)") + bytes(320),
    header("(5, 1, 8, 8)", "|O") + bytes(320),
    header("(5, 1, 8, 8)", "|V999999999") + bytes(320),
    header("(5,"),
    header("'five'"),
    header("(" * 3000),
    b"\x93NUMPY\x01\x00\xff\xff",
    b"\x93NUMPY\x09\x00" + bytes(300),
]


@pytest.mark.parametrize("lie", LIES, ids=range(len(LIES)))
@pytest.mark.parametrize("kind", ["npy", "npz", "deflated"])
def test_headers_that_lie_are_refused_before_memory_is_taken(tmp_path, lie, kind):
    file = tmp_path / ("a.npy" if kind == "npy" else "a.npz")
    if kind == "npy":
        file.write_bytes(lie)
    else:
        how = zipfile.ZIP_DEFLATED if kind == "deflated" else zipfile.ZIP_STORED
        with zipfile.ZipFile(file, "w", how) as arrays:
            arrays.writestr("x.npy", lie)
    with pytest.raises(DataError, match="cannot read"):
        load(str(file))


@pytest.mark.parametrize("count, descr", [(9, "|u1"), (6, "<f4"), (2, "<f4")])
@pytest.mark.parametrize("key", ["x", "y"])
def test_a_header_is_compared_with_its_file(tmp_path, count, descr, key):
    """Before numpy makes an array of it: it says how much its header claims, and how much there is."""
    lie = header(f"({count}, 1, 8, 8)", descr) + bytes(6 * 64)
    stream = io.BytesIO()
    np.save(stream, IMAGES.numpy())
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as arrays:
        for name in ("x", "y"):
            arrays.writestr(f"{name}.npy", lie if name == key else stream.getvalue())
    with pytest.raises(DataError, match="header says"):
        load(str(tmp_path / "a.npz"))


def test_a_torch_dataset_larger_than_memory_is_refused(monkeypatch):
    module = sys.modules[collected.__module__]  # a function has its name in the package
    monkeypatch.setattr(module, "memory", lambda: 100)
    assert len(as_data(Pairs([torch.zeros(2)] * 12))) == 12
    with pytest.raises(DataError, match="memory"):
        as_data(Pairs([torch.zeros(2)] * 13))


def test_labels_that_lie_are_refused(tmp_path):
    stream = io.BytesIO()
    np.save(stream, IMAGES.numpy())
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as arrays:
        arrays.writestr("x.npy", stream.getvalue())
        arrays.writestr("y.npy", header("(1000000000000,)", "<i8"))
    with pytest.raises(DataError, match="cannot read"):
        load(str(tmp_path / "a.npz"))


def test_more_than_memory_is_refused(tmp_path, monkeypatch):
    np.save(tmp_path / "a.npy", IMAGES.numpy())
    assert len(load(str(tmp_path / "a.npy"))) == 6
    monkeypatch.setattr("halfstep.data.sources.arrays.memory", lambda: IMAGES.nbytes - 1)
    with pytest.raises(DataError, match="memory"):
        load(str(tmp_path / "a.npy"))


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
def test_arrays_in_any_order_are_read(tmp_path, method):
    pixels = np.asfortranarray(IMAGES.numpy())
    stream, labels = io.BytesIO(), io.BytesIO()
    np.save(stream, pixels)
    np.lib.format.write_array(labels, LABELS.numpy().astype(">i4"), version=(2, 0))
    with zipfile.ZipFile(tmp_path / "a.npz", "w", method) as arrays:
        arrays.writestr("x.npy", stream.getvalue())
        arrays.writestr("y.npy", labels.getvalue())
    data = load(str(tmp_path / "a.npz"))
    assert torch.equal(data.values, IMAGES) and torch.equal(data.labels, LABELS)


@pytest.mark.parametrize("array", [np.zeros((0, 1, 8, 8), np.uint8), np.zeros((5, 0), np.float32),
                                   np.float32(1), np.full((5, 2), 1e300), np.full((5, 2), np.inf),
                                   np.zeros((5, 2), complex), np.zeros((5, 2), bool)])  # fmt: skip
def test_arrays_of_nothing_and_of_no_numbers_are_refused(tmp_path, array):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(DataError, match=r"a\.npy"):
        load(str(tmp_path / "a.npy"))


def test_a_picture_that_is_a_bomb_is_named(tmp_path, monkeypatch):
    picture(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    for read in (load, stream):
        with pytest.raises(DataError, match=r"a\.png"):
            read(str(tmp_path))
