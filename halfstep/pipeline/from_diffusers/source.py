"""The parts of a diffusers pipeline: an object, a folder, a name on the hub, or a single file of weights."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from halfstep.config import JsonObject
from halfstep.errors import CheckpointError, ConfigError
from halfstep.models.autoencoder.kl import codec_of_model
from halfstep.models.codec import Codec
from halfstep.pipeline.from_diffusers.encoders import (
    digest_in_folder,
    digest_in_memory,
    prompt_pipeline,
)
from halfstep.pipeline.from_diffusers.families import Family, family_of
from halfstep.pipeline.from_diffusers.folder import (
    INDEX,
    load_network,
    part_folder,
    pipeline_kind,
    read_index,
    read_json,
    reading,
    source_folder,
    without_bars,
)
from halfstep.quiet import quietly


@dataclass(frozen=True, eq=False)
class Source:
    """The parts of a pipeline.

    class_name   of the pipeline
    place        the folder or the name on the hub; "" for an object
    network      the module
    scheduler    the config of the scheduler, with `_class_name`
    codec        the autoencoder, or None
    labels       the names of the classes by number
    load_texts   makes a pipeline whose `encode_prompt` can be called
    digest_of_texts  digest of its text encoders and tokenizers
    """

    class_name: str
    place: str
    family: Family
    network: Any
    scheduler: JsonObject
    codec: Codec | None
    labels: Mapping[int, str]
    load_texts: Callable[[], Any]
    digest_of_texts: Callable[[], str]


def open_source(
    source: Any, family: Any, config: Path | str | None, dtype: torch.dtype | None = None
) -> Source:
    """The parts of a pipeline of diffusers.

    source  a pipeline; the folder that `save_pretrained` wrote; a name on the hub; or a .safetensors file
    family  how it calls its network, for a class that halfstep does not know
    config  the folder or name with the configs of a .safetensors file
    dtype   that the weights of a folder's network are read in; None for float32
    """
    is_folder = isinstance(source, str | Path) and Path(source).suffix != ".safetensors"
    if dtype is not None and not is_folder:
        raise ConfigError(
            "dtype is how the weights in a pipeline's folder are read, and this is none: leave dtype out, or "
            "give the folder or name of one"
        )
    if not isinstance(source, str | Path):
        return _of_object(source, family, "")
    place = Path(source).expanduser()
    if place.suffix == ".safetensors":
        return _of_object(single_file(place, config), family, _recorded(config or ""))
    if config is not None:
        raise ConfigError("config belongs to a single .safetensors file: leave it out")
    return _of_folder(source_folder(str(source)), family, _recorded(source), dtype)


def _recorded(source: Path | str) -> str:
    """A folder with its whole path, so that no other place, and no name on the hub, is taken for it."""
    folder = Path(source).expanduser()
    return str(folder.resolve()) if folder.is_dir() else str(source)


def _of_object(pipeline: Any, family: Any, place: str) -> Source:
    with quietly():
        from diffusers import DiffusionPipeline
    if not isinstance(pipeline, DiffusionPipeline):
        raise ConfigError(
            "from_diffusers takes a DiffusionPipeline, its folder or its name, got a "
            f"{type(pipeline).__name__}: give the pipeline, not one of its parts"
        )
    name = type(pipeline).__name__
    family = family_of(name, family)
    scheduler, vae = getattr(pipeline, "scheduler", None), getattr(pipeline, "vae", None)
    if scheduler is None:
        raise ConfigError(f"this {name} has no scheduler: give it one first")
    labels = {number: label for label, number in reversed(getattr(pipeline, "labels", {}).items())}
    config = {**dict(scheduler.config), "_class_name": type(scheduler).__name__}
    return Source(
        name, place, family, getattr(pipeline, family.network), config,
        None if vae is None else codec_of_model(vae), labels, lambda: pipeline,
        lambda: digest_in_memory(pipeline),
    )  # fmt: skip


def _of_folder(folder: Path, family: Any, place: str, dtype: torch.dtype | None) -> Source:
    index = read_index(folder)
    name = str(index["_class_name"])
    family = family_of(name, family)
    if family.network not in index:
        raise CheckpointError(
            f"'{folder / INDEX}' names no {family.network}, which a {name} has: save the whole pipeline"
        )
    part = part_folder(folder, family.network)
    network = load_network(part, index[family.network][1], dtype)
    scheduler = read_json(part_folder(folder, "scheduler") / "scheduler_config.json")
    scheduler.setdefault("_class_name", index.get("scheduler", [None, None])[1])
    codec = None
    if index.get("vae", [None])[0] is not None:
        codec = codec_of_model(load_network(part_folder(folder, "vae"), index["vae"][1]))
    labels = {
        int(number): label.split(",")[0].strip()
        for number, label in (index.get("id2label") or {}).items()
    }
    return Source(
        name,
        place,
        family,
        network,
        scheduler,
        codec,
        labels,
        lambda: prompt_pipeline(folder, name, family),
        lambda: digest_in_folder(folder),
    )


def single_file(path: Path, config: Path | str | None) -> Any:
    """The pipeline around a single file of weights, by diffusers' own reader."""
    if not path.is_file():
        raise ConfigError(f"there is no file '{path}': give one that exists")
    if config is None:
        raise ConfigError(
            f"'{path}' holds weights alone: give the folder or the name of a pipeline with its configs as "
            "config"
        )
    folder = source_folder(str(config))
    index = read_index(folder)
    cls = pipeline_kind(str(index["_class_name"]))
    if cls is None or not hasattr(cls, "from_single_file"):
        raise ConfigError(
            f"diffusers reads no single file of a {index['_class_name']}: give a folder of save_pretrained"
        )
    with reading(f"'{path}'"), without_bars():
        pipeline = cls.from_single_file(str(path), config=str(folder), local_files_only=True)
    for name, part in pipeline.components.items():
        if isinstance(part, nn.Module) and any(p.is_meta for p in part.parameters()):
            raise CheckpointError(
                f"'{path}' does not hold all weights of the {name}: give the whole file"
            )
    return pipeline
