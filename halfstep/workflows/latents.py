"""Encode images once into the latent space of a codec, for a model that is trained on latents."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Le

from halfstep.config import JsonObject
from halfstep.config.validate import Count, Place, Validated
from halfstep.data import Latents
from halfstep.data.latents.captions import Captions, captions_of
from halfstep.data.latents.dataset import is_latents, open_latents
from halfstep.data.latents.encoding import Layout, write_latents
from halfstep.data.latents.image_stream import Images, ImageStream, stream
from halfstep.data.sources.image_folder import FolderImages
from halfstep.errors import ConfigError
from halfstep.files import check_writable
from halfstep.identity import sha256_of
from halfstep.models.autoencoder.kl import load_codec
from halfstep.models.codec import Codec
from halfstep.progress import Progress, SILENT
from halfstep.training.distributed import Processes
from halfstep.training.divided import Divided
from halfstep.workflows.locate import is_diffusers
from halfstep.workflows.run_options import shared_options


@dataclass(frozen=True, kw_only=True)
class LatentsConfig(Validated):
    """Encode images, and their mirror images, into the latent space of a codec."""

    data: str
    """A folder of images, tar shards or tables of images, cifar10:FOLDER, fashion-mnist:FOLDER, digits, or a
    .npy or .npz file."""
    codec: Place
    """The run of `halfstep train codec`, a folder of diffusers or its name on the hub, or an official
    autoencoder .pth file."""
    out: Path
    """Folder for the latents; the same command again goes on where it stopped."""
    size: Count | None = None
    """Side of the images in pixels."""
    channels: Count | None = None
    """1 for gray, 3 for colour."""
    split: Literal["train", "test"] = "train"
    """The training or the test images of cifar10:FOLDER or fashion-mnist:FOLDER."""
    skip_bad: bool = False
    """Leave out images that cannot be decoded, and list them in OUT/skipped.txt."""
    layout: Layout = field(default_factory=Layout)
    scale: Annotated[float, Gt(0)] | None = None
    """Factor on latents, if not the codec's own; the official text models have 0.2301."""
    text: Place | None = None
    """Also encode captions: metadata.jsonl, a .txt beside each image, or a column of texts. With this CLIP or
    T5, or as this pipeline of diffusers does: its folder, or its name on the hub."""
    family: Path | None = None
    """A .toml file on how a pipeline of diffusers encodes texts, for a class that halfstep does not know."""
    tokens: Annotated[int, Ge(2), Le(2**16)] | None = None
    """Tokens of a caption: 77 by default; a pipeline of diffusers has its own."""
    batch_size: Count = 64
    """Images at a time."""
    verify: bool = False
    """Compare the checksums of all files of the folder."""
    device: str = "auto"
    """auto (CUDA, then MPS, then CPU), or one by name."""


@dataclass(frozen=True, eq=False)
class EncodedData:
    """A finished folder of latents.

    latents   the data in it
    encoded   False if the folder was finished before
    spread    standard deviation of the scaled latents
    """

    latents: Latents
    encoded: bool
    spread: float


