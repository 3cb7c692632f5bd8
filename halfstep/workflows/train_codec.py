"""Train an image codec, for diffusion in its latents."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from math import gcd
from pathlib import Path
from typing import Annotated

import torch
from annotated_types import Ge, Le
from torch import Tensor

from halfstep import files
from halfstep.config.validate import Count, Validated
from halfstep.data import Data, Dataset, held_out_split, load
from halfstep.errors import ConfigError, DataError
from halfstep.methods.autoencoding import Autoencoding, psnr, unit_scale
from halfstep.methods.stages import Stage
from halfstep.models.autoencoder.kl import KLCodec
from halfstep.models.codec import sample_latents
from halfstep.pictures import Picture, tile
from halfstep.progress import Progress, SILENT
from halfstep.report.images.png import save_grid
from halfstep.rng import fork_rng, key, sample_noise
from halfstep.schema import literals
from halfstep.training import TrainingConfig
from halfstep.training.api import AUTOCAST
from halfstep.training.distributed import Processes
from halfstep.training.peers import launched
from halfstep.training.stages import run_stages, RunOptions
from halfstep.workflows.options import DataOptions, SampledOptions
from halfstep.workflows.run_options import run_options_of

SCALED, SCORED, SHOWN, DRAWN = 5_000, 1_000, 12, 8
"""Images for the scale (Rombach et al. 2022, section D.1), for the error, in the picture, and in those of a
run."""
LOG_VARIANCE = -6.0
"""Log variance of the latents when a codec's training begins."""
BATCH = 250
"""Images encoded together, for all three."""


@dataclass(frozen=True, kw_only=True)
class CodecOptions(Validated):
    """The network."""

    factor: Annotated[int, Ge(1), Le(2**10)] = 2
    """Side of an image over the side of its latent: a power of 2."""
    latent_channels: Count = 4
    """Channels of a latent."""
    width: Count = 32
    """Channels at full size; twice as many at half the size, four times as many below."""
    codec_config: dict[str, str] = field(default_factory=dict)
    """Other options of diffusers' AutoencoderKL, as NAME VALUE pairs: layers_per_block 2."""


@dataclass(frozen=True, kw_only=True)
class TrainCodecConfig:
    """Train a small image codec, for diffusion in its latents."""

    folder: SampledOptions
    dataset: DataOptions
    codec: CodecOptions = field(default_factory=CodecOptions)
    method: Autoencoding = field(default_factory=Autoencoding)
    training: TrainingConfig = field(default_factory=TrainingConfig)


@dataclass(frozen=True)
class TrainedCodec:
    """A codec after its training, and its reconstructions.

    psnr      mean over the reconstructed images, in dB
    images    number of reconstructed images
    held_out  whether they are test images; else training images
    picture   file with originals above, reconstructions below
    """

    codec: KLCodec
    folder: Path
    psnr: float
    images: int
    held_out: bool
    picture: Path


