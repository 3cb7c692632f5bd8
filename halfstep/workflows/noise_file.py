"""A file of the noise that images were encoded to: NAME.safetensors with NAME.json beside it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import NotRequired, TypedDict

import torch
from torch import Tensor

from halfstep import files, storage
from halfstep.config import JsonObject
from halfstep.errors import CheckpointError, ConfigError
from halfstep.schema import SchemaError, validated_partly

KIND, FORMAT = "noise", 1


class _About(TypedDict):
    """Content of NAME.json."""

    kind: str
    format: int
    pipeline: NotRequired[str]
    weights: NotRequired[str]
    images: NotRequired[str]
    first: NotRequired[int]
    steps: NotRequired[int]
    guidance_scale: NotRequired[float]
    class_names: NotRequired[list[str]]
    prompts: NotRequired[list[str] | None]


@dataclass(frozen=True, eq=False)
class NoiseFile:
    """Noise as `halfstep encode` writes it and `halfstep sample --noise` reads it.

    noise   float32 [n, ...]
    images  float32 [n, ...] that were encoded
    labels  int64 [n] that they were encoded with, of the encoder's classes; None if it has none
    about   origin of the noise: pipeline, weights, images, steps, guidance scale, classes
    """

    noise: Tensor
    images: Tensor
    labels: Tensor | None = None
    about: JsonObject = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write both files, all or nothing; `path` may have either ending."""
        tensors = {"noise": self.noise, "images": self.images}
        if self.labels is not None:
            tensors["labels"] = self.labels
        files.make_folder(path.parent)
        storage.save(stem(path), tensors, {"kind": KIND, "format": FORMAT, **self.about})

    @classmethod
    def load(cls, path: Path) -> "NoiseFile":
        """Read both files; `CheckpointError` for a damaged file, or one of another kind."""
        place = stem(path)
        if not place.with_suffix(".json").exists():
            raise CheckpointError(
                f"there is no noise at '{path}' (no {place.name}.json): give what halfstep encode wrote"
            )
        about = storage.verify(place, format=FORMAT)
        if about.get("kind") != KIND:
            raise CheckpointError(f"'{path}' holds no noise: give what halfstep encode wrote")
        tensors = storage.read_state_dict(place.with_suffix(".safetensors"))
        noise, images, labels = (tensors.pop(name, None) for name in ("noise", "images", "labels"))
        if noise is None or images is None or tensors or not _consistent(noise, images, labels):
            raise CheckpointError(f"'{path}' is damaged: its tensors do not belong together")
        try:
            validated_partly(about, _About)
        except SchemaError as wrong:
            raise CheckpointError(f"'{place}.json' is damaged: {wrong}") from None
        return cls(
            noise, images, labels, {k: about[k] for k in about if k not in ("kind", "format")}
        )


def stem(path: Path) -> Path:
    """The path without its ending .safetensors; `ConfigError` for another ending."""
    if path.suffix not in (".safetensors", ".json"):
        raise ConfigError(f"'{path}' is no name for noise: write for example noise.safetensors")
    return path.with_suffix("")


def _consistent(noise: Tensor, images: Tensor, labels: Tensor | None) -> bool:
    floats = noise.dtype == images.dtype == torch.float32
    labelled = labels is None or (labels.dtype == torch.int64 and labels.shape == noise.shape[:1])
    return floats and labelled and len(noise) == len(images) and bool(noise.isfinite().all())
