"""What an update of progressive distillation costs when networks are compiled or compute in bfloat16.

    python -m benchmarks.precision [--threads N] [--rounds N] [--batch N] [--json]

The digits' network halves its steps; every setup takes the same turns in one process.  A whole
update is the teacher's calls, the student's forward and backward, and the rest: what the objective computes
around them, gradient clip, optimiser and average.  Each is shown as a share of the whole update in float32
that is not compiled, and `pays after` is the number of updates after which the first one is made up for,
in which networks are compiled (in that of `compiled student` the compiler starts, too).
"""

import json
import statistics
import time
from collections.abc import Sequence

import torch
import torch._inductor.config

from benchmarks.step_bench import Bench
from benchmarks.timing import options_parser, prepare, Results

SETUPS = {
    "float32": ("", ""),
    "compiled student": ("student", ""),
    "compiled": ("both", ""),
    "bf16 teacher": ("", "teacher"),
    "bf16": ("", "both"),
    "compiled, bf16": ("both", "both"),
}
"""Which networks are compiled, and which compute in bfloat16."""
PARTS = ("teacher", "student", "whole_update")


class Setup:
    """An update in one of the setups.

    Args:
        name: one of `SETUPS`.
        device: of networks and data.
        batch: samples; 0 is the network's own number.
    """

    def __init__(self, name: str, device: torch.device, batch: int):
        self.name = name
        compiled, self.half = SETUPS[name]
        self.bench = Bench("uvit", device, torch.bfloat16 if self.half else None, False, batch)
        if self.half == "teacher":
            self.bench.student.autocast = None  # type: ignore[assignment]
        nets = [call.net for call in self.bench.calls if compiled == "both" or call.backward]
        for net in dict.fromkeys(nets) if compiled else ():
            net.compile()
        began = time.perf_counter()
        self.bench.whole_update()
        self.first = time.perf_counter() - began

    def teacher(self) -> None:
        """The calls without a gradient."""
        with torch.autocast(self.bench.device.type, torch.bfloat16, enabled=self.half != ""):
            for call in self.bench.calls:
                if not call.backward:
                    call()

    def student(self) -> None:
        """The forward and backward of the student."""
        for call in self.bench.calls:
            if call.backward:
                on = self.half == "both"
                with torch.autocast(self.bench.device.type, torch.bfloat16, enabled=on):
                    out = call()
                out.square().mean().backward()

    def seconds(self, part: str) -> float:
        """Seconds of one of `PARTS`."""
        return self.bench.seconds(getattr(self.bench if part == "whole_update" else self, part))


def measure(setups: Sequence[Setup], rounds: int) -> Results:
    """Milliseconds of the first setup's whole update, and the shares of it that all parts take."""
    for setup in setups:
        for part in PARTS:
            setup.seconds(part)
    turns = list[dict[tuple[str, str], float]]()
    for k in range(rounds):
        order = setups if k % 2 else setups[::-1]
        turns.append({(setup.name, part): setup.seconds(part) for setup in order for part in PARTS})
    whole = setups[0].name, "whole_update"
    plain = statistics.median(turn[whole] for turn in turns)

    def row(setup: Setup) -> dict[str, float | None]:
        shares = {
            part: statistics.median(turn[setup.name, part] / turn[whole] for turn in turns)
            for part in PARTS
        }
        saved = plain * (1 - shares["whole_update"])
        return shares | {
            "rest": shares["whole_update"] - shares["teacher"] - shares["student"],
            "first_s": setup.first,
            "pays_after": setup.first / saved if saved > 0 else None,
        }

    return {"float32_ms": 1000 * plain, "setups": {setup.name: row(setup) for setup in setups}}


def table(results: Results) -> str:
    """The results as a small table."""
    lines = [
        "{device}, {threads} threads, torch {torch}, batch {batch}, {rounds} rounds; "
        "1 is {float32_ms:.1f} ms".format(**results),
        f"{'':<18}{'teacher':>9}{'student':>9}{'rest':>9}{'whole':>9}{'first':>10}   pays after",
    ]
    for name, row in results["setups"].items():
        shares = "".join(
            f"{row[key]:>9.2f}" for key in ("teacher", "student", "rest", "whole_update")
        )
        pays = "never" if row["pays_after"] is None else f"{row['pays_after']:,.0f} updates"
        lines.append(f"{name:<18}{shares}{row['first_s']:>8.1f} s   {pays}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = options_parser("precision", __doc__, rounds=15)
    parser.add_argument("--batch", type=int, default=64, help="samples in a batch")
    options = parser.parse_args(arguments)
    device, setting = prepare(options)
    # A run on a fresh machine finds nothing compiled before.
    torch._inductor.config.force_disable_caches = True
    setups = [Setup(name, device, options.batch) for name in SETUPS]
    about = {**setting, "batch": options.batch, "rounds": options.rounds}
    results = about | measure(setups, options.rounds)
    print(json.dumps(results, indent=1) if options.json else table(results))


if __name__ == "__main__":
    main()
