"""`halfstep demo`: distil handwritten digits, with pictures and scores."""

from collections.abc import Sequence

from halfstep.cli.commands.demo_guided import demo_guided
from halfstep.cli.console.next_command import say_next
from halfstep.cli.console.progress import Bars, counting, say, terminal
from halfstep.cli.console.run_lines import describe, updates_on
from halfstep.cli.console.tables import print_demo, say_report
from halfstep.cli.console.verdicts import print_verdict
from halfstep.cli.parse import parse
from halfstep.methods.stages import cost_after
from halfstep.workflows.demo import DemoConfig, prepare_demo


def main(argv: Sequence[str]) -> int:
    """Run the demo; print the table and the files."""
    console = terminal()
    config = parse(DemoConfig, argv, prog="halfstep demo")
    if config.guided:
        return demo_guided(console, config)
    with Bars(console) as bars:
        demo = prepare_demo(config, callback=bars)
    plan, training = demo.plan, demo.preset.training
    say(console, "teacher", describe(demo.teacher))
    say(console, "data", f"{len(demo.data):,} handwritten digits of 8 x 8")
    say(console, "plan", demo.preset.method.summary())
    updates = sum(stage.updates for stage in plan)
    say(console, "updates", updates_on(updates, training, config.device))
    with Bars(
        console, cost_after=lambda stage: cost_after(plan, stage.name, training.batch_size)
    ) as bars:
        students, rows = demo.distill(callback=bars)
    with counting(console, f"evaluating, {config.samples:,} samples a row") as progress:
        report = demo.evaluate(students, rows, progress=progress)
    print_demo(console, report)
    print_verdict(console, report)
    say_report(console, config.folder / "report.html")
    for label, name in (
        ("pictures", "samples.png"),
        ("", "quality.png"),
        ("numbers", "results.json"),
    ):
        if (config.folder / name).exists():
            say(console, label, config.folder / name)
    say_next(console, "train", "denoiser", "--data", "FOLDER", "--size", 32, "--out", "TEACHER")
    return 0
