"""`halfstep demo --guided`: one student for every guidance scale, against the guided teacher."""

from rich.console import Console

from halfstep.cli.console.next_command import say_next
from halfstep.cli.console.progress import Bars, counting, say
from halfstep.cli.console.run_lines import describe, updates_on
from halfstep.cli.console.tables import print_guided, say_report
from halfstep.cli.console.verdicts import print_verdict
from halfstep.methods.stages import cost_after
from halfstep.workflows.demo import DemoConfig
from halfstep.workflows.demo_guided import prepare_guided_demo


def demo_guided(console: Console, config: DemoConfig) -> int:
    """Evaluate the students at every scale; print the table and the files."""
    demo = prepare_guided_demo(config)
    plan, batch = demo.plan, demo.preset.training.batch_size
    say(console, "teacher", f"{describe(demo.teacher)}; guided, so two calls a step")
    say(console, "data", f"{len(demo.data):,} handwritten digits of 8 x 8")
    say(console, "plan", demo.method.summary())
    if config.from_scratch:
        updates = sum(stage.updates for stage in plan)
        say(console, "updates", updates_on(updates, demo.preset.training, config.device))
    else:
        say(console, "students", "those that come with halfstep; --from-scratch distils them")
    with Bars(console, cost_after=lambda stage: cost_after(plan, stage.name, batch)) as bars:
        students = demo.students(callback=bars)
    with counting(console, f"evaluating, {demo.evaluation.samples:,} samples a row") as progress:
        report = demo.evaluate(students, progress=progress)
    assert report.guided is not None
    print_guided(console, report.guided)
    print_verdict(console, report)
    say(console, "slider", config.folder / "slider.html")
    say_report(console, config.folder / "report.html")
    say(console, "numbers", config.folder / "results.json")
    words = "--data", "FOLDER", "--size", 32, "--labels", "--drop-labels", 0.1
    say_next(console, "train", "denoiser", *words, "--out", "TEACHER")
    return 0
