"""Write an exported student as an ONNX model, and run it in onnxruntime.

session = onnxruntime.InferenceSession("student.onnx")
for k in range(steps):
    [x] = session.run(None, {"x": x, "step": numpy.full(n, k), **conditions})
"""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from halfstep import files
from halfstep.errors import ConfigError
from halfstep.pipeline.torch_export import Program
from halfstep.quiet import quietly

PACKAGES = ("onnx", "onnxruntime", "onnxscript")
ONE_FILE = 2**31 - 2**20
"""Bytes of weights that fit into one file: protobuf's messages end at 2 GiB."""
SMALL = 1024
"""Bytes of a tensor from which it goes to the second file."""


def check_packages() -> None:
    """`ConfigError` if a package that writes or runs ONNX is missing."""
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"format onnx needs {', '.join(missing)}, which {'are' if missing[1:] else 'is'} not installed: "
            "run pip install 'halfstep[onnx]'"
        )


def onnx_model(program: Program, dtype: torch.dtype = torch.float32) -> Any:
    """Convert a program to an `onnx_ir.Model` with the same inputs, and the output `sample`.

    dtype  type of the weights in the file; they are widened to float32, in which the model computes, since
           ONNX Runtime has no bfloat16 convolution and on a CPU no arithmetic in float16.  Round the weights
           before (`rounded_student`): only those that the type holds exactly are stored in it
    """
    check_packages()
    with quietly(), torch.no_grad():
        onnx_program: Any = torch.onnx.export(program.exported, dynamo=True, verbose=False)
    model = onnx_program.model
    _clear_notes(model)
    for value, name in zip(model.graph.inputs, program.inputs, strict=True):
        value.name = name
    model.graph.outputs[0].name = "sample"
    if dtype != torch.float32:
        _store_weights(model, dtype)
    return model


def _clear_notes(model: Any) -> None:
    """Remove the exporter's notes, which hold stack traces with the paths of this machine."""
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    ClearMetadataAndDocStringPass()(model)


def _store_weights(model: Any, dtype: torch.dtype) -> None:
    """Store the network's weights in this type, each followed by a cast to float32."""
    import onnx_ir

    stored = {torch.float16: onnx_ir.DataType.FLOAT16, torch.bfloat16: onnx_ir.DataType.BFLOAT16}[
        dtype
    ]
    for name, value in list(model.graph.initializers.items()):
        tensor = value.const_value
        # The exporter's optimiser renames weights that it transposes; tables of the sampler are vectors.
        is_weight = name.startswith("net.") or len(tensor.shape) > 1
        if tensor.dtype != onnx_ir.DataType.FLOAT or not is_weight:
            continue
        wide = torch.from_numpy(np.array(tensor.numpy()))
        narrow = wide.to(dtype)
        if not torch.equal(narrow.float(), wide):
            continue
        raw = narrow.view(torch.int16).numpy().view(stored.numpy())
        weight = onnx_ir.val(
            f"{name}.stored", const_value=onnx_ir.tensor(raw, name=f"{name}.stored")
        )
        cast = onnx_ir.node("Cast", [weight], attributes={"to": onnx_ir.DataType.FLOAT})
        cast.outputs[0].name = f"{name}.float32"
        cast.outputs[0].type, cast.outputs[0].shape = value.type, value.shape
        value.replace_all_uses_with(cast.outputs[0])
        del model.graph.initializers[name]
        model.graph.register_initializer(weight)
        model.graph.insert_before(model.graph[0], cast)


def save_onnx(model: Any, path: Path) -> None:
    """Write the model to `path`; beyond 2 GiB its weights go to a second file, PATH.data."""
    import onnx_ir

    values = list(model.graph.initializers.values())
    if sum(value.const_value.nbytes for value in values) <= ONE_FILE:
        with files.replacing(path) as (part,):
            files.fill(part, onnx_ir.to_proto(model).SerializeToString())
        return
    weights, folder = path.with_name(f"{path.name}.data"), str(path.parent)
    # Shapes and other small tensors stay in the model: the runtime reads them before the weights.
    values = [value for value in values if value.const_value.nbytes >= SMALL]
    with files.replacing(weights, path) as (weights_part, part):
        tensors = onnx_ir.external_data.convert_tensors_to_external(
            [value.const_value for value in values], folder, weights_part.name
        )
        for value, one in zip(values, tensors, strict=True):
            value.const_value = onnx_ir.ExternalTensor(
                weights.name, one.offset, one.length, one.dtype, shape=one.shape, name=one.name,
                base_dir=folder,
            )  # fmt: skip
        files.fill(part, onnx_ir.to_proto(model).SerializeToString())


def run_onnx(path: Path, program: Program, noise: Tensor, conditions: Sequence[Tensor]) -> Tensor:
    """Draw samples in onnxruntime on the CPU, as the model's user does.

    program  from which the model was made: its inputs, steps and scale
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    fixed = dict(zip(program.inputs[2:], (one.numpy() for one in conditions), strict=True))
    x = (program.scale * noise).numpy()
    for k in range(program.steps):
        [x] = session.run(None, {"x": x, "step": np.full(len(x), k), **fixed})
    return torch.from_numpy(x)
