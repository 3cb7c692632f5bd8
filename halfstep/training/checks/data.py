"""Reduce data to the parts that a network reads, and refuse data that does not fit it."""

from collections.abc import Iterator
from dataclasses import replace
from math import isclose
from typing import overload

import torch
from torch import Tensor

from halfstep.batch import null_values
from halfstep.data import Data, Dataset, Latents, NoData, shape_advice
from halfstep.data.latents.contexts import Contexts
from halfstep.errors import ConfigError
from halfstep.pipeline import Pipeline
from halfstep.pipeline.conditioning import differing


@overload
def read_by(pipeline: Pipeline, data: NoData) -> NoData: ...
@overload
def read_by(pipeline: Pipeline, data: Data) -> Data: ...
def read_by(pipeline: Pipeline, data: Data) -> Data:
    """The data with only the labels and texts that the pipeline reads; refused if it does not fit.

    Samples without texts have the pipeline's empty text, and its values of the named tensors that they lack.
    """
    if isinstance(data, NoData):
        return _walks_of(pipeline, data)
    if tuple(data.shape) != tuple(pipeline.shape):
        raise ConfigError(
            f"the network makes samples of shape {list(pipeline.shape)} and the data has "
            f"{list(data.shape)}: {shape_advice(pipeline.shape, data.shape)}"
        )
    if pipeline.class_names and data.num_classes > len(pipeline.class_names):
        raise ConfigError(
            f"the network has {len(pipeline.class_names)} classes and the data {data.num_classes}: give "
            "data of those classes alone"
        )
    _refuse_other_numbers(pipeline.class_names, data.names)
    if pipeline.class_names and not data.num_classes:
        raise ConfigError(
            f"the network has {len(pipeline.class_names)} classes and the data has no labels: give data of "
            "those classes"
        )
    if pipeline.class_names and data.labels is not None and (data.labels < 0).any():
        unlabelled = int((data.labels < 0).sum())
        raise ConfigError(
            f"the network has classes and {unlabelled:,} of the data's samples have no label (-1): "
            "leave them out, or give data with labels"
        )
    if isinstance(data, Latents):
        _check_latents(pipeline, data)
    if isinstance(data, Dataset | Latents):
        data = _with_texts(pipeline, data)
    return data if pipeline.class_names else replace(data, labels=None, names=())


def _walks_of(pipeline: Pipeline, data: NoData) -> NoData:
    """No data, with the shape and the conditions that the pipeline reads."""
    classes, texts = pipeline.class_names, pipeline.text_defaults
    labels = data.labels
    if labels is not None and not classes:
        raise ConfigError(
            "labels are for a teacher of classes, and this one has none: leave them out"
        )
    if isinstance(labels, Tensor) and int(labels.max()) >= len(classes):
        raise ConfigError(
            f"the teacher has {len(classes)} classes, and the labels of walks go to {int(labels.max())}: "
            f"write labels from 0 to {len(classes) - 1}"
        )
    if data.prompts and pipeline.empty is None and pipeline.texts is None:
        raise ConfigError("prompts are for a teacher that reads texts: leave them out")
    contexts = data.contexts
    if contexts is not None:
        _refuse_other_encoder(contexts, pipeline)
        contexts = contexts.only(set(null_values(texts)))
    if labels is None and classes:
        labels = torch.arange(len(classes))
    return replace(
        data, shape=tuple(pipeline.shape), labels=labels, names=tuple(classes), contexts=contexts,
        defaults=texts if null_values(texts) else None,
    )  # fmt: skip


def _refuse_other_encoder(contexts: Contexts, pipeline: Pipeline) -> None:
    """`ConfigError` for texts that another encoder than the pipeline's encoded."""
    if others := differing(contexts.null, pipeline):
        raise ConfigError(
            "the data's texts were encoded by another encoder than the network was trained with (the "
            f"empty text has another {' and '.join(others)}): encode them with that one"
        )


def _with_texts(pipeline: Pipeline, data: Data) -> Data:
    """The data with the texts and named tensors that the pipeline reads, and its defaults for the others."""
    names = set(null_values(pipeline.text_defaults))
    if isinstance(data, Latents) and (contexts := data.contexts) is not None:
        if names:
            _refuse_other_encoder(contexts, pipeline)
        is_read = bool(names & null_values(contexts.null).keys())
        data = replace(data, contexts=contexts.only(names) if is_read else None)
    return replace(data, defaults=pipeline.text_defaults) if names else data


def _refuse_other_numbers(class_names: tuple[str, ...], data_names: tuple[str, ...]) -> None:
    """`ConfigError` if a class has another number in the data than in the network."""
    for k, name in enumerate(data_names):
        if name in class_names and (number := class_names.index(name)) != k:
            raise ConfigError(
                f"class '{name}' is number {k} of the data and number {number} of the network: give "
                "data whose classes have the network's order"
            )


def _check_latents(pipeline: Pipeline, data: Latents) -> None:
    codec = pipeline.codec
    if codec is not None and not isclose(codec.scale, data.scale, rel_tol=1e-4):
        raise ConfigError(
            f"the data's latents carry the scale {data.scale:g} and the network's {codec.scale:g}: encode "
            f"the images with --scale {codec.scale:g}"
        )


def notes(pipeline: Pipeline, data: Data) -> Iterator[str]:
    """Warnings that do not stop the run."""
    names = tuple(data.names)
    if pipeline.class_names and names and names != pipeline.class_names[: len(names)]:
        yield (
            f"the data's classes ({', '.join(names[:3])}, ...) are taken for the network's "
            f"({', '.join(pipeline.class_names[:3])}, ...), number by number"
        )
    if pipeline.empty is not None and getattr(data, "contexts", None) is None:
        yield (
            "the network reads texts and the data has none: every sample has the empty text, where guidance "
            "changes nothing (give captions, --prompts FILE, or latents of halfstep latents --text)"
        )
    made_by = data.codec if isinstance(data, Latents) else ""
    if made_by and pipeline.codec is not None and made_by != pipeline.codec.digest():
        yield (
            "the latents were made by another codec than the network's: right only if the two encode "
            "alike, as the official autoencoder_kl and autoencoder_kl_ema do"
        )
