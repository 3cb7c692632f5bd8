"""Find a pipeline: in its own folder, in the run that made it, or in a file of published weights."""

from dataclasses import dataclass, fields, replace
from pathlib import Path

from halfstep.config import JsonObject
from halfstep.data import Data, Latents
from halfstep.errors import CheckpointError, ConfigError
from halfstep.models.codec import Codec
from halfstep.pipeline import Pipeline
from halfstep.training.run_folder import RunFolder


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
    """Text encoder of a model that reads texts, as transformers saves it."""

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
    folder: Path | None,
    official: Official,
    *,
    steps: int | None = None,
    net: str | None = None,
) -> Pipeline:
    """The pipeline in a folder, as `locate_pipeline` finds it, or a published one.

    asks  the beginning of an error: "halfstep sample needs the folder of a pipeline"
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
        return official.load()
    if official.weights is not None or official.codec is not None:
        raise ConfigError("--weights and --codec belong to --model: leave them out")
    pipeline = locate_pipeline(folder, steps=steps, net=net)
    if official.text is None:
        return pipeline
    from halfstep.models.text_encoders import load_texts

    tokens = None if pipeline.empty is None else len(pipeline.empty)
    return pipeline.with_texts(load_texts(official.text, tokens=tokens or 77))


def locate_pipeline(
    folder: Path | str, *, steps: int | None = None, net: str | None = None
) -> Pipeline:
    """The pipeline in this folder, or a student of the run in it.

    steps  of the student; by default the fewest, or with a gate the last that passed
    net    package.module:function that builds a network of your own
    """
    folder = Path(folder)
    if (folder / "pipeline.json").exists():
        return Pipeline.load(folder, net=net)
    return RunFolder(folder).student(steps, net=net)
