"""The text encoders of a pipeline, from its folder or in memory, and the digests of what they are."""

from pathlib import Path
from typing import Any

from torch import nn

from halfstep import storage
from halfstep.errors import ConfigError
from halfstep.identity import digest_of, sha256_of
from halfstep.pipeline.from_diffusers.families import FAMILIES, Family, family_of
from halfstep.pipeline.from_diffusers.folder import (
    pipeline_kind,
    read_index,
    reading,
    source_folder,
    without_bars,
)
from halfstep.pipeline.from_diffusers.texts import PromptEncoder
from halfstep.pipeline.from_diffusers.weights import variant_of

UNREAD = ("vae", "safety_checker", "image_encoder")
"""Parts that no prompt is encoded with."""
TEXT_PARTS = ("text_encoder", "tokenizer")
"""Beginnings of the names of the parts that encode texts."""


def prompt_pipeline(folder: Path, class_name: str, family: Family) -> Any:
    """The pipeline of a folder without its network and autoencoder, for `encode_prompt`."""
    index = read_index(folder)
    absent = {part: None for part in (family.network, *UNREAD) if part in index}
    parts = [variant_of(part) for part in folder.iterdir() if part.name.startswith("text_encoder")]
    variant = next(filter(None, parts), None)
    with reading(f"the text encoders in '{folder}'"), without_bars():
        pipeline = pipeline_kind(class_name).from_pretrained(
            folder, use_safetensors=True, local_files_only=True, variant=variant, **absent
        )
    for encoder in pipeline.components.values():
        if isinstance(encoder, nn.Module):
            encoder.float().eval()
    return pipeline


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
        lambda: digest_in_folder(folder),
    )


def texts_of_origin(class_name: str, place: str) -> PromptEncoder | None:
    """The text encoders of the pipeline that a model came from, read when the first text is encoded.

    None where it was an object, or one that only its own family file describes.
    """
    if not place or class_name not in FAMILIES:
        return None
    family = FAMILIES[class_name]

    return PromptEncoder(
        family,
        lambda: prompt_pipeline(source_folder(place), class_name, family),
        lambda: digest_in_folder(source_folder(place)),
    )


def digest_in_folder(folder: Path) -> str:
    """Digest of the files of text encoders and tokenizers."""
    files = sorted(
        file
        for part in folder.iterdir()
        if part.name.startswith(TEXT_PARTS)
        for file in part.rglob("*")
        if file.suffix in (".safetensors", ".json", ".txt", ".model")
    )
    return sha256_of(f"{p.relative_to(folder).as_posix()} {storage.checksum(p)}" for p in files)


def digest_in_memory(pipeline: Any) -> str:
    """Digest of the weights of text encoders, and of the vocabularies of tokenizers."""
    parts = {k: v for k, v in sorted(pipeline.components.items()) if k.startswith(TEXT_PARTS)}
    return sha256_of(
        digest_of(part) if isinstance(part, nn.Module) else repr(sorted(part.get_vocab().items()))
        for part in parts.values()
        if part is not None
    )
