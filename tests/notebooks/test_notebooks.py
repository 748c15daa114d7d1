"""Every notebook runs from top to bottom and is stored with the results of such a run."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
DEFAULT_MODEL = 'MODEL = "smollm2"'


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_runs(path: Path, smollm2_path: Path) -> None:
    notebook = read(path)
    parameters = code_cells(notebook)[0]
    assert parameters.source.startswith(DEFAULT_MODEL)
    parameters.source = f"MODEL = {str(smollm2_path)!r}"
    place = {"metadata": {"path": ROOT}}
    # The limits, in seconds, are for a busy machine.
    NotebookClient(notebook, timeout=900, startup_timeout=300, kernel_name="python3", resources=place).execute()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_shows_the_results_of_one_run(path: Path) -> None:
    assert path.stat().st_size < 400_000
    cells = code_cells(read(path))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert {output.output_type for output in outputs} <= {"stream", "display_data", "execute_result"}
    assert all(output.name == "stdout" for output in outputs if output.output_type == "stream")
    assert any("image/png" in output.get("data", {}) for output in outputs)