@dataclass(frozen=True)
class CodecRun:
    """A codec that is ready for training; nothing is written yet."""

    config: TrainCodecConfig
    data: Data
    codec: KLCodec

    @property
    def latent_shape(self) -> list[int]:
        """Shape of an image's latent."""
        sides = (side // self.codec.factor for side in self.data.shape[1:])
        return [self.codec.channels, *sides]

    def train(self, job: RunOptions | None = None) -> KLCodec:
        """Train the codec into the run folder, and set its scale."""
        config, net, seed = self.config, self.codec, self.config.training.seed
        job = job or run_options_of(config)
        net.autocast = AUTOCAST[config.training.precision]

        def write(stage: Stage, folder: Path) -> None:
            net.autocast = None  # as it is when it is loaded
            latents = [z for _, z in encoded(net, self.data, SCALED, seed)]
            net.scale = unit_scale(torch.cat(latents))
            net.save(folder)

        def read(stage: Stage, folder: Path) -> None:
            net.read(folder)

        run_stages(
            "train codec", config.method.stages(net), {**asdict(config.method), "codec": net.config},
            self.data, config.folder.out, config.training, job, Processes(job.device),
            write=write, read=read, draw=lambda stage: self._drawn(),
        )  # fmt: skip
        net.autocast = None
        return net

    def _drawn(self) -> Picture:
        """The same images above, their reconstructions below."""
        pairs = [(x.cpu(), self.codec.decode(z * self.codec.scale).cpu())
            for x, z in encoded(self.codec, self.data, DRAWN, self.config.training.seed)
        ]  # fmt: skip
        return tile(
            torch.cat([torch.cat(parts) for parts in zip(*pairs, strict=True)]), columns=DRAWN
        )

    def reconstruct(self) -> TrainedCodec:
        """Reconstruct images; the first process writes OUT/codec and a picture of them."""
        net, dataset, out = self.codec, self.config.dataset, self.config.folder.out
        folder, picture = out / "codec", out / "reconstructions.png"
        test = held_out_images(dataset)
        images, decoded = reconstructed(net, test or self.data, self.config.training.seed)
        if launched()[0] == 0:
            net.save(files.subfolder(out, "codec"))
            count = min(SHOWN, len(images))
            save_grid(torch.cat([images[:count], decoded[:count]]), picture, columns=count)
        error = float(psnr(images, decoded).mean())
        return TrainedCodec(net, folder, error, len(images), test is not None, picture)


def prepare_codec(config: TrainCodecConfig, *, progress: Progress = SILENT) -> CodecRun:
    """Read the data and build a fresh codec for it.

    progress  progress of reading the data

    `ConfigError` if the folder cannot be written, or the data has no images.
    """
    config.folder.check()
    data = config.dataset.load(progress)
    codec = fresh_codec(config.codec, data, config.dataset.data, config.training.seed)
    return CodecRun(config, data, codec)


def train_codec(config: TrainCodecConfig, *, job: RunOptions | None = None) -> TrainedCodec:
    """Train a codec into the run folder, and reconstruct images with it.

    The same call again goes on where it stopped, to the bit, or returns what is finished.

    Args:
        config: the options of `halfstep train codec`.
        job: device and progress.

    Raises:
        ConfigError: the folder cannot be written, or the data has no images.
        DataError: data that cannot be read.
    """
    run = prepare_codec(config)
    run.train(job)
    return run.reconstruct()


def fresh_codec(options: CodecOptions, data: Data, name: str, seed: int) -> KLCodec:
    """A codec that fits the data, with weights that depend on the seed alone."""
    if not isinstance(data, Dataset) or not data.is_images or data.shape[0] not in (1, 3):
        raise ConfigError(f"a codec needs images, and '{name}' has none: give other data")
    if options.factor & (options.factor - 1):
        raise ConfigError(
            f"factor is a power of 2, got {options.factor}: write for example --factor 2"
        )
    config = {
        "in_channels": data.shape[0],
        "out_channels": data.shape[0],
        "block_out_channels": [
            options.width * min(2**level, 4) for level in range(options.factor.bit_length())
        ],
        "latent_channels": options.latent_channels,
        # Four channels in a group, as at full size; with fewer the norm would remove the contrast.
        "norm_num_groups": max(1, gcd(options.width, 128) // 4),
        "mid_block_add_attention": False,  # costs more than it gives on a small image
        **literals(options.codec_config),
    }
    with fork_rng(key(seed, 0)):
        net = KLCodec.fresh(config)
    net.check((1, *data.shape))
    with torch.no_grad():
        # Little noise at first: a short training hardly reduces noise that is as strong as the signal.
        last = net.model.quant_conv or net.model.encoder.conv_out
        last.bias[net.channels :] = LOG_VARIANCE
    return net


def held_out_images(dataset: DataOptions) -> Data | None:
    """Test images for reconstruction; None if the data has none."""
    if held_out_split(dataset.data) == "test":
        with suppress(DataError):  # the archive has training images only
            return load(dataset.data, size=dataset.size, channels=dataset.channels, split="test")
    return None


def encoded(net: KLCodec, data: Data, count: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """At most `count` images, evenly spread over the data, with a latent of each, drawn and unscaled."""
    device, count = next(net.parameters()).device, min(count, len(data))
    for rows in (torch.arange(count) * len(data) // count).split(BATCH):
        images = data.batch(rows).x0.to(device)
        moments = net.moments(images)
        noise = sample_noise(seed, rows.tolist(), (net.channels, *moments.shape[2:])).to(device)
        yield images, sample_latents(moments, noise, 1.0)


def reconstructed(net: KLCodec, data: Data, seed: int) -> tuple[Tensor, Tensor]:
    """Images, and their reconstructions from drawn latents."""
    pairs = [
        (images.cpu(), net.decode(latents * net.scale).cpu())
        for images, latents in encoded(net, data, SCORED, seed)
    ]
    images, decoded = zip(*pairs, strict=True)
    return torch.cat(images), torch.cat(decoded)
