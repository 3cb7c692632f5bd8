"""`halfstep distill knowledge`."""

import shlex
from collections.abc import Sequence

from rich.console import Console

from halfstep.cli.console.next_command import beside, say_next
from halfstep.cli.console.progress import counting, reading, say, terminal
from halfstep.cli.console.run_lines import (
    as_typed,
    describe_data,
    held_out_name,
    parameters_of,
    run_context,
    updates_on,
)
from halfstep.cli.console.run_plan import plan_only
from halfstep.cli.parse import parse
from halfstep.evaluation.metrics.bootstrap import Interval
from halfstep.workflows.distill_classifier import (
    ClassifierComparison,
    DistillClassifierConfig,
    prepare_distillation,
)


def main(argv: Sequence[str]) -> int:
    """Distil a classifier; print its folder, and its accuracy and the teacher's."""
    console = terminal()
    config = parse(DistillClassifierConfig, argv, prog="halfstep distill knowledge")
    folder, networks = config.folder, config.networks
    with reading(console, config.dataset.data) as progress:
        prepared = prepare_distillation(config, progress=progress)
    if folder.dry_run:
        return plan_only(console, config, prepared.run)
    folders = ", ".join(map(str, networks.teacher))
    say(console, "teacher", f"{folders}: {parameters_of(prepared.teacher)}")
    say(console, "student", f"{networks.net}: {parameters_of(prepared.student)}")
    say(console, "data", describe_data(config.dataset, prepared.data))
    say(console, "learns", ", ".join(f"{t.name} {t.weight}" for t in prepared.method.live))
    say(console, "updates", updates_on(config.recipe.updates, config.training, folder.device))
    if prepared.uses_teacher:
        with counting(console, "asking the teacher") as progress:
            prepared.fill_cache(progress=progress)
    with run_context(folder, config, console) as job:
        student = prepared.run(job)
    say(console, "at", folder.out / "stages" / "student")
    if (comparison := prepared.compare(student)) is not None:
        _print(console, config, comparison)
    data = shlex.split(as_typed(config.dataset))
    say_next(console, "compress", folder.out, "--int8", *data, "--out", beside(folder.out, "int8"))
    return 0


def _print(
    console: Console, config: DistillClassifierConfig, comparison: ClassifierComparison
) -> None:
    """The accuracies of student and teacher, and how often they agree."""
    student, count = comparison.student, comparison.images
    images = "what it was trained with"
    if config.images.validate is not None:
        images = f"{held_out_name(config.images)}, which it has not seen"
    labelled = "" if student.rows == count else f" ({student.rows:,} of them with a label)"
    say(console, "on", f"{images}, all {count:,} images{labelled}; 95 % intervals")
    say(console, "student", f"{percent(student.accuracy)} right")
    say(console, "teacher", f"{percent(comparison.teacher.accuracy)} right")
    if student.agreement is not None:
        say(console, "agree", percent(student.agreement))


def percent(share: Interval) -> str:
    """89.2 % (88.6 to 89.8)."""
    return f"{share.value:.1%} ({100 * share.low:.1f} to {100 * share.high:.1f})".replace("%", " %")
