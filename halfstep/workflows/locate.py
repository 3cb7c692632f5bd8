"""Find a pipeline: in its own folder, in the run that made it, of diffusers, or in published weights."""

import re
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch

from halfstep.config import JsonObject
from halfstep.data import Data, Latents
from halfstep.errors import CheckpointError, ConfigError
from halfstep.models.codec import Codec, Texts
from halfstep.pipeline import Pipeline
from halfstep.training.run_folder import RunFolder

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
"""OWNER/NAME on the hub."""


@dataclass(frozen=True, kw_only=True)
class DiffusersOptions:
    """How a pipeline of diffusers is read."""

    teacher_config: str | None = None
    """Folder, or name on the hub, with the configs of a pipeline that is a single .safetensors file."""
    family: Path | None = None
    """A .toml file on how a pipeline of diffusers calls its network, for a class that halfstep does not
    know."""

    @classmethod
    def from_config(cls, config: JsonObject) -> "DiffusersOptions":
        """The options in a run's config.toml."""
        family = config.get("family")
        return cls(
            teacher_config=config.get("teacher_config"),
            family=None if family is None else Path(family),
        )

    def load(
        self,
        place: str,
        size: int | tuple[int, int] | None,
        dtype: torch.dtype | None = None,
    ) -> Pipeline:
        """The pipeline of this folder, file or name, for images of this size in pixels.

        dtype  that the weights of a folder are read in; a file's are in float32
        """
        dtype = None if Path(place).suffix == ".safetensors" else dtype
        return Pipeline.from_diffusers(
            place, size=size, family=self.family, config=self.teacher_config, dtype=dtype
        )


@dataclass(frozen=True, kw_only=True)
class Official:
    """A published model, in place of a folder."""

    model: str | None = None
    """A published U-ViT instead, such as imagenet256_uvit_huge, with its --weights."""
    weights: Path | None = None
    """Weights of the published model: an official .pth file, or the folder N.ckpt of its trainer."""
    codec: Path | None = None
    """Autoencoder of a latent model: an official .pth file, a diffusers folder, or one of halfstep's."""
    text: Path | None = None
    """Text encoder of a model that reads texts, as transformers saves it; or a pipeline of diffusers, whose
    encoders are used."""

    @classmethod
    def from_config(cls, config: JsonObject) -> "Official":
        """The published model that a run's config.toml names, if any."""
        named = {f.name: config[f.name] for f in fields(cls) if f.name in config}
        places = {name: Path(value) for name, value in named.items() if name != "model"}
        return cls(model=config["model"], **places) if "model" in config else cls()

    def load(self) -> Pipeline:
        """The pipeline around the weights."""
        if self.model is None or self.weights is None:
            raise ConfigError(f"--model {self.model} needs --weights: give the official file")
        from halfstep.hub import load_published

        return load_published(self.model, self.weights, codec=self.codec, text=self.text)

    def decoding(self, pipeline: Pipeline, data: Data) -> Pipeline:
        """The pipeline with the codec of the data, if it makes latents and has no codec of its own.

        The codec gets the scale of the published model.
        """
        if self.model is None or pipeline.codec is not None or not isinstance(data, Latents):
            return pipeline
        from halfstep.hub import PUBLISHED

        scale = PUBLISHED[self.model].scale
        if scale is None:  # a model of pixels, which latents do not fit
            return pipeline
        return replace(pipeline, codec=codec_of(data, scale=scale))


def codec_of(data: Latents, *, scale: float | None = None) -> Codec:
    """The codec in a folder of latents; refused where it is not the one that made them."""
    from halfstep.models.autoencoder.kl import load_codec

    codec = load_codec(data.folder, scale=scale)
    if data.codec and codec.digest() != data.codec:
        raise CheckpointError(
            f"the codec in '{data.folder}' is not the one that made the latents there: put its own "
            "codec.json and codec.safetensors back"
        )
    return codec


