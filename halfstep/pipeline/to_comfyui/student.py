"""A student as ComfyUI samples it: at one guidance scale, with the modules that its file holds."""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn, Tensor

from halfstep.diffusion.denoiser import Denoiser
from halfstep.errors import ConfigError
from halfstep.models import DiffusersNet
from halfstep.models.autoencoder.kl import KLCodec
from halfstep.models.fixed_scale import at_scale
from halfstep.pipeline.from_diffusers.encoders import prompt_pipeline
from halfstep.pipeline.from_diffusers.families import family_of
from halfstep.pipeline.from_diffusers.folder import read_index, source_folder
from halfstep.pipeline.pipeline import Pipeline
from halfstep.pipeline.to_comfyui.latent_diffusion import (
    original_clip,
    original_open_clip,
    original_unet,
    original_vae,
)
from halfstep.pipeline.to_comfyui.models import ComfyModel, model_of
from halfstep.pipeline.to_comfyui.sampling import comfy_sampling, ComfySampling
from halfstep.pipeline.to_comfyui.transformers import original_transformer
from halfstep.storage import rounded


@dataclass(frozen=True, eq=False)
class ComfyStudent:
    """A student that ComfyUI samples.

    pipeline  as the file holds it: its network at one guidance scale, in the file's precision
    scale     the guidance scale of its samples: another than 1 only of a network that takes it (Flux)
    parts     the other modules in the file, by diffusers' component
    folder    the diffusers pipeline that it came from
    dtype     of the file; None for float32
    """

    pipeline: Pipeline
    model: ComfyModel
    sampling: ComfySampling
    scale: float
    parts: Mapping[str, nn.Module]
    folder: Path
    dtype: torch.dtype | None

    @property
    def network(self) -> Any:
        """diffusers' module."""
        return cast(DiffusersNet, self.pipeline.denoiser.net).model

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of an image in pixels."""
        factor = cast(KLCodec, self.pipeline.codec).factor
        return self.pipeline.shape[1] * factor, self.pipeline.shape[2] * factor

    @property
    def markers(self) -> tuple[str, ...]:
        """ComfyUI's names of empty tensors that say what the network predicts, and on which table."""
        if not self.model.markers or self.sampling.sampling != "v_prediction":
            return ()
        return ("v_pred", "ztsnr") if self.sampling.zero_snr else ("v_pred",)

    def tensors(self) -> dict[str, Tensor]:
        """All tensors of the file by their original names, with the markers."""
        state, config = self.network.state_dict(), dict(self.network.config)
        if not self.model.encoders:
            return self._rounded(original_transformer(state, self.model.network, config))
        vae: Any = self.parts["vae"]
        tensors = original_unet(state, config)
        tensors |= original_vae(vae.state_dict(), len(vae.config["up_block_types"]))
        for name, prefix in self.model.encoders.items():
            names = original_open_clip if prefix.endswith("model.") else original_clip
            tensors |= names(self.parts[name].state_dict(), prefix)
        return self._rounded(tensors) | {name: torch.zeros(0) for name in self.markers}

    def _rounded(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return tensors if self.dtype is None else rounded(tensors, self.dtype)


def comfy_student(
    pipeline: Pipeline,
    *,
    steps: int | None = None,
    source: str | None = None,
    guidance_scale: float | None = None,
    dtype: torch.dtype | None = None,
) -> ComfyStudent:
    """The student as ComfyUI samples it; `ConfigError` where ComfyUI would draw something else.

    steps   of a student with several grids
    source  folder or hub name of the diffusers pipeline that the teacher came from; by default the recorded
    guidance_scale  the one scale of a student that takes its scale as an input; by default the middle of its
                    range, where ComfyUI has that input (Flux)
    """
    model, sampling = comfy_model(pipeline, steps)
    fixed, scale = _at_one_scale(pipeline, guidance_scale)
    folder = _source(pipeline, source)
    parts = dict(_parts(pipeline, model, folder))
    if dtype is not None:
        fixed = with_net(fixed, copy.deepcopy(fixed.denoiser.net).to(dtype).float())
    return ComfyStudent(fixed, model, sampling, scale, parts, folder, dtype)


def comfy_model(pipeline: Pipeline, steps: int | None) -> tuple[ComfyModel, ComfySampling]:
    """ComfyUI's model for a student, and how its nodes are set; `ConfigError` where it has none.

    steps  of a student with several grids
    """
    net = pipeline.denoiser.net
    if not isinstance(net, DiffusersNet) or getattr(net, "quantised", None):
        raise ConfigError(
            "ComfyUI reads Stable Diffusion, Stable Diffusion 3 and Flux, and this network is "
            f"{'int8' if getattr(net, 'quantised', None) else f'a {type(net).__name__}'}: write "
            "format='pipeline'"
        )
    if not pipeline.times:
        raise ConfigError(
            "this network takes any number of steps, as a teacher does: export a student of few steps "
            "(halfstep distill progressive)"
        )
    network: Any = net.model
    model = model_of(type(network).__name__, dict(network.config))
    sampling = comfy_sampling(pipeline, model, pipeline.grid(steps))
    _refuse_other_latents(pipeline, model)
    return model, sampling


def with_net(pipeline: Pipeline, net: nn.Module) -> Pipeline:
    """A copy of the pipeline with another network, frozen."""
    old = pipeline.denoiser
    new = Denoiser(net, old.schedule, old.parameterisation, time=old.time, autocast=old.autocast)
    return replace(pipeline, denoiser=new.freeze())


def _source(pipeline: Pipeline, source: str | None) -> Path:
    source = source or (pipeline.origin.source if pipeline.origin else "")
    if not source:
        raise ConfigError(
            "the text encoders and the configs come from the diffusers pipeline of the teacher, and this "
            "student records none: give its folder or name as source"
        )
    return source_folder(source)


def _refuse_other_latents(pipeline: Pipeline, model: ComfyModel) -> None:
    codec = pipeline.codec
    if not isinstance(codec, KLCodec) or codec.class_name != "AutoencoderKL":
        raise ConfigError(
            f"ComfyUI decodes a {model.name} with an AutoencoderKL, and this student has none: write "
            "format='diffusers'"
        )
    scale, shift = codec.scale, codec.config.get("shift_factor") or 0.0
    if (scale, shift) != (model.scale, model.shift):
        raise ConfigError(
            f"ComfyUI takes the latents of a {model.name} to be (z - {model.shift:g}) {model.scale:g}, and "
            f"these are (z - {shift:g}) {scale:g}: write format='diffusers'"
        )


def _at_one_scale(pipeline: Pipeline, scale: float | None) -> tuple[Pipeline, float]:
    """The student without an input for the guidance scale, and the scale to sample it with."""
    scales = pipeline.guidance_range
    if scales is None:
        if scale is not None:
            raise ConfigError(
                "this student takes no guidance scale as an input: leave guidance_scale out"
            )
        return pipeline, 1.0
    net = cast(DiffusersNet, pipeline.denoiser.net)
    if not pipeline.takes_scale and scale in (None, scales[0]):  # its one scale is in the weights
        return replace(pipeline, guidance_range=None), 1.0
    if scale is None and not net.takes_scale:
        raise ConfigError(
            f"ComfyUI has no input for this student's guidance scale, {scales[0]:g} to {scales[1]:g}: "
            f"choose one for the file, for example guidance_scale={scales[1]:g} (--guidance-scale)"
        )
    scale = pipeline.middle_scale if scale is None else scale
    assert scale is not None  # it has a range
    if not scales[0] <= scale <= scales[1]:
        raise ConfigError(
            f"this student takes guidance scales from {scales[0]:g} to {scales[1]:g}, got {scale:g}: write "
            "one of them"
        )
    if net.takes_scale:
        return pipeline, scale
    return replace(with_net(pipeline, at_scale(net, scale)), guidance_range=None), 1.0


def _parts(pipeline: Pipeline, model: ComfyModel, folder: Path) -> Iterator[tuple[str, nn.Module]]:
    """The autoencoder and the text encoders of a model that has all in one file."""
    if not model.encoders:
        return
    yield "vae", cast(KLCodec, pipeline.codec).model
    class_name = str(read_index(folder)["_class_name"])
    encoders = prompt_pipeline(folder, class_name, family_of(class_name, None))
    for name in model.encoders:
        if (encoder := getattr(encoders, name, None)) is None:
            raise ConfigError(
                f"a {model.name} has a {name}, and '{folder}' has none: give the teacher's own folder as "
                "source"
            )
        yield name, encoder
