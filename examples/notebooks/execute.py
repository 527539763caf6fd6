"""Runs the notebooks beside this file from top to bottom, and keeps what they print and draw.

    python examples/notebooks/execute.py                       # all of them
    python examples/notebooks/execute.py look_at_one_image     # one
    python examples/notebooks/execute.py --out FOLDER          # leaves those here as they are

A notebook runs in an empty folder of its own, without network. It fails on an error, on anything
written to stderr (a warning would be shown to every reader), and on a cell that takes too long.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).resolve().parent
SECONDS_PER_CELL = 300  # on a machine that does other work too
# No network, no bars of progress, and one thread, so that numbers do not depend on the machine.
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TQDM_DISABLE": "1",
    "OMP_NUM_THREADS": "1",
    "PYTHONWARNINGS": "default",
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",
}


def executed(path: Path) -> nbformat.NotebookNode:
    """The notebook with new outputs, and nothing in it of when and where it ran."""
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook,
            timeout=SECONDS_PER_CELL,
            kernel_name="python3",
            resources={"metadata": {"path": folder}},
            record_timing=False,
            coalesce_streams=True,
        )
        client.execute()
    written = nbformat.writes(notebook)
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            if output.get("name") == "stderr":
                raise SystemExit(f"{path.name} writes to stderr: {output['text']}")
    for place in (folder, str(Path.home()), sys.prefix, str(HERE)):
        if len(place) > 1 and place in written:
            raise SystemExit(f"{path.name} shows a path of this machine: {place}")
    # A widget is alive while its kernel is: what is kept is the page that stands in for it.
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)
    notebook.metadata.pop("widgets", None)
    # The kernel's own version is no part of the notebook.
    notebook.metadata["language_info"] = {"name": "python"}
    return notebook


def main() -> None:
    """Run what is named on the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="notebooks, without .ipynb; all by default")
    parser.add_argument("--out", type=Path, default=HERE, help="where to put what ran")
    chosen = parser.parse_args()
    os.environ.update(ENVIRONMENT)
    names = chosen.names or sorted(path.stem for path in HERE.glob("*.ipynb"))
    for name in names:
        start = time.perf_counter()
        notebook = executed(HERE / f"{name}.ipynb")
        nbformat.write(notebook, chosen.out / f"{name}.ipynb")
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
