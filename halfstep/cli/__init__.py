"""The command line: one file a verb.  This one imports nothing heavy, so that help comes at once."""

import errno
import os
import re
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path

from halfstep.cli.names import refuse_unknown
from halfstep.errors import HalfstepError, Stopped, unknown
from halfstep.version import __version__

VERBS: dict[str, tuple[str, dict[str, str]]] = {
    "demo": ("handwritten digits from 32 steps to 1, with pictures and scores", {}),
    "train": (
        "train a network from data",
        {
            "denoiser": "a diffusion teacher",
            "classifier": "a classifier, for features and labels",
            "codec": "an autoencoder, for models of latents",
        },
    ),
    "distill": (
        "make a student that needs fewer steps, or fewer weights",
        {
            "progressive": "halve the steps, again and again (Salimans & Ho 2022)",
            "guided": "one call where guidance takes two, then halve the steps (Meng et al. 2023)",
            "stochastic": "the same for the sampler that noises back (Meng et al. 2023)",
            "encoder": "the same towards noise, to encode images (Meng et al. 2023)",
            "shrink": "a smaller network: fewer blocks, or narrower ones",
            "plan": "all of it in one run: shrink, guide, halve",
            "reparameterise": "turn an eps teacher into a v teacher, which can be halved",
            "knowledge": "a small classifier that answers as a large one (Hinton et al. 2015)",
        },
    ),
    "latents": ("encode images once, for a model of latents", {}),
    "sample": ("draw images from a teacher, a student or a published model", {}),
    "encode": ("turn images into noise, which a model turns back: to edit them", {}),
    "evaluate": ("judge a run's students: quality, fidelity, drift, cost, with intervals", {}),
    "report": ("the evidence of a run on one page", {}),
    "compress": (
        "students in int8, or without their smallest weights, and what that costs them",
        {},
    ),
    "export": ("a student alone in a folder, or as a program of torch", {}),
}

PAGES = Path(__file__).parent / "help"
"""The page of help of each command, which `make pages` writes from the declared options."""
HELP = """\
halfstep: how few steps can your diffusion model get away with, and what does it cost?

usage: halfstep VERB [OPTIONS]

{verbs}

  halfstep VERB --help   the options of a verb
  halfstep --version     the version

First time here?  halfstep demo
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status.  What the user can mend is one line and status 2."""
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        with warnings.catch_warnings():
            # Pillow's, of pictures from 90 megapixels on; it refuses those of twice as many.
            warnings.filterwarnings("ignore", message="Image size .* decompression bomb")
            status = _dispatch(args)
        _print("")  # what is left in the buffer
        return status
    except HalfstepError as error:
        _complain(error)
        _tell_others(args, str(error))
        return 2
    except Stopped as stopped:
        _complain(stopped)
        left = stopped.__cause__
        return _unread(left) if isinstance(left, BrokenPipeError) else 130
    except BrokenPipeError as error:
        return _unread(error)
    except KeyboardInterrupt:
        _complain("stopped at once; what was saved before is untouched")
        _tell_others(args, "it was stopped at once")
        return 130
    except (Exception, SystemExit) as left:  # a fault of ours, or help was asked for
        _tell_others(args, f"{type(left).__name__}: {left}")
        raise


def _tell_others(args: list[str], said: str) -> None:
    """Of several processes of a run the others would wait for one that refuses."""
    if args[:1] in (["train"], ["distill"], ["demo"]) and "WORLD_SIZE" in os.environ:
        from halfstep.training.peers import tell

        tell(said)


def _print(text: str) -> None:
    """Print where it goes at once; `BrokenPipeError` where nobody takes it."""
    try:
        print(text, end="", flush=True)
    except OSError as error:
        raise BrokenPipeError(error.errno, error.strerror) from None


def _complain(text: object) -> None:
    """One line on stderr, where somebody reads that."""
    with suppress(OSError):
        print(f"halfstep: {text}", file=sys.stderr, flush=True)


def _unread(error: BrokenPipeError) -> int:
    """The status of a command whose output nobody takes: it was read enough, or has no room."""
    with suppress(
        OSError, ValueError, TypeError
    ):  # what is left in the buffer goes nowhere as we end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        _complain(f"cannot write what it prints: {error.strerror}")
        return 2
    return 141


def _dispatch(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help", "help"):
        _print(HELP.format(verbs=_listing()) + "\n")
        return 0
    if args[0] in ("-V", "--version"):
        _print(f"halfstep {__version__}\n")
        return 0
    verb, rest = args[0], args[1:]
    if verb not in VERBS:
        raise unknown("verb", verb, VERBS)
    command, kinds = verb, VERBS[verb][1]
    if kinds:
        if not rest or rest[0] in ("-h", "--help"):
            _print(f"usage: halfstep {verb} KIND [OPTIONS]\n\n{_kinds(kinds)}\n")
            return 0
        if rest[0] not in kinds and not (verb == "distill" and _is_method(rest[0])):
            raise unknown(f"'halfstep {verb}' called", rest[0], kinds)
        command, rest = f"{verb} {rest[0]}", rest[1:]
    if (page := PAGES / f"{command.replace(' ', '-')}.txt").exists():
        text = page.read_text(encoding="utf-8")
        if {"-h", "--help"} & set(rest):
            _print(text)
            return 0
        known = re.findall(r"^  --([a-z0-9-]+)", text, re.MULTILINE)
        refuse_unknown(known, rest, f"halfstep {command}")
    _quiet_threads(at_most=1 if verb == "demo" else None)
    if "WORLD_SIZE" in os.environ:  # we say in a sentence that a process is gone, torch in C++
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    return _run(command, rest)


def _is_method(name: str) -> bool:
    """Whether a method of this name is registered, which a page of help need not list."""
    _quiet_threads(at_most=None)  # before torch is imported
    from halfstep.methods import METHODS

    return name in METHODS


def _run(command: str, rest: list[str]) -> int:
    """Import the command's module, and with it torch, only now."""
    verb, _, kind = command.partition(" ")
    is_method = verb == "distill" and kind != "knowledge"
    name = verb if is_method else MODULES.get(command, command.replace(" ", "_"))
    main = import_module(f"halfstep.cli.commands.{name}").main
    status: int = main(kind, rest) if is_method else main(rest)
    return status


MODULES = {"distill knowledge": "distill_classifier"}
"""The modules of halfstep.cli.commands that are not called as their command."""


def _quiet_threads(at_most: int | None) -> None:
    """OpenMP threads that wait by spinning cost up to 30 times on a shared CPU (see LOG.md).

    Read once, when torch is imported; what is set by hand stays.

    at_most  threads a network can use: for the demo's small one a second thread costs more than it does
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if "OMP_NUM_THREADS" not in os.environ:
        import psutil

        physical = psutil.cpu_count(logical=False) or 1
        allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else physical
        os.environ["OMP_NUM_THREADS"] = str(max(1, min(physical, allowed, at_most or physical)))


def _listing() -> str:
    lines = []
    for verb, (does, kinds) in VERBS.items():
        lines.append(f"  {verb:<9} {does}")
        lines += [f"    {verb} {kind:<15} {what}" for kind, what in kinds.items()]
    return "\n".join(lines)


def _kinds(kinds: dict[str, str]) -> str:
    return "\n".join(f"  {kind:<15} {what}" for kind, what in kinds.items())
