"""How much faster the classifiers' convolutions are with weights that lie channels last in memory.

    python -m benchmarks.classifiers [--only NAME ...] [--rounds N] [--batch N] [--json]

Each classifier of halfstep that lies so, and the same weights in torch's usual order, run in turn in one
process, on one CPU thread by its own clock: an update without its optimiser (loss and backward), and a
forward in eval mode.  Printed are the median of the usual one's milliseconds, and the median of the ratios
within each turn, over 1 where channels last is faster.  With MALLOC_MMAP_THRESHOLD_ and
MALLOC_TRIM_THRESHOLD_ at 4294967296 in the environment both keep their memory, as the workers of the
report's example do.
"""

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn import functional as F

from halfstep.models.classifiers.registry import build_classifier, infer_classifier_config

NETS: dict[str, tuple[int, dict[str, int]]] = {
    "shallow": (28, {}),
    "deeper": (28, {}),
    "toy-teacher": (28, {}),
    "cnn": (28, {}),
    "efficientnet-lite0": (28, {"side": 64}),
}
"""Side of the gray images that each is timed with, and its options."""


def pair(name: str) -> tuple[nn.Module, nn.Module]:
    """The classifier as it is built, and the same in torch's usual order."""
    side, options = NETS[name]
    torch.manual_seed(0)
    ours = build_classifier(name, {**infer_classifier_config(name, (1, side, side), 10), **options})
    usual = copy.deepcopy(ours)
    for parameter in usual.parameters():
        # Through a flat copy: a weight of one channel already counts as contiguous, and would stay.
        parameter.data = parameter.data.flatten().clone().view(parameter.shape)
    return ours, usual


def measure(name: str, rounds: int, batch: int) -> dict[str, float]:
    """Milliseconds in the usual order, and how many times as fast channels last is."""
    side = NETS[name][0]
    x, labels = torch.randn(batch, 1, side, side), torch.arange(batch) % 10
    ours, usual = pair(name)

    def update(net: nn.Module) -> None:
        F.cross_entropy(net.train()(x), labels).backward()
        net.zero_grad()

    @torch.no_grad()
    def forward(net: nn.Module) -> None:
        net.eval()(x)

    found = dict[str, float]()
    for what, work in (("update", update), ("forward", forward)):
        for net in (usual, ours):
            work(net)
        turns = [(seconds(work, usual), seconds(work, ours)) for _ in range(rounds)]
        found[f"{what} ms"] = 1000 * statistics.median(slow for slow, _ in turns)
        found[f"{what} ratio"] = statistics.median(slow / fast for slow, fast in turns)
    return found


def seconds(work: Callable[[nn.Module], None], net: nn.Module) -> float:
    """Of the process's own clock, which the neighbours on a shared machine do not move."""
    begin = time.process_time()
    work(net)
    return time.process_time() - begin


def table(found: dict[str, dict[str, float]]) -> str:
    """A line each."""
    lines = [f"{'':20}{'update':>12}{'ratio':>8}{'forward':>12}{'ratio':>8}"]
    for name, one in found.items():
        lines.append(
            f"{name:20}{one['update ms']:9.1f} ms{one['update ratio']:8.2f}"
            f"{one['forward ms']:9.1f} ms{one['forward ratio']:8.2f}"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.classifiers", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--only", nargs="+", choices=NETS, default=list(NETS), metavar="NAME")
    parser.add_argument("--rounds", type=int, default=15, help="turns that are measured")
    parser.add_argument("--batch", type=int, default=64, help="images at a time")
    parser.add_argument("--json", action="store_true", help="print a JSON object")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    found = {name: measure(name, asked.rounds, asked.batch) for name in asked.only}
    print(json.dumps(found, indent=1) if asked.json else table(found))


if __name__ == "__main__":
    main()
