"""Objectives of knowledge distillation by name, each in its own convention.

    name             terms                                             of
    hinton           soft_weight T^2 KL + hard_weight CE               Hinton et al. 2015; nothing tied
    report           (a CE(p_T, q_T) + b CE) / (a + b), no T^2         Paul's report, W&B
    keras            alpha CE + (1 - alpha) T^2 KL                     Keras' documentation
    deit-hard        (CE(true) + CE(teacher's class)) / 2              Touvron et al. 2021
    patient-teacher  T^2 KL at T = 2, no labels                        Beyer et al. 2022
    logits           squared error of the logits                       Ba & Caruana 2014
    tang             hard_share CE + (1 - hard_share) that             Tang et al. 2019
    decoupled        target class and others apart, warmed up          Zhao et al. 2022
    dist             correlations, and CE                              Huang et al. 2022
    standardised     T^2 KL of standardised logits, and CE             Sun et al. 2024
    features         hinton's, and features matched in pairs           Romero et al. 2015

The same words mean different mixtures: alpha weighs the hard term in Keras and the soft one in the report,
with 0.9 to 0.1 at T = 5, which without T^2 is 26 % soft in Hinton's units.
"""

from collections.abc import Callable, Mapping
from inspect import Parameter, signature
from typing import Any

from halfstep.config.validate import is_valid
from halfstep.errors import ConfigError, unknown
from halfstep.methods.classifiers.feature_terms import FeatureMatch, Pairs
from halfstep.methods.classifiers.terms import (
    Decoupled,
    Dist,
    HardDistillation,
    HardLabels,
    LogitMatch,
    SoftTargets,
    Term,
)
from halfstep.methods.classifiers.weight_schedules import Linear, parsed, warmup, Weight
from halfstep.models import import_function

Terms = tuple[Term, ...]


def hinton(
    *, temperature: float = 4.0, soft_weight: Weight = 0.9, hard_weight: Weight = 0.1
) -> Terms:
    """soft_weight T^2 KL + hard_weight CE, the two weights as they are (Hinton et al. 2015, section 2)."""
    soft = SoftTargets(temperature=temperature, weight=soft_weight)
    return soft, HardLabels(weight=hard_weight)


def report(
    *, temperature: float = 5.0, soft_weight: float = 0.9, hard_weight: float = 0.1
) -> Terms:
    """(soft_weight CE(p_T, q_T) + hard_weight CE) / (soft_weight + hard_weight), without T^2.

    Has the gradient of `hinton` with weights soft_weight / T^2 and hard_weight, over their sum here.
    """
    if isinstance(soft_weight, Linear) or isinstance(hard_weight, Linear):
        raise ConfigError(
            "the weights of 'report' are divided by their sum and cannot change: write numbers, or take "
            "'hinton'"
        )
    total = soft_weight + hard_weight
    if not total > 0:
        raise ConfigError(
            "soft_weight and hard_weight of 'report' are divided by their sum, which must be above 0: "
            "write for example 0.9 and 0.1"
        )
    soft = SoftTargets(temperature=temperature, form="cross-entropy", weight=soft_weight / total)
    return soft, HardLabels(weight=hard_weight / total)


def keras(*, temperature: float = 3.0, alpha: float = 0.1) -> Terms:
    """alpha CE + (1 - alpha) T^2 KL: alpha weighs the hard term (Keras' documentation, not its default)."""
    if not 0 <= alpha <= 1:
        raise ConfigError(
            f"alpha of 'keras' is a share in [0, 1], got {alpha:g}: write for example 0.1"
        )
    return hinton(temperature=temperature, soft_weight=1 - alpha, hard_weight=alpha)


def deit_hard(*, hard_weight: float = 0.5, teacher_weight: float = 0.5) -> Terms:
    """Cross-entropy with the true label and the teacher's class, half each (Touvron et al. 2021, eq. 3)."""
    return HardLabels(weight=hard_weight), HardDistillation(weight=teacher_weight)


def patient_teacher(*, temperature: float = 2.0) -> Terms:
    """T^2 KL alone: no labels (Beyer et al. 2022).

    The rest of that recipe is training: the same view for both models, MixUp, and very many updates.
    """
    return (SoftTargets(temperature=temperature),)


def logits(*, hard_weight: Weight = 0.0, logits_weight: Weight = 1.0) -> Terms:
    """Mean squared error of the logits (Ba & Caruana 2014)."""
    return LogitMatch(weight=logits_weight), HardLabels(weight=hard_weight)


