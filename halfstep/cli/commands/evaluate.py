"""`halfstep evaluate`: parse, evaluate, print."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from halfstep.cli.console.next_command import say_export
from halfstep.cli.console.progress import counting, terminal
from halfstep.cli.console.tables import print_report, say_report
from halfstep.cli.console.verdicts import print_verdict
from halfstep.cli.parse import parse
from halfstep.config.fields import POSITIONAL
from halfstep.config.validate import Place
from halfstep.errors import ConfigError
from halfstep.evaluation.report_data import AnyReport
from halfstep.evaluation.setups import Evaluation
from halfstep.progress import Progress
from halfstep.workflows import evaluate as workflow
from halfstep.workflows.evaluation_inputs import Against
from halfstep.workflows.locate import DiffusersOptions


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Evaluate a run's students: quality, fidelity, drift and cost, with intervals, on one page."""

    run: Annotated[tuple[Path, ...], POSITIONAL] = ()
    """The run's folder."""
    beside: tuple[Path, ...] = ()
    """Runs of the same teacher, such as its students of full size, for the table of sizes."""
    teacher: Place | None = None
    """The teacher's folder, file or name, if it was moved."""
    diffusers: DiffusersOptions = field(default_factory=DiffusersOptions)
    net: str | None = None
    """package.module:function, if the network is one of your own."""
    features: str = "auto"
    """auto, digits, efficientnet-lite0, squeezenet, classifier:FOLDER, inception:FILE or
    package.module:function."""
    data: str | None = None
    """The data, if not those of the run."""
    verify: bool = False
    """For latents: compare the checksums of all files first, not only of those written since."""
    held_out: str | None = None
    """Data that no network was trained on, to measure memorisation: of fashion-mnist:FOLDER and
    cifar10:FOLDER the test images. Encoders reconstruct them."""
    against: Against = "data"
    """Real images that Fréchet distance, KID, precision and recall of samples are measured to: those of the
    run, or held-out."""
    device: str = "auto"
    """auto, or one by name."""
    evaluation: Evaluation = field(default_factory=Evaluation)


def main(argv: Sequence[str]) -> int:
    """Evaluate a run and write report.json, report.npz and report.html."""
    console = terminal()
    options = parse(Evaluate, argv, prog="halfstep evaluate")
    if len(options.run) != 1:
        raise ConfigError(
            f"evaluate takes one run, got {len(options.run)}: write halfstep evaluate RUN, or "
            "halfstep compare --beside RUN_A RUN_B --out FOLDER"
        )
    [run] = options.run
    with counting(console, f"{options.evaluation.samples:,} samples a row") as progress:
        report = evaluated(options, progress)
    print_report(console, report)
    print_verdict(console, report)
    say_report(console, run / "report.html")
    say_export(console, run, net=options.net)
    return 0


def evaluated(options: Evaluate, progress: Progress) -> AnyReport:
    """Evaluate the run as the options say."""
    return workflow.evaluate(
        options.run[0],
        options.evaluation,
        data=options.data,
        teacher=options.teacher,
        diffusers=options.diffusers,
        features=options.features,
        held_out=options.held_out,
        against=options.against,
        beside=options.beside,
        net=options.net,
        verify=options.verify,
        device=options.device,
        progress=progress,
    )
