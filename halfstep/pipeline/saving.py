"""Save a pipeline to a folder, and load its fields."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import cast, TypedDict

import torch
from torch import Tensor

from halfstep import files, storage
from halfstep.errors import CheckpointError
from halfstep.models.codec import Codec
from halfstep.models.compression.int8 import load_plain_tensors, plain_tensors
from halfstep.models.half_storage import refuse_stored, stored_dtype
from halfstep.models.lora import LoraNet, plain_denoiser
from halfstep.models.rebuild import refuse_changed_net, refuse_wrapped
from halfstep.pipeline.base import PipelineFields
from halfstep.pipeline.description import (
    describe,
    Description,
    fields_from,
    FORMAT,
    LoraAbout,
    NetBuilder,
    PipelineArguments,
)
from halfstep.pipeline.lora_base import digest_of_origin, load_merged
from halfstep.pipeline.lora_file import adapter_metadata, adapter_tensors, BASE, lora_of

EMPTY, ADDED = "empty", "added."
"""Names in pipeline.safetensors: of the empty text's states, and before the names of its other tensors."""
DEFAULTS = "defaults"
"""A file of those, beside a pipeline.safetensors that other libraries read."""


class SavedDescription(Description):
    """A description with the sha256 of the weights beside it."""

    sha256: str


class _CodecFile(TypedDict, total=False):
    file: str


def read_description(folder: Path) -> SavedDescription:
    """The content of FOLDER/pipeline.json; the weights are not read."""
    about = storage.read_about(folder / "pipeline", Description, format=FORMAT)
    return cast(SavedDescription, about)


def save_pipeline(pipeline: PipelineFields, folder: Path, dtype: torch.dtype | None) -> None:
    """Write FOLDER/pipeline.safetensors and FOLDER/pipeline.json, and the codec's files."""
    pipeline = replace(pipeline, denoiser=plain_denoiser(pipeline.denoiser))
    refuse_wrapped(pipeline.denoiser)
    refuse_changed_net(pipeline.denoiser.net)
    refuse_stored(pipeline.denoiser.net, "saved")
    about = _begin(pipeline, folder)
    tensors = plain_tensors(pipeline.denoiser)
    if dtype is not None:
        tensors = storage.rounded(tensors, dtype)
    storage.save(folder / "pipeline", tensors | _defaults_of(pipeline), about)


def save_adapter(pipeline: PipelineFields, folder: Path, lora: LoraAbout) -> None:
    """Write a student as `save_pipeline` does, with its adapter alone in place of its weights."""
    net, about = cast(LoraNet, pipeline.denoiser.net), _begin(pipeline, folder)
    defaults = _defaults_of(pipeline)
    about["lora"] = {**lora, "defaults": bool(defaults)}
    if defaults:
        storage.save(folder / DEFAULTS, defaults, {})
    storage.save(folder / "pipeline", adapter_tensors(net), about, adapter_metadata(net))


def keep_base(teacher: PipelineFields, run: Path, rank: int, digest: str) -> LoraAbout:
    """Where the adapters of a run find their base: the teacher's origin, or RUN/base, which is then written.

    digest  `digest_of_float32` the teacher; of weights in half precision, those of its origin
    """
    about: LoraAbout = {"rank": rank, "base": BASE, "digest": digest, "defaults": False}
    origin, half = teacher.origin, stored_dtype(teacher.denoiser.net) is not None
    if origin is not None and (half or digest_of_origin(teacher, origin) == digest):
        return {**about, "base": origin.source}
    final, part = run / Path(BASE).name, run / ".base.part"
    if not final.exists():
        with files.writing(final):
            files.remove(part)
            save_pipeline(teacher, part, None)
            part.replace(final)
            files.flush_folder(run)
    return about


def _begin(pipeline: PipelineFields, folder: Path) -> Description:
    """Make the folder with the codec's files; the description of all."""
    about, codec = describe(pipeline), pipeline.codec
    files.make_folder(folder)
    if codec is not None:
        codec.save(folder)
    if described := about.get("codec"):
        about["codec"] = {**described, **_codec_file(folder)}
    return about


def _defaults_of(pipeline: PipelineFields) -> dict[str, Tensor]:
    tensors = {f"{ADDED}{name}": value for name, value in pipeline.added.items()}
    return tensors if pipeline.empty is None else {**tensors, EMPTY: pipeline.empty}


def load_fields(folder: Path, net: NetBuilder, base: str | None = None) -> PipelineArguments:
    """The fields of the pipeline that `save_pipeline` or `save_adapter` wrote.

    net   builds a user's own network
    base  where the origin of an adapter's network is now
    """
    stem = folder / "pipeline"
    if not stem.with_suffix(".json").exists():
        run = "; of a run write RunFolder.open(folder).student()" * (folder / "run.json").exists()
        raise CheckpointError(f"'{folder}' holds no pipeline: it has no pipeline.json{run}")
    tensors, content = storage.load(stem, Description, format=FORMAT)
    about = cast(Description, content)
    fields = fields_from(about, net=net, source=f"'{stem}.json'")
    adapter = None if about.get("lora") is None else lora_of(folder, tensors, content)
    if adapter is not None:
        if base is not None and not adapter.in_run:
            adapter = replace(adapter, base=base)
            fields["origin"] = replace(fields["origin"], source=base)
        tensors = storage.load(folder / DEFAULTS)[0] if about["lora"]["defaults"] else {}
    tensors, defaults = split_defaults(tensors)
    fields |= {**defaults, "codec": _load_codec(folder, about)}
    if (origin := fields["origin"]) is not None and fields["empty"] is not None:
        from halfstep.pipeline.from_diffusers.encoders import texts_of_origin  # imports diffusers

        fields["texts"] = texts_of_origin(origin.pipeline, origin.source)
    if adapter is not None:
        load_merged(fields["denoiser"], adapter, origin, folder)
    else:
        load = storage.load_into if about.get("quantised") is None else load_plain_tensors
        load(fields["denoiser"], tensors, f"'{stem}.safetensors'")
    fields["denoiser"].eval()
    return fields


def split_defaults(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], PipelineArguments]:
    """The tensors of the network, and the pipeline's `empty` and `added`, from pipeline.safetensors."""
    added = {
        name.removeprefix(ADDED): value for name, value in tensors.items() if name.startswith(ADDED)
    }
    weights = {k: v for k, v in tensors.items() if k != EMPTY and not k.startswith(ADDED)}
    return weights, {"empty": tensors.get(EMPTY), "added": added}


def _load_codec(folder: Path, about: Description) -> Codec | None:
    codec = about.get("codec")
    if codec is None:
        return None
    from halfstep.models.autoencoder.kl import load_codec  # imports diffusers

    if _codec_file(folder).get("file") != codec.get("file"):
        raise CheckpointError(
            f"the codec in '{folder}' is not the one that this pipeline was saved with: copy its own "
            "codec.json and codec.safetensors back"
        )
    return load_codec(folder)


def _codec_file(folder: Path) -> _CodecFile:
    """The sha256 of FOLDER/codec.json, which holds that of the codec's weights; {} without a file."""
    path = folder / "codec.json"
    return {"file": storage.checksum(path)} if path.exists() else {}
