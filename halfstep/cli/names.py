"""Names of options: refuse unknown ones, and suggest halfstep's name for another tool's."""

from collections.abc import Collection, Sequence
from difflib import get_close_matches

from halfstep.errors import ConfigError

_GUIDANCE = ("guidance-scale", "guidance-range", "guidance-scales")
_OURS: dict[tuple[str, ...], str] = {
    ("learning-rate",): "lr rate",
    ("learning-rate-schedule",): "lr-scheduler lr-schedule rate-schedule",
    ("learning-rate-schedule", "sampler"): "scheduler",
    ("int8",): "quantize quantise",
    ("batch-size",): "bs batch train-batch-size per-device-train-batch-size eval-batch-size",
    ("micro-batch-size",): "micro-batch gradient-accumulation-steps accumulate",
    ("updates",): "max-steps max-train-steps num-train-steps train-steps iterations iters epochs "
    "num-epochs num-train-epochs",
    ("warmup",): "warmup-steps lr-warmup-steps",
    ("out",): "output-dir output output-path outdir out-dir o save-dir save-path logdir log-dir",
    ("steps", "start", "full"): "num-inference-steps inference-steps sampling-steps num-steps nfe",
    _GUIDANCE: "guidance scales cfg cfg-scale guidance-weight w",
    ("max-grad-norm",): "clip clip-grad grad-clip gradient-clip gradient-clip-val max-norm",
    ("noise-schedule", "seed"): "noise",
    ("seed",): "random-seed manual-seed",
    (
        "data",
        "images",
    ): "data images dataset dataset-name dataset-path data-dir data-path train-data-dir input",
    ("size",): "resolution image-size img-size",
    ("n", "samples"): "num-samples num-images num-images-per-prompt count n samples",
    ("device",): "gpu gpus cuda accelerator",
    ("precision", "dtype"): "fp16 bf16 mixed-precision amp half torch-dtype",
    ("teacher", "model"): "checkpoint ckpt model-path teacher-path teacher-model-name-or-path "
    "pretrained-model-name-or-path",
    ("predicts",): "prediction-type parameterization objective",
    ("noise-schedule",): "beta-schedule",
    ("weight-decay",): "wd adam-weight-decay",
    ("ema",): "ema-decay use-ema",
    ("optimiser",): "optimizer optim",
    ("save-every",): "checkpointing-steps save-steps save-interval save-freq",
    ("log-every",): "logging-steps log-interval log-freq",
    ("weighting",): "snr-gamma loss-weighting",
    ("labels",): "classes class-labels class-names",
    ("flip",): "random-flip horizontal-flip",
}
"""The names of other tools for halfstep's options; of several options the first that a command has."""
OTHER_NAMES = {other: ours for ours, names in _OURS.items() for other in names.split()}


def refuse_unknown(names: Collection[str], words: Sequence[str], command: str) -> None:
    """Refuse an option that the command does not have; the `ConfigError` suggests one that it has.

    names  names of the command's options, as they are typed
    """
    valid = {*names, "preset", "config", "help"}
    for word in words:
        if word == "--":
            return
        name = word[2:].partition("=")[0].replace("_", "-")
        if not word.startswith("--") or name in valid or name.removeprefix("no-") in valid:
            continue
        typed = word.partition("=")[0]
        name = name.removeprefix("no-")
        ours = next((option for option in OTHER_NAMES.get(name, ()) if option in valid), None)
        if ours:
            raise ConfigError(
                f"there is no option {typed}: here it is --{ours}; see {command} --help"
            )
        near = get_close_matches(name, [*names, "preset", "config"], n=1)
        hint = f"perhaps you meant --{near[0]}; " if near else ""
        raise ConfigError(f"there is no option {typed}: {hint}{command} --help lists them")
