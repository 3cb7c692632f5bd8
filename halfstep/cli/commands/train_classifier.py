"""`halfstep train classifier`."""

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
from halfstep.evaluation.metrics.classification import Scores
from halfstep.models.classifiers.registry import classifier_recipe
from halfstep.workflows.train_classifier import prepare_classifier, TrainClassifierConfig


def main(argv: Sequence[str]) -> int:
    """Train a classifier; print its folder, and its accuracy on held-out data."""
    console = terminal()
    config = parse(TrainClassifierConfig, argv, prog="halfstep train classifier")
    folder, init = config.folder, config.classifier.init
    with reading(console, config.dataset.data) as progress:
        prepared = prepare_classifier(config, progress=progress)
    if folder.dry_run:
        return plan_only(console, config, prepared.run)
    net = prepared.net
    say(console, "network", f"{classifier_recipe(net)[0]}, {parameters_of(net)}")
    if init is not None:
        fresh = f"; afresh: {', '.join(prepared.fresh)}" if prepared.fresh else ""
        say(console, "starts", f"from {init}{fresh}")
    say(console, "data", describe_data(config.dataset, prepared.data))
    say(console, "updates", updates_on(config.method.updates, config.training, folder.device))
    with run_context(folder, config, console) as job:
        net = prepared.run(job)
    with counting(console, "scoring all images") as progress:
        scores = prepared.score(net, progress=progress)
    if prepared.held_out is None:
        say(console, "accuracy", f"{scores.accuracy.value:.1%} on what it was trained with")
    else:
        _print(console, scores, held_out_name(config.images))
    say(console, "at", folder.out / "stages" / "classifier")
    data = shlex.split(as_typed(config.dataset))
    words = "--teacher", folder.out, *data, "--net", "toy-student", "--out"
    say_next(console, "distill", "knowledge", *words, beside(folder.out, "student"))
    return 0


def _print(console: Console, scores: Scores, data: str) -> None:
    """The scores on held-out data."""
    accuracy = scores.accuracy
    interval = f"({100 * accuracy.low:.1f} to {100 * accuracy.high:.1f}, 95 %)"
    images = f"{data}, all {scores.rows:,} images, which it has not seen"
    say(console, "accuracy", f"{accuracy.value:.1%} {interval} on {images}")
    say(console, "surprise", f"{scores.nll:.3f} nats; calibration error {scores.calibration:.3f}")
