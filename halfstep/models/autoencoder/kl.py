"""Images to latents and back: diffusers' `AutoencoderKL` as a codec, and the files that one comes in."""

import os
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
from halfstep.models.autoencoder.checkpoints import ldm_name, read_diffusers
from halfstep.models.codec import sample_latents
from halfstep.models.limits import build_within_limits
from halfstep.models.rebuild import refuse_changed, refuse_wrapped
from halfstep.pixels import as_floats, in_range
from halfstep.quiet import quietly

OFFICIAL = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 4}
"""The autoencoder of the official U-ViT, which is Stable Diffusion 1's."""
OFFICIAL_SCALE = 0.18215
PIXELS = 2**20
"""Of the images that are encoded or decoded at once, unless told otherwise."""


class _About(TypedDict):
    """What codec.json says."""

    config: JsonObject
    scale: float


@dataclass(frozen=True)
class _Home:
    """A file of ours, its sha256, and the digest of the weights in it."""

    file: Path
    sha256: str
    digest: str


class KLCodec(nn.Module):
    """A KL-regularised autoencoder (Rombach et al. 2022) as a `halfstep.models.codec.Codec`.

    model     diffusers' `AutoencoderKL`
    scale     factor on the latents
    autocast  dtype in which the network alone runs (bfloat16, float16), or None

    Results come in the dtype of the argument, whatever the weights are in; of uint8 images in float32.
    """

    def __init__(self, model: Any, scale: float = 1.0):
        super().__init__()
        self.model: Any = model
        self.scale: float = _positive(scale)
        self.autocast: torch.dtype | None = None
        self._home: _Home | None = None

    @classmethod
    def fresh(cls, config: NetConfig, scale: float = 1.0) -> "KLCodec":
        """An untrained one, of `AutoencoderKL`'s arguments but the scale; `ConfigError` if there is none."""
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
        given = {k: tuple(v) if isinstance(v, list) else v for k, v in config.items()}
        types = {"down_block_types": "DownEncoderBlock2D", "up_block_types": "UpDecoderBlock2D"}

        def model(**given: Any) -> Any:
            levels = len(given.get("block_out_channels", (64,)))
            return AutoencoderKL(**{name: (kind,) * levels for name, kind in types.items()} | given)

        return cls(build_within_limits("codec", model, given), scale)

    @classmethod
    def from_ldm(
        cls,
        tensors: Mapping[str, Tensor],
        *,
        config: NetConfig = OFFICIAL,
        scale: float = OFFICIAL_SCALE,
        source: str = "this state dict",
    ) -> "KLCodec":
        """From a state dict in the names of the latent diffusion code, strictly (official U-ViT files)."""
        codec = cls._empty(config, scale)
        mine = codec.model.state_dict()
        names = {ldm_name(name, len(config["block_out_channels"])): name for name in mine}
        if missing := sorted(names.keys() - tensors.keys()):
            raise CheckpointError(
                f"{source} is not this autoencoder: it lacks {len(missing)} tensors "
                f"({', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''})"
            )
        renamed = {names.get(name, name): value for name, value in tensors.items()}
        for name in renamed.keys() & mine.keys():
            if mine[name].ndim == 2 and renamed[name].shape[2:] == (1, 1):
                renamed[name] = renamed[name][:, :, 0, 0]  # attention, there as 1 x 1 convolutions
        storage.load_into(codec.model, renamed, source)
        return codec

    @classmethod
    def _empty(cls, config: NetConfig, scale: float) -> "KLCodec":
        """With memory for weights that are about to be read: none is drawn."""
        with torch.device("meta"):
            codec = cls.fresh(config, scale)
        codec.model.to_empty(device="cpu")
        return codec.eval().requires_grad_(False)

    @property
    def config(self) -> JsonObject:
        """What `fresh` makes the same from; all of it, so that a library's defaults can change."""
        found = {k: v for k, v in dict(self.model.config).items() if not k.startswith("_")}
        found.pop("scaling_factor")
        return found

    @property
    def factor(self) -> int:
        """Pixels of an image to a side of its latent."""
        return int(2 ** (len(self.config["block_out_channels"]) - 1))

    @property
    def channels(self) -> int:
        """Of a latent."""
        return int(self.config["latent_channels"])

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Moments, and what is decoded from a latent drawn from them: not clamped, as training wants it.

        noise  [B, channels, H / factor, W / factor]
        """
        images = as_floats(images)
        self.check(images.shape)
        moments = self._encode(images).to(images.dtype)
        return moments, self._decode(sample_latents(moments, noise, 1.0)).to(images.dtype)

    @torch.no_grad()
    def moments(self, images: Tensor, *, batch: int | None = None) -> Tensor:
        """Mean, then log-variance, without `scale`: [B, C, H, W] in [-1, 1], or uint8, to [B, 2 c, h, w].

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
        if (
            latents.ndim != 4
            or latents.shape[1] != self.channels
            or not latents.is_floating_point()
        ):
            raise ConfigError(
                f"this codec decodes latents [B, {self.channels}, h, w] and got {latents.dtype} "
                f"{list(latents.shape)}: give what it encoded, as floats"
            )
        parts = latents.split(_at_once(batch, latents[0, 0].numel() * self.factor**2))
        decoded = [self._decode(part / self.scale).to(latents.dtype) for part in parts]
        return torch.cat(decoded).clamp(-1, 1)

    def _encode(self, images: Tensor) -> Tensor:
        with self._precision(images):
            found: Tensor = self.model.encode(images.to(self._dtype)).latent_dist.parameters
        return found

    def _decode(self, latents: Tensor) -> Tensor:
        with self._precision(latents):
            found: Tensor = self.model.decode(latents.to(self._dtype)).sample
        return found

    def _precision(self, x: Tensor) -> Any:
        return torch.autocast(x.device.type, self.autocast) if self.autocast else nullcontext()

    @property
    def _dtype(self) -> torch.dtype:
        found: torch.dtype = self.model.dtype
        return found

    def check(self, shape: Sequence[int]) -> None:
        """Refuse images of a shape [B, C, H, W] that it cannot encode."""
        channels = self.config["in_channels"]
        if len(shape) != 4 or shape[1] != channels:
            raise ConfigError(
                f"this codec encodes images [B, {channels}, H, W] and got {list(shape)}: give it such "
                "images, or a codec for these"
            )
        if any(side % self.factor for side in shape[2:]):
            raise ConfigError(
                f"this codec makes {self.factor} x {self.factor} pixels one of a latent, and images of "
                f"{shape[2]} x {shape[3]} do not divide so: resize them (--size)"
            )

    def refuse_changed(self) -> None:
        """`ConfigError` where `fresh` would no longer make it from its config."""
        refuse_wrapped(self)
        name = "AutoencoderKL"
        refuse_changed(self.model, lambda: KLCodec.fresh(self.config).model, name, draws=False)

    def digest(self) -> str:
        """sha256 of the weights, with their names, types and shapes."""
        return digest_of(self.model)

    def save(self, folder: Path | str) -> None:
        """Write folder/codec.safetensors and folder/codec.json.

        Where the weights are those of a folder it was read from or saved to, the file gets a second name
        (a hard link) if the file system can: many stages then do not cost many copies.
        """
        self.refuse_changed()
        stem, about = Path(folder) / "codec", {"config": self.config, "scale": self.scale}
        files.make_folder(stem.parent)
        digest = self.digest()
        if self._home is not None and self._home.digest == digest and _link(self._home, stem):
            storage.write_json(stem.with_suffix(".json"), {**about, "sha256": self._home.sha256})
        else:
            storage.save(stem, self.model.state_dict(), about)
            self._home = _home(stem, digest)

    def read(self, folder: Path) -> "KLCodec":
        """Take up the weights and the scale of a folder of ours, strictly; returns itself."""
        stem = folder / "codec"
        tensors, about = storage.load(stem, _About)
        storage.load_into(self.model, tensors, f"'{stem}.safetensors'")
        self.scale, self._home = _positive(about["scale"]), _home(stem, self.digest())
        return self


