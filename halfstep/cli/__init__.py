"""The command line: one file a verb.  This one imports nothing heavy, so that help is fast."""

import errno
import os
import re
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from textwrap import wrap

from halfstep.cli.names import refuse_unknown
from halfstep.errors import HalfstepError, Stopped, unknown
from halfstep.version import __version__

VERBS: dict[str, tuple[str, dict[str, str]]] = {
    "demo": ("handwritten digits in 8, 4, 2 and 1 steps, with pictures and scores", {}),
    "train": (
        "train a network from data",
        {
            "denoiser": "a diffusion teacher",
            "classifier": "a classifier, for features and labels",
            "codec": "an autoencoder, for models of latents",
        },
    ),
    "distill": (
        "train a student that needs fewer steps, or a smaller one",
        {
            "progressive": "halve the steps, again and again (Salimans & Ho 2022)",
            "flow-map": "one student that is told where its step ends (Frans et al. 2024)",
            "multistep-consistency": "jump to the ends of segments (Heek et al. 2024)",
            "parallel-decoding": "one student of many steps or few, with a head for each (PDD 2026)",
            "cached-walks": "land where the teacher's trajectories land (Luhman & Luhman 2021)",
            "guided": "fold guidance into one call a step, then halve the steps (Meng et al. 2023)",
            "stochastic": "halve the steps of the stochastic sampler (Meng et al. 2023)",
            "encoder": "halve the steps from images to noise (Meng et al. 2023)",
            "shrink": "a network of fewer or narrower blocks",
            "plan": "shrink, fold guidance in and halve, in one run",
            "reparameterise": "turn an eps teacher into a v teacher, which can be halved",
            "knowledge": "distil a classifier into a smaller one (Hinton et al. 2015)",
        },
    ),
    "latents": ("encode images once, for a model of latents", {}),
    "sample": ("draw images from a teacher, a student or a published model", {}),
    "encode": ("encode images to noise, to decode or edit them", {}),
    "compare": (
        "compare methods at equal cost: which one for which number of steps",
        {"knowledge": "recipes of knowledge distillation, each beside a plain student"},
    ),
    "evaluate": ("evaluate a run's students: quality, fidelity, drift, cost, with intervals", {}),
    "report": ("write the report of a run, one page", {}),
    "play": ("open a page that draws teacher beside student: seed, class, steps, guidance", {}),
    "runs": ("list the runs in a folder: method, steps kept, ratio, state, time left", {}),
    "compress": (
        "quantise a student to int8 or prune it, and measure the loss",
        {},
    ),
    "grid": ("timesteps and sigmas of a diffusers folder in diffusers and ComfyUI", {}),
    "export": ("export one student, as a folder or a torch program", {}),
    "completion": ("print a script that completes commands in bash, zsh or tcsh", {}),
}

ALONE = ("compare",)
"""Verbs of several kinds that are commands without a kind, too."""
TOGETHER = ("train", "distill", "demo", "latents", "sample", "compare", "evaluate")
"""Verbs whose processes meet under a launcher."""
PAGES = Path(__file__).parent / "help"
"""The help page of each command, which `make pages` writes from the declared options."""
COMPLETION, SHELLS = Path(__file__).parent / "completion", ("bash", "zsh", "tcsh")
"""The completion script of each shell, which `make pages` writes from the declared options."""
HELP = """\
halfstep: how few steps can your diffusion model get away with, and what does it
cost?

usage: halfstep VERB [OPTIONS]

{verbs}

  halfstep VERB --help   the options of a verb
  halfstep --version     the version

First time here?  halfstep demo
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status.  An error that the user can mend is one line, status 2."""
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        with warnings.catch_warnings():
            # Pillow warns of pictures from 90 megapixels on, and refuses those of twice as many.
            warnings.filterwarnings("ignore", message="Image size .* decompression bomb")
            status = _dispatch(args)
        _print("")  # flushes the buffer
        return status
    except HalfstepError as error:
        _complain(error)
        _tell_others(args, str(error))
        return 2
    except Stopped as stopped:
        _complain(stopped)
        cause = stopped.__cause__
        return _unread(cause) if isinstance(cause, BrokenPipeError) else 130
    except BrokenPipeError as error:
        return _unread(error)
    except KeyboardInterrupt:
        _complain("stopped at once; what was saved before is untouched")
        _tell_others(args, "it was stopped at once")
        return 130
    except (Exception, SystemExit) as error:  # a bug
        _tell_others(args, f"{type(error).__name__}: {error}")
        raise


def _tell_others(args: list[str], reason: str) -> None:
    """Tell the other processes of a run why this one ends; they would wait for it."""
    if args[:1] and args[0] in TOGETHER and "WORLD_SIZE" in os.environ:
        from halfstep.training.peers import tell

        tell(reason)


