"""The KL autoencoder as a codec, saved and loaded with its files."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import nn, Tensor

from halfstep import files, storage
from halfstep.config import JsonObject, NetConfig
from halfstep.config.validate import is_valid, shown
from halfstep.errors import CheckpointError, ConfigError, unknown
from halfstep.identity import digest_of
from halfstep.models.autoencoder.checkpoints import from_ldm_names, read_diffusers
from halfstep.models.codec import sample_latents
from halfstep.models.limits import build_within_limits
from halfstep.models.rebuild import refuse_changed, refuse_wrapped
from halfstep.pixels import as_floats, in_range
from halfstep.quiet import quietly

OFFICIAL = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 4}
"""The config of Stable Diffusion 1's autoencoder, which the official U-ViT uses."""
OFFICIAL_SCALE = 0.18215
PIXELS = 2**20
"""Pixels of a batch by default."""


class _About(TypedDict):
    """The content of codec.json."""

    config: JsonObject
    scale: float


@dataclass(frozen=True)
class _SavedFile:
    """A file of weights, its sha256, and the digest of its weights."""

    file: Path
    sha256: str
    digest: str

    def link(self, stem: Path) -> bool:
        """Hard-link it as STEM.safetensors; False if the file system cannot, or the file has changed."""
        return storage.link(self.file, stem.with_suffix(".safetensors"), self.sha256)


class KLCodec(nn.Module):
    """A KL-regularised autoencoder (Rombach et al. 2022) as a `halfstep.models.codec.Codec`.

    model     diffusers' `AutoencoderKL`
    scale     factor on the latents
    autocast  dtype of the network's computation (bfloat16, float16), or None

    Results have the dtype of the argument, for any dtype of the weights; float32 for uint8 images.
    """

    def __init__(self, model: Any, scale: float = 1.0):
        super().__init__()
        self.model: Any = model
        self.scale: float = _positive(scale)
        self.autocast: torch.dtype | None = None
        self._saved: _SavedFile | None = None

    @classmethod
    def fresh(cls, config: NetConfig, scale: float = 1.0) -> "KLCodec":
        """Build an untrained codec from `AutoencoderKL`'s arguments without the scale."""
        with quietly():
            from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

        known = signature(AutoencoderKL.__init__).parameters.keys() - {"self", "scaling_factor"}
        for name in config:
            if name not in known:
                raise unknown("option of a codec called", name, known)
        for name in ("shift_factor", "latents_mean", "latents_std"):
            if config.get(name) is not None:
                raise ConfigError(
                    f"a codec with {name} = {config[name]} shifts its latents, and halfstep only scales "
                    "them: give one without"
                )
        options = {k: tuple(v) if isinstance(v, list) else v for k, v in config.items()}
        types = {"down_block_types": "DownEncoderBlock2D", "up_block_types": "UpDecoderBlock2D"}

        def model(**options: Any) -> Any:
            levels = len(options.get("block_out_channels", (64,)))
            return AutoencoderKL(
                **{name: (kind,) * levels for name, kind in types.items()} | options
            )

        return cls(build_within_limits("codec", model, options), scale)

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
    def _empty(cls, config: NetConfig, scale: float) -> "KLCodec":
        """Build a codec with uninitialised memory for weights to be loaded."""
        with torch.device("meta"):
            codec = cls.fresh(config, scale)
        codec.model.to_empty(device="cpu")
        return codec.eval().requires_grad_(False)

    @property
    def config(self) -> JsonObject:
        """The full config for `fresh`, so that diffusers' defaults may change."""
        config = {k: v for k, v in dict(self.model.config).items() if not k.startswith("_")}
        config.pop("scaling_factor")
        return config

    @property
    def factor(self) -> int:
        """The side of an image in pixels per side of its latent."""
        return int(2 ** (len(self.config["block_out_channels"]) - 1))

    @property
    def channels(self) -> int:
        """Channels of a latent."""
        return int(self.config["latent_channels"])

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Moments, and the images decoded from latents sampled from them, unclamped, for training.

        noise  [B, channels, H / factor, W / factor]
        """
        images = as_floats(images)
        self.check(images.shape)
        moments = self._encode(images).to(images.dtype)
        return moments, self._decode(sample_latents(moments, noise, 1.0)).to(images.dtype)

    @torch.no_grad()
    def moments(self, images: Tensor, *, batch: int | None = None) -> Tensor:
        """Mean and log-variance, without `scale`: [B, C, H, W] in [-1, 1], or uint8, to [B, 2 c, h, w].

        batch  images at once; None is about a million pixels
        """
        images = in_range(images)
        self.check(images.shape)
        parts = images.split(_at_once(batch, images[0, 0].numel()))
        return torch.cat([self._encode(part).to(images.dtype) for part in parts])

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
        decoded = [self._decode(part / self.scale).to(latents.dtype) for part in parts]
        return torch.cat(decoded).clamp(-1, 1)

    def _encode(self, images: Tensor) -> Tensor:
        with self._precision(images):
            moments: Tensor = self.model.encode(images.to(self.model.dtype)).latent_dist.parameters
        return moments

    def _decode(self, latents: Tensor) -> Tensor:
        with self._precision(latents):
            images: Tensor = self.model.decode(latents.to(self.model.dtype)).sample
        return images

    def _precision(self, x: Tensor) -> Any:
        return torch.autocast(x.device.type, self.autocast) if self.autocast else nullcontext()

    def check(self, shape: Sequence[int]) -> None:
        """`ConfigError` for images of a shape [B, C, H, W] that it cannot encode."""
        channels = self.config["in_channels"]
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
        name = "AutoencoderKL"
        refuse_changed(self.model, lambda: KLCodec.fresh(self.config).model, name, draws=False)

    def digest(self) -> str:
        """sha256 of the weights, with their names, dtypes and shapes."""
        return digest_of(self.model)

    def save(self, folder: Path | str) -> None:
        """Write folder/codec.safetensors and folder/codec.json.

        Weights that were loaded from a folder, or saved to one, are hard-linked if the file system can, so
        that many stages share one copy.
        """
        self.refuse_changed()
        stem, about = Path(folder) / "codec", {"config": self.config, "scale": self.scale}
        files.make_folder(stem.parent)
        digest = self.digest()
        if self._saved is not None and self._saved.digest == digest and self._saved.link(stem):
            storage.write_json(stem.with_suffix(".json"), {**about, "sha256": self._saved.sha256})
        else:
            storage.save(stem, self.model.state_dict(), about)
            self._saved = _saved_file(stem, digest)

    def read(self, folder: Path) -> "KLCodec":
        """Load the weights and the scale from a folder of `save`, strictly; returns itself."""
        stem = folder / "codec"
        tensors, about = storage.load(stem, _About)
        storage.load_into(self.model, tensors, f"'{stem}.safetensors'")
        self.scale, self._saved = _positive(about["scale"]), _saved_file(stem, self.digest())
        return self


def load_codec(
    path: Path | str, *, scale: float | None = None, config: NetConfig = OFFICIAL
) -> KLCodec:
    """Load a codec from disk, strictly; nothing in a file can run.

    path    a folder that a codec was saved to, or the run that trained it; a diffusers folder (config.json
            and diffusion_pytorch_model.safetensors); or an official U-ViT file (autoencoder_kl.pth)
    scale   replaces the saved factor on the latents (official files: 0.18215)
    config  of an official file, which has none

    `CheckpointError` for anything else.
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


