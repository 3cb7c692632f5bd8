"""The base of a LoRA run: the teacher's network, where it came from or in RUN/base."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from halfstep import storage
from halfstep.diffusion.denoiser import Denoiser
from halfstep.errors import CheckpointError, ConfigError, HalfstepError
from halfstep.identity import digest_of, sha256_of
from halfstep.models import recipe
from halfstep.models.half_storage import stored_dtype
from halfstep.models.lora import merge, network_of
from halfstep.pipeline.base import Origin, PipelineFields
from halfstep.pipeline.description import as_checkpoint_error
from halfstep.pipeline.lora_file import component_of, LoraFile


def load_merged(denoiser: Denoiser, lora: LoraFile, origin: Origin | None, folder: Path) -> None:
    """Give a denoiser the weights of an adapter's base, and add the adapter to them."""
    source = f"'{folder / 'pipeline'}.safetensors'"
    double = list[Tensor]()
    if lora.in_run:
        stem = Path(lora.base) / "pipeline"
        if not stem.with_suffix(".json").exists():
            raise CheckpointError(
                f"{source} is an adapter of the network in '{lora.base}', which is not there: leave the "
                "stage in the folder of its run, with the folder base"
            )
        weights = {k: v for k, v in storage.load(stem)[0].items() if k.startswith("net.")}
        double = _doubled(denoiser, weights)
        storage.load_into(denoiser, weights, f"'{stem}.safetensors'")
    else:
        _load_origin(denoiser, lora, origin, source)
    if digest_of(denoiser) != lora.digest:
        raise CheckpointError(
            f"{source} is an adapter of another network than the one in '{lora.base}': put that one back"
        )
    with as_checkpoint_error(source):
        merge(denoiser.net, lora.tensors, "this adapter")
    for value in double:
        value.data = value.data.float()


def _doubled(denoiser: Denoiser, weights: Mapping[str, Tensor]) -> list[Tensor]:
    """Make the float32 tensors of a network float64 that are so in its file; returns them.

    The digest of a network in float64 is that of its own weights, and the adapter is added to these.
    """
    tensors = [*denoiser.named_parameters(), *denoiser.named_buffers()]
    double = [
        value
        for name, value in tensors
        if value.dtype == torch.float32 and name in weights and weights[name].dtype == torch.float64
    ]
    for value in double:
        value.data = value.data.double()
    return double


def _load_origin(denoiser: Denoiser, lora: LoraFile, origin: Origin | None, source: str) -> None:
    if origin is None or origin.source != lora.base:
        raise CheckpointError(
            f"{source} is an adapter of '{lora.base}', and its pipeline does not come from there: copy "
            "pipeline.json back"
        )
    from halfstep.pipeline.from_diffusers.folder import (
        load_network,
        part_folder,
        read_index,
        source_folder,
    )

    folder = source_folder(origin.source)
    index = read_index(folder)
    if lora.component not in index:
        raise CheckpointError(
            f"'{folder}' names no {lora.component}, which {source} is an adapter of"
        )
    network = load_network(part_folder(folder, lora.component), index[lora.component][1])
    tensors = {f"net.model.{name}": value for name, value in network.state_dict().items()}
    storage.load_into(denoiser, tensors, f"the {lora.component} in '{folder}'")


def digest_of_float32(teacher: PipelineFields) -> str:
    """`digest_of` the denoiser with its weights in float32, where they were read in half precision.

    `ConfigError` where those are not on the disk any more.
    """
    if (dtype := stored_dtype(teacher.denoiser.net)) is None:
        return digest_of(teacher.denoiser)
    if (origin := teacher.origin) is None or not (digest := digest_of_origin(teacher, origin)):
        place = "nowhere" if origin is None else f"not those in '{origin.source}'"
        raise ConfigError(
            f"the base of a LoRA is in float32, and the weights of this teacher, read with dtype={dtype}, "
            f"are {place}: load it again, without dtype if it was changed on purpose"
        )
    return digest


def digest_of_origin(teacher: PipelineFields, origin: Origin) -> str:
    """`digest_of` the denoiser of the origin's weights; empty where they cannot be read as they are.

    And where the teacher's weights were read in half precision and are not those.
    """
    if (folder := _on_disk(origin.source)) is None:
        return ""
    from halfstep.pipeline.from_diffusers.folder import part_folder

    part = part_folder(folder, component_of(recipe(teacher.denoiser.net)[0]))
    try:
        return sha256_of(_digested(part, teacher.denoiser))
    except (HalfstepError, SafetensorError, OSError):
        return ""


def _digested(part: Path, denoiser: Denoiser) -> Iterator[str | Tensor]:
    """What `digest_of` a denoiser reads, from the files of a network of diffusers, a tensor at a time."""
    from halfstep.pipeline.from_diffusers.weights import float32_tensors

    dtype = stored_dtype(denoiser.net)
    rounded = {} if dtype is None else denoiser.net.state_dict()
    yield type(denoiser).__name__
    for name, value in float32_tensors(part, network_of(denoiser.net)):
        if dtype is not None:
            mine = rounded.pop(f"model.{name}")
            if not torch.equal(mine.cpu(), value.to(mine.dtype)):
                raise CheckpointError(f"'{part}' has another {name}")
        yield f"net.model.{name}"
        yield value
    if rounded:
        raise CheckpointError(f"'{part}' has no {next(iter(rounded))}")


def _on_disk(source: str) -> Path | None:
    """The folder of an origin, or of its name in the cache of the hub; nothing is fetched."""
    if not source or Path(source).is_dir():
        return Path(source) if source else None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(source, "model_index.json") if source.count("/") == 1 else None
    return Path(found).parent if isinstance(found, str) else None