def load_codec(
    path: Path | str, *, scale: float | None = None, config: NetConfig = OFFICIAL
) -> KLCodec:
    """A codec from disk, strictly; nothing that is read can run.

    path    a folder that a codec was saved to, or the run that trained it; a diffusers folder (config.json
            and diffusion_pytorch_model.safetensors); or an official U-ViT file (autoencoder_kl.pth)
    scale   another factor on the latents than the one that comes with it (official files: 0.18215)
    config  of a file, which does not say

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
    if config.get("layers_per_block", 0) > len(tensors):  # it would take for ever to build
        raise CheckpointError(f"'{folder}' has no weights for {config['layers_per_block']} layers")
    codec = KLCodec._empty(config, scale)
    storage.load_into(codec.model, tensors, f"the weights in '{folder}'")
    return codec


def _at_once(batch: int | None, pixels: int) -> int:
    if batch is not None and batch < 1:
        raise ConfigError(f"batch must be at least 1, got {batch}: leave it out, or write batch=1")
    return batch or max(1, PIXELS // pixels)


def _home(stem: Path, digest: str) -> _Home:
    sha256 = storage.read_about(stem, _About)["sha256"]
    return _Home(stem.with_suffix(".safetensors").resolve(), sha256, digest)


def _link(home: _Home, stem: Path) -> bool:
    """Give a file a second name; False where it cannot be, or the file is no longer what it was."""
    final = stem.with_suffix(".safetensors")
    part = files.temporary_path(final)
    try:
        os.link(home.file, part)
        same = storage.checksum(part) == home.sha256
        if same:
            part.replace(final)
        part.unlink(missing_ok=True)  # a rename between two names of one file does nothing
    except (OSError, CheckpointError):
        return False
    return same