def tang(*, hard_share: float = 0.5) -> Terms:
    """hard_share CE + (1 - hard_share) mean squared error of the logits (Tang et al. 2019)."""
    if not 0 <= hard_share <= 1:
        raise ConfigError(f"hard_share lies in [0, 1], got {hard_share:g}: write for example 0.5")
    return LogitMatch(weight=1 - hard_share), HardLabels(weight=hard_share)


def decoupled(
    *,
    temperature: float = 4.0,
    target_weight: float = 1.0,
    others_weight: float = 8.0,
    hard_weight: Weight = 1.0,
    over: float = 0.1,
) -> Terms:
    """Decoupled distillation, from 0 over the first `over` of the updates, and CE (Zhao et al. 2022)."""
    apart = Decoupled(
        temperature=temperature, target_weight=target_weight, others_weight=others_weight,
        weight=warmup(1.0, over),
    )  # fmt: skip
    return apart, HardLabels(weight=hard_weight)


def dist(
    *, temperature: float = 1.0, dist_weight: Weight = 2.0, hard_weight: Weight = 1.0
) -> Terms:
    """Correlations of rows and of classes, and CE (Huang et al. 2022)."""
    return Dist(temperature=temperature, weight=dist_weight), HardLabels(weight=hard_weight)


def standardised(
    *, temperature: float = 2.0, soft_weight: Weight = 9.0, hard_weight: Weight = 1.0
) -> Terms:
    """T^2 KL of logits less their mean over their deviation, and CE (Sun et al. 2024).

    Where a row's logits are all equal, as with a last layer of zeros, the first gradients are huge: warm the
    learning rate up.
    """
    soft = SoftTargets(temperature=temperature, standardised=True, weight=soft_weight)
    return soft, HardLabels(weight=hard_weight)


def features(
    *,
    pairs: Pairs = (),
    feature_weight: Weight = 1.0,
    temperature: float = 4.0,
    soft_weight: Weight = 0.9,
    hard_weight: Weight = 0.1,
) -> Terms:
    """hinton's terms, and the normalised error of features in pairs (Romero et al. 2015)."""
    mixed = hinton(temperature=temperature, soft_weight=soft_weight, hard_weight=hard_weight)
    return *mixed, FeatureMatch(pairs=pairs, weight=feature_weight)


RECIPES: dict[str, Callable[..., Terms]] = {
    "hinton": hinton,
    "report": report,
    "keras": keras,
    "deit-hard": deit_hard,
    "patient-teacher": patient_teacher,
    "logits": logits,
    "tang": tang,
    "decoupled": decoupled,
    "dist": dist,
    "standardised": standardised,
    "features": features,
}
"""Instead of a recipe's name, `package.module:function` names a function that returns terms."""


def recipe(name: str, config: Mapping[str, object]) -> Terms:
    """The terms of the recipe of this name with these options; `ConfigError` lists the choices."""
    function, parameters = _function(name), recipe_options(name)
    takes_any = any(p.kind is Parameter.VAR_KEYWORD for p in parameters.values())
    for option in config:
        if option not in parameters and not takes_any:
            raise unknown(f"option of the recipe '{name}' called", option, parameters)
    terms = function(
        **{key: _value(key, value, parameters.get(key)) for key, value in config.items()}
    )
    if isinstance(terms, Term):
        return (terms,)
    if not isinstance(terms, tuple | list) or not all(isinstance(term, Term) for term in terms):
        raise ConfigError(f"the recipe '{name}' returned {terms!r}: return terms, in a tuple")
    return tuple(terms)


def recipe_options(name: str) -> Mapping[str, Parameter]:
    """The options of the recipe of this name; `ConfigError` lists the choices."""
    return signature(_function(name)).parameters


def _function(name: str) -> Callable[..., Any]:
    """The function that returns the terms of a recipe."""
    function = import_function(name, "recipe") if ":" in name else RECIPES.get(name)
    if function is None:
        raise unknown("recipe", name, RECIPES)
    return function


def _value(option: str, value: Any, parameter: Parameter | None) -> Any:
    """An option's value as a recipe takes it: a weight is parsed from text, another number is checked."""
    if parameter is None or parameter.annotation not in (Weight, float):
        is_weight = option.endswith("weight") and isinstance(
            value, str
        )  # of a recipe of the user's
        return parsed(value) if is_weight else value
    if parameter.annotation is Weight and isinstance(value, str):
        return parsed(value)
    if not is_valid(value, parameter.annotation):
        steady = "" if parameter.annotation is Weight else " that does not change"
        raise ConfigError(f"{option} is a number, got {value!r}: write one{steady}")
    return value
