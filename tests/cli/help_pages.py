"""The pages of help, written anew from the declared options: `make pages`.

`halfstep VERB --help` prints a file, so that it imports neither torch nor the options of a method.
"""

import ast
import inspect
import re
import textwrap
import typing
from dataclasses import is_dataclass, MISSING
from functools import cache
from itertools import pairwise
from pathlib import Path

from halfstep.cli import PAGES
from halfstep.cli.commands.completion import CompletionOptions
from halfstep.cli.commands.distill import options_for
from halfstep.cli.commands.evaluate import Evaluate
from halfstep.cli.commands.grid import GridOptions
from halfstep.cli.commands.report import Report
from halfstep.cli.commands.runs import RunsOptions
from halfstep.config.fields import all_options, arity
from halfstep.config.preset_files import preset_names
from halfstep.methods import METHODS
from halfstep.workflows.compare_classifiers import CompareClassifiersConfig
from halfstep.workflows.compare_config import CompareConfig
from halfstep.workflows.compress import CompressConfig
from halfstep.workflows.demo import DemoConfig
from halfstep.workflows.distill_classifier import DistillClassifierConfig
from halfstep.workflows.encode import EncodeConfig
from halfstep.workflows.exported import ExportConfig
from halfstep.workflows.latents import LatentsConfig
from halfstep.workflows.play import PlayConfig
from halfstep.workflows.sample import SampleConfig
from halfstep.workflows.train_classifier import TrainClassifierConfig
from halfstep.workflows.train_codec import TrainCodecConfig
from halfstep.workflows.train_denoiser import TrainDenoiserConfig

