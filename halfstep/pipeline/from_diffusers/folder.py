"""The folder of a diffusers pipeline, read safely: no code of others, no pickles, all weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypedDict

import torch

from halfstep import storage
from halfstep.config import JsonObject
from halfstep.errors import CheckpointError, ConfigError
from halfstep.models.diffusers_net import diffusers_class
from halfstep.pipeline.from_diffusers.weights import half_network, variant_of
from halfstep.quiet import quietly

INDEX = "model_index.json"
LIBRARIES = ("diffusers", "transformers", "stable_diffusion")
"""Libraries that a folder may name classes of; the last is diffusers' own, of the safety checker."""


class _Named(TypedDict, total=False):
    """The key of diffusers' JSON files that halfstep reads by itself; the classes check the others."""

    _class_name: Any


def read_json(path: Path) -> JsonObject:
    """A JSON file of diffusers; unknown keys are left to its classes."""
    return dict(storage.read_unsealed_json(path, _Named))


def read_index(folder: Path) -> JsonObject:
    """FOLDER/model_index.json; a class of other libraries than diffusers and transformers is refused."""
    path = folder / INDEX
    if not path.is_file():
        raise CheckpointError(f"'{folder}' is no folder of a diffusers pipeline: it has no {INDEX}")
    index = read_json(path)
    if not isinstance(index.get("_class_name"), str):
        raise CheckpointError(
            f"'{path}' names no pipeline of diffusers, or code of its own, which is never run: save it with "
            "a pipeline that diffusers has"
        )
    for part, value in index.items():
        if part == "id2label" and not isinstance(value, dict | None):
            raise CheckpointError(f"'{path}' says id2label = {value}: write names by number")
        if not isinstance(value, list) or part.startswith("_"):
            continue
        if len(value) != 2 or (value[0] is not None and value[0] not in LIBRARIES):
            raise CheckpointError(
                f"'{path}' says {part} = {value}, and a folder names classes of diffusers and transformers "
                "alone: no code of others is run"
            )
    return index


def pipeline_kind(name: str) -> Any:
    """diffusers' pipeline of this name, or None."""
    with quietly():  # importing one takes seconds, and tells of optional packages
        import diffusers

        cls = getattr(diffusers, name, None)
        is_pipeline = isinstance(cls, type) and issubclass(cls, diffusers.DiffusionPipeline)
    return cls if is_pipeline else None


def part_folder(folder: Path, part: str) -> Path:
    """The folder of a pipeline's part; the pipeline's own where it lies flat, as DDPM's of 2022."""
    return folder / part if (folder / part).is_dir() else folder


def load_network(folder: Path, class_name: str, dtype: torch.dtype | None = None) -> Any:
    """A network of diffusers from its folder, strictly; only safetensors are read.

    dtype  that weights which autocast casts are rounded to; None for float32
    """
    cls = diffusers_class(class_name)
    if cls is None:
        raise CheckpointError(
            f"'{folder}' holds a {class_name}, which is no network of this diffusers: update it"
        )
    if not any(folder.glob("*.safetensors")):
        raise CheckpointError(
            f"'{folder}' has no safetensors, and pickles, which can run code, are never opened: save the "
            "model again with save_pretrained"
        )
    with reading(f"the {class_name} in '{folder}'"):
        if dtype is None:
            model, wrong = _whole_network(cls, folder)
        else:
            model, wrong = half_network(cls, folder, dtype)
    if wrong:
        raise CheckpointError(
            f"'{folder}' does not hold the weights of its config: it lacks or does not know '{wrong[0]}'"
            f"{f' and {len(wrong) - 1} more' if len(wrong) > 1 else ''}"
        )
    return model


def _whole_network(cls: Any, folder: Path) -> tuple[Any, list[str]]:
    """A network in float32, and the names that only one of it and its folder has."""
    model, info = cls.from_pretrained(
        folder,
        use_safetensors=True,
        local_files_only=True,
        variant=variant_of(folder),
        output_loading_info=True,
    )
    return model.float().eval(), [*info["missing_keys"], *info["unexpected_keys"]]


def source_folder(place: str) -> Path:
    """The folder of a pipeline: itself, or that of its name on the hub, fetched or from the cache."""
    folder = Path(place).expanduser()
    return folder if folder.is_dir() else _downloaded(place)


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
