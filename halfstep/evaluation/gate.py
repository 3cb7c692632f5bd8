"""The quality gate: stop halving when a student is surely worse than its teacher.

After every halving the student's Fréchet distance is compared with its teacher's at full steps, on the
same noise, with an interval.  RUN/gate.json stores the decisions, so a resumed run keeps them.  A student
that serves several numbers of steps is compared at each of them, which ends no run.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

from halfstep import storage
from halfstep.config import JsonObject
from halfstep.config.validate import is_valid, shown, validate
from halfstep.errors import ConfigError
from halfstep.evaluation.metrics.bootstrap import Interval
from halfstep.identity import digest_of
from halfstep.methods.stages import student_name
from halfstep.schema import build, plain
from halfstep.training.gate_record import GateRecord, read_gate, Verdict

GUIDED = "guided"
"""The first stage of a guided run, whose student has no grid."""
Measure = Callable[[Any, int], Interval]
"""The ratio of a student's distance over its teacher's at full steps, from so many samples."""


@dataclass(frozen=True)
class Decision:
    """The gate's measurement of one student, and its verdict."""

    stage: str
    steps: int
    ratio: Interval
    samples: int
    verdict: Verdict
    weights: str
    """sha256 of the student's weights: a student trained further (`--extend`) is measured again."""

    @property
    def ends(self) -> bool:
        """Whether it may end a run: neither a guided run's first stage nor a student of several grids may."""
        return self.stage.endswith("-steps")


def decide(ratio: Interval, tolerance: float) -> Verdict:
    """The verdict: passed or broken if the whole interval lies on one side of the tolerance."""
    if ratio.high <= tolerance:
        return "passed"
    return "broken" if ratio.low > tolerance else "undecided"


def refuse_strict(tolerance: float) -> None:
    """Raise `ConfigError` for a tolerance below 1, which asks for a student better than its teacher.

    0 means no gate and passes.
    """
    if not is_valid(tolerance, float) or not (tolerance == 0 or tolerance >= 1):
        raise ConfigError(
            f"a tolerance of {shown(tolerance)} asks a student to be better than its teacher: write 1 or "
            "more, such as 1.10"
        )


@dataclass
class Gate:
    """Decide after each halving whether to go on: a function student -> bool for `RunOptions.gate`.

    A student of several grids is measured on each, and the run goes on.

    measure    function (student, n) that returns the ratio measured from n samples
    tolerance  the largest ratio that passes: 1.10 is a tenth worse than the teacher
    file       stores the decisions, such as RUN/gate.json; None keeps them in memory
    about      settings of the measurement (features, samples, seed); a file with others is refused
    until      never stop before a student of so many steps; 1 never stops and only reports
    samples    number of samples of the first measurement; an undecided one is repeated with twice as many
    most       largest number of samples: then the value decides, and the verdict stays "undecided"
    tell       called with each decision as a sentence
    writes     whether this process writes the file: the first of several does
    full       steps at which to measure a student without a grid, the first stage of a guided run: once,
               for the record, since every later student is made from it
    """

    measure: Measure
    tolerance: float
    file: Path | None = None
    about: JsonObject = field(default_factory=dict)
    until: int | None = None
    samples: int = 2000
    most: int = 16_000
    tell: Callable[[str], object] = str
    writes: bool = True
    full: int = 0
    decisions: list[Decision] = field(default_factory=list, init=False)
    _open: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        if self.tolerance == 0:
            raise ConfigError("a tolerance of 0 is no gate: write 1 or more, such as 1.10")
        refuse_strict(self.tolerance)
        if self.until is not None and validate("until", self.until, int) < 1:
            raise ConfigError(
                f"a student takes at least 1 step, got until={self.until}: write until=1"
            )
        if not 0 < validate("samples", self.samples, int) <= self.most:
            raise ConfigError(
                f"the gate takes {self.samples} samples first and {self.most} at most: write samples from "
                "1 up to most"
            )

    @property
    def identity(self) -> JsonObject:
        """All settings that decide its answers; the processes of a run compare them."""
        names = ("tolerance", "until", "samples", "most", "full", "about")
        return {name: getattr(self, name) for name in names}

    def __call__(self, student: Any) -> bool:
        """Whether to go on.  A recorded decision is kept, and not told again.

        A network with neither a grid nor a guidance scale as an input passes: it is not a student yet,
        but for example a smaller teacher.
        """
        self.read()
        if not student.times and student.guidance_range is None:
            return True
        weights, before = digest_of(student.denoiser), self.decisions
        decisions = [self._decision(one, weights) for one in student.at_each_count]
        if len(decisions) > 1 and self.decisions is not before:
            self.tell(which_pass(decisions, self.tolerance))
        return self._goes_on(decisions[-1])

    def _decision(self, student: Any, weights: str) -> Decision:
        """The decision on a student of one number of steps: as recorded, or measured, written and told."""
        steps = min(student.step_counts, default=self.full)
        stage = stage_of(student)
        for decision in self.decisions:
            if (decision.stage, decision.steps, decision.weights) == (stage, steps, weights):
                return decision
        decision = self._decided(student, stage, steps, weights)
        self.decisions = [*(d for d in self.decisions if not _replaces(decision, d)), decision]
        self._write()
        self.tell(describe(decision, self.tolerance))
        return decision

    @property
    def best(self) -> Decision | None:
        """The last student that passed before the first that failed; of several grids the fewest steps."""
        halvings = [d for d in self.decisions if d.ends]
        passed = list(takewhile(lambda d: within(d, self.tolerance), halvings))
        several = [d for d in self.decisions if not d.ends and d.stage != GUIDED]
        passed += [d for d in several if within(d, self.tolerance)]
        return min(passed, key=lambda d: d.steps, default=None)

    def to_json(self) -> GateRecord:
        """The content of RUN/gate.json."""
        last = self.decisions[-1] if self.decisions else None
        ended = last is not None and not self._goes_on(last)
        return {
            "tolerance": self.tolerance,
            "until": self.until,
            "about": self.about,
            "stopped": f"Stopped at {describe(last, self.tolerance)}." if last and ended else None,
            "best": self.best.stage if self.best else None,
            "best_steps": self.best.steps if self.best else None,
            "decisions": [plain(decision) for decision in self.decisions],
        }

    def _decided(self, student: Any, stage: str, steps: int, weights: str) -> Decision:
        samples, most = self.samples, self.most if student.times else self.samples
        while True:
            ratio = self.measure(student, samples)
            verdict = decide(ratio, self.tolerance)
            if verdict != "undecided" or samples == most:
                return Decision(stage, steps, ratio, samples, verdict, weights)
            samples = min(2 * samples, self.most)

    def _goes_on(self, decision: Decision) -> bool:
        early = self.until is not None and decision.steps > self.until
        return not decision.ends or early or self.until == 1 or within(decision, self.tolerance)

    def read(self) -> None:
        """Read the decisions in the file; `ConfigError` if they were measured with other settings."""
        if self._open or self.file is None:
            return
        self._open = True
        if not self.file.exists():
            return
        content = read_gate(self.file)
        decisions = [build(decision, Decision) for decision in content["decisions"]]
        before = {"tolerance": content["tolerance"], **content["about"]}
        now = {"tolerance": self.tolerance, **self.about}
        for name in sorted(before.keys() | now.keys()):
            if (was := before.get(name)) != now.get(name):
                raise ConfigError(
                    f"this run's gate measured with {name} {was} and now with {now.get(name)}: write the "
                    f"same, or delete '{self.file}', and the gate measures every student again"
                )
        self.decisions = decisions

    def _write(self) -> None:
        if self.file is not None and self.writes:
            storage.write_json(self.file, self.to_json())


