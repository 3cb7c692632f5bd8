"""A stage of a LoRA run: FOLDER/pipeline.safetensors holds the adapter alone, as diffusers writes LoRAs."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from halfstep import storage
from halfstep.config import JsonObject
from halfstep.diffusion.denoiser import Denoiser
from halfstep.errors import CheckpointError
from halfstep.identity import sha256_of
from halfstep.models import recipe
from halfstep.models.diffusers_config import class_name_of
from halfstep.models.lora import A, B, LoraNet
from halfstep.pipeline.description import Description, FORMAT
from halfstep.quiet import quietly

BASE = "../../base"
"""The base's folder as seen from a stage, RUN/stages/NAME, where it is kept in the run."""
METADATA = "lora_adapter_metadata"
"""The key of peft's config in the metadata of a file of diffusers."""


@dataclass(frozen=True)
class LoraFile:
    """An adapter in a stage's folder.

    tensors    by the names of the network's layers, LAYER.lora_A.weight [rank, in] and LAYER.lora_B.weight
               [out, rank]; of diffusers' network where it is one of diffusers
    rank       of the run; a layer with a shorter side has that
    component  what the file's names begin with: unet or transformer, net for a network not of diffusers
    base       the network that it is for: the folder of a pipeline of halfstep, or of one of diffusers, or
               the name of one on the hub
    digest     `digest_of` the base's denoiser
    in_run     whether the base is a folder of the run
    """

    tensors: dict[str, Tensor]
    rank: int
    component: str
    base: str
    digest: str
    in_run: bool


def is_lora(folder: Path | str) -> bool:
    """Whether a pipeline's folder holds an adapter alone."""
    return (
        storage.read_about(Path(folder) / "pipeline", Description, format=FORMAT).get("lora")
        is not None
    )


def read_lora(folder: Path | str) -> LoraFile:
    """Read the adapter in the folder of a stage; `CheckpointError` where it is damaged or none is there."""
    stem = Path(folder) / "pipeline"
    tensors, about = storage.load(stem, Description, format=FORMAT)
    return lora_of(Path(folder), tensors, about)


def lora_of(folder: Path, tensors: Mapping[str, Tensor], about: JsonObject) -> LoraFile:
    """The adapter of these tensors and this description, which were read from FOLDER/pipeline."""
    source = f"'{folder / 'pipeline'}.safetensors'"
    if (lora := about.get("lora")) is None:
        raise CheckpointError(
            f"{source} holds a whole network and no LoRA: give a stage of a LoRA run"
        )
    component = component_of(about["net"]["build"])
    if wrong := [k for k in tensors if not (k.startswith(f"{component}.") and k.endswith((A, B)))]:
        raise CheckpointError(
            f"{source} is damaged: '{wrong[0]}' is no tensor of a LoRA; copy it back from where it is whole"
        )
    named = {name.removeprefix(f"{component}."): value for name, value in tensors.items()}
    in_run = lora["base"] == BASE
    place = str(folder.absolute().parents[1] / "base") if in_run else lora["base"]
    return LoraFile(named, lora["rank"], component, place, lora["digest"], in_run)


def digest_of_adapter(lora: LoraFile) -> str:
    """`digest_of` the denoiser of a student in its run, with its adapter unmerged."""
    parts: list[str | Tensor] = [Denoiser.__name__]
    for name, value in sorted(lora.tensors.items()):
        parts += [f"net.adapter.{name}", value]
    return sha256_of([*parts, lora.digest])


def component_of(build: str) -> str:
    """What diffusers calls a network in its pipelines: unet or transformer; net for one not of diffusers.

    build  the network's name in its recipe
    """
    name = class_name_of(build)
    if name is None:
        return "net"
    return "unet" if name.startswith("UNet") else "transformer"


def adapter_tensors(net: LoraNet) -> dict[str, Tensor]:
    """The tensors of pipeline.safetensors, as diffusers names them."""
    component = component_of(recipe(net)[0])
    return {f"{component}.{name}": value for name, value in net.tensors().items()}


def adapter_metadata(net: LoraNet) -> dict[str, str]:
    """The metadata of pipeline.safetensors: peft's config, as `save_lora_weights` of diffusers writes it.

    Without the key `format`: safetensors writes two keys in any order, and a file would have other bits.
    """
    with quietly():
        from peft import LoraConfig
    component = component_of(recipe(net)[0])
    config: JsonObject = LoraConfig(**net.base.config).to_dict()  # type: ignore[no-untyped-call]
    named = {f"{component}.{name}": _plain(value) for name, value in config.items()}
    return {METADATA: json.dumps(named, indent=2, sort_keys=True)}


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, set) else value
