"""The output that `train` and `distill` share, and the context of their runs."""

import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from rich.console import Console
from torch import nn

from halfstep.cli.console.progress import Bars, first_process, say
from halfstep.config.fields import flat
from halfstep.data import Data, NoData
from halfstep.methods.stages import Stage
from halfstep.pipeline import Pipeline
from halfstep.training import TrainingConfig
from halfstep.training.distributed import pick_device
from halfstep.training.run_config import write_config
from halfstep.training.stages import RunOptions
from halfstep.workflows.options import DataOptions, FolderOptions
from halfstep.workflows.run_options import run_options_of
from halfstep.workflows.train_classifier import ImageOptions, share_of


@contextmanager
def run_context(
    folder: FolderOptions,
    options: Any,
    console: Console,
    *,
    cost_after: Callable[[Stage], float] = lambda s: 0,
    gate: Callable[[Pipeline], bool] | None = None,
) -> Iterator[RunOptions]:
    """The `RunOptions` of a run, which shows its progress and writes its options to config.toml.

    cost_after     cost of the stages that follow a stage, in forwards of a batch
    gate           called after each stage; False ends the run
    """

    def keep() -> None:
        if first_process():
            write_config(folder.out, flat(options))

    with Bars(console, cost_after=cost_after, opened=keep) as bars:
        yield run_options_of(options, callback=bars, gate=gate)
    if not bars.began:
        say(console, "done", "this run was finished before: nothing was left to do")


def describe(pipeline: Pipeline) -> str:
    """A network in a line."""
    about = pipeline.describe()
    parameters = sum(p.numel() for p in pipeline.denoiser.parameters())
    return (
        f"{about['net']['build']}, {parameters:,} parameters, predicts {about['parameterisation']}, "
        f"schedule {about['schedule']['name']}"
    )


def describe_data(dataset: DataOptions, data: Data) -> str:
    """Data in a line."""
    classes = f", {data.num_classes} classes" if data.num_classes else ""
    if isinstance(data, NoData):
        prompts = f", {len(data.prompts):,} prompts in turn" if data.prompts else ""
        return f"{dataset.data}, the {data.walk} walks from noise{classes}{prompts}"
    return f"{dataset.data}, {len(data):,} samples of shape {list(data.shape)}{classes}"


def updates_on(updates: int, training: TrainingConfig, device: str) -> str:
    """The updates and the device in words: 4,000 of 128 samples each, on cpu, 2 threads."""
    chosen = pick_device(device)
    count = torch.get_num_threads()
    threads = f", {count} thread{'s' if count > 1 else ''}" if chosen.type == "cpu" else ""
    return f"{updates:,} of {training.batch_size} samples each, on {chosen.type}{threads}"


FLAGS = {"flip": "--flip", "skip_bad": "--skip-bad"}


def as_typed(dataset: DataOptions) -> str:
    """The options of this data, for a later command."""
    sides = [
        f"--{name} {value}" for name in ("size", "channels") if (value := getattr(dataset, name))
    ]
    flags = [option for name, option in FLAGS.items() if getattr(dataset, name)]
    return " ".join([f"--data {shlex.quote(dataset.data)}", *sides, *flags])


def net_option(net: str | None) -> str:
    """The option that a later command needs for a network of the user's own."""
    return f" --net {shlex.quote(net)}" if net is not None and ":" in net else ""


def held_out_name(images: ImageOptions) -> str:
    """The held-out data in words."""
    name = images.validate or ""
    share = share_of(name)
    return name if share is None else f"the {100 * share:g} % held out"


def parameters_of(net: nn.Module) -> str:
    """The number of a network's parameters."""
    return f"{sum(p.numel() for p in net.parameters()):,} parameters"
