"""The same images in every form that data come in."""

import io
import json
import tarfile

import numpy as np
import torch
from PIL import Image

CLASSES = ("ape", "bee", "cow")


def some_pixels(n=9, side=8, seed=4):
    """uint8 [n, side, side, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (n, side, side, 3), dtype=np.uint8)


def labels_of(n):
    """In the order of a folder's sub-folders."""
    return [k * len(CLASSES) // n for k in range(n)]


def png(pixels):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def captions_of(n):
    return [f"picture {k}" for k in range(n)]


def folder(place, pixels):
    for k, (label, image) in enumerate(zip(labels_of(len(pixels)), pixels, strict=True)):
        (place / CLASSES[label]).mkdir(parents=True, exist_ok=True)
        (place / CLASSES[label] / f"{k:03d}.png").write_bytes(png(image))
    lines = [
        json.dumps({"file_name": f"{CLASSES[label]}/{k:03d}.png", "text": text})
        for k, (label, text) in enumerate(
            zip(labels_of(len(pixels)), captions_of(len(pixels)), strict=True)
        )
    ]
    (place / "metadata.jsonl").write_text("\n".join(lines))
    return place


def table(contents, labels=None, texts=None, names=CLASSES):
    """A data set of the datasets library."""
    import datasets

    labels = labels_of(len(contents)) if labels is None else labels
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=list(names)),
            "text": datasets.Value("string"),
        }
    )
    rows = {
        "image": [{"bytes": content, "path": None} for content in contents],
        "label": labels,
        "text": texts or captions_of(len(contents)),
    }
    return datasets.Dataset.from_dict(rows, features=features)


def saved(place, contents):
    table(contents).save_to_disk(place)
    return place


def parquet(place, contents, parts=2):
    """Parquet files in a folder, of row groups of two rows."""
    place.mkdir(parents=True, exist_ok=True)
    whole = table(contents)
    for k in range(parts):
        whole.shard(parts, k, contiguous=True).to_parquet(
            place / f"part-{k:05d}.parquet", batch_size=2
        )
    return place


def shard(path, members):
    """A tar file of these members, by name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def shards(place, contents, parts=2):
    """Tar shards as webdataset has them."""
    labels, texts = labels_of(len(contents)), captions_of(len(contents))
    for n, rows in enumerate(np.array_split(range(len(contents)), parts)):
        members = dict[str, bytes]()
        for k in rows.tolist():
            members |= {
                f"{k:04d}.png": contents[k],
                f"{k:04d}.cls": str(labels[k]).encode(),
                f"{k:04d}.txt": texts[k].encode(),
            }
        shard(place / f"{n:03d}.tar", members)
    return place


class Torch(torch.utils.data.Dataset):
    """A torch Dataset of pairs."""

    classes = CLASSES

    def __init__(self, pixels):
        self.pixels = pixels

    def __len__(self):
        return len(self.pixels)

    def __getitem__(self, k):
        return torch.from_numpy(np.moveaxis(self.pixels[k], -1, 0)), labels_of(len(self.pixels))[k]
