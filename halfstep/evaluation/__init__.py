"""Evaluation: quality against real data, fidelity to the teacher, drift, cost; and the quality gate."""

from halfstep.evaluation.distances import frechet_distance, sampling_floor
from halfstep.evaluation.evidence import gather
from halfstep.evaluation.features import classifier_features, digits_features, Features
from halfstep.evaluation.gate import Gate
from halfstep.evaluation.intervals import Interval
from halfstep.evaluation.judge import Judge, Row
from halfstep.evaluation.measured import Measured
from halfstep.evaluation.setups import Evaluation, Subject
from halfstep.evaluation.statistics import cache_folder, data_features

__all__ = [
    "Evaluation",
    "Features",
    "Gate",
    "Interval",
    "Judge",
    "Measured",
    "Row",
    "Subject",
    "cache_folder",
    "classifier_features",
    "data_features",
    "digits_features",
    "frechet_distance",
    "gather",
    "sampling_floor",
]
