"""`halfstep demo --data fashion-mnist`: draw with students that exist, and print their stored scores."""

from rich.console import Console

from halfstep.cli.console.demo_files import say_files
from halfstep.cli.console.next_command import say_next
from halfstep.cli.console.progress import counting, say
from halfstep.cli.console.run_lines import describe
from halfstep.cli.console.tables import print_demo, say_report
from halfstep.cli.console.verdicts import print_verdict
from halfstep.workflows.demo import DemoConfig
from halfstep.workflows.demo_images import prepare_images_demo


def demo_images(console: Console, config: DemoConfig) -> int:
    """Draw the pictures; print the stored table and the files."""
    demo = prepare_images_demo(config)
    counts = [str(student.step_counts[0]) for student in demo.students]
    say(console, "teacher", describe(demo.teacher))
    say(
        console,
        "students",
        f"of {', '.join(counts[:-1])} and {counts[-1]} steps, from the repository",
    )
    with counting(console, "drawing") as progress:
        out = demo.draw(progress=progress)
    print_demo(console, demo.report)
    made = demo.report.provenance
    say(console, "scores", f"measured on {made.date}, not now, by {made.command}")
    print_verdict(console, demo.report)
    say_report(console, out / "report.html")
    say_files(console, out)
    say_next(console, "sample", demo.folder / "0004-steps", "--out", "samples")
    return 0
