"""The base of a LoRA run: the teacher's network, where it came from or in RUN/base."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypedDict

from safetensors import safe_open, SafetensorError
from torch import Tensor

from halfstep import storage
from halfstep.diffusion.denoiser import Denoiser
from halfstep.errors import CheckpointError, HalfstepError
from halfstep.identity import digest_of, sha256_of
from halfstep.models import recipe
from halfstep.models.lora import merge
from halfstep.pipeline.base import Origin, PipelineFields
from halfstep.pipeline.description import as_checkpoint_error
from halfstep.pipeline.lora_file import component_of, LoraFile

WEIGHTS = "diffusion_pytorch_model"
"""The name of the files of weights in a folder of diffusers."""


class _Index(TypedDict):
    weight_map: dict[str, str]


def load_merged(denoiser: Denoiser, lora: LoraFile, origin: Origin | None, folder: Path) -> None:
    """Give a denoiser the weights of an adapter's base, and add the adapter to them."""
    source = f"'{folder / 'pipeline'}.safetensors'"
    if lora.in_run:
        stem = Path(lora.base) / "pipeline"
        if not stem.with_suffix(".json").exists():
            raise CheckpointError(
                f"{source} is an adapter of the network in '{lora.base}', which is not there: leave the "
                "stage in the folder of its run, with the folder base"
            )
        weights = {k: v for k, v in storage.load(stem)[0].items() if k.startswith("net.")}
        storage.load_into(denoiser, weights, f"'{stem}.safetensors'")
    else:
        _load_origin(denoiser, lora, origin, source)
    if digest_of(denoiser) != lora.digest:
        raise CheckpointError(
            f"{source} is an adapter of another network than the one in '{lora.base}': put that one back"
        )
    with as_checkpoint_error(source):
        merge(denoiser.net, lora.tensors, "this adapter")


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


def digest_of_origin(teacher: PipelineFields, origin: Origin) -> str:
    """`digest_of` the denoiser of the origin's weights; empty where they cannot be read as they are."""
    if (folder := _on_disk(origin.source)) is None:
        return ""
    from halfstep.pipeline.from_diffusers.folder import part_folder

    part = part_folder(folder, component_of(recipe(teacher.denoiser.net)[0]))
    try:
        return sha256_of(_digested(part, type(teacher.denoiser).__name__))
    except (HalfstepError, SafetensorError, OSError):
        return ""


def _digested(part: Path, kind: str) -> Iterator[str | Tensor]:
    """What `digest_of` a denoiser reads, from the files of a network of diffusers, a tensor at a time."""
    from halfstep.pipeline.from_diffusers.folder import variant_of

    variant = "" if (name := variant_of(part)) is None else f".{name}"
    if (index := part / f"{WEIGHTS}.safetensors.index{variant}.json").exists():
        names = sorted(set(storage.read_unsealed_json(index, _Index)["weight_map"].values()))
    else:
        names = [f"{WEIGHTS}{variant}.safetensors"]
    yield kind
    with ExitStack() as opened:
        files_of = dict[str, Any]()
        for file in names:
            reader = opened.enter_context(safe_open(part / Path(file).name, framework="pt"))
            files_of |= dict.fromkeys(reader.keys(), reader)
        for name in sorted(files_of):
            value = files_of[name].get_tensor(name)
            yield f"net.model.{name}"
            yield value.float() if value.is_floating_point() else value


def _on_disk(source: str) -> Path | None:
    """The folder of an origin, or of its name in the cache of the hub; nothing is fetched."""
    if not source or Path(source).is_dir():
        return Path(source) if source else None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(source, "model_index.json") if source.count("/") == 1 else None
    return Path(found).parent if isinstance(found, str) else None