def _positive(scale: float) -> float:
    if not is_valid(scale, float) or scale <= 0:
        raise ConfigError(f"a codec's scale is above 0, got {shown(scale)}: write for example 1.0")
    return float(scale)


def _from_folder(place: Path) -> KLCodec:
    for folder in (place, place / "codec", place / "stages" / "codec"):
        if (folder / "codec.json").exists():
            about = storage.read_about(folder / "codec", _About)
            return KLCodec._empty(about["config"], about["scale"]).read(folder)
    if (place / "config.json").exists():
        return _from_diffusers(place)
    inner = " (a pipeline of diffusers has its codec in the folder 'vae')"
    raise CheckpointError(
        f"'{place}' holds no codec: it has neither codec.json nor config.json"
        f"{inner if (place / 'model_index.json').exists() else ''}; give the folder that has"
    )


def _from_diffusers(folder: Path) -> KLCodec:
    config, tensors = read_diffusers(folder)
    scale = config.pop("scaling_factor", OFFICIAL_SCALE)  # diffusers' own default
    if config.get("layers_per_block", 0) > len(tensors):  # building it would never end
        raise CheckpointError(f"'{folder}' has no weights for {config['layers_per_block']} layers")
    codec = KLCodec._empty(config, scale)
    storage.load_into(codec.model, tensors, f"the weights in '{folder}'")
    return codec


def _at_once(batch: int | None, pixels: int) -> int:
    if batch is not None and batch < 1:
        raise ConfigError(f"batch must be at least 1, got {batch}: leave it out, or write batch=1")
    return batch or max(1, PIXELS // pixels)


def _saved_file(stem: Path, digest: str) -> _SavedFile:
    sha256 = storage.read_about(stem, _About)["sha256"]
    return _SavedFile(stem.with_suffix(".safetensors").resolve(), sha256, digest)
