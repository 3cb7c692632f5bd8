"""`halfstep play RUN`: a page to play with teacher and students."""

from collections.abc import Sequence
from pathlib import Path

from halfstep.cli.console.next_command import say_export, say_next
from halfstep.cli.console.progress import say, terminal
from halfstep.cli.parse import parse
from halfstep.workflows.play import load_networks, PlayConfig
from halfstep.workflows.play_app import build_app, serve


def main(argv: Sequence[str]) -> int:
    """Read the networks, print the page's address and serve it until Ctrl-C."""
    console = terminal()
    config = parse(PlayConfig, argv, prog="halfstep play")
    networks = load_networks(config)
    app = build_app(networks)
    say(console, "teacher", f"{networks.full} steps")
    say(console, "students", f"{', '.join(map(str, networks.students))} steps")
    url = serve(app, config, block=False)
    say(console, "page", url)
    say(console, "stop", "Ctrl-C")
    if config.run is None:
        say_next(console, "demo")
    else:
        say_export(console, Path(config.run), net=config.net)
    try:
        app.block_thread()
    finally:
        app.close(verbose=False)
    return 0
