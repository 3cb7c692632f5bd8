"""The options of a method that the data decide, with a bar."""

from rich.console import Console

from halfstep.cli.console.progress import counting
from halfstep.data import Data
from halfstep.methods import Method
from halfstep.pipeline import Pipeline
from halfstep.training.denoisers import resolve
from halfstep.training.distributed import pick_device
from halfstep.workflows.options import Where


def resolved(
    console: Console, method: Method, teacher: Pipeline, data: Data, where: Where
) -> Method:
    """The method with the options decided that it leaves to the data."""
    if not method.needs_data:
        return method
    teacher.to(pick_device(where.device))
    with counting(console, "scoring blocks on the data") as progress:
        return resolve(method, teacher, data, where.out, progress=progress)