def _print(text: str) -> None:
    """Print without a buffer; `BrokenPipeError` if the output is closed."""
    try:
        print(text, end="", flush=True)
    except OSError as error:
        raise BrokenPipeError(error.errno, error.strerror) from None


def _complain(text: object) -> None:
    """Print one line on stderr, if that is open."""
    with suppress(OSError):
        print(f"halfstep: {text}", file=sys.stderr, flush=True)


def _unread(error: BrokenPipeError) -> int:
    """The exit status of a command whose output is closed, as by `| head`, or whose disk is full."""
    with suppress(OSError, ValueError, TypeError):  # Python flushes the buffer as it ends
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
    verb, *words = args
    if verb not in VERBS:
        raise unknown("verb", verb, VERBS)
    command, kinds = verb, VERBS[verb][1]
    if kinds and not _is_alone(verb, words):
        if not words or words[0] in ("-h", "--help"):
            _print(f"usage: halfstep {verb} KIND [OPTIONS]\n\n{_kinds(kinds)}\n")
            return 0
        if words[0] not in kinds and not (verb == "distill" and _is_method(words[0])):
            raise unknown(f"'halfstep {verb}' called", words[0], kinds)
        command, words = f"{verb} {words[0]}", words[1:]
    if (page := PAGES / f"{command.replace(' ', '-')}.txt").exists():
        text = page.read_text(encoding="utf-8")
        if {"-h", "--help"} & set(words):
            _print(text)
            return 0
        names = re.findall(r"^  --([a-z0-9-]+)", text, re.MULTILINE)
        refuse_unknown(names, words, f"halfstep {command}")
    _set_threads(at_most=1 if verb == "demo" else None)
    if "WORLD_SIZE" in os.environ:  # torch would log the loss of a process as a C++ trace
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    return _run(command, words)


def _is_alone(verb: str, words: list[str]) -> bool:
    """Whether a verb of several kinds is called without one: options follow at once."""
    return verb in ALONE and not (words and not words[0].startswith("-"))


def _is_method(name: str) -> bool:
    """Whether a method of this name is registered; it may have no help page."""
    _set_threads(at_most=None)  # before torch is imported
    from halfstep.methods import METHODS

    return name in METHODS


def _run(command: str, words: list[str]) -> int:
    """Import the command's module, and with it torch, and run it."""
    _say_what_begins(command)
    verb, _, kind = command.partition(" ")
    is_method = verb == "distill" and kind != "knowledge"
    name = verb if is_method else MODULES.get(command, command.replace(" ", "_"))
    main = import_module(f"halfstep.cli.commands.{name}").main
    status: int = main(kind, words) if is_method else main(words)
    return status


def _say_what_begins(command: str) -> None:
    """Tell a user at a terminal what is done, before torch is imported, which takes seconds."""
    quick = command == "completion" or "torch" in sys.modules or os.environ.get("RANK", "0") != "0"
    if not quick and sys.stderr is not None and sys.stderr.isatty():
        with suppress(OSError):
            print(f"halfstep {command}: importing torch", file=sys.stderr, flush=True)


MODULES = {"distill knowledge": "distill_classifier"}
"""Modules of halfstep.cli.commands whose names differ from their commands'."""


def _set_threads(at_most: int | None) -> None:
    """Let OpenMP threads sleep while they wait: spinning can take 30 times as long on a shared CPU (LOG.md).

    MKL rounds alike wherever numbers lie: weights that were saved and loaded give the same bits.
    torch reads these variables once, when it is imported; variables set by hand stay.

    at_most  number of threads: the demo's small network is faster with one
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
    if "OMP_NUM_THREADS" not in os.environ:
        import psutil

        physical = psutil.cpu_count(logical=False) or 1
        allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else physical
        os.environ["OMP_NUM_THREADS"] = str(max(1, min(physical, allowed, at_most or physical)))


def _listing() -> str:
    lines = []
    for verb, (does, kinds) in VERBS.items():
        lines += _entry(f"  {verb:<10}", does)
        lines += [
            line for kind, text in kinds.items() for line in _entry(f"    {verb} {kind:<15}", text)
        ]
    return "\n".join(lines)


def _kinds(kinds: dict[str, str]) -> str:
    return "\n".join(line for kind, text in kinds.items() for line in _entry(f"  {kind:<16}", text))


def _entry(name: str, text: str) -> list[str]:
    """A name and its text, in lines of 80 columns."""
    return wrap(text, 80, initial_indent=f"{name} ", subsequent_indent=" " * (len(name) + 1))
