"""Evaluation: quality against real data, fidelity to the teacher, drift, cost; and the quality gate."""

from halfstep.evaluation.comparable import Measured
from halfstep.evaluation.features.cache import data_features
from halfstep.evaluation.features.registry import classifier_features, digits_features, Features
from halfstep.evaluation.gate import Gate
from halfstep.evaluation.metrics.bootstrap import Interval
from halfstep.evaluation.metrics.distances import frechet_distance
from halfstep.evaluation.metrics.floor import sampling_floor
from halfstep.evaluation.report_data import Report, Row
from halfstep.evaluation.report_rows import Comparison
from halfstep.evaluation.sample_sets import SampleScorer, Score
from halfstep.evaluation.setups import Candidates, Evaluation
from halfstep.files import cache_folder

__all__ = [
    "Candidates",
    "Comparison",
    "Evaluation",
    "Features",
    "Gate",
    "Interval",
    "Measured",
    "Report",
    "Row",
    "SampleScorer",
    "Score",
    "cache_folder",
    "classifier_features",
    "data_features",
    "digits_features",
    "frechet_distance",
    "sampling_floor",
]
