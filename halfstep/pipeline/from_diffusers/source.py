"""The parts of a diffusers pipeline: an object, a folder, a name on the hub, or a single file of weights."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from torch import nn

from halfstep import storage
from halfstep.config import JsonObject
from halfstep.errors import CheckpointError, ConfigError
from halfstep.identity import digest_of, sha256_of
from halfstep.models.autoencoder.kl import codec_of_model
from halfstep.models.codec import Codec
from halfstep.models.diffusers_net import diffusers_class
from halfstep.pipeline.from_diffusers.families import FAMILIES, Family, family_of
from halfstep.pipeline.from_diffusers.texts import PromptEncoder
from halfstep.quiet import quietly

INDEX = "model_index.json"
LIBRARIES = ("diffusers", "transformers", "stable_diffusion")
"""Libraries that a folder may name classes of; the last is diffusers' own, of the safety checker."""

UNREAD = ("vae", "safety_checker", "image_encoder")
"""Parts that no prompt is encoded with."""


TEXT_PARTS = ("text_encoder", "tokenizer")
"""Beginnings of the names of the parts that encode texts."""


class _Named(TypedDict, total=False):
    """The key of diffusers' JSON files that halfstep reads by itself; the classes check the others."""

    _class_name: Any


def _read(path: Path) -> JsonObject:
    return dict(storage.read_unsealed_json(path, _Named))


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


def open_source(source: Any, family: Any, config: Path | str | None) -> Source:
    """The parts of a pipeline of diffusers.

    source  a pipeline; the folder that `save_pretrained` wrote; a name on the hub; or a .safetensors file
    family  how it calls its network, for a class that halfstep does not know
    config  the folder or name with the configs of a .safetensors file
    """
    if not isinstance(source, str | Path):
        return _of_object(source, family, "")
    place = Path(source).expanduser()
    if place.suffix == ".safetensors":
        return _of_object(single_file(place, config), family, str(config))
    if config is not None:
        raise ConfigError("config belongs to a single .safetensors file: leave it out")
    return _of_folder(source_folder(str(source)), family, str(source))


def source_folder(place: str) -> Path:
    """The folder of a pipeline: itself, or that of its name on the hub, fetched or from the cache."""
    folder = Path(place).expanduser()
    return folder if folder.is_dir() else _downloaded(place)


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
        lambda: _digest_in_memory(pipeline),
    )  # fmt: skip


def _of_folder(folder: Path, family: Any, place: str) -> Source:
    index = read_index(folder)
    name = str(index["_class_name"])
    family = family_of(name, family)
    if family.network not in index:
        raise CheckpointError(
            f"'{folder / INDEX}' names no {family.network}, which a {name} has: save the whole pipeline"
        )
    network = load_network(folder / family.network, index[family.network][1])
    scheduler = _read(folder / "scheduler" / "scheduler_config.json")
    scheduler.setdefault("_class_name", index.get("scheduler", [None, None])[1])
    codec = None
    if index.get("vae", [None])[0] is not None:
        codec = codec_of_model(load_network(folder / "vae", index["vae"][1]))
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
        lambda: _digest_in_folder(folder),
    )


def texts_of_folder(folder: Path, family: Any) -> PromptEncoder:
    """The text encoders of a pipeline's folder; its network is not read."""
    index = read_index(folder)
    name = str(index["_class_name"])
    family = family_of(name, family)
    if not family.prompts:
        raise ConfigError(f"'{folder}' is a {name}, which reads no texts: name another --text")
    return PromptEncoder(
        family,
        lambda: prompt_pipeline(folder, name, family),
        lambda: _digest_in_folder(folder),
    )


def texts_of_origin(class_name: str, place: str) -> PromptEncoder | None:
    """The text encoders of the pipeline that a model came from, read when the first text is encoded.

    None where it was an object, or one that only its own family file describes.
    """
    if not place or class_name not in FAMILIES:
        return None
    family = FAMILIES[class_name]

    def folder() -> Path:
        return Path(place) if Path(place).is_dir() else _downloaded(place)

    return PromptEncoder(
        family,
        lambda: prompt_pipeline(folder(), class_name, family),
        lambda: _digest_in_folder(folder()),
    )


def _digest_in_folder(folder: Path) -> str:
    """Digest of the files of text encoders and tokenizers."""
    files = sorted(
        file
        for part in folder.iterdir()
        if part.name.startswith(TEXT_PARTS)
        for file in part.rglob("*")
        if file.suffix in (".safetensors", ".json", ".txt", ".model")
    )
    return sha256_of(f"{p.relative_to(folder).as_posix()} {storage.checksum(p)}" for p in files)


