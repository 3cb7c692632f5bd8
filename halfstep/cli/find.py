"""Where a pipeline is: its own folder, the run that made it, or a file of published weights."""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from halfstep.codec import Codec
from halfstep.data import Data, Latents
from halfstep.errors import CheckpointError, ConfigError
from halfstep.pipeline import Pipeline
from halfstep.training.run_folder import load_student


@dataclass(frozen=True, kw_only=True)
class Official:
    """A published model, in place of a folder."""

    model: str | None = None
    """A published U-ViT instead, such as imagenet256_uvit_huge, with its --weights."""
    weights: Path | None = None
    """Its weights: an official .pth file, or the folder N.ckpt of its trainer."""
    codec: Path | None = None
    """The autoencoder of a latent model: an official .pth file, a diffusers folder, or one of halfstep's."""
    text: Path | None = None
    """The encoder of texts of a model that reads them, as transformers saves it."""

    @classmethod
    def kept(cls, config: Mapping[str, Any]) -> "Official":
        """What a run's config.toml says of it."""
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
        """Of latents and given no codec: the pipeline with that of the data, at the model's own scale."""
        if self.model is None or pipeline.codec is not None or not isinstance(data, Latents):
            return pipeline
        from halfstep.hub import PUBLISHED

        scale = PUBLISHED[self.model].scale
        if scale is None:  # of pixels, which latents will not fit
            return pipeline
        return replace(pipeline, codec=codec_of(data, scale=scale))


def codec_of(data: Latents, *, scale: float | None = None) -> Codec:
    """The codec in a folder of latents; refused where it is not the one that made them."""
    from halfstep.nets.autoencoder import load_codec

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
    """The one in a folder, as `find_pipeline` does it, or a published one.

    asks  who needs which folder, as a refusal begins: "halfstep sample needs the folder of a pipeline"
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
    pipeline = find_pipeline(folder, steps=steps, net=net)
    if official.text is None:
        return pipeline
    from halfstep.nets.text import load_texts

    tokens = None if pipeline.empty is None else len(pipeline.empty)
    return pipeline.with_texts(load_texts(official.text, tokens=tokens or 77))


def find_pipeline(path: Path, *, steps: int | None = None, net: str | None = None) -> Pipeline:
    """The pipeline in this folder, or a run's: the stage of so many steps, else the one of the
    fewest; of a run with a gate, the last that passed."""
    see_current_folder(net)
    if (path / "pipeline.json").exists():
        return Pipeline.load(path, net=net)
    return load_student(path, steps=steps, net=net)


def see_current_folder(net: str | None) -> None:
    """Let `--net package.module:function` name code in the folder where the command is typed."""
    if net is not None and ":" in net and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
