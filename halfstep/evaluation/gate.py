"""The quality gate: halving goes on while it is worth it, and noise does not decide.

After every halving the student's Fréchet distance is compared with its teacher's at full steps, on the
same noise, with an interval.  Decisions are kept in RUN/gate.json, so that a resumed run keeps them.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from halfstep import storage
from halfstep.config.validate import is_valid, shown, validate
from halfstep.errors import ConfigError
from halfstep.evaluation.metrics.bootstrap import Interval
from halfstep.identity import digest_of
from halfstep.methods.base import student_name
from halfstep.training.gate_record import DecisionRecord, read_gate, Verdict

Measure = Callable[[Any, int], Interval]
"""The ratio of a student's distance over its teacher's at full steps, from so many samples."""


@dataclass(frozen=True)
class Decision:
    """What the gate found of one student."""

    stage: str
    steps: int
    ratio: Interval
    samples: int
    verdict: Verdict
    weights: str
    """sha256 of the student's: one that was trained further (`--extend`) is measured again."""

    @property
    def ends(self) -> bool:
        """Whether it may end a run: the first stage of a guided one has no steps of its own to halve."""
        return self.stage.endswith("-steps")

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "ratio": self.ratio.to_json()}

    @classmethod
    def from_json(cls, content: DecisionRecord) -> "Decision":
        made: dict[str, Any] = {**content, "ratio": Interval(**content["ratio"])}
        return cls(**made)


def decide(ratio: Interval, tolerance: float) -> Verdict:
    """passed or broken where the whole interval lies on one side of the tolerance."""
    if ratio.high <= tolerance:
        return "passed"
    return "broken" if ratio.low > tolerance else "undecided"


def refuse_strict(tolerance: float) -> None:
    """`ConfigError` for a tolerance that nobody could keep; 0 is no gate."""
    if not is_valid(tolerance, float) or not (tolerance == 0 or tolerance >= 1):
        raise ConfigError(
            f"a tolerance of {shown(tolerance)} asks a student to be better than its teacher: write 1 or "
            "more, such as 1.10"
        )


@dataclass
class Gate:
    """Asked after each halving whether to go on: a student -> bool, as `RunOptions.gate` wants it.

    measure    the ratio from n samples of a student
    tolerance  the largest ratio that is accepted: 1.10 is a tenth worse than the teacher
    file       where decisions are kept, such as RUN/gate.json; None keeps them in memory
    about      what the ratio was measured with (features, samples, seed); a file of another is refused
    until      never stop before a student of so many steps; 1 goes all the way and only reports
    samples    of the first look; each further look at an undecided student takes twice as many
    most       of the last look: then its value decides, and its verdict stays "undecided"
    tell       hears each decision in a sentence
    writes     whether this process writes the file: of several, the first
    full       steps at which a student without a grid of its own, a guided run's first stage, is looked
               at: once, for the record, since every later student is made from it
    """

    measure: Measure
    tolerance: float
    file: Path | None = None
    about: dict[str, Any] = field(default_factory=dict)
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
                f"the gate looks at {self.samples} samples first and at {self.most} at most: write a "
                "first number from 1 up to the last"
            )

    @property
    def identity(self) -> dict[str, Any]:
        """What its answers depend on, which all processes of a run compare."""
        names = ("tolerance", "until", "samples", "most", "full", "about")
        return {name: getattr(self, name) for name in names}

    def __call__(self, student: Any) -> bool:
        """Whether to go on.  A decision that is on file is kept, and not told again.

        A network that has neither a grid nor a guidance scale as an input is no student yet, such as a
        smaller teacher: it passes.
        """
        self.read()
        if not student.times and student.guidance_range is None:
            return True
        steps = min((len(times) - 1 for times in student.times), default=self.full)
        stage = student_name(steps) if student.times else "guided"
        weights = digest_of(student.denoiser)
        known = next((d for d in self.decisions if (d.stage, d.weights) == (stage, weights)), None)
        decision = known or self._decided(student, stage, steps, weights)
        if known is None:
            before = self.decisions if decision.ends else []
            self.decisions = [*(d for d in before if not d.ends or d.steps > steps), decision]
            self._write()
            self.tell(said(decision, self.tolerance))
        return self._goes_on(decision)

    @property
    def best(self) -> Decision | None:
        """The last student that passed, before the first that did not."""
        found = None
        for decision in self.decisions:
            if not decision.ends:
                continue
            if not within(decision, self.tolerance):
                break
            found = decision
        return found

    def to_json(self) -> dict[str, Any]:
        last = self.decisions[-1] if self.decisions else None
        ended = last is not None and not self._goes_on(last)
        return {
            "tolerance": self.tolerance,
            "until": self.until,
            "about": self.about,
            "stopped": f"Stopped at {said(last, self.tolerance)}." if last and ended else None,
            "best": self.best.stage if self.best else None,
            "decisions": [decision.to_json() for decision in self.decisions],
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
        """Take up what is on file; `ConfigError` where that was asked otherwise."""
        if self._open or self.file is None:
            return
        self._open = True
        if not self.file.exists():
            return
        content = read_gate(self.file)
        decisions = [Decision.from_json(one) for one in content["decisions"]]
        before = {"tolerance": content["tolerance"], **content["about"]}
        now = {"tolerance": self.tolerance, **self.about}
        for name in sorted(before.keys() | now.keys()):
            if (was := before.get(name)) != now.get(name):
                raise ConfigError(
                    f"this run's gate was asked with {name} {was} and now with {now.get(name)}: ask as "
                    f"before, or delete '{self.file}', and the gate measures every student again"
                )
        self.decisions = decisions

    def _write(self) -> None:
        if self.file is not None and self.writes:
            storage.write_json(self.file, self.to_json())


def within(decision: Decision, tolerance: float) -> bool:
    """Whether halving may go on: passed, or, where noise is left to the end, by the value alone."""
    if decision.verdict == "undecided":
        return decision.ratio.value <= tolerance
    return decision.verdict == "passed"


def said(decision: Decision, tolerance: float) -> str:
    """A decision in a sentence."""
    steps = f"{decision.steps} step{'s' if decision.steps > 1 else ''}"
    of = "" if decision.ends else f"{decision.stage}, "
    measured = f"{of}{steps}: {decision.ratio} times the teacher's distance at full steps"
    if decision.verdict == "passed":
        return f"{measured}, within {tolerance:.2f}"
    if decision.verdict == "broken":
        return f"{measured}, surely more than {tolerance:.2f}"
    side = "within" if within(decision, tolerance) else "more than"
    return (
        f"{measured}; {decision.samples:,} samples cannot tell it from {tolerance:.2f}, its value is "
        f"{side} it"
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
    """The fewest steps at which a teacher's own distance is still that of full steps (`--start auto`).

    ratio_at(steps, n)  the distance at so many steps over that at full steps, paired, from n samples
    full                steps, `stop` times a power of two
    slack               what counts as the same: the interval has to lie below it, whole

    Counts are tried from full / 2 downwards, as a halving would visit them.  One that n samples cannot
    tell gets twice as many, up to `most`; what stays undecided counts as different, for a start too high
    costs one halving and a start too low costs quality in all of them.
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
