"""What is known of diffusers' pipelines beside their configs, as data: one entry a class."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from halfstep.config import JsonObject
from halfstep.config.toml import read_toml
from halfstep.config.validate import Count, CountOrNone, Validated
from halfstep.errors import ConfigError, unknown


@dataclass(frozen=True, kw_only=True)
class Family(Validated):
    """How a pipeline of diffusers calls its network and its text encoders.

    network     the component that is the network
    inputs      how that network is called, for a class that `halfstep.models.NetworkInputs` does not know
    prompts     the conditions that `encode_prompt` returns, in order; those of the negative prompt begin
                with a hyphen, and "" stands for one that is not needed
    options     arguments of `encode_prompt`
    call        arguments of the pipeline's call with which it samples as halfstep does
    tokens      number of tokens to which states and masks are padded, where texts have their own; 0: never
    time_scale  the number by which sigma is multiplied for the network, in flow matching
    uniform_sigmas  the pipeline passes sigmas from 1 to 1 / steps to its scheduler
    scheduler   options of the scheduler that the pipeline itself sets, whatever the config says
    guidance_norm   side of the patches on which the guided output gets the conditional one's norm; 0: none
    size        side of the images in pixels where the network's config has no sample_size
    """

    network: str = "transformer"
    inputs: dict[str, Any] | None = None
    prompts: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    call: dict[str, Any] = field(default_factory=dict)
    tokens: CountOrNone = 0
    time_scale: float = 1000.0
    uniform_sigmas: bool = False
    scheduler: dict[str, Any] = field(default_factory=dict)
    guidance_norm: CountOrNone = 0
    size: Count = 1024

    @property
    def conditions(self) -> tuple[str, ...]:
        """The names of the conditions, without those of the negative prompt."""
        return tuple(name for name in self.prompts if name and not name.startswith("-"))


_STATES = "encoder_hidden_states"
_BOTH = (_STATES, f"-{_STATES}")
_PLAIN = {"use_resolution_binning": False, "clean_caption": False}
_MASKED = (_STATES, "encoder_attention_mask", f"-{_STATES}", "-encoder_attention_mask")

FAMILIES: Mapping[str, Family] = {
    "DDPMPipeline": Family(network="unet"),
    "DDIMPipeline": Family(network="unet"),
    "DiTPipeline": Family(),
    "StableDiffusionPipeline": Family(
        network="unet", prompts=_BOTH, scheduler={"steps_offset": 1, "clip_sample": False}
    ),
    "StableDiffusionXLPipeline": Family(
        network="unet", prompts=(*_BOTH, "text_embeds", "-text_embeds")
    ),
    "PixArtAlphaPipeline": Family(prompts=_MASKED, call=_PLAIN),
    "PixArtSigmaPipeline": Family(prompts=_MASKED, call=_PLAIN),
    "StableDiffusion3Pipeline": Family(
        prompts=(*_BOTH, "pooled_projections", "-pooled_projections"),
        options={"prompt_2": None, "prompt_3": None},
    ),
    "FluxPipeline": Family(
        prompts=(_STATES, "pooled_projections", ""), time_scale=1.0, uniform_sigmas=True
    ),
    "SanaPipeline": Family(prompts=_MASKED, call={**_PLAIN, "complex_human_instruction": None}),
    "QwenImagePipeline": Family(
        prompts=(_STATES, "encoder_hidden_states_mask"),
        tokens=1024,
        time_scale=1.0,
        uniform_sigmas=True,
        guidance_norm=2,
    ),
}
"""Families by the class of their pipeline."""


def family_of(class_name: str, family: Family | Path | str | None) -> Family:
    """The family of a pipeline's class, or the one that is given, or that a TOML file describes."""
    if isinstance(family, Family):
        return family
    if family is not None:
        return _read_family(Path(family))
    if class_name not in FAMILIES:
        raise ConfigError(
            f"halfstep does not know how diffusers' {class_name} calls its network: it knows "
            f"{', '.join(FAMILIES)}; describe another by a file, family='NAME.toml' "
            "(docs/how-to/diffusers.md)"
        )
    return FAMILIES[class_name]


def _read_family(path: Path) -> Family:
    about: JsonObject = read_toml(path)
    names = [f.name for f in fields(Family)]
    for name in about:
        if name not in names:
            raise unknown(f"key in '{path}' called", name, names)
    values: dict[str, Any] = {
        name: tuple(v) if isinstance(v, list) else v for name, v in about.items()
    }
    return Family(**values)
