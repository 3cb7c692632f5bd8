"""Data sets by name or place: `load` returns a `Dataset` or `Latents`; `rows` gives each update's samples."""

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch

from halfstep.data.augment import Augmentation
from halfstep.data.dataset import Dataset
from halfstep.data.epoch_order import rows
from halfstep.data.label_subsets import confident_rows
from halfstep.data.latents.dataset import is_latents, Latents, open_latents, read_about
from halfstep.data.no_data import NO_DATA, NoData, NONE
from halfstep.data.sources.torch_dataset import collected
from halfstep.errors import ConfigError, DataError, unknown
from halfstep.progress import Progress, SILENT

__all__ = ["Augmentation", "Data", "Dataset", "Latents", "NoData", "confident_rows", "load", "rows"]

Data = Dataset | Latents | NoData
"""Training data: in memory, latents on the disk, or none."""

DataLike = Data | str | os.PathLike[str] | torch.utils.data.Dataset[Any]
"""The arguments that `as_data` accepts."""
SPLITS = ("train", "test")
WHOLE = ("digits", "two-moons")
"""Sources that need no files."""
BELOW = ("cifar10", "fashion-mnist")
"""Sources that need a place, NAME:FOLDER, and that have test images."""
SPECS = (
    *WHOLE, *(f"{name}:FOLDER" for name in BELOW), "FOLDER", "LATENTS", "FILE.npy", "FILE.npz",
    "FILE.parquet", "SHARDS.tar",
)  # fmt: skip
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)


def load(
    spec: str,
    *,
    size: int | None = None,
    channels: int | None = None,
    flip: bool = False,
    split: str = "train",
    skip_bad: bool = False,
    verify: bool = False,
    progress: Progress = SILENT,
) -> Dataset | Latents:
    """The data of this name or place, checked; a name precedes a place (write ./digits for a folder).

    Args:
        spec: digits, two-moons, fashion-mnist:FOLDER, cifar10:FOLDER, a folder of images, of tar shards
            (webdataset) or of tables (parquet, arrow, `save_to_disk`), such files or a pattern of them,
            an .npy or .npz file, or a folder of latents that `halfstep latents` wrote.
        size: pixels a side: resizes a folder's images, pads Fashion-MNIST evenly with background; other
            sources must already have it.
        channels: 1 or 3: converts a folder's images, tells channels first from last in an array; other
            sources must already have it.
        flip: training mirrors images at random.
        split: train or test, for Fashion-MNIST and CIFAR-10; other data have no splits.
        skip_bad: leave out images that cannot be decoded; `Dataset.skipped` lists them.
        verify: compare the checksums of all files of latents, not only of those written since the last
            time.
        progress: advances with every image of a folder, every MiB of a shard that is indexed, or every
            file of latents that is verified.

    Returns:
        Data in memory, uint8 [N, C, H, W] or float32 [N, ...]; or latents on the disk.

    Raises:
        ConfigError: an unknown name, or options that the source does not have.
        DataError: no such file or folder, or images and labels that cannot be read.
        CheckpointError: a damaged folder of latents.
    """
    for name, count in (("size", size), ("channels", channels)):
        if count is not None and count < 1:
            raise ConfigError(f"{name} is at least 1, got {count}: leave it out, or write {name}=3")
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    if spec in NO_DATA:
        raise ConfigError(
            f"'{spec}' is for distilling a diffusion teacher alone, which can walk from noise, and this "
            "needs data: name some"
        )
    if spec.startswith(f"{NONE}:"):
        raise ConfigError(f"'{spec}' names nobody who walks: write {' or '.join(NO_DATA)}")
    if spec and is_latents(place := Path(spec).expanduser()):
        _refuse_options(place, size, channels, flip, split)
        return open_latents(place, verify=verify or None, progress=progress)
    data = _source(spec, size, channels, split, skip_bad, progress)
    _check_asked(data, spec, size, channels)
    return replace(data, flip=True) if flip else data


def as_data(data: DataLike, *, shape: tuple[int, ...] | None = None) -> Data:
    """Data itself, data by name or place, or a torch Dataset read into memory; `DataError` for others.

    shape  the expected shape of a sample, checked for a folder before it is read
    """
    if isinstance(data, Dataset | Latents | NoData) or hasattr(data, "training_batch"):
        return cast(Data, data)
    if (spec := spec_of(data)) is not None:
        if spec in NO_DATA:
            return NoData.named(spec)
        if shape is not None:
            refuse_other_shape(spec, shape)
        return load(spec)
    return collected(data)


def spec_of(data: DataLike) -> str | None:
    """The name or place of data, as `load` takes it; None of data in memory."""
    if isinstance(data, NoData):
        return data.spec
    if not isinstance(data, str | os.PathLike):
        return None
    if not isinstance(data, str) and not Path(data).is_absolute() and Path(data).exists():
        return os.path.join(".", data)  # a place, even if it is called as data by name
    return os.fspath(data)


def refuse_other_shape(
    spec: str, shape: tuple[int, ...], *, size: int | None = None, channels: int | None = None
) -> None:
    """`ConfigError` for a folder with samples of another shape, as far as is known before it is read."""
    place = Path(spec).expanduser()
    if not is_streamed(spec):
        return
    actual: list[Any] = []
    if is_latents(place):
        actual = list(read_about(place)["latent"])
    elif len(shape) != 3 or shape[0] not in (1, 3) or channels not in (None, shape[0]):
        actual = [channels or "1 or 3", *([size] * 2 if size else ["H", "W"])]
    else:
        side = size or side_of(spec)
        actual = [shape[0], side, side] if side else list(shape)
    if actual != list(shape):
        raise ConfigError(
            f"the network makes samples of shape {list(shape)} and '{spec}' has "
            f"[{', '.join(map(str, actual))}]: {shape_advice(shape, actual)}"
        )


