"""Notebooks of the documentation: run their cells in a kernel, and write them with what came out.

    python -m tests.support.notebooks [NOTEBOOK] [--out FILE]

By default every notebook under docs is run in an empty folder and written in place: `make notebooks`.
"""

import argparse
import os
import tempfile
from pathlib import Path

from tests.support.docs import NOTEBOOKS


def run(path: Path, out: Path) -> None:
    """Run all cells, and write the notebook with their outputs; raises the error of a cell."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        resources = {"metadata": {"path": folder}}
        NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times, which differ at every run
        for output in cell.get("outputs", []):
            output.get("data", {}).pop("image/jpeg", None)  # the PNG again
    nbformat.write(notebook, out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebook", nargs="?", type=Path)
    parser.add_argument("--out", type=Path, help="by default the notebook itself")
    options = parser.parse_args()
    for path in [options.notebook] if options.notebook else NOTEBOOKS:
        run(path, options.out or path)


if __name__ == "__main__":
    main()