def stage_of(student: Any) -> str:
    """The stage of a student, by which its folder is named."""
    if student.fine_times:
        return str(student.sampler)
    return student_name(min(student.step_counts)) if student.times else GUIDED


def _replaces(new: Decision, old: Decision) -> bool:
    """Whether the older decision falls: on the same student, or on one that was made from it."""
    if new.stage == GUIDED:
        return True
    return old.ends == new.ends and old.steps <= new.steps


def which_pass(decisions: Sequence[Decision], tolerance: float) -> str:
    """The numbers of steps at which a student passes, and those at which it does not, in a sentence."""
    passed = [d.steps for d in decisions if within(d, tolerance)]
    failed = [d.steps for d in decisions if not within(d, tolerance)]
    if not failed:
        return f"all of {_listed(passed)} pass"
    if not passed:
        return f"none of {_listed(failed)} passes"
    ends = "passes" if passed == [1] else "pass", "does" if failed == [1] else "do"
    return f"{_listed(passed)} {ends[0]}, {_listed(failed)} {ends[1]} not"


def _listed(counts: Sequence[int]) -> str:
    *first, last = map(str, counts)
    joined = f"{', '.join(first)} and {last}" if first else last
    return f"{joined} step{'s' if counts != [1] else ''}"


def within(decision: Decision, tolerance: float) -> bool:
    """Whether halving may go on: the verdict, or the value alone if it stayed undecided."""
    if decision.verdict == "undecided":
        return decision.ratio.value <= tolerance
    return decision.verdict == "passed"


def describe(decision: Decision, tolerance: float) -> str:
    """A decision as a sentence."""
    steps = f"{decision.steps} step{'s' if decision.steps > 1 else ''}"
    stage = "" if decision.ends else f"{decision.stage}, "
    measured = f"{stage}{steps}: {decision.ratio} times the teacher's distance at full steps"
    if decision.verdict == "passed":
        return f"{measured}, within {tolerance:.2f}"
    if decision.verdict == "broken":
        return f"{measured}, surely more than {tolerance:.2f}"
    side = "within" if within(decision, tolerance) else "more than"
    return (
        f"{measured}; still undecided with {decision.samples:,} samples, the value decides: {side} "
        f"{tolerance:.2f}"
    )


def fewest_steps(
    ratio_at: Callable[[int, int], Interval],
    full: int,
    *,
    stop: int = 1,
    samples: int = 2000,
    most: int = 16_000,
    slack: float = 1.02,
) -> int:
    """The fewest steps at which a teacher is as good as at full steps (`--start auto`).

    ratio_at(steps, n)  the distance at so many steps over that at full steps, paired, from n samples
    full                steps, `stop` times a power of two
    slack               the largest ratio that counts as equal: the whole interval has to lie below it

    Step counts are tried from full / 2 downwards, as halving visits them.  An undecided one is measured
    again with twice as many samples, up to `most`; if it stays undecided it counts as different, because a
    start too high costs one halving and a start too low costs quality in all of them.
    """
    fewest = full
    while fewest % 2 == 0 and fewest // 2 >= 2 * stop:
        n = samples
        verdict = decide(ratio_at(fewest // 2, n), slack)
        while verdict == "undecided" and n < most:
            n = min(2 * n, most)
            verdict = decide(ratio_at(fewest // 2, n), slack)
        if verdict != "passed":
            break
        fewest //= 2
    return fewest