@dataclass(frozen=True, eq=False)
class LatentsJob:
    """Images, codec and captions, opened and checked; nothing is encoded yet."""

    config: LatentsConfig
    images: Images
    codec: Codec
    captions: Captions | None
    processes: Processes

    def run(self, progress: Progress = SILENT) -> EncodedData:
        """Encode the images that are not encoded yet; the processes divide the files among them."""
        config, processes = self.config, self.processes
        with processes.together():
            encoded = write_latents(
                self.images, self.codec, config.out, layout=config.layout, captions=self.captions,
                batch=config.batch_size, device=processes.device, division=Divided(processes),
                progress=progress,
            )  # fmt: skip
            latents = opened_on_first(config.out, config.verify, processes)
        rows = torch.arange(0, len(latents), max(1, len(latents) // 1000))
        return EncodedData(latents, encoded, float(latents.batch(rows).x0.std()))


def encode_latents(config: LatentsConfig, *, progress: Progress = SILENT) -> EncodedData:
    """Encode images into a folder of latents; a second call goes on where the first stopped.

    Args:
        config: the options of `halfstep latents`.
        progress: advances with the images.

    Raises:
        ConfigError: images, codec and captions that do not go together, or a folder of other latents.
        DataError: images that cannot be read.
        CheckpointError: a damaged codec.
    """
    return prepare_latents(config, progress=progress).run(progress)


def opened_on_first(folder: Path, verify: bool | None, processes: Processes) -> Latents:
    """The latents of a folder, whose files the first process compares with their checksums."""
    opened = list[Latents]()
    processes.run_on_first(lambda: opened.append(open_latents(folder, verify=verify)))
    return opened[0] if opened else open_latents(folder, verify=False)


def prepare_latents(config: LatentsConfig, *, progress: Progress = SILENT) -> LatentsJob:
    """Open and check everything that `encode_latents` needs, before the first image is encoded.

    Under torchrun the processes divide the files of latents; the first writes the list of them.
    """
    processes = Processes(config.device)
    with processes.together():
        _check_places(config)
        images = stream(
            config.data, size=config.size, channels=config.channels, split=config.split,
            skip_bad=config.skip_bad, listed=config.out, progress=progress,
        )  # fmt: skip
        codec = load_codec(_local(config.codec), scale=config.scale).to(processes.device)
        captions = _captions(config, images, processes.device, progress)
        if processes.world > 1:
            processes.compare(_identity(config, images, codec, captions))
    return LatentsJob(config, images, codec, captions, processes)


def _identity(
    config: LatentsConfig, images: Images, codec: Codec, captions: Captions | None
) -> JsonObject:
    """What all processes must have in common."""
    options = shared_options(config)
    options = {name: v for name, v in options.items() if name not in ("codec", "text")}
    return {
        **options,
        "codec": codec.digest(),
        "images": [len(images), *images.shape],
        "names": sha256_of(images.names),
        "files": sha256_of(images.files.name(k) for k in images.rows)
        if isinstance(images, ImageStream)
        else images.digest(range(len(images))),
        "text": captions and captions.digest,
        "captions": captions and captions.digest_of(range(len(images))),
    }


def _check_places(config: LatentsConfig) -> None:
    """Refuse latents as images, and a folder for latents among the images."""
    place, out = Path(config.data).expanduser(), config.out.expanduser()
    check_writable(config.out, "choose another --out")
    if config.data and is_latents(place):
        raise ConfigError(f"'{place}' holds latents already: name the images to encode")
    if config.data and place.is_dir() and out.resolve().is_relative_to(place.resolve()):
        raise ConfigError(f"'{out}' lies in the folder of the images: choose another --out")


def _local(place: str) -> Path:
    """A folder or file; of a name on the hub, its folder."""
    if not is_diffusers(place):
        return Path(place)
    from halfstep.pipeline.from_diffusers.folder import source_folder

    return source_folder(place)


def _captions(
    config: LatentsConfig, images: Images, device: torch.device, progress: Progress
) -> Captions | None:
    """The captions of the images, and their encoder."""
    if config.text is None:
        return None
    captions = captions_of(images)
    if captions is None:
        raise ConfigError(f"there are no captions in '{config.data}': {_no_captions(images)}")
    if is_diffusers(config.text):
        if config.tokens is not None:
            raise ConfigError(f"'{config.text}' has its own number of tokens: leave --tokens out")
        from halfstep.pipeline.from_diffusers.encoders import texts_of_folder

        of_pipeline = texts_of_folder(_local(config.text), config.family)
        return Captions(of_pipeline, captions, of_pipeline.digest())
    if config.family is not None:
        raise ConfigError(f"--family is for a pipeline of diffusers, and '{config.text}' is none")
    from halfstep.models.text_encoders import load_texts

    tokens = config.tokens or 77
    texts = load_texts(config.text, tokens=tokens, device=device)
    if cut := len(texts.cut([text for several in captions for text in several])):
        progress.note(f"{cut:,} captions have more than {tokens} tokens and lose their end")
    return Captions(texts, captions, texts.digest())


def _no_captions(images: Images) -> str:
    """Where captions are looked for, as advice."""
    if not isinstance(images, ImageStream):
        return "they lie with the images of a folder, in shards or tables: leave --text out"
    if isinstance(images.files, FolderImages):
        return (
            'write metadata.jsonl with a line {"file_name": "a.png", "text": "a cat"} for each image, or a '
            ".txt beside each"
        )
    return f"name them as {images.files.place}:text=NAME, or leave --text out"
