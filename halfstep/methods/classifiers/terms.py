"""Terms of an objective: a loss, its options, its name in the log and its weight."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Gt, Lt
from torch import Tensor

from halfstep.code_identity import options_of
from halfstep.config import JsonObject
from halfstep.config.validate import NotNegative, Smoothing, Validated
from halfstep.errors import ConfigError, DataError
from halfstep.methods import losses
from halfstep.methods.classifiers.weight_schedules import checked, Weight

Temperature = Annotated[float, Gt(0)]


@dataclass(frozen=True)
class LossInputs:
    """The outputs and labels that terms compare.

    student, teacher  logits float [B, classes]; teacher is None where no term uses it
    labels            int64 [B], -1 for a row without one; None where the data has none
    mine, theirs      features by key, the student's projected; empty where no term has pairs
    """

    student: Tensor
    teacher: Tensor | None = None
    labels: Tensor | None = None
    student_features: Mapping[str, Tensor] | None = None
    teacher_features: Mapping[str, Tensor] | None = None


@dataclass(frozen=True, kw_only=True)
class Term(Validated):
    """A named, weighted part of an objective: called with `LossInputs`, it returns one value per row, [B].

    Raises:
        ConfigError: a name with a dot, or a weight below 0.
    """

    weight: Weight = 1.0
    """A number, or a `Linear` that changes while a stage is trained."""
    name: str = ""
    """The name in the log; by default that of the kind of term."""
    called: ClassVar[str] = ""
    uses_teacher: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", self.called)
        super().__post_init__()
        if "." in self.name:
            raise ConfigError(f"'{self.name}' is not a term's name: leave the dot out")
        checked(self.weight, self.name)

    def describe(self) -> JsonObject:
        """The term as JSON, for resuming a run."""
        return {"loss": type(self).__name__, **options_of(self)}

    def __call__(self, inputs: LossInputs) -> Tensor:
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class SoftTargets(Term):
    """The teacher's softened probabilities (Hinton et al. 2015)."""

    temperature: Temperature = 4.0
    form: Literal["kl", "cross-entropy"] = "kl"
    """kl: T^2 KL(teacher, student).  cross-entropy: the report's, without T^2; its floor is the teacher's
    entropy, so values at two temperatures cannot be compared."""
    standardised: bool = False
    """Subtract the mean from both logits and divide by their standard deviation (Sun et al. 2024)."""
    called: ClassVar[str] = "soft"

    def __call__(self, inputs: LossInputs) -> Tensor:
        student, teacher = inputs.student, teacher_logits(inputs)
        if self.standardised:
            student, teacher = losses.standardised(student), losses.standardised(teacher)
        loss = losses.soft_targets if self.form == "kl" else losses.soft_cross_entropy
        return loss(
            student=student, teacher=teacher, temperature=self.temperature, reduction="none"
        )


@dataclass(frozen=True, kw_only=True)
class HardLabels(Term):
    """Cross-entropy with the true labels, at temperature 1; 0 for rows without one."""

    smoothing: Smoothing = 0.0
    called: ClassVar[str] = "hard"
    uses_teacher: ClassVar[bool] = False

    def __call__(self, inputs: LossInputs) -> Tensor:
        return losses.hard_labels(
            student=inputs.student,
            labels=_labels(inputs),
            smoothing=self.smoothing,
            reduction="none",
        )


@dataclass(frozen=True, kw_only=True)
class HardDistillation(Term):
    """Cross-entropy with the teacher's most probable class (Touvron et al. 2021)."""

    called: ClassVar[str] = "teacher-label"

    def __call__(self, inputs: LossInputs) -> Tensor:
        return losses.hard_distillation(
            student=inputs.student, teacher=teacher_logits(inputs), reduction="none"
        )


@dataclass(frozen=True, kw_only=True)
class LogitMatch(Term):
    """Squared error of the logits: the mean over classes, or half the sum (Ba & Caruana 2014)."""

    form: Literal["mean", "half-sum"] = "mean"
    called: ClassVar[str] = "logits"

    def __call__(self, inputs: LossInputs) -> Tensor:
        loss = losses.logit_match if self.form == "mean" else losses.logit_half_sum
        return loss(student=inputs.student, teacher=teacher_logits(inputs), reduction="none")


@dataclass(frozen=True, kw_only=True)
class Decoupled(Term):
    """Decoupled distillation (Zhao et al. 2022): separate losses for the target class and all others.

    A row without a label has no target class: its value is the whole divergence, T^2 KL.
    """

    temperature: Temperature = 4.0
    target_weight: NotNegative = 1.0
    others_weight: NotNegative = 8.0
    called: ClassVar[str] = "decoupled"

    def __call__(self, inputs: LossInputs) -> Tensor:
        labels, teacher = _labels(inputs), teacher_logits(inputs)
        values = losses.decoupled(
            student=inputs.student, teacher=teacher, labels=labels.clamp(min=0),
            temperature=self.temperature, target_weight=self.target_weight,
            others_weight=self.others_weight, reduction="none",
        )  # fmt: skip
        whole = losses.soft_targets(
            student=inputs.student, teacher=teacher, temperature=self.temperature, reduction="none"
        )
        return torch.where(labels < 0, whole, values)


@dataclass(frozen=True, kw_only=True)
class JensenShannon(Term):
    """The Jensen-Shannon divergence, at most ln 2 where share is 1/2."""

    temperature: Temperature = 1.0
    teacher_share: Annotated[float, Gt(0), Lt(1)] = 0.5
    """Share of the teacher in the mixture; between 0 and 1."""
    called: ClassVar[str] = "jensen-shannon"

    def __call__(self, inputs: LossInputs) -> Tensor:
        return losses.jensen_shannon(
            student=inputs.student, teacher=teacher_logits(inputs), temperature=self.temperature,
            teacher_share=self.teacher_share, reduction="none",
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Dist(Term):
    """Correlations within rows and within classes (Huang et al. 2022).

    The correlation within classes runs over the rows of a micro-batch in one process.
    """

    temperature: Temperature = 1.0
    form: Literal["paper", "code"] = "code"
    """code: times T^2."""
    rows_weight: NotNegative = 1.0
    classes_weight: NotNegative = 1.0
    called: ClassVar[str] = "dist"

    def __call__(self, inputs: LossInputs) -> Tensor:
        return losses.dist(
            student=inputs.student, teacher=teacher_logits(inputs), temperature=self.temperature,
            inter_weight=self.rows_weight, intra_weight=self.classes_weight, form=self.form,
            reduction="none",
        )  # fmt: skip


def distinct(terms: tuple[Term, ...]) -> tuple[Term, ...]:
    """The terms with equal names numbered: soft, soft2."""
    numbered, taken = list[Term](), {term.name for term in terms}
    used = set[str]()
    for term in terms:
        name, count = term.name, 1
        while name in used or (count > 1 and name in taken):
            count += 1
            name = f"{term.name}{count}"
        used.add(name)
        numbered.append(replace(term, name=name))
    return tuple(numbered)


def teacher_logits(inputs: LossInputs) -> Tensor:
    """The teacher's logits."""
    if inputs.teacher is None:
        raise ConfigError("this term needs a teacher: give one")
    return inputs.teacher


def _labels(inputs: LossInputs) -> Tensor:
    if inputs.labels is None:
        raise DataError(
            "a term needs labels and this data has none: choose other data, or terms without labels, such as "
            "those of patient-teacher"
        )
    return inputs.labels
