"""Evaluation: quality against real data, fidelity to the teacher, cost."""

from halfstep.evaluation.distances import frechet_distance, sampling_floor
from halfstep.evaluation.evaluate import Judge, Row
from halfstep.evaluation.features import classifier_features, digits_features, Features

__all__ = [
    "Features",
    "Judge",
    "Row",
    "classifier_features",
    "digits_features",
    "frechet_distance",
    "sampling_floor",
]
