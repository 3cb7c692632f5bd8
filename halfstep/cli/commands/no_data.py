"""`halfstep distill METHOD --data none`: options that go together with walks from noise."""

from dataclasses import replace
from typing import Any

from rich.console import Console

from halfstep.cli.console.progress import counting
from halfstep.data import NoData
from halfstep.errors import ConfigError
from halfstep.methods import Method
from halfstep.pipeline import Pipeline
from halfstep.training.api import walker_of
from halfstep.training.distributed import Processes
from halfstep.training.prompts import walks_for
from halfstep.workflows.options import EncodingOptions
from halfstep.workflows.prompts import read_prompts


def without_data(options: Any, method: Method, *, auto: bool) -> Any:
    """The options without a gate unless one is asked for; `ConfigError` for those that need data.

    auto  whether --start is auto
    """
    method.check_without_data(walker_of(options.dataset.data))
    name, dataset = f"--data {options.dataset.data}", options.dataset
    if dataset != replace(dataset, size=None, channels=None, flip=False, skip_bad=False):
        raise ConfigError(
            f"{name} has no images to resize, convert, mirror or skip: leave --size, --channels, --flip and "
            "--skip-bad out"
        )
    if options.encoding != EncodingOptions(prompts=options.encoding.prompts):
        raise ConfigError(f"{name} has no images to encode: leave --encode-batch out")
    if auto:
        raise ConfigError(
            f"--start auto compares the teacher with data, and {name} has none: give --start a number"
        )
    gate = getattr(options, "gate", None)
    if gate is None or gate.tolerance is not None:
        return options
    return replace(options, gate=replace(gate, tolerance=0.0))


def walks_of(console: Console, options: Any, teacher: Pipeline) -> NoData:
    """The walks of these options, as the teacher reads them."""
    data, folder = NoData.named(options.dataset.data), options.folder
    if options.encoding.prompts is None:
        return walks_for(teacher, data, folder.out, Processes(folder.device))
    prompts = read_prompts("prompt", (), options.encoding.prompts)
    with counting(console, f"encoding {len(prompts):,} prompts", few=64) as progress:
        return walks_for(
            teacher, replace(data, prompts=prompts), folder.out, Processes(folder.device),
            dry_run=folder.dry_run, progress=progress,
        )  # fmt: skip
