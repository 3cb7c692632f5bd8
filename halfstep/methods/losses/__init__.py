"""Losses of knowledge distillation: pure functions of logits or features, in float32 inside.

All arguments are keyword-only, so that student and teacher cannot change places.  The teacher gets no
gradient.  `reduction` is "batchmean", the mean over the batch of sums over classes, or "none", one
value per sample.
"""

from halfstep.methods.losses.arguments import NO_LABEL, Reduction
from halfstep.methods.losses.decoupling import decoupled
from halfstep.methods.losses.features import attention_transfer, feature_match
from halfstep.methods.losses.hard import hard_distillation, hard_labels
from halfstep.methods.losses.logit_matching import logit_half_sum, logit_match
from halfstep.methods.losses.mixtures import hinton_mixture, report_mixture, tang
from halfstep.methods.losses.relations import dist, relational_angle, relational_distance
from halfstep.methods.losses.soft import (
    centred,
    jensen_shannon,
    soft_cross_entropy,
    soft_targets,
    standardised,
)

__all__ = [
    "NO_LABEL",
    "Reduction",
    "attention_transfer",
    "centred",
    "decoupled",
    "dist",
    "feature_match",
    "hard_distillation",
    "hard_labels",
    "hinton_mixture",
    "jensen_shannon",
    "logit_half_sum",
    "logit_match",
    "relational_angle",
    "relational_distance",
    "report_mixture",
    "soft_cross_entropy",
    "soft_targets",
    "standardised",
    "tang",
]
