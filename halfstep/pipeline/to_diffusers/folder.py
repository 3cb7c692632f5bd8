"""The folder of a student for `DiffusionPipeline.from_pretrained`, as `save_pretrained` lays it out."""

import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from halfstep import files, storage
from halfstep.config import JsonObject
from halfstep.errors import CheckpointError, ConfigError
from halfstep.models import DiffusersNet
from halfstep.pipeline.base import PipelineFields
from halfstep.pipeline.from_diffusers.folder import INDEX, read_index, source_folder
from halfstep.pipeline.to_diffusers.network import heads, network_config, network_weights
from halfstep.pipeline.to_diffusers.target import NEEDS_NO_FOLDER, Target
from halfstep.schema import from_json

HEADS = "heads.safetensors"
"""The last layers of a student of parallel decoding, by the number of the step: 0.weight, 0.bias, ..."""
WEIGHTS = "diffusion_pytorch_model.safetensors"
NEVER_COPIED = (".bin", ".ckpt", ".h5", ".msgpack", ".onnx", ".pb", ".pkl", ".pt", ".pth", ".py")
"""Files that can run code, and weights for other frameworks."""
HALF = re.compile(r"\.fp16(?=[.-])")
"""In the names of files of float16: of one, of shards, and of their index."""
SHARDS = ".safetensors.index.json"
"""The end of the name of an index: which shard has which tensor."""
NETWORKS = ("unet", "transformer")
OWN_PARTS = (*NETWORKS, "scheduler", "vae")
"""Parts that are the student's, written from memory."""


def find_source(pipeline: PipelineFields, target: Target, source: str | None) -> Path | None:
    """The folder with the text encoders and tokenizers of the teacher; None where none are needed.

    source  a folder or a name on the hub, in place of the one that the pipeline came from
    """
    if target.pipeline in NEEDS_NO_FOLDER:
        if source is not None:
            raise ConfigError(f"a {target.pipeline} has no parts of a teacher: leave source out")
        return None
    place = source or (pipeline.origin.source if pipeline.origin else "")
    if not place:
        raise ConfigError(
            f"the parts of a {target.pipeline} beside its network are its teacher's, which was an object of "
            "Python: give the folder or hub name that holds them as source (--source)"
        )
    try:
        folder = source_folder(place)
        index = read_index(folder)
    except (ConfigError, CheckpointError) as error:
        raise ConfigError(
            f"the text encoders and tokenizers of this student's teacher are not at '{place}' ({error}): "
            "give the folder or hub name that holds them as source (--source)"
        ) from None
    if index["_class_name"] != target.pipeline:
        raise ConfigError(
            f"'{place}' holds a {index['_class_name']}, and this student's teacher was a {target.pipeline}: "
            "give the folder of that as source (--source)"
        )
    return folder


def write_folder(
    pipeline: PipelineFields,
    target: Target,
    out: Path,
    *,
    source: Path | None,
) -> None:
    """Write the network, the scheduler, the autoencoder and model_index.json; copy the rest from `source`.

    Weights of the source are hard-linked if the file system can.
    """
    net = cast(DiffusersNet, pipeline.denoiser.net)
    index = {} if source is None else dict(read_index(source))
    own: dict[str, Sequence[str]] = {
        _network_part(net, index): ["diffusers", type(net.model).__name__],
        "scheduler": ["diffusers", target.scheduler.name],
    }
    part = out / next(iter(own))
    write_network(part, network_config(net, pipeline.shape), _weights(net, target))
    write_scheduler(target, out)
    write_heads(net, out)
    if pipeline.codec is not None:
        codec: Any = pipeline.codec
        own["vae"] = ["diffusers", codec.class_name]
        write_network(out / "vae", _codec_config(codec), codec.model.state_dict())
    if target.pipeline == "DiTPipeline":
        index["id2label"] = {str(k): name for k, name in enumerate(pipeline.class_names)}
    for name, value in index.items():
        if isinstance(value, list) and name not in OWN_PARTS and value[:1] != [None]:
            _copy_part(cast(Path, source) / name, out / name)
    first = {"_class_name": target.pipeline, **_versioned()}
    others = {name: value for name, value in index.items() if not name.startswith("_")}
    _write_json(out / INDEX, {**first, **others, **own})


