"""An autoencoder of diffusers as a codec, saved and loaded with its files."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn, Tensor

from halfstep import files, storage
from halfstep.config import JsonObject, NetConfig
from halfstep.config.validate import is_valid, shown
from halfstep.errors import CheckpointError, ConfigError
from halfstep.identity import digest_of, sha256_of
from halfstep.models.autoencoder.checkpoints import (
    About,
    from_ldm_names,
    OFFICIAL,
    OFFICIAL_SCALE,
    read_diffusers,
    SavedFile,
)
from halfstep.models.autoencoder.families import build_model, Family, family_of, options_of, SCALE
from halfstep.models.autoencoder.normalisation import Normalisation
from halfstep.models.codec import LEAST, sample_latents
from halfstep.models.rebuild import refuse_changed, refuse_wrapped
from halfstep.pixels import as_floats, in_range

PIXELS = 2**20
"""Pixels of a batch by default."""


class KLCodec(nn.Module):
    """An autoencoder of diffusers (Rombach et al. 2022) as a `halfstep.models.codec.Codec`.

    model          of a class in `halfstep.models.autoencoder.families`
    scale          factor on the normalised latents
    autocast       dtype of the network's computation (bfloat16, float16), or None.  Where the config says
                   `force_upcast`, as Stable Diffusion XL's does, float16 may overflow
    normalisation  of each channel, from the config; None for latents that are only scaled

    Results have the dtype of the argument, for any dtype of the weights; float32 for uint8 images.
    """

    def __init__(self, model: Any, scale: float = 1.0):
        super().__init__()
        self.class_name = type(model).__name__
        self.family: Family = family_of(self.class_name)
        self.model: Any = model
        self.scale: float = _positive(scale)
        self.autocast: torch.dtype | None = None
        self.normalisation = Normalisation.of(self.config, self.channels)
        self._saved: SavedFile | None = None

    @classmethod
    def fresh(
        cls, config: NetConfig, scale: float = 1.0, *, class_name: str = "AutoencoderKL"
    ) -> "KLCodec":
        """Build an untrained codec from the arguments of diffusers' class, without the scale."""
        return cls(build_model(class_name, config), scale)

    @classmethod
    def from_ldm(
        cls,
        tensors: Mapping[str, Tensor],
        *,
        config: NetConfig = OFFICIAL,
        scale: float = OFFICIAL_SCALE,
        source: str = "this state dict",
    ) -> "KLCodec":
        """Load a state dict of the latent diffusion code strictly, as in official U-ViT files."""
        codec = cls._empty(config, scale)
        levels = len(config["block_out_channels"])
        renamed = from_ldm_names(tensors, codec.model.state_dict(), levels, source)
        storage.load_into(codec.model, renamed, source)
        return codec

    @classmethod
    def _empty(
        cls, config: NetConfig, scale: float, class_name: str = "AutoencoderKL"
    ) -> "KLCodec":
        """Build a codec with uninitialised memory for weights to be loaded."""
        with torch.device("meta"):
            codec = cls.fresh(config, scale, class_name=class_name)
        codec.model.to_empty(device="cpu")
        return codec.eval().requires_grad_(False)

    @property
    def config(self) -> JsonObject:
        """The full config for `fresh`, so that diffusers' defaults may change."""
        known = options_of(self.class_name).keys() - {SCALE}
        return {k: v for k, v in dict(self.model.config).items() if k in known}

    @property
    def factor(self) -> int:
        """The side of an image in pixels per side of its latent."""
        return int(2 ** (len(self.model.config[self.family.levels]) - 1))

    @property
    def channels(self) -> int:
        """Channels of a latent."""
        return int(self.model.config[self.family.channels])

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Moments, and the images decoded from latents sampled from them, unclamped, for training.

        noise  [B, channels, H / factor, W / factor]
        """
        images = as_floats(images)
        self.check(images.shape)
        moments = self._encode(images)
        return moments, self._decode(sample_latents(moments, noise, 1.0))

    @torch.no_grad()
    def moments(self, images: Tensor, *, batch: int | None = None) -> Tensor:
        """Mean and log-variance without `scale`: [B, C, H, W] in [-1, 1], or uint8, to [B, 2 c, h, w].

        Those of normalised latents; the log-variance of an autoencoder without noise is -30.

        batch  images at once; None is about a million pixels
        """
        images = in_range(images)
        self.check(images.shape)
        parts = images.split(_at_once(batch, images[0, 0].numel()))
        return torch.cat([self._encode(part) for part in parts])

    @torch.no_grad()
    def decode(self, latents: Tensor, *, batch: int | None = None) -> Tensor:
        """Images in [-1, 1] from latents that carry `scale`, [B, c, h, w].

        batch  images at once; None is about a million pixels
        """
        wrong_shape = latents.ndim != 4 or latents.shape[1] != self.channels
        if wrong_shape or not latents.is_floating_point():
            raise ConfigError(
                f"this codec decodes latents [B, {self.channels}, h, w] and got {latents.dtype} "
                f"{list(latents.shape)}: give what it encoded, as floats"
            )
        parts = latents.split(_at_once(batch, latents[0, 0].numel() * self.factor**2))
        decoded = [self._decode(part / self.scale) for part in parts]
        return torch.cat(decoded).clamp(-1, 1)

    def _encode(self, images: Tensor) -> Tensor:
        """Moments of normalised latents, in the images' dtype."""
        with self._precision(images):
            encoded = getattr(self.model.encode(self._in(images)), self.family.output)
        if self.family.output == "latent_dist":
            moments = encoded.parameters
        else:
            moments = torch.cat([encoded, torch.full_like(encoded, LEAST)], dim=1)
        moments = self._out(moments, images.dtype)
        return moments if self.normalisation is None else self.normalisation.moments(moments)

    def _decode(self, latents: Tensor) -> Tensor:
        """Images, unclamped, from normalised latents, in their dtype."""
        z = latents if self.normalisation is None else self.normalisation.undone(latents)
        with self._precision(z):
            images: Tensor = self.model.decode(self._in(z)).sample
        return self._out(images, latents.dtype)

    def _in(self, x: Tensor) -> Tensor:
        x = x.to(self.model.dtype)
        return x.unsqueeze(2) if self.family.frames else x

    def _out(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        return (x.squeeze(2) if self.family.frames else x).to(dtype)

    def _precision(self, x: Tensor) -> Any:
        return torch.autocast(x.device.type, self.autocast) if self.autocast else nullcontext()

    def check(self, shape: Sequence[int]) -> None:
        """`ConfigError` for images of a shape [B, C, H, W] that it cannot encode."""
        channels = self.model.config[self.family.images]
        if len(shape) != 4 or shape[1] != channels:
            raise ConfigError(
                f"this codec encodes images [B, {channels}, H, W] and got {list(shape)}: give it such "
                "images, or a codec for these"
            )
        if any(side % self.factor for side in shape[2:]):
            raise ConfigError(
                f"this codec maps {self.factor} x {self.factor} pixels to one of a latent, and images of "
                f"{shape[2]} x {shape[3]} do not divide so: resize them (--size)"
            )

    def refuse_changed(self) -> None:
        """`ConfigError` if `fresh` would no longer make it from its config."""
        refuse_wrapped(self)
        name = self.class_name
        refuse_changed(self.model, lambda: build_model(name, self.config), name, draws=False)

    def digest(self) -> str:
        """sha256 of the weights, with their names, dtypes and shapes, and of the normalisation."""
        weights = digest_of(self.model)
        return (
            weights
            if self.normalisation is None
            else sha256_of((weights, repr(self.normalisation)))
        )

    def save(self, folder: Path | str) -> None:
        """Write folder/codec.safetensors and folder/codec.json.

        Weights that were loaded from a folder, or saved to one, are hard-linked if the file system can, so
        that many stages share one copy.
        """
        self.refuse_changed()
        stem = Path(folder) / "codec"
        about = {"class_name": self.class_name, "config": self.config, "scale": self.scale}
        files.make_folder(stem.parent)
        digest = self.digest()
        if self._saved is not None and self._saved.digest == digest and self._saved.link(stem):
            storage.write_json(stem.with_suffix(".json"), {**about, "sha256": self._saved.sha256})
        else:
            storage.save(stem, self.model.state_dict(), about)
            self._saved = SavedFile.at(stem, digest)

    def read(self, folder: Path) -> "KLCodec":
        """Load weights, in their dtype, and scale from a folder of `save`, strictly; returns itself."""
        stem = folder / "codec"
        tensors, about = storage.load(stem, About)
        self.to(next(iter(tensors.values())).dtype)
        storage.load_into(self.model, tensors, f"'{stem}.safetensors'")
        self.scale, self._saved = _positive(about["scale"]), SavedFile.at(stem, self.digest())
        return self


def load_codec(
    path: Path | str, *, scale: float | None = None, config: NetConfig = OFFICIAL
) -> KLCodec:
    """Load a codec from disk, strictly; nothing in a file can run.

    path    a folder that a codec was saved to, or the run that trained it; a folder of diffusers, of an
            autoencoder in safetensors (also sharded, or of the variant fp16) or of a pipeline with its
            `vae`; or an official U-ViT file (autoencoder_kl.pth)
    scale   replaces the saved factor on the latents (official files: 0.18215)
    config  of an official file, which has none

    `CheckpointError` for anything else, and for an autoencoder of another class.
    """
    place = Path(path).expanduser()
    if not place.exists():
        raise CheckpointError(f"there is no codec '{place}': give a folder or file that exists")
    if place.is_dir():
        codec = _from_folder(place)
    elif place.suffix in (".safetensors", ".json"):
        raise CheckpointError(f"'{place}' is a part of a codec: give the folder that it lies in")
    else:
        tensors = storage.read_state_dict(place)
        codec = KLCodec.from_ldm(tensors, config=config, source=f"'{place}'")
    codec.scale = codec.scale if scale is None else _positive(scale)
    return codec


def codec_of_model(model: nn.Module, *, scale: float | None = None) -> KLCodec:
    """Wrap an autoencoder of diffusers in memory, without a copy: it is frozen in place.

    scale  factor on the latents, if not the `scaling_factor` of its config

    `ConfigError` for a model of a class that cannot be a codec.
    """
    family_of(type(model).__name__)
    if scale is None:
        scale = dict(model.config).get(SCALE, 1.0)  # type: ignore[arg-type]
    return KLCodec(model, scale).eval().requires_grad_(False)


def _positive(scale: float) -> float:
    if not is_valid(scale, float) or scale <= 0:
        raise ConfigError(f"a codec's scale is above 0, got {shown(scale)}: write for example 1.0")
    return float(scale)


def _from_folder(place: Path) -> KLCodec:
    for folder in (place, place / "codec", place / "stages" / "codec"):
        if (folder / "codec.json").exists():
            about = storage.read_about(folder / "codec", About)
            codec = KLCodec._empty(about["config"], about["scale"], about["class_name"])
            return codec.read(folder)
    vae = place / "vae" if (place / "model_index.json").exists() else place
    if (vae / "config.json").exists():
        return _from_diffusers(vae)
    raise CheckpointError(
        f"'{place}' holds no codec: it has neither codec.json nor config.json"
        f"{'' if vae == place else ' in the folder vae'}; give the folder that has"
    )


def _from_diffusers(folder: Path) -> KLCodec:
    class_name, config, tensors = read_diffusers(folder)
    scale = config.pop(SCALE, options_of(class_name).get(SCALE, 1.0))  # diffusers' own default
    codec = KLCodec._empty(config, scale, class_name)
    storage.load_into(codec.model, tensors, f"the weights in '{folder}'")
    return codec


def _at_once(batch: int | None, pixels: int) -> int:
    if batch is not None and batch < 1:
        raise ConfigError(f"batch must be at least 1, got {batch}: leave it out, or write batch=1")
    return batch or max(1, PIXELS // pixels)
