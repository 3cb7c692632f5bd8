"""The README.md of an exported student: what it is, how to load it, what a sample costs."""

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from halfstep.evaluation.metrics.cost import calls_of, multiply_adds
from halfstep.evaluation.report_data import Measurement, Report, Row
from halfstep.evaluation.report_files import read_report, REPORT
from halfstep.models.classifiers.registry import classifier_recipe, example_shape
from halfstep.pipeline import Pipeline
from halfstep.pipeline.torch_export import Program
from halfstep.report.words.numbers import big, real_images
from halfstep.version import __version__

INPUTS = {
    "label": "int64 [B], numbers of classes",
    "encoder_hidden_states": "float32 [B, tokens, width], states of texts",
    "guidance_scale": "float32 [B], guidance scales",
}
TORCH_VALUES = {
    "label": "torch.arange(n, device=device) % {classes}",
    "encoder_hidden_states": "states.to(device)",
    "guidance_scale": "torch.full((n,), {scale}, device=device)",
}
NUMPY_VALUES = {
    "label": "numpy.arange(n) % {classes}",
    "encoder_hidden_states": "states",
    "guidance_scale": 'numpy.full(n, {scale}, "float32")',
}
"""Values of the inputs in the code of a README."""


def pipeline_card(pipeline: Pipeline, source: Path, dtype: str) -> str:
    """The README of a folder that `Pipeline.load` reads."""
    lines = about(pipeline, source)
    lines.append(_weights(pipeline.denoiser.net, dtype))
    verb = "encode(images)" if pipeline.direction == "invert" else _sample_call(pipeline)
    code = ["from halfstep import Pipeline", "", 'pipeline = Pipeline.load(".")']
    code.append(f"result = pipeline.{verb}")
    if pipeline.direction == "invert":
        shell = ["halfstep encode . --images IMAGES --out noise"]
    else:
        shell = ["halfstep sample . --n 16 --out images"]
    return page(lines, [("python", code), ("bash", shell)])


def program_card(pipeline: Pipeline, source: Path, program: Program, dtype: str) -> str:
    """The README of a folder with student.pt2."""
    lines = _about_program(pipeline, source, program)
    lines.append(f"- Batch: of any size; samples in float32, weights and network in {dtype}")
    lines.append("- Traced on a CPU; `move_to_device_pass` moves it to the device")
    noise = f"torch.randn(n, {', '.join(map(str, pipeline.shape))}, device=device)"
    values = _values(pipeline, program, TORCH_VALUES)
    code = [
        "import torch",
        "from torch.export.passes import move_to_device_pass",
        "",
        'device = "cpu"  # or "cuda", "mps", ...',
        'program = torch.export.load("student.pt2")',
        "step = move_to_device_pass(program, device).module()",
        "n = 16",
        *(f"{name} = {value}" for name, value in values.items()),
        f"x = {_scaled(noise, program)}",
        "with torch.no_grad():",
        f"    for k in range({program.steps}):",
        f"        x = step({', '.join(['x', 'torch.full((n,), k, device=device)', *values])})",
    ]
    return page(lines, [("python", code)])


def onnx_card(pipeline: Pipeline, source: Path, program: Program, dtype: str) -> str:
    """The README of a folder with student.onnx."""
    lines = _about_program(pipeline, source, program)
    widened = "" if dtype == "float32" else ", widened to float32 when the file is loaded"
    lines.append(f"- Batch: of any size; computes in float32; weights in {dtype}{widened}")
    lines.append("- Device: an execution provider of ONNX Runtime; compared on the CPU")
    shape = ", ".join(map(str, pipeline.shape))
    noise = f'numpy.random.default_rng(0).standard_normal((n, {shape}), "float32")'
    values = _values(pipeline, program, NUMPY_VALUES)
    inputs = ", ".join(f'"{name}": {value}' for name, value in values.items())
    code = [
        "import numpy",
        "import onnxruntime",
        "",
        'providers = ["CPUExecutionProvider"]  # or "CUDAExecutionProvider", "CoreMLExecutionProvider", ...',
        'session = onnxruntime.InferenceSession("student.onnx", providers=providers)',
        "n = 16",
        f"conditions = {{{inputs}}}",
        f"x = {_scaled(noise, program)}",
        f"for k in range({program.steps}):",
        '    [x] = session.run(None, {"x": x, "step": numpy.full(n, k), **conditions})',
    ]
    return page(lines, [("python", code)])


def _about_program(pipeline: Pipeline, source: Path, program: Program) -> list[str]:
    lines = about(pipeline, source, program.steps)
    if pipeline.codec is not None:
        lines.append("- The samples are latents: the codec is not in this folder")
    named = {
        name: f"{str(value.dtype).removeprefix('torch.')} {['B', *value.shape]}".replace("'", "")
        for name, value in pipeline.added.items()
    }
    return lines + [f"- `{name}`: {(INPUTS | named)[name]}" for name in program.inputs[2:]]


def _values(pipeline: Pipeline, program: Program, values: dict[str, str]) -> dict[str, str]:
    """The code of each condition; those that halfstep does not know are the reader's variables."""
    classes = max(len(pipeline.class_names), 1)
    scale = (pipeline.guidance_range or (1.0, 1.0))[0]
    return {
        name: values.get(name, f"{name}_of_texts").format(classes=classes, scale=scale)
        for name in program.inputs[2:]
    }