def _digest_in_memory(pipeline: Any) -> str:
    """Digest of the weights of text encoders, and of the vocabularies of tokenizers."""
    parts = {k: v for k, v in sorted(pipeline.components.items()) if k.startswith(TEXT_PARTS)}
    return sha256_of(
        digest_of(part) if isinstance(part, nn.Module) else repr(sorted(part.get_vocab().items()))
        for part in parts.values()
        if part is not None
    )


def read_index(folder: Path) -> JsonObject:
    """FOLDER/model_index.json; a class of other libraries than diffusers and transformers is refused."""
    path = folder / INDEX
    if not path.is_file():
        raise CheckpointError(f"'{folder}' is no folder of a diffusers pipeline: it has no {INDEX}")
    index = _read(path)
    if not isinstance(index.get("_class_name"), str):
        raise CheckpointError(
            f"'{path}' names no pipeline of diffusers, or code of its own, which is never run: save it with "
            "a pipeline that diffusers has"
        )
    for part, value in index.items():
        if not isinstance(value, list) or part.startswith("_") or part == "id2label":
            continue
        if len(value) != 2 or (value[0] is not None and value[0] not in LIBRARIES):
            raise CheckpointError(
                f"'{path}' says {part} = {value}, and a folder names classes of diffusers and transformers "
                "alone: no code of others is run"
            )
    return index


def load_network(folder: Path, class_name: str) -> Any:
    """A network of diffusers from its folder, in float32 and strictly; only safetensors are read."""
    cls = diffusers_class(class_name)
    if cls is None:
        raise CheckpointError(
            f"'{folder}' holds a {class_name}, which is no network of this diffusers: update it"
        )
    files = [path.name for path in folder.glob("*.safetensors")]
    if not files:
        raise CheckpointError(
            f"'{folder}' has no safetensors, and pickles, which can run code, are never opened: save the "
            "model again with save_pretrained"
        )
    variant = "fp16" if all(".fp16" in name for name in files) else None
    with reading(f"the {class_name} in '{folder}'"):
        model, info = cls.from_pretrained(
            folder,
            use_safetensors=True,
            local_files_only=True,
            variant=variant,
            output_loading_info=True,
        )
    if wrong := [*info["missing_keys"], *info["unexpected_keys"]]:
        raise CheckpointError(
            f"'{folder}' does not hold the weights of its config: it lacks or does not know '{wrong[0]}'"
            f"{f' and {len(wrong) - 1} more' if len(wrong) > 1 else ''}"
        )
    return model.float().eval()


def prompt_pipeline(folder: Path, class_name: str, family: Family) -> Any:
    """The pipeline of a folder without its network and autoencoder, for `encode_prompt`."""
    with quietly():
        import diffusers
    index = read_index(folder)
    absent = {part: None for part in (family.network, *UNREAD) if part in index}
    with reading(f"the text encoders in '{folder}'"), without_bars():
        pipeline = getattr(diffusers, class_name).from_pretrained(
            folder, use_safetensors=True, local_files_only=True, **absent
        )
    return pipeline


def _downloaded(name: str) -> Path:
    """The folder of a pipeline of the hub, fetched or from the cache; no code of others, no pickles."""
    if name.count("/") != 1 or not all(part for part in name.split("/")):
        raise ConfigError(
            f"there is no folder '{name}', and a name on the hub is OWNER/NAME: give one of the two"
        )
    with quietly():
        from diffusers import DiffusionPipeline
    try:
        with reading(name):
            return Path(DiffusionPipeline.download(name, use_safetensors=True))
    except CheckpointError as error:
        raise CheckpointError(
            f"there is no folder '{name}', and no pipeline of that name comes from the hub "
            f"({type(error.__cause__).__name__}): fetch it first, hf download {name} --local-dir FOLDER, and "
            "give the folder"
        ) from error.__cause__


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
    with quietly():
        import diffusers
    cls = getattr(diffusers, str(index["_class_name"]), None)
    if cls is None or not hasattr(cls, "from_single_file"):
        raise ConfigError(
            f"diffusers reads no single file of a {index['_class_name']}: give a folder of save_pretrained"
        )
    with reading(f"'{path}'"), without_bars():
        return cls.from_single_file(str(path), config=str(folder), local_files_only=True)


@contextmanager
def without_bars() -> Iterator[None]:
    """Hide the progress bars of diffusers and transformers."""
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    shown = [each for each in (of_diffusers, of_transformers) if each.is_progress_bar_enabled()]
    for each in shown:
        each.disable_progress_bar()
    try:
        yield
    finally:
        for each in shown:
            each.enable_progress_bar()


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Turn any error of diffusers, transformers and the hub into one sentence."""
    try:
        with quietly():
            yield
    except (MemoryError, KeyboardInterrupt):
        raise
    except Exception as error:  # they raise many kinds
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = lines[0] if lines else type(error).__name__
        raise CheckpointError(f"{what} cannot be read: {reason}") from error