WIDTH, COLUMN = 80, 26
KINDS = {
    "demo": DemoConfig,
    "train denoiser": TrainDenoiserConfig,
    "train classifier": TrainClassifierConfig,
    "train codec": TrainCodecConfig,
    "latents": LatentsConfig,
    "sample": SampleConfig,
    "encode": EncodeConfig,
    "compare": CompareConfig,
    "evaluate": Evaluate,
    "report": Report,
    "play": PlayConfig,
    "runs": RunsOptions,
    "grid": GridOptions,
    "compress": CompressConfig,
    "export": ExportConfig,
    "completion": CompletionOptions,
    **{f"distill {name}": options_for(name) for name in METHODS},
    "distill knowledge": DistillClassifierConfig,
    "compare knowledge": CompareClassifiersConfig,
}
"""The options of each command."""
GROUPS = {
    "Run": ("folder",),
    "Options": ("", "how", "codec", "layout"),
    "Methods": ("compare",),
    "Data": ("dataset", "images", "encoding"),
    "Teacher": ("teacher", "networks"),
    "Network": ("network", "classifier"),
    "Model": ("diffusers", "official"),
    "Texts": ("texts",),
    "Start": ("start",),
    "Method": ("method", "recipe", "kept", "lora"),
    "Optimiser": ("training",),
    "Memory": ("memory",),
    "Gate": ("gate",),
    "Measures": ("evaluation",),
}
"""The outermost fields whose options stand under one heading."""
ADVANCED = re.findall(
    r"\w+",
    """
    from_previous verify net_config schedule_config codec_config recipe_config student student_net time_of
    time_scale time_offset levels micro_batch_size betas optimiser weight_decay ema max_grad_norm
    compile save_every log_every warmup learning_rate_schedule times grid target_clip
    guidance_embed_dim mask drop_labels feature_weight gate_seed until guidance_scales keep choose
    denoising features
    output teacher_net tokens shards variance first
    encode_batch cost_rounds split_samples bootstrap full_sampler
""",
)
"""Options that stand last."""
FEW = (
    "sample",
    "evaluate",
    "encode",
    "latents",
    "compress",
    "export",
    "demo",
    "report",
    "play",
    "runs",
    "grid",
)
"""Commands with few options, which need no heading for the advanced ones."""
MATTER = {
    "train denoiser": "net net-config updates batch-size learning-rate",
    "train classifier": "net updates validate batch-size learning-rate",
    "train codec": "width updates batch-size learning-rate device",
    "distill progressive": "teacher start stop updates tolerance",
    "distill stochastic": "teacher start stop updates tolerance",
    "distill flow-map": "teacher start first stop updates",
    "distill multistep-consistency": "teacher start first stop updates",
    "distill parallel-decoding": "teacher start first stop updates",
    "distill cached-walks": "teacher start solver noises walks",
    "distill guided": "teacher guidance-range start stop tolerance",
    "distill encoder": "teacher start stop updates batch-size",
    "distill shrink": "teacher depth student updates batch-size",
    "distill plan": "teacher depth guidance-range updates tolerance",
    "distill reparameterise": "teacher updates batch-size learning-rate device",
    "distill knowledge": "teacher net recipe updates validate",
    "compare": "teacher methods budget seeds counts",
    "compare knowledge": "teacher recipes temperatures seeds updates",
}
"""Of pages of many options those to begin with, beside the required ones."""
EXAMPLES = {
    "demo": ["halfstep demo", "halfstep demo --guided --out runs/guided"],
    "train denoiser": [
        "halfstep train denoiser --preset digits --out runs/teacher",
        "halfstep train denoiser --data images/ --size 32 --updates 100000 --out runs/cats",
    ],
    "train classifier": [
        "halfstep train classifier --data cifar10:data --net cnn --validate 0.1 --out runs/features"
    ],
    "train codec": ["halfstep train codec --data images/ --size 64 --out runs/codec"],
    "latents": ["halfstep latents --data images/ --codec runs/codec --out latents/"],
    "sample": [
        "halfstep sample runs/digits --out samples/",
        "halfstep sample runs/digits --steps 4 --n 64 --out grid.png",
    ],
    "encode": ["halfstep encode runs/teacher --images photo.png --out noise.safetensors"],
    "compare": [
        "halfstep compare --teacher runs/teacher --data digits "
        "--methods progressive multistep-consistency "
        "--budget 900000 --seeds 3 --out runs/compare",
        "halfstep compare --beside runs/a runs/b --out runs/compare",
    ],
    "evaluate": ["halfstep evaluate runs/digits"],
    "report": ["halfstep report runs/digits"],
    "completion": ["halfstep completion bash"],
    "play": ["halfstep play", "halfstep play runs/digits"],
    "runs": ["halfstep runs runs/", "halfstep runs runs/ --html --watch"],
    "grid": ["halfstep grid stable-diffusion/", "halfstep grid flux/ --steps 4 8 --tokens 1024"],
    "compress": [
        "halfstep compress runs/digits --int8",
        "halfstep compress runs/digits --prune 0.5",
    ],
    "export": [
        "halfstep export runs/digits --out student/",
        "halfstep export runs/digits --format torch-export --out program/",
        "halfstep export runs/sd --steps 4 --format diffusers --out sd-4-steps/",
        "halfstep export runs/cats --format comfyui --out comfyui/",
        "halfstep export runs/lora --out lora-4-steps/",
        "halfstep export runs/digits --format onnx --dtype bfloat16 --out onnx/",
    ],
    "distill progressive": [
        "halfstep distill progressive --preset digits-progressive --teacher runs/teacher "
        "--out runs/digits",
        "halfstep distill progressive --teacher runs/teacher --data digits --start 32 --stop 1 "
        "--updates 5000 --out runs/fewer",
    ],
    "distill flow-map": [
        "halfstep distill flow-map --preset digits-flow-map --teacher runs/teacher --out runs/flow-map",
    ],
    "distill multistep-consistency": [
        "halfstep distill multistep-consistency --teacher runs/teacher --data digits --start 64 "
        "--first 8 --stop 1 --out runs/consistency"
    ],
    "distill parallel-decoding": [
        "halfstep distill parallel-decoding --teacher runs/teacher --data digits --start 32 "
        "--first 8 --stop 1 --out runs/parallel"
    ],
    "distill cached-walks": [
        "halfstep distill cached-walks --teacher runs/teacher --data none --solver heun --start 16 "
        "--out runs/cached"
    ],
    "distill guided": [
        "halfstep distill guided --teacher runs/teacher --data digits --start 32 --stop 4 "
        "--out runs/guided"
    ],
    "distill stochastic": [
        "halfstep distill stochastic --teacher runs/teacher --data digits --start 32 --stop 4 "
        "--out runs/stochastic"
    ],
    "distill encoder": [
        "halfstep distill encoder --teacher runs/teacher --data digits --start 32 --stop 4 "
        "--out runs/encoder"
    ],
    "distill shrink": [
        "halfstep distill shrink --teacher runs/teacher --data digits --depth 2 --out runs/small"
    ],
    "distill plan": [
        "halfstep distill plan --teacher runs/teacher --data digits --depth 2 --start 32 --stop 4 "
        "--out runs/plan"
    ],
    "distill reparameterise": [
        "halfstep distill reparameterise --teacher runs/eps-teacher --data digits --out runs/v"
    ],
    "distill knowledge": [
        "halfstep distill knowledge --teacher runs/large --data cifar10:data --net toy-student "
        "--out runs/small"
    ],
    "compare knowledge": [
        "halfstep compare knowledge --teacher runs/large --data cifar10:data --recipes hinton dist logits "
        "--temperatures 2 4 --seeds 3 --out runs/recipes"
    ],
}
TEXT = {int: "N", float: "X", Path: "PATH", str: "NAME"}


