"""Handwritten digits from scikit-learn: 1,797 gray images of 8x8, nothing to download."""

import numpy as np
import torch

from halfstep.data.dataset import Dataset


def load() -> Dataset:
    """Alpaydin and Kaynak 1998; the test part of UCI's optical digits, as scikit-learn ships it."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)  # pixels are whole numbers from 0 to 16
    images = np.round(pixels.reshape(-1, 1, 8, 8) * 255 / 16).astype(np.uint8)
    names = tuple(str(digit) for digit in range(10))
    class_labels = torch.from_numpy(labels.astype(np.int64))
    return Dataset(torch.from_numpy(images), class_labels, names, origin="digits")