def chosen_pipeline(
    asks: str,
    folder: str | None,
    official: Official,
    *,
    steps: int | None = None,
    net: str | None = None,
    diffusers: DiffusersOptions = DiffusersOptions(),
    size: int | tuple[int, int] | None = None,
    dtype: torch.dtype | None = None,
) -> Pipeline:
    """The pipeline in a folder, as `locate_pipeline` finds it, or a published one.

    asks  the beginning of an error: "halfstep sample needs the folder of a pipeline"
    dtype  as `locate_pipeline` has it; a published one's weights are in float32
    """
    if (official.model is None) == (folder is None):
        raise ConfigError(
            f"{asks}, or --model and --weights of a published one: give one of the two"
        )
    if folder is None and net is not None:
        raise ConfigError(
            "--net is for a network of one's own, and --model names one: leave it out"
        )
    if folder is None:
        _refuse_for_own(diffusers, f"--model {official.model}")
        return official.load()
    if official.weights is not None or official.codec is not None:
        raise ConfigError("--weights and --codec belong to --model: leave them out")
    pipeline = locate_pipeline(
        folder, steps=steps, net=net, diffusers=diffusers, size=size, dtype=dtype
    )
    if official.text is None:
        return pipeline
    tokens = None if pipeline.empty is None else len(pipeline.empty)
    return pipeline.with_texts(_texts_at(official.text, tokens or 77))


def _texts_at(place: Path, tokens: int) -> Texts:
    """The text encoders of a pipeline of diffusers, or one of transformers."""
    if is_diffusers(place):
        from halfstep.pipeline.from_diffusers.encoders import texts_of_folder
        from halfstep.pipeline.from_diffusers.folder import source_folder

        return texts_of_folder(source_folder(str(place)), None)
    from halfstep.models.text_encoders import load_texts

    return load_texts(place, tokens=tokens)


def locate_pipeline(
    place: Path | str,
    *,
    steps: int | None = None,
    net: str | None = None,
    base: str | None = None,
    diffusers: DiffusersOptions = DiffusersOptions(),
    size: int | tuple[int, int] | None = None,
    dtype: torch.dtype | None = None,
) -> Pipeline:
    """The pipeline in this folder, a student of the run in it, or the pipeline of diffusers there.

    place  a folder; of diffusers also a .safetensors file or OWNER/NAME on the hub
    steps  of the student; by default the fewest, or with a gate the last that passed
    net    package.module:function that builds a network of your own
    base   of a LoRA: the folder or hub name of its teacher, if that has moved
    diffusers, size  how a pipeline of diffusers is read, and for which size in pixels
    dtype  that its weights are rounded to as they are read, for sampling or a LoRA's teacher; all other
           places are read in float32
    """
    if not str(place):
        raise ConfigError("the name of the pipeline is empty: write a folder's")
    if is_diffusers(place):
        if net is not None:
            raise ConfigError(f"'{place}' is of diffusers and names its network: leave --net out")
        return diffusers.load(str(place), size, dtype)
    _refuse_for_own(diffusers, f"'{place}'")
    folder = Path(place)
    if (folder / "pipeline.json").exists():
        return Pipeline.load(folder, net=net, base=base)
    return RunFolder(folder).student(steps, net=net, base=base)


def locate_folder(place: Path | str, steps: int | None = None) -> Path | None:
    """The folder of the pipeline that `locate_pipeline` loads; None for one of diffusers."""
    if is_diffusers(place):
        return None
    folder = Path(place)
    if (folder / "pipeline.json").exists():
        return folder
    return RunFolder(folder).student_folder(steps)


def is_diffusers(place: Path | str) -> bool:
    """Whether a place is a pipeline's folder of diffusers, a .safetensors file, or a name on the hub.

    A name whose first part is a folder here is a place.
    """
    path = Path(place).expanduser()
    if path.exists() or path.suffix == ".safetensors":
        return path.suffix == ".safetensors" or (path / "model_index.json").is_file()
    return HUB_NAME.fullmatch(str(place)) is not None and not path.parent.exists()


def _refuse_for_own(diffusers: DiffusersOptions, what: str) -> None:
    for f in fields(diffusers):
        if getattr(diffusers, f.name) is not None:
            raise ConfigError(
                f"--{f.name.replace('_', '-')} is for a pipeline of diffusers, and {what} is none: leave it "
                "out"
            )
