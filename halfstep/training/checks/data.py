"""What a network reads of the data: the rest is left out, and what does not fit is refused."""

from collections.abc import Iterator
from dataclasses import replace
from math import isclose

from halfstep.data import Data, Latents
from halfstep.errors import ConfigError
from halfstep.pipeline import Pipeline
from halfstep.pipeline.conditioning import same_states


def read_by(pipeline: Pipeline, data: Data) -> Data:
    """The data without what the pipeline does not read; refused unless the shapes agree."""
    if tuple(data.shape) != tuple(pipeline.shape):
        raise ConfigError(
            f"the network makes samples of shape {list(pipeline.shape)} and the data has "
            f"{list(data.shape)}: give data of that shape (--size, --channels)"
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
    if (
        pipeline.class_names
        and data.labels is not None
        and (without := int((data.labels < 0).sum()))
    ):
        raise ConfigError(
            f"the network has classes and {without:,} of the data's samples have no label (-1): "
            "leave them out, or give data with labels"
        )
    if isinstance(data, Latents):
        _check_latents(pipeline, data)
    contexts = data.contexts if isinstance(data, Latents) else None
    if pipeline.empty is not None:
        if contexts is None:
            raise ConfigError(
                "the network reads texts and the data has none: give latents that were encoded with "
                "--text"
            )
        if not same_states(contexts.null, pipeline.empty):
            raise ConfigError(
                "the data's texts were encoded by another encoder than the network was trained with: "
                "encode them with that one"
            )
    elif isinstance(data, Latents):
        data = replace(data, contexts=None)
    return data if pipeline.class_names else replace(data, labels=None, names=())


def _refuse_other_numbers(own: tuple[str, ...], names: tuple[str, ...]) -> None:
    """A class that both know by name has one number."""
    for k, name in enumerate(names):
        if name in own and own.index(name) != k:
            raise ConfigError(
                f"class '{name}' is number {k} of the data and number {own.index(name)} of the network: give "
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
    """What may be right, and should be known."""
    names = tuple(data.names)
    if pipeline.class_names and names and names != pipeline.class_names[: len(names)]:
        yield (
            f"the data's classes ({', '.join(names[:3])}, ...) are taken for the network's "
            f"({', '.join(pipeline.class_names[:3])}, ...), number by number"
        )
    made_by = data.codec if isinstance(data, Latents) else ""
    if made_by and pipeline.codec is not None and made_by != pipeline.codec.digest():
        yield (
            "the latents were made by another codec than the network's: right only if the two encode "
            "alike, as the official autoencoder_kl and autoencoder_kl_ema do"
        )
