"""The published U-ViTs (Bao et al. 2023) by the official names of their configurations.

An official file holds only tensors.  Their meaning (the noise schedule, the network's time, the null label,
the scale of the latents) follows from the name alone.  There are two conventions for the time: networks
trained on continuous times read 999 t, those trained on a table of 1000 levels read the number of the
level, 1 to 1000.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn, Tensor

from halfstep import storage
from halfstep.config import JsonObject, NetConfig
from halfstep.diffusion.denoiser import Denoiser, NetTime
from halfstep.diffusion.prediction import Eps
from halfstep.diffusion.schedules import BetaTable, Schedule, VPLinear
from halfstep.errors import CheckpointError, ConfigError, unknown
from halfstep.methods import Denoising
from halfstep.models import build
from halfstep.models.codec import Codec
from halfstep.pipeline import Pipeline
from halfstep.pipeline.conditioning import defaults_of
from halfstep.training import TrainingConfig

if TYPE_CHECKING:
    from halfstep.models.text_encoders import TextEncoder

AVERAGED, RAW = "nnet_ema.pth", "nnet.pth"
"""Weights in a folder of the official trainer; the raw ones sample far worse (FID 17 instead of 7)."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """A published model without its weights.

    net       arguments of `UViT`
    size      side of the images in pixels
    schedule  noise schedule
    time      the network's time as a function of t
    num_classes  number of classes; 0: none
    null      the label that means no class, or None: the network cannot be guided by labels
    scale     of the latents, or None for a model of pixels
    sampler   of the published FID, with its `steps` and `guidance_scale` (1 is off)
    fid       as published
    flip      mirror images in training
    method    training method
    training  options of the optimiser
    """

    net: NetConfig
    size: int
    schedule: Schedule
    time: NetTime
    num_classes: int = 0
    null: int | None = None
    scale: float | None = None
    sampler: str
    steps: int
    guidance_scale: float = 1.0
    fid: float
    flip: bool = True
    method: Denoising
    training: TrainingConfig

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape of a sample, before decoding."""
        side = self.net["img_size"]
        return self.net["in_chans"], side, side

    def blank(self) -> nn.Module:
        """The network on the meta device: its shapes without its weights."""
        with torch.device("meta"):
            return build("uvit", self.net)

    def pipeline(
        self,
        weights: Path | str,
        *,
        codec: Path | str | None = None,
        text: Path | str | None = None,
    ) -> Pipeline:
        """Load weights as `load_published` does, also for a configuration without a name."""
        decoder, texts = self._codec(codec), self._texts(text)
        return Pipeline(
            Denoiser(self._network(weights), self.schedule, Eps(), time=self.time).eval(),
            self.shape,
            class_names=tuple(map(str, range(self.num_classes))),
            null=self.null,
            codec=decoder,
            sampler=self.sampler,
            steps=self.steps,
            texts=texts,
            **({} if texts is None else defaults_of(texts.null())),
        )

    def _network(self, weights: Path | str) -> nn.Module:
        path = _averaged(Path(weights).expanduser())
        tensors, net = storage.read_state_dict(path), self.blank()
        if (shapes := _shapes(tensors)) != _shapes(_model(net).state_dict()):
            for name, other in PUBLISHED.items():
                if shapes == _shapes(_model(other.blank()).state_dict()):
                    raise CheckpointError(
                        f"'{path}' holds the weights of {name} and not of this configuration: write "
                        f"{name}, or give the file that belongs to this one"
                    )
        # Empty memory: the weights are not drawn first, and are copied from the file once.
        net.to_empty(device="cpu")
        storage.load_into(_model(net), tensors, f"'{path}'")
        return net

    def _codec(self, codec: Path | str | None) -> Codec | None:
        if codec is None:
            return None
        if self.scale is None:
            raise ConfigError("this model makes pixels and has no codec: leave codec out")
        from halfstep.models.autoencoder.kl import load_codec

        return load_codec(Path(codec), scale=self.scale)

    def _texts(self, text: Path | str | None) -> "TextEncoder | None":
        width = self.net.get("clip_dim")
        if (text is None) != (width is None):
            raise ConfigError(
                "this model reads no texts: leave text out"
                if width is None
                else "this model reads texts: give the folder of their encoder, CLIP ViT-L/14, as text"
            )
        if text is None:
            return None
        from halfstep.models.text_encoders import load_texts

        texts = load_texts(Path(text), tokens=self.net["num_clip_token"])
        if texts.width != width:
            raise ConfigError(
                f"the text encoder '{text}' has states of width {texts.width} and this model reads "
                f"{width}: give the one that it was trained with, CLIP ViT-L/14"
            )
        return texts