def first_options(command: str) -> list[str]:
    """The options to begin with; of a method without a line in MATTER, those of every distillation."""
    default = "teacher updates batch-size learning-rate device" if _is_method(command) else ""
    return MATTER.get(command, default).split()


def examples_of(command: str) -> list[str]:
    """The examples at the end of a page; a method without its own has one of every distillation."""
    if command in EXAMPLES or not _is_method(command):
        return EXAMPLES[command]
    return [f"halfstep {command} --teacher runs/teacher --data digits --out runs/student"]


def _is_method(command: str) -> bool:
    return command.removeprefix("distill ") in METHODS


def page(command):
    """The page of a command, of 80 columns."""
    kind = KINDS[command]
    options = list(all_options(kind))
    lines = [_usage(command, options), "", *_wrapped(_about(command, kind)), ""]
    if first := first_options(command):
        lines += [*_wrapped(f"Start with: {', '.join(f'--{name}' for name in first)}"), ""]
    for title, group in _groups(command, options):
        lines += [title, *(line for option in group for line in _described(option)), ""]
    lines += ["Files", *_files(command), ""]
    lines.append("Examples")
    lines += [line for example in examples_of(command) for line in _broken(example)]
    return "\n".join(lines) + "\n"


def _usage(command, options):
    words = [f"usage: halfstep {command}"]
    for option in options:
        if option.positional:
            words.append(_name(option) if option.required else f"[{_name(option)}]")
        elif option.required:
            words.append(f"{option.flag} {_metavar(option)}")
    return " ".join([*words, "[OPTIONS]"])


def _about(command, kind):
    method = METHODS.get(command.removeprefix("distill "))
    about = method.__doc__ if method and command != "distill knowledge" else kind.__doc__
    return inspect.cleandoc(about).replace("\n", " ").split("  ")[0]


def _groups(command, options):
    """(heading, options) with the advanced ones last, the required ones first within each."""
    late = [o for o in options if o.name in ADVANCED and not o.required and command not in FEW]
    for title, holders in GROUPS.items():
        group = [option for option in options if option.group in holders and option not in late]
        if group:
            yield title, sorted(group, key=lambda o: (not o.positional, not o.required))
    if late:
        yield "Advanced", late


