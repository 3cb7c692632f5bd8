"""The cost of an update of a distillation, over that of its network calls alone.

    python -m benchmarks.step [--net uvit|unet|all] [--method NAME ...|all] [--device cpu|cuda|auto] [--json]

The floor is the network calls that the update makes, each on the same tensors: forwards without gradients,
and one forward and backward of the student.  They cost the objective's declared `forwards`.  Measured against
the floor are the objective's loss and backward ('update'), and the same with gradient clip, optimiser and
average of the weights ('whole update').  All three run in turn in one process; a ratio is taken within each
turn, and their median and quartiles are printed.  'guided' is the first stage of a guided distillation,
'guided-halving' its second; of the other methods the first stage is measured.
"""

import json
import statistics
from collections.abc import Iterator, Sequence

import torch

from benchmarks.step_bench import Bench, BENCHED, NETS
from benchmarks.timing import options_parser, prepare, Results, spread

LIMITS = {"uvit": (1.03, 1.06), "unet": (1.05, 1.15)}
"""Largest ratios of an update and of a whole update on a CPU; 1.10 and 1.10 on a GPU.  For the first guided
stage 1.03 with either net."""


def measure(bench: Bench, rounds: int) -> Results:
    """Milliseconds of the floor, and the ratios of both updates to it: median and quartiles."""
    works = bench.floor, bench.update, bench.whole_update
    gpu = bench.device.type == "cuda"
    for work in works:
        bench.seconds(work, 10 if gpu else 2)  # warm-up; with --compile the compilation
    turns = []
    for k in range(rounds):
        # In both orders, so that a machine that becomes slower or faster favours none.
        order = works if k % 2 else works[::-1]
        turn = {work.__name__: 0.0 for work in works}
        for work in (*order, *order[::-1]):
            turn[work.__name__] += bench.seconds(work, 20 if gpu else 1) / 2
        turns.append(turn)
    ratios = {name: [turn[name] / turn["floor"] for turn in turns] for name in turns[0]}
    limits = (1.10, 1.10) if gpu else LIMITS[bench.name]
    if bench.method == "guided" and not gpu:
        limits = 1.03, limits[1]
    return {
        "forwards": bench.forwards,
        "floor_ms": 1000 * statistics.median(turn["floor"] for turn in turns),
        "update": {**spread(ratios["update"]), "limit": limits[0]},
        "whole_update": {**spread(ratios["whole_update"]), "limit": limits[1]},
    }


def table(results: Results) -> str:
    """The results as a small table."""
    heads = f"{'':<30}{'forwards':>8}{'floor':>10}   "
    lines = [heads + f"{'':14}{'ratio':>7}   {'quartiles':<15}{'held to':>8}"]
    for (name, method), result in _each(results):
        for key in ("update", "whole_update"):
            ms = f"{result['floor_ms']:>7.2f} ms"
            first = f"{name:<6}{method:<24}{result['forwards']:>8g}{ms}"
            first = first if key == "update" else " " * len(first)
            row = result[key]
            quartiles = f"{row['low']:.3f} to {row['high']:.3f}"
            lines.append(
                f"{first}   {key.replace('_', ' '):14}{row['ratio']:>7.3f}   {quartiles:<15}"
                f"{row['limit']:>8.2f}"
            )
    setting = "{device}, {dtype}, {threads} threads, torch {torch}, {rounds} rounds".format(
        **results
    )
    return "\n".join([setting + (", compiled" if results["compile"] else ""), *lines])


def _each(results: Results) -> Iterator[tuple[tuple[str, str], Results]]:
    for name, methods in results["nets"].items():
        for method, result in methods.items():
            yield (name, method), result


def main(arguments: Sequence[str] | None = None) -> None:
    parser = options_parser("step", __doc__, rounds=20)
    parser.add_argument("--net", choices=[*NETS, "all"], default="all")
    parser.add_argument("--method", choices=[*BENCHED, "all"], nargs="+", default=["all"])
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--compile", action="store_true", help="compile both networks")
    parser.add_argument("--batch", type=int, default=0, help="images; 0 is each net's own")
    options = parser.parse_args(arguments)

    device, setting = prepare(options)
    dtype = torch.bfloat16 if options.dtype == "bf16" else None
    names = list(NETS) if options.net == "all" else [options.net]
    methods = list(BENCHED) if "all" in options.method else options.method

    def measured(name: str, method: str) -> Results:
        bench = Bench(name, device, dtype, options.compile, options.batch, method)
        return measure(bench, options.rounds)

    results = {
        **setting,
        "dtype": options.dtype,
        "compile": options.compile,
        "rounds": options.rounds,
        "nets": {name: {method: measured(name, method) for method in methods} for name in names},
    }
    print(json.dumps(results, indent=1) if options.json else table(results))


if __name__ == "__main__":
    main()