def shape_advice(shape: Sequence[int], actual: Sequence[Any]) -> str:
    """The end of an error: the options that give data a network's shape, instead of the `actual` one."""
    images = all(len(sides) == 3 and sides[0] in (1, 3) for sides in (shape, actual))
    if not images or shape[1] != shape[2]:  # points, latents, or no square
        return "give data of that shape"
    names = [f"--size {shape[1]}"] * (list(shape[1:]) != list(actual[1:]))
    names += [f"--channels {shape[0]}"] * (shape[0] != actual[0])
    return (
        f"add {' '.join(names)} (in Python load(..., size=, channels=)), or give data of that shape"
    )


def is_streamed(spec: str) -> bool:
    """Whether this is a place of encoded images, or of latents, which are read one by one."""
    from halfstep.data.sources.places import is_collection

    return (
        spec not in (*WHOLE, *NO_DATA)
        and spec.partition(":")[0] not in BELOW
        and is_collection(spec)
    )


def side_of(spec: str) -> int | None:
    """Pixels a side of the first image at a place; None if it cannot be read."""
    from halfstep.data.sources import image_files, places

    images = places.open_images(spec, first=True)
    pixels = "" if images is None else image_files.read(images, 0, None, 1)
    return None if isinstance(pixels, str) else int(pixels.shape[-1])


def _refuse_options(
    place: Path, size: int | None, channels: int | None, flip: bool, split: str
) -> None:
    """`ConfigError` for options that latents do not have."""
    if size is not None or channels is not None or flip or split != "train":
        raise ConfigError(
            f"'{place}' holds latents, encoded with their size and mirror images: leave out size, channels, "
            "flip and split"
        )


def _source(
    spec: str,
    size: int | None,
    channels: int | None,
    split: str,
    skip_bad: bool,
    progress: Progress,
) -> Dataset:
    name, _, below = spec.partition(":")
    if name in BELOW:
        if not below:
            raise ConfigError(f"{name} is read from files: write {name}:FOLDER")
        return _named(name, _existing(below), size, split)
    if split != "train":
        raise ConfigError(f"{spec} has no split '{split}': leave split out, or name other data")
    if spec == "digits":
        from halfstep.data.sources import digits

        return digits.load()
    if spec == "two-moons":
        from halfstep.data.sources import toy

        return toy.two_moons()
    if is_streamed(spec):
        from halfstep.data.sources import image_files, places

        if (images := places.open_images(spec, progress=progress)) is not None:
            return image_files.load(images, size, channels, skip_bad=skip_bad, progress=progress)
    place = Path(spec).expanduser()
    if not spec or not place.exists():
        _refuse_unknown(spec, place)
    return _array(_existing(spec), channels)


def _refuse_unknown(spec: str, place: Path) -> None:
    """`ConfigError` for the name of no data set, and for a suffix that names no column."""
    name, colon, below = spec.partition(":")
    if "=" in below and is_streamed(name):
        raise ConfigError(
            f"':{below}' in '{spec}' names no column: write image=, label= or text=, for example "
            f"{name}:label=NAME"
        )
    if not spec or (place.name == spec and not place.suffix) or (colon and "/" not in name):
        raise unknown("data set", spec, SPECS)


def held_out_split(spec: str) -> str:
    """The split of data that are held out: the test images where this source has some, else all of it."""
    return "test" if spec.partition(":")[0] in BELOW else "train"


def _named(name: str, place: Path, size: int | None, split: str) -> Dataset:
    if name == "cifar10":
        from halfstep.data.sources import cifar10

        return cifar10.load(place, split)
    from halfstep.data.sources import fashion_mnist

    return fashion_mnist.load(place, split, size)


def _array(place: Path, channels: int | None) -> Dataset:
    if place.suffix.lower() not in (".npy", ".npz"):
        raise DataError(
            f"{place} is not a data set: give a folder of images, a .parquet, .arrow or .tar file, an .npy "
            "or an .npz file"
        )
    from halfstep.data.sources import arrays

    data = arrays.load(place, channels)
    arrays.check_classes(data, place)
    return data


def _existing(place: str) -> Path:
    path = Path(place).expanduser()
    if path.exists():
        return path
    instead = "give one that exists"
    if HUB_NAME.fullmatch(place):
        instead += (
            "; of the data set of this name on the hub save a copy, by "
            f'datasets.load_dataset("{place}", split="train").save_to_disk("FOLDER")'
        )
    raise DataError(f"there is no file or folder {path}: {instead}")


def _check_asked(data: Dataset, spec: str, size: int | None, channels: int | None) -> None:
    if size is None and channels is None:
        return
    if not data.is_images:
        raise ConfigError(
            f"{spec} holds samples of shape {list(data.shape)}, not images: leave out size and "
            "channels"
        )
    has, height, width = data.shape
    if channels not in (None, has):
        raise ConfigError(f"{spec} has {has} channels, not {channels}: write channels={has}")
    if size is not None and not size == height == width:
        raise ConfigError(
            f"{spec} has images of {height}x{width}, not of size {size}: leave size out, or "
            "give a folder of images, which are resized"
        )