def write_heads(net: DiffusersNet, out: Path, dtype: torch.dtype | None = None) -> None:
    """Write OUT/heads.safetensors, the last layer of each step of a student of parallel decoding."""
    tensors = {
        f"{k}.{name}": v for name, values in heads(net).items() for k, v in enumerate(values)
    }
    if tensors:
        wide = {name: value.contiguous() for name, value in tensors.items()}
        storage.save_tensors(out / HEADS, wide if dtype is None else storage.rounded(wide, dtype))


def write_scheduler(target: Target, out: Path) -> None:
    """Write OUT/scheduler, which makes the student's steps."""
    _write_json(
        files.make_folder(out / "scheduler") / "scheduler_config.json",
        {"_class_name": target.scheduler.name, **_versioned(), **target.scheduler.config},
    )


def round_weights(pipeline: PipelineFields, target: Target, out: Path, dtype: torch.dtype) -> None:
    """Write the network's weights once more, in this type."""
    net = cast(DiffusersNet, pipeline.denoiser.net)
    [file] = [file for name in NETWORKS if (file := out / name / WEIGHTS).exists()]
    storage.save_tensors(file, storage.rounded(_weights(net, target), dtype))
    write_heads(net, out, dtype)


def _weights(net: DiffusersNet, target: Target) -> dict[str, Tensor]:
    scale = target.scale if target.folded else None
    return network_weights(net, scale=scale, shift=target.scheduler.shift)


def _network_part(net: DiffusersNet, index: Mapping[str, Any]) -> str:
    """The name of the network's folder: that in the source, or diffusers' own."""
    kind = type(net.model).__name__
    for part, value in index.items():
        if isinstance(value, list) and value[-1:] == [kind]:
            return part
    return "unet" if kind.startswith("UNet") else "transformer"


def _versioned() -> JsonObject:
    import diffusers

    return {"_diffusers_version": diffusers.__version__}


def write_network(folder: Path, config: JsonObject, weights: Mapping[str, Tensor]) -> None:
    """Write config.json and the weights of one network."""
    files.make_folder(folder)
    _write_json(folder / "config.json", config)
    storage.save_tensors(folder / WEIGHTS, weights)


def _codec_config(codec: Any) -> JsonObject:
    """The autoencoder's config with the factor that the student's latents were scaled by."""
    config: JsonObject = from_json(
        codec.model.to_json_string(), JsonObject, "the autoencoder's config"
    )
    config = {k: v for k, v in config.items() if k != "_name_or_path"}
    if "scaling_factor" in config or codec.scale != 1:
        config["scaling_factor"] = codec.scale
    return config


def _write_json(path: Path, content: JsonObject) -> None:
    files.write_text(path, json.dumps(content, indent=2, default=list) + "\n")


def _copy_part(part: Path, out: Path) -> None:
    """Copy a folder of the source without pickles and code; of two precisions the plain one.

    Files of float16 alone, shards too, get the names that are read without a variant.
    """
    paths = [path for path in sorted(part.glob("*")) if path.is_file()]
    kept = [path for path in paths if path.suffix not in NEVER_COPIED]
    plain = [path for path in kept if not HALF.search(path.name)]
    if any(path.suffix == ".safetensors" for path in plain):
        kept = plain
    elif len(plain) < len(kept):  # the index of shards that are not here would be read
        kept = [path for path in kept if not path.name.endswith(SHARDS)]
    if not kept:
        raise CheckpointError(
            f"'{part}' holds nothing to copy (no safetensors, no tokenizer's files): save the teacher again "
            "with save_pretrained"
        )
    files.make_folder(out)
    for path in kept:
        copy = out / HALF.sub("", path.name)
        if path.name != copy.name and copy.name.endswith(SHARDS):  # it names the shards
            files.write_text(copy, HALF.sub("", files.read_text(path)))
            continue
        with files.writing(copy):
            _copy(path.resolve(), copy)


def _copy(path: Path, copy: Path) -> None:
    """Copy a file: weights as a hard link if the file system can, others so that each can be edited."""
    if path.suffix != ".safetensors":
        shutil.copyfile(path, copy)
    else:
        try:
            os.link(path, copy)
        except OSError:  # another file system, or one without links
            shutil.copyfile(path, copy)