def load_published(
    name: str,
    weights: Path | str,
    *,
    codec: Path | str | None = None,
    text: Path | str | None = None,
) -> Pipeline:
    """Load a published U-ViT (Bao et al. 2023) from its official weights; nothing in a file is executed.

    Args:
        name: a key of `PUBLISHED`.
        weights: an official .pth file, a .safetensors file of the same tensors, or a folder STEP.ckpt of
            the official trainer, whose averaged weights are read.
        codec: for `load_codec`; without one latents can be sampled but not decoded.
        text: folder of the text encoder, for `load_texts`: required if the model reads texts, else
            refused.

    Returns:
        A teacher of images [3, H, W], or of latents [4, H / 8, W / 8] with a codec.

    Raises:
        ConfigError: an unknown name, or a codec or texts that the model does not have.
        CheckpointError: damaged weights, or those of another configuration, which it names.
    """
    if name not in PUBLISHED:
        raise unknown("published model", name, PUBLISHED)
    return PUBLISHED[name].pipeline(weights, codec=codec, text=text)


def _averaged(path: Path) -> Path:
    """The file to read: the averaged weights if there are any."""
    if path.is_dir():
        if not (path / AVERAGED).is_file():
            raise CheckpointError(
                f"'{path}' has no {AVERAGED}, which holds the averaged weights: give the folder "
                "STEP.ckpt that has it, or a file of weights"
            )
        return path / AVERAGED
    if path.name == RAW and (path.parent / AVERAGED).is_file():
        raise CheckpointError(
            f"'{path}' holds the raw weights, which sample far worse than the averaged ones: give "
            f"{AVERAGED}, which lies beside it"
        )
    if not path.is_file():
        raise CheckpointError(f"there is no file of weights '{path}': give one that exists")
    return path


def _model(net: nn.Module) -> nn.Module:
    """The U-ViT inside its adapter, whose names are the official ones."""
    return net.get_submodule("model")


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in tensors.items()}


def _net(img_size: int, patch_size: int, in_chans: int, size: NetConfig, **more: int) -> NetConfig:
    images = {"img_size": img_size, "patch_size": patch_size, "in_chans": in_chans}
    return {**images, **size, **more}


def _training(batch: int, rate: float, betas: tuple[float, float], warmup: int) -> TrainingConfig:
    """A constant learning rate after warm-up, weight decay, no gradient clipping, EMA without warm-up."""
    return TrainingConfig(
        batch_size=batch, learning_rate=rate, learning_rate_schedule="constant", warmup=warmup, betas=betas,
        weight_decay=0.03, max_grad_norm=0.0, ema=0.9999, precision="fp16", seed=1234,
    )  # fmt: skip


def _method(updates: int, levels: int = 0, drop: float = 0.0) -> Denoising:
    """Denoising with the mean squared error of eps."""
    return Denoising(updates=updates, weighting="snr", levels=levels, drop_labels=drop)


_S: JsonObject = {"embed_dim": 512, "depth": 12, "num_heads": 8}
_M: NetConfig = {"embed_dim": 768, "depth": 16, "num_heads": 12, "use_checkpoint": True}
_L: NetConfig = {"embed_dim": 1024, "depth": 20, "num_heads": 16, "use_checkpoint": True}
_H: NetConfig = {
    "embed_dim": 1152, "depth": 28, "num_heads": 16, "use_checkpoint": True, "conv": False,
}  # fmt: skip
_TEXT: JsonObject = {"clip_dim": 768, "num_clip_token": 77}

