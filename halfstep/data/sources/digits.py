"""Handwritten digits: 1,797 gray images of 8x8, which come with halfstep."""

from importlib.resources import as_file, files
from typing import TypedDict

import torch

from halfstep import storage
from halfstep.data.dataset import Dataset


class About(TypedDict):
    """The description beside the images."""

    source: str
    license: str


def load() -> Dataset:
    """Alpaydin and Kaynak 1998: the test part of UCI's optical digits, the one that scikit-learn has."""
    with as_file(files("halfstep") / "assets" / "digits") as folder:
        tensors, _ = storage.load(folder / "digits", About)
    pixels = tensors["images"].double() * 255 / 16  # whole numbers from 0 to 16
    images = pixels.round().byte().reshape(-1, 1, 8, 8)
    names = tuple(str(digit) for digit in range(10))
    return Dataset(images, tensors["labels"].to(torch.int64), names, origin="digits")
