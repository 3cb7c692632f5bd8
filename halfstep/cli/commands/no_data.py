"""`halfstep distill METHOD --data none`: options that go together with walks from noise."""

from dataclasses import replace
from typing import Any

from halfstep.data import NoData
from halfstep.errors import ConfigError
from halfstep.methods import Method
from halfstep.pipeline import Pipeline
from halfstep.training.checks.data import read_by
from halfstep.workflows.prompts import read_prompts


def without_data(options: Any, method: Method, *, auto: bool) -> Any:
    """The options without a gate unless one is asked for; `ConfigError` for those that need data.

    auto  whether --start is auto
    """
    method.check_without_data()
    name, dataset = f"--data {options.dataset.data}", options.dataset
    if dataset != replace(dataset, size=None, channels=None, flip=False):
        raise ConfigError(
            f"{name} has no images to resize, convert or mirror: leave --size, --channels and --flip out"
        )
    if auto:
        raise ConfigError(
            f"--start auto compares the teacher with data, and {name} has none: give --start a number"
        )
    gate = getattr(options, "gate", None)
    if gate is None or gate.tolerance is not None:
        return options
    return replace(options, gate=replace(gate, tolerance=0.0))


def walks_of(options: Any, teacher: Pipeline) -> NoData:
    """The walks of these options, as the teacher reads them."""
    data = NoData.named(options.dataset.data)
    if options.encoding.prompts is not None:
        data = replace(data, prompts=read_prompts("prompt", (), options.encoding.prompts))
    bound = read_by(teacher, data)
    assert isinstance(bound, NoData)
    return bound