_sde = partial(Published, schedule=VPLinear(0.1, 20.0), time=NetTime(scale=999.0))
_levels = partial(
    Published,
    schedule=BetaTable("scaled_linear", 1000, 0.00085, 0.012),
    time=NetTime(scale=1000.0),
    sampler="dpmpp-3s",
    steps=50,
)
_maruyama = partial(_sde, sampler="euler-maruyama", steps=1000)
_fast = partial(_sde, sampler="dpm-fast", steps=50)
_fast_labelled = partial(_fast, num_classes=1000, null=1000, scale=0.18215)
_levels_labelled = partial(_levels, num_classes=1000, null=1000, scale=0.18215)
_coco = partial(_levels, scale=0.23010, guidance_scale=2.0, flip=False)

PUBLISHED: dict[str, Published] = {
    "cifar10_uvit_small": _maruyama(
        net=_net(32, 2, 3, _S), size=32, fid=3.11,
        method=_method(500_000), training=_training(128, 2e-4, (0.99, 0.999), 2500),
    ),
    "celeba64_uvit_small": _maruyama(
        net=_net(64, 4, 3, _S), size=64, fid=2.87,
        method=_method(500_000), training=_training(128, 2e-4, (0.99, 0.99), 5000),
    ),
    "imagenet64_uvit_mid": _fast(
        net=_net(64, 4, 3, _M, num_classes=1000), size=64, num_classes=1000, fid=5.85,
        method=_method(300_000), training=_training(1024, 3e-4, (0.99, 0.99), 5000),
    ),
    "imagenet64_uvit_large": _fast(
        net=_net(64, 4, 3, _L, num_classes=1000), size=64, num_classes=1000, fid=4.26,
        method=_method(300_000), training=_training(1024, 3e-4, (0.99, 0.99), 5000),
    ),
    "imagenet256_uvit_large": _fast_labelled(
        net=_net(32, 2, 4, _L, num_classes=1001), size=256, guidance_scale=1.4, fid=3.40,
        method=_method(300_000, drop=0.15), training=_training(1024, 2e-4, (0.99, 0.99), 5000),
    ),
    "imagenet256_uvit_huge": _levels_labelled(
        net=_net(32, 2, 4, _H, num_classes=1001), size=256, guidance_scale=1.4, fid=2.29,
        method=_method(500_000, 1000, 0.1), training=_training(1024, 2e-4, (0.99, 0.99), 5000),
    ),
    "imagenet512_uvit_large": _fast_labelled(
        net=_net(64, 4, 4, _L, num_classes=1001), size=512, guidance_scale=1.7, fid=4.67,
        method=_method(500_000, drop=0.15), training=_training(1024, 2e-4, (0.99, 0.99), 5000),
    ),
    "imagenet512_uvit_huge": _levels_labelled(
        net=_net(64, 4, 4, _H, num_classes=1001), size=512, guidance_scale=1.7, fid=4.05,
        method=_method(500_000, 1000, 0.1), training=_training(1024, 2e-4, (0.99, 0.99), 5000),
    ),
    "mscoco_uvit_small": _coco(
        net=_net(32, 2, 4, _S | _TEXT), size=256, fid=5.95,
        method=_method(1_000_000, 1000, 0.1), training=_training(256, 2e-4, (0.9, 0.9), 5000),
    ),
    "mscoco_uvit_small_deep": _coco(
        net=_net(32, 2, 4, _S | _TEXT, depth=16), size=256, fid=5.48,
        method=_method(1_000_000, 1000, 0.1), training=_training(256, 2e-4, (0.9, 0.9), 5000),
    ),
}  # fmt: skip
"""The ten configurations; the last is the official mscoco_uvit_small with --config.nnet.depth=16."""
