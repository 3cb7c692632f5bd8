"""The speed of classifiers with channels-last weights, relative to torch's usual memory format.

    python -m benchmarks.classifiers [--only NAME ...] [--rounds N] [--batch N] [--json]

Each channels-last classifier, and the same weights in torch's usual format, run in turn in one process on one
CPU thread by its own clock: an update without its optimiser (loss and backward), and a forward in eval mode.
Printed are the median of the usual one's milliseconds, and the median of the ratios within each turn, above
1 where channels last is faster.  With MALLOC_MMAP_THRESHOLD_ and MALLOC_TRIM_THRESHOLD_ at 4294967296 in the
environment both keep their memory, as the workers of the report's example do.
"""

import copy
import json
import statistics
from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.timing import options_parser, prepare, seconds
from halfstep.models.classifiers.registry import build_classifier, infer_classifier_config

NETS: dict[str, tuple[int, dict[str, int]]] = {
    "shallow": (28, {}),
    "deeper": (28, {}),
    "toy-teacher": (28, {}),
    "cnn": (28, {}),
    "efficientnet-lite0": (28, {"side": 64}),
}
"""Side of the gray images for each network, and its options."""


def pair(name: str) -> tuple[nn.Module, nn.Module]:
    """The classifier as it is built, and a copy in torch's usual memory format."""
    side, options = NETS[name]
    torch.manual_seed(0)
    ours = build_classifier(name, {**infer_classifier_config(name, (1, side, side), 10), **options})
    usual = copy.deepcopy(ours)
    for parameter in usual.parameters():
        # Through a flat copy: a weight of one channel counts as contiguous, and would keep its format.
        parameter.data = parameter.data.flatten().clone().view(parameter.shape)
    return ours, usual


def measure(name: str, rounds: int, batch: int) -> dict[str, float]:
    """Milliseconds in the usual format, and the relative speed of channels last."""
    side = NETS[name][0]
    x, labels = torch.randn(batch, 1, side, side), torch.arange(batch) % 10
    ours, usual = pair(name)

    def update(net: nn.Module) -> None:
        F.cross_entropy(net.train()(x), labels).backward()
        net.zero_grad()

    @torch.no_grad()
    def forward(net: nn.Module) -> None:
        net.eval()(x)

    def timed(work: Callable[[nn.Module], None], net: nn.Module) -> float:
        return seconds(lambda: work(net), torch.device("cpu"))

    results = dict[str, float]()
    for name_of_work, work in (("update", update), ("forward", forward)):
        for net in (usual, ours):
            work(net)
        turns = [(timed(work, usual), timed(work, ours)) for _ in range(rounds)]
        results[f"{name_of_work} ms"] = 1000 * statistics.median(slow for slow, _ in turns)
        results[f"{name_of_work} ratio"] = statistics.median(slow / fast for slow, fast in turns)
    return results


def table(results: dict[str, dict[str, float]]) -> str:
    """A line for each network."""
    lines = [f"{'':20}{'update':>12}{'ratio':>8}{'forward':>12}{'ratio':>8}"]
    for name, row in results.items():
        lines.append(
            f"{name:20}{row['update ms']:9.1f} ms{row['update ratio']:8.2f}"
            f"{row['forward ms']:9.1f} ms{row['forward ratio']:8.2f}"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = options_parser("classifiers", __doc__, rounds=15)
    parser.add_argument("--only", nargs="+", choices=NETS, default=list(NETS), metavar="NAME")
    parser.add_argument("--batch", type=int, default=64, help="images at a time")
    options = parser.parse_args(arguments)
    prepare(options)
    results = {name: measure(name, options.rounds, options.batch) for name in options.only}
    print(json.dumps(results, indent=1) if options.json else table(results))


if __name__ == "__main__":
    main()
