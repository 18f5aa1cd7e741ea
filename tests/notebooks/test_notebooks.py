"""The notebooks run from top to bottom in a folder of their own; they are committed as they ran."""

from __future__ import annotations

import re
import shutil
import warnings
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))
FOREIGN = re.compile(r"/home/|/root/|/Users/|/tmp/|/work/|site-packages|[A-Z]:\\\\|0x[0-9a-f]{8,}")


def outputs(notebook: NotebookNode) -> list[NotebookNode]:
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With CI set, which shortens the loops, and without ``dot`` or any other program on the path; no error."""
    monkeypatch.setenv("CI", "1")
    monkeypatch.setenv("PYTHONWARNINGS", "default")  # not those of the suite
    monkeypatch.setenv("PATH", str(tmp_path))
    copy = shutil.copy(path, tmp_path)
    notebook = nbformat.read(copy, as_version=4)
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Jupyter's own machinery, whose versions are not ours
        client.execute()
    assert not [o for o in outputs(notebook) if o.output_type == "error"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_is_committed_as_it_ran(path: Path) -> None:
    """Every cell executed in order, no error or warning shown, no path of a machine, small."""
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    for output in outputs(notebook):
        assert output.output_type != "error"
        assert output.get("name") != "stderr"
        texts = [output.get("text", ""), *(v for k, v in output.get("data", {}).items() if k != "image/png")]
        assert not FOREIGN.search("\n".join(texts))
    assert path.stat().st_size < 500_000


def test_there_are_notebooks() -> None:
    assert NOTEBOOKS
