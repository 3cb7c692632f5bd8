"""`halfstep train codec`."""

import shlex
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from math import gcd
from pathlib import Path
from typing import Annotated, Any

import torch
from rich.console import Console
from torch import Tensor

from halfstep import files
from halfstep.cli.options import Flat, parse, Source, Where
from halfstep.cli.plan import rehearse
from halfstep.cli.progress import first_process, loading, say, terminal
from halfstep.cli.runs import carried_out, describe_data, updates_on
from halfstep.cli.train import as_typed
from halfstep.codec import drawn
from halfstep.data import BELOW, Data, Dataset, load
from halfstep.errors import ConfigError, DataError
from halfstep.kinds import at_least, at_most, Count
from halfstep.methods.autoencoding import Autoencoding, psnr, unit_scale
from halfstep.methods.base import Stage
from halfstep.nets.autoencoder import KLCodec
from halfstep.noise import key, sample_noise, untouched
from halfstep.report.pictures import save_grid
from halfstep.schema import literals
from halfstep.training import Training
from halfstep.training.denoisers import AUTOCAST
from halfstep.training.jobs import carried_through, Job
from halfstep.training.parallel import Processes

SCALED, JUDGED, SHOWN = 5_000, 1_000, 12
"""Images that the scale is taken on (Rombach et al. 2022, section D.1), the error, and the picture."""
LOG_VARIANCE = -6.0
"""Of latents, about which a codec's training begins."""
AT_ONCE = 250
"""Images encoded together, for all three."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The network."""

    factor: Annotated[int, at_least(1), at_most(2**10)] = 2
    """Pixels of an image to a side of its latent: a power of 2."""
    latent_channels: Count = 4
    """Channels of a latent."""
    width: Count = 32
    """Channels at full size; twice as many at half of it, four times from there on."""
    codec_config: dict[str, str] = field(default_factory=dict)
    """Other options of diffusers' AutoencoderKL, as NAME VALUE pairs: layers_per_block 2."""


@dataclass(frozen=True, kw_only=True)
class TrainCodec:
    """Train a small image codec, for diffusion in its latents."""

    where: Annotated[Where, Flat]
    source: Annotated[Source, Flat]
    shape: Annotated[Shape, Flat] = field(default_factory=Shape)
    method: Annotated[Autoencoding, Flat] = field(default_factory=Autoencoding)
    training: Annotated[Training, Flat] = field(default_factory=Training)


def codec(argv: Sequence[str]) -> int:
    """Train a codec; say where it is and how well it brings images back."""
    console = terminal()
    options = parse(TrainCodec, argv, prog="halfstep train codec")
    options.where.check()
    data = loading(console, options.source)
    method, training, where = options.method, options.training, options.where
    net = fresh_codec(options.shape, data, options.source.data, training.seed)
    net.autocast = AUTOCAST[training.precision]

    def write(stage: Stage, folder: Path) -> None:
        net.autocast = None  # as it is when it is loaded
        latents = [z for _, z in encoded(net, data, SCALED, training.seed)]
        net.scale = unit_scale(torch.cat(latents))
        net.save(folder)

    def read(stage: Stage, folder: Path) -> None:
        net.read(folder)

    def work(job: Job) -> None:
        carried_through(
            "train codec", method.stages(net), {**asdict(method), "codec": net.config}, data, where.out,
            training, job, Processes(where.device), write=write, read=read,
        )  # fmt: skip

    if where.dry_run:
        return rehearse(console, options, work)
    parameters = sum(p.numel() for p in net.parameters())
    latent = [net.channels, *(side // net.factor for side in data.shape[1:])]
    say(console, "network", f"{parameters:,} parameters, latents of shape {latent}")
    say(console, "data", describe_data(options.source, data))
    say(console, "updates", updates_on(method.updates, training, where.device))
    with carried_out(where, options, console) as job:
        work(job)
    if first_process():
        net.autocast = None
        net.save(files.subfolder(where.out, "codec"))
        _show(net, where.out, *held_out(options.source, data), console, training.seed)
        out, source = shlex.quote(str(where.out)), as_typed(options.source)
        say(console, "next", f"halfstep latents --codec {out} {source} --out LATENTS")
    return 0


def _show(net: KLCodec, out: Path, data: Data, whose: str, console: Console, seed: int) -> None:
    """How well it brings images back, in numbers and in a picture."""
    images, decoded = reconstructed(net, data, seed)
    shown = min(SHOWN, len(images))
    path = out / "reconstructions.png"
    save_grid(torch.cat([images[:shown], decoded[:shown]]), path, columns=shown)
    ratio = float(psnr(images, decoded).mean())
    say(console, "psnr", f"{ratio:.2f} dB on {len(images):,} {whose}")
    say(console, "scale", f"{net.scale:.5f}, which brings the latents to unit variance")
    say(console, "look", f"{path}: originals above, reconstructions below")
    say(console, "codec", out / "codec")


def fresh_codec(shape: Shape, data: Data, name: str, seed: int) -> KLCodec:
    """A codec that fits the data, with weights that depend on the seed alone."""
    if not isinstance(data, Dataset) or not data.is_images or data.shape[0] not in (1, 3):
        raise ConfigError(f"a codec needs images, and '{name}' has none: give other data")
    if shape.factor & (shape.factor - 1):
        raise ConfigError(
            f"factor is a power of 2, got {shape.factor}: write for example --factor 2"
        )
    config: dict[str, Any] = {
        "in_channels": data.shape[0],
        "out_channels": data.shape[0],
        "block_out_channels": [
            shape.width * min(2**level, 4) for level in range(shape.factor.bit_length())
        ],
        "latent_channels": shape.latent_channels,
        # Four channels to a group, as at full size; fewer would make the network blind to contrast.
        "norm_num_groups": max(1, gcd(shape.width, 128) // 4),
        "mid_block_add_attention": False,  # which costs more than it gives on a small image
        **literals(shape.codec_config),
    }
    with untouched(key(seed, 0)):
        net = KLCodec.fresh(config)
    net.check((1, *data.shape))
    with torch.no_grad():
        # Latents of little noise: from noise as strong as the signal a short training hardly comes down.
        last = net.model.quant_conv or net.model.encoder.conv_out
        last.bias[net.channels :] = LOG_VARIANCE
    return net


def held_out(source: Source, data: Data) -> tuple[Data, str]:
    """What reconstructions are judged on: images that were not trained on, where there are any."""
    if source.data.partition(":")[0] in BELOW:
        with suppress(DataError):  # the archive with the others alone
            test = load(source.data, size=source.size, channels=source.channels, split="test")
            return test, "test images, which it was not trained on"
    return data, "of the images that it was trained on"


def encoded(net: KLCodec, data: Data, count: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Up to so many images, from all over the data, with a latent of each, drawn and unscaled."""
    device, count = next(net.parameters()).device, min(count, len(data))
    for rows in (torch.arange(count) * len(data) // count).split(AT_ONCE):
        images = data.batch(rows).x0.to(device)
        moments = net.moments(images)
        noise = sample_noise(seed, rows.tolist(), (net.channels, *moments.shape[2:])).to(device)
        yield images, drawn(moments, noise, 1.0)


def reconstructed(net: KLCodec, data: Data, seed: int) -> tuple[Tensor, Tensor]:
    """Images, and what comes back of them from drawn latents."""
    pairs = [
        (images.cpu(), net.decode(latents * net.scale).cpu())
        for images, latents in encoded(net, data, JUDGED, seed)
    ]
    images, decoded = zip(*pairs, strict=True)
    return torch.cat(images), torch.cat(decoded)
