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
from halfstep.evaluation.gate import read_gate
from halfstep.identity import digest_of
from halfstep.pipeline import Pipeline
from halfstep.pipeline.description import read_description
from halfstep.training.run_folder import stage_folders


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
    found = stage_folders(path)
    if not found:
        raise ConfigError(
            f"'{path}' holds neither a pipeline nor a run with a finished stage: give the folder that "
            "has a pipeline.json, or the --out of a run"
        )
    takes = {folder: _takes(folder) for folder in found}
    if steps is None and (path / "gate.json").exists():
        return _load_best(path, net)
    if steps is None:
        return Pipeline.load(min(found, key=lambda folder: takes[folder][0]), net=net)
    for folder in found:
        if steps in takes[folder] or ANY in takes[folder]:
            return Pipeline.load(folder, net=net)
    own = sorted({n for counts in takes.values() for n in counts})
    raise ConfigError(
        f"no student of '{path}' was distilled for {steps} steps: they take "
        f"{' or '.join(map(str, own))}"
    )


def _load_best(path: Path, net: str | None) -> Pipeline:
    """The last stage that passed the run's gate, of the weights that the gate saw."""
    kept = read_gate(path / "gate.json")
    tried = [one for one in kept["tried"] if one["stage"] == kept["best"]]
    if not tried:
        raise ConfigError(
            f"no student of '{path}' passed its gate: say which one you mean with --steps, or give the "
            "folder of a stage"
        )
    found = Pipeline.load(path / "stages" / tried[-1]["stage"], net=net)
    if digest_of(found.denoiser) != tried[-1]["weights"]:
        raise ConfigError(
            f"the gate of '{path}' saw other weights of {tried[-1]['stage']} than are there: run the same "
            "halfstep distill again, or say which student you mean with --steps"
        )
    return found


ANY = 2**31
"""A teacher takes any number of steps, which counts as many."""


def _takes(folder: Path) -> list[int]:
    """The numbers of steps that a stage's pipeline can take."""
    about = read_description(folder)
    counts = [len(times) - 1 for times in about["times"]]
    if about.get("made_for") == "stochastic" and 2 in counts:
        counts.append(1)  # whose one call at t = 1 spans both
    return counts or [ANY]


def see_current_folder(net: str | None) -> None:
    """Let `--net package.module:function` name code in the folder where the command is typed."""
    if net is not None and ":" in net and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
