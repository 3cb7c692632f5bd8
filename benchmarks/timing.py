"""The parts that the benchmarks share: their options, timing and quartiles."""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

Results = dict[str, Any]
"""Results of a benchmark, as --json prints them."""


def options_parser(name: str, description: str | None, *, rounds: int) -> argparse.ArgumentParser:
    """The options of all benchmarks: --json, --device, --rounds and --threads."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=description)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--json", action="store_true", help="print a JSON object")
    parser.add_argument("--device", choices=["cpu", "cuda", "auto"], default="auto")
    parser.add_argument("--rounds", type=int, default=rounds, help="turns that are measured")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; 0 is torch's choice")
    return parser


def prepare(options: argparse.Namespace) -> tuple[torch.device, Results]:
    """Set the number of threads; the device, and the setting for the results."""
    if options.threads:
        torch.set_num_threads(options.threads)
    auto = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(auto if options.device == "auto" else options.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return device, {
        "device": name,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def seconds(work: Callable[[], object], device: torch.device, repeats: int = 1) -> float:
    """Seconds of one `work`.

    One CPU thread is timed by its own clock, which other processes on a shared machine do not move; anything
    else by the wall clock.
    """
    one_thread = device.type == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if one_thread else time.perf_counter
    _wait(device)
    begin = clock()
    for _ in range(repeats):
        work()
    _wait(device)
    return (clock() - begin) / repeats


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def spread(ratios: list[float]) -> dict[str, float]:
    """Median and quartiles of ratios, which lie among them."""
    many = len(ratios) > 1
    quartiles = statistics.quantiles(ratios, n=4, method="inclusive") if many else ratios * 3
    return {"ratio": quartiles[1], "low": quartiles[0], "high": quartiles[2]}
