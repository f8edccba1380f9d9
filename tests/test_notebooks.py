"""The notebooks of examples/, each run from its first cell to its last against the shipped server."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from fastgen.api import open_run
from tests.generate.test_generate import shipped_server

EXAMPLES = Path(__file__).parent.parent / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))
SHOWN = {
    "make_data": ["complete 40/40", "Counts(complete=40, target=40", "instructions are left at a threshold of 0.4"],
    "choose_a_run": ["{'instruction.temperature': [0.5, 1.1]}", "yield_per_1000_tokens", "-- warm"],
    "prepare_training": ["'role': 'user'", "['README.md', 'test.jsonl', 'train.jsonl']", "are held out", "'prompt': "],
}
"""What each shows, among other things."""
MADE = {"make_data": {"first": 60}, "choose_a_run": {"cool": 40, "warm": 40}, "prepare_training": {"training": 60}}
"""The runs that each leaves, with their instructions."""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with shipped_server("--latency", "0.01") as base_url:
        yield base_url


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = orjson.loads(path.read_bytes())
    return found


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_without_outputs(path: Path) -> None:
    cells = [cell for cell in read(path)["cells"] if cell["cell_type"] == "code"]
    assert cells
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)


def test_every_notebook_is_tested() -> None:
    assert {path.stem for path in NOTEBOOKS} == {*SHOWN} == {*MADE}


def execute(notebook: Any, folder: Path) -> str:
    """Run a notebook and return all the text that it shows."""
    nbclient = pytest.importorskip("nbclient")
    resources = {"metadata": {"path": str(folder)}}
    nbclient.NotebookClient(notebook, kernel_name="python3", timeout=240, resources=resources).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "".join(one.get("text") or one.get("data", {}).get("text/plain", "") for one in outputs)


@pytest.fixture
def environment(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a kernel finds: the server, and folders of its own. Returns the folder for runs."""
    monkeypatch.setenv("FASTGEN_SERVER", server)
    monkeypatch.setenv("FASTGEN_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(EXAMPLES.parent), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "jupyter"))  # no kernels but this Python's
    return tmp_path / "runs"


@pytest.mark.filterwarnings("ignore")  # of Jupyter's libraries, about each other
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_its_first_cell_to_its_last(path: Path, environment: Path) -> None:
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("datasets")
    said = execute(nbformat.read(path, as_version=4), environment.parent)
    assert [text for text in SHOWN[path.stem] if text not in said] == [], said
    for name, complete in MADE[path.stem].items():
        run = open_run(environment / name)
        assert (run.state, run.counts.complete) == ("done", complete)


CELL = """
import sys
sys.modules["tqdm"] = sys.modules["tqdm.auto"] = None
import fastgen
run = fastgen.generate({run_dir!r}, base_url={server!r}, num_instructions=5, seed={seed})
run = await fastgen.agenerate({run_dir!r}, num_instructions=8, progress=False)
run.counts.complete
"""


@pytest.mark.filterwarnings("ignore")
def test_progress_is_one_line_without_tqdm_and_await_works_in_a_cell(environment: Path, server: str) -> None:
    nbformat = pytest.importorskip("nbformat")
    cell = CELL.format(run_dir=str(environment / "run"), server=server, seed=1)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell)])
    said = execute(notebook, environment.parent)
    assert "5/5 complete · " in said
    assert said.count(" complete · ") == 1
    assert said.endswith("8")