def _described(option):
    """Name and text in two columns."""
    flag = _name(option)
    if not option.positional:
        flag = " ".join([option.flag, _metavar(option)]).strip()
        flag = f"{option.flag}, --no-{option.flag[2:]}" if option.default is True else flag
    text = _wrapped(f"{documented(option)} {_note(option)}".strip(), WIDTH - COLUMN)
    if len(flag) > COLUMN - 4:
        yield f"  {flag}"
    else:
        yield f"  {flag:<{COLUMN - 2}}{text.pop(0)}"
    yield from (f"{'':{COLUMN}}{line}" for line in text)


def _name(option):
    return option.name.upper()


def _metavar(option):
    hint = option.type
    kinds = [hint, *typing.get_args(hint)]
    if hint is bool:
        return ""
    if typing.get_origin(hint) is dict:
        return "NAME VALUE ..."
    for literal in [kind for kind in kinds if typing.get_origin(kind) is typing.Literal]:
        choices = "{" + ",".join(map(str, typing.get_args(literal))) + "}"
        return choices if len(f"{option.flag} {choices}") <= WIDTH - 4 else "NAME"
    inner = [deep for kind in kinds for deep in (kind, *typing.get_args(kind))]
    is_prompt = option.name in ("prompt", "negative_prompt")
    word = "TEXT" if is_prompt else next(TEXT[k] for k in inner if k in TEXT)
    takes = arity(hint)
    return f"{word} ..." if takes is None else " ".join([word] * takes)


def _note(option):
    """Whether it is required, or its default where that says something."""
    if option.required:
        return "(required)"
    if option.default in (MISSING, None, False, "", (), {}) or option.type is bool:
        return "(default: 0)" if option.default == 0 and option.default is not False else ""
    value = option.default
    return f"(default: {' '.join(map(str, value)) if isinstance(value, tuple) else value})"


def documented(option):
    return " ".join(_docs(option.owner)[option.name].split())


@cache
def _docs(owner):
    """The text below each field of a dataclass and of those it inherits from."""
    docs = {}
    for kin in filter(is_dataclass, reversed(owner.__mro__)):
        body = ast.parse(textwrap.dedent(inspect.getsource(kin))).body[0].body
        docs |= {
            field.target.id: doc.value.value
            for field, doc in pairwise(body)
            if isinstance(field, ast.AnnAssign) and isinstance(doc, ast.Expr)
        }
    return docs


def _files(command):
    presets = preset_names(f"halfstep {command}")
    if presets:
        yield f"  {'--preset NAME':<{COLUMN - 2}}Options that come with halfstep: one of"
        for line in _wrapped(", ".join(presets) + ".", WIDTH - COLUMN):
            yield f"{'':{COLUMN}}{line}"
    yield f"  {'--config FILE':<{COLUMN - 2}}Options from a TOML file; those typed override it."


def _wrapped(text, width=WIDTH):
    return textwrap.wrap(text, width, break_on_hyphens=False, break_long_words=False) or [""]


def _broken(example):
    """A command over several lines, before an option where it can be."""
    parts, lines = example.replace(" --", "\n--").split("\n"), [""]
    for part in parts:
        if len(f"{lines[-1]} {part}") > WIDTH - 5:
            lines.append("")
        lines[-1] = f"{lines[-1]} {part}".strip()
    indented = [f"{'  ' if k == 0 else '    '}{line}" for k, line in enumerate(lines)]
    return [f"{line} \\" for line in indented[:-1]] + indented[-1:]


def main() -> None:
    PAGES.mkdir(exist_ok=True)
    for command in KINDS:
        path = PAGES / f"{command.replace(' ', '-')}.txt"
        path.write_text(page(command), encoding="utf-8")
        print(path.name)


if __name__ == "__main__":
    main()