def _scaled(noise: str, program: Program) -> str:
    return noise if program.scale == 1 else f"{program.scale!r} * {noise}"


def classifier_card(net: nn.Module, dtype: str) -> str:
    """The README of a classifier's folder."""
    name, config, _ = classifier_recipe(net)
    channels, height, width = example_shape(net)
    sides = f"{height} x {width} in" if "size" in config else "any size in"
    lines = [
        f"- Network: {plain(name)}",
        f"- Reads images [B, {channels}, H, W] of {sides} [-1, 1], gives logits of "
        f"{config.get('num_classes', 'all')} classes",
        f"- Parameters: {big(sum(p.numel() for p in net.parameters()))}; one call an image",
        _weights(net, dtype),
    ]
    net_argument = f", net={name!r}" if ":" in name else ""
    code = [
        "from halfstep import load_classifier",
        "",
        f'classifier = load_classifier("."{net_argument})',
    ]
    return page(lines, [("python", code)])


def _weights(net: nn.Module, dtype: str) -> str:
    quantised = getattr(net, "quantised", None)
    return f"- Weights: {'int8 linear layers (needs torchao)' if quantised else dtype}"


def about(pipeline: Pipeline, source: Path, steps: int | None = None) -> list[str]:
    """Steps, guidance, classes, cost, and the measurements in the run's report."""
    counts = list(pipeline.step_counts) or [steps or pipeline.steps]
    sampler, words = pipeline.sampler, " or ".join(map(str, counts))
    lines = [
        f"- Steps: {words}{'' if pipeline.times else ' (a teacher: any number)'}, sampler {plain(sampler)}",
        f"- Shape of a sample: {list(pipeline.shape)}"
        + ("" if pipeline.codec is None else ", a latent that its codec decodes"),
        f"- Guidance: {_guidance(pipeline)}",
        f"- Classes: {_class_list(pipeline.class_names)}",
    ]
    adds = multiply_adds(pipeline)
    parameters = sum(p.numel() for p in pipeline.denoiser.parameters())
    for count in counts:
        calls = calls_of(pipeline, sampler, count)
        lines.append(
            f"- Cost of a sample in {count} step{'s' * (count > 1)}: {calls} network "
            f"call{'s' * (calls > 1)}, {big(adds * calls)} multiply-adds; {big(parameters)} parameters"
        )
        lines += _measured(source, count)
    return lines


def _guidance(pipeline: Pipeline) -> str:
    if pipeline.guidance_range is not None:
        low, high = pipeline.guidance_range
        if not pipeline.takes_scale:
            return f"the scale {low:g} is in the weights, one call a step"
        return f"an input of the network, {low:g} to {high:g}, one call a step"
    if pipeline.unconditional is None:
        return "none"
    return "from outside, any scale; two calls a step unless it is 1"


def _class_list(classes: Sequence[str]) -> str:
    if not classes:
        return "none"
    return f"{len(classes)} ({', '.join(map(plain, classes[:12]))}{', ...' * (len(classes) > 12)})"


def plain(text: object) -> str:
    """A name from a file as plain text in Markdown: one line, no markup, no control characters.

    All but letters, digits and a few signs become numeric HTML references, which Markdown reads as text.
    """
    line = " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())
    return "".join(c if c.isalnum() or c in PLAIN else f"&#{ord(c)};" for c in line)


PLAIN = " ,;-()%'"


def _sample_call(pipeline: Pipeline) -> str:
    if pipeline.guidance_range is not None:
        return f"sample(16, guidance_scale={pipeline.guidance_range[0]:g})"
    return "sample(16)"


def _measured(source: Path, steps: int) -> list[str]:
    """The measurements of the student with these steps in the report of its run."""
    if (report := report_of(source)) is not None:
        for row in report.students:
            if row.steps == steps:
                return _lines(row, report.measure)
    return []


def report_of(source: Path) -> Report | None:
    """The report of the run that a folder is of; None without one, and of a run that encodes."""
    run = _run_of(source.resolve())
    if run is None or not (run / REPORT).exists():
        return None
    report = read_report(run)
    return report if isinstance(report, Report) else None


def _run_of(source: Path) -> Path | None:
    """The run of a folder: itself, or the one whose stage it is; None for a pipeline outside a run."""
    if not (source / "pipeline.json").exists():
        return source
    run = source.parent.parent
    return run if source.parent.name == "stages" and (run / "run.json").exists() else None


def _lines(row: Row, measure: Measurement) -> list[str]:
    distance, cost = row.distances.frechet_distance, row.cost
    features = plain(measure.features)
    samples = f"{measure.samples:,} samples against {real_images(measure)}"
    lines = [f"- Fréchet distance: {distance} with {samples}, features {features}"]
    if row.ratio:
        lines[-1] += f"; {row.ratio} times the teacher's"
    if cost and measure.machine:
        each = ", ".join(
            f"{1000 * s:.3g} ms at batch {plain(b)}" for b, s in cost.seconds_per_sample.items()
        )
        lines.append(f"- Seconds a sample: {each} ({plain(measure.machine)})")
    return lines


def page(lines: Sequence[str], blocks: Sequence[tuple[str, Sequence[str]]]) -> str:
    fenced = [f"```{language}\n" + "\n".join(code) + "\n```" for language, code in blocks]
    made = f"Made by halfstep {__version__}."
    return "\n\n".join(["# A student, by halfstep", "\n".join(lines), *fenced, made]) + "\n"
