"""Every notebook asks, runs on the bundled model, shows a figure, and what it concludes holds.

`claims/NAME.py` runs in the notebook's kernel after its last cell: there the numbers behind its sentences are asserted.
"""

from __future__ import annotations

import ast
import builtins
import json
import re
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

jupytext = pytest.importorskip("jupytext", reason="the notebooks are an extra")
nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

from jupyter_client.kernelspec import KernelSpecManager  # noqa: E402 - not without the extra
from jupyter_client.manager import AsyncKernelManager  # noqa: E402
from jupytext.compare import compare_notebooks  # noqa: E402

from apps.explorer.results import figures_of  # noqa: E402
from interp.runs import load_run  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent.parent
CLAIMS = Path(__file__).parent / "claims"
TEXTS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.py"))
FIGURE = "application/vnd.plotly.v1+json"
HUB = re.compile(r'"(openai-community/gpt2|meta-llama/[^"]+)"')
MACHINE = re.compile(r"/(home|Users|root|work|mnt|tmp|opt)/|[A-Z]:\\")
"""Absolute paths of somebody's machine."""

each_notebook = pytest.mark.parametrize("text", TEXTS, ids=lambda text: text.stem)


def written(text: Path) -> Any:
    """The notebook as it is kept."""
    return nbformat.read(text.with_suffix(".ipynb"), as_version=4)


def figures(cells: list[Any]) -> list[dict[str, Any]]:
    """The figures that executed cells show."""
    outputs = [output for cell in cells for output in cell.get("outputs", ())]
    return [output["data"][FIGURE] for output in outputs if FIGURE in output.get("data", {})]


def execute(notebook: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run every cell, in a kernel of this very interpreter that writes nothing outside `folder`."""
    for name in ("TMPDIR", "IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR"):
        place = folder / name.lower()
        place.mkdir()
        monkeypatch.setenv(name, str(place))
    monkeypatch.setenv("PLOTLY_RENDERER", "plotly_mimetype")
    kernel = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=KernelSpecManager(kernel_dirs=[]))
    client = nbclient.NotebookClient(notebook, km=kernel, timeout=300, resources={"metadata": {"path": str(folder)}})
    client.execute()


@pytest.mark.notebooks
@each_notebook
def test_a_notebook_runs_and_its_conclusions_hold(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = written(text)
    claims = (CLAIMS / text.name).read_text(encoding="utf-8")
    assert "assert " in claims
    cells = list(notebook.cells)
    interpreter = nbformat.v4.new_code_cell(f"import sys\nassert sys.executable == {sys.executable!r}")
    notebook.cells += [interpreter, nbformat.v4.new_code_cell(claims)]
    execute(notebook, tmp_path, monkeypatch)

    assert figures(cells[-2:-1]), "the last code cell shows no figure"
    for record in tmp_path.rglob("run.json"):  # the runs that it saved look the same in the explorer
        shown = json.loads(figures_of(load_run(record.parent))["result"].to_json())
        assert any(figure["data"] == shown["data"] for figure in figures(cells)), record.parent.name


@each_notebook
def test_a_notebook_and_its_text_say_the_same(text: Path) -> None:
    kept, source = written(text), jupytext.read(text, fmt="py:percent")
    source.metadata = kept.metadata
    compare_notebooks(kept, source, fmt="py:percent")


@each_notebook
def test_syncing_changes_nothing(text: Path) -> None:
    """`python notebooks/sync.py` is what wrote the .ipynb, identifiers of cells included."""
    sync = runpy.run_path(str(ROOT / "notebooks" / "sync.py"))
    assert sync["written"](text) == text.with_suffix(".ipynb").read_text(encoding="utf-8")


@each_notebook
def test_a_notebook_asks_first_and_ends_with_a_figure_and_a_sentence(text: Path) -> None:
    cells = written(text).cells
    question = cells[0].source.splitlines()[0]
    assert cells[0].cell_type == "markdown"
    assert question.startswith("# ")
    assert question.endswith("?")
    figure, sentence = cells[-2:]
    assert figure.cell_type == "code"
    assert sentence.cell_type == "markdown"
    assert sentence.source.rstrip().endswith(".")
    assert not sentence.source.startswith("#")


def for_another_model(text: Path) -> str:
    """The code that a notebook gives for another model."""
    (cell,) = (cell for cell in written(text).cells if "another-model" in cell.metadata.get("tags", ()))
    (code,) = re.findall(r"```python\n(.*?)```", cell.source, re.DOTALL)
    return str(code)


def names(source: str) -> tuple[set[str], set[str], set[str]]:
    """The names that code imports, sets and reads."""
    nodes = list(ast.walk(ast.parse(source)))
    imports = [alias for node in nodes if isinstance(node, (ast.Import, ast.ImportFrom)) for alias in node.names]
    stored = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    read = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    return {(alias.asname or alias.name).split(".")[0] for alias in imports}, stored, read


@each_notebook
def test_what_changes_for_another_model_fits_the_notebook(text: Path) -> None:
    code = for_another_model(text)
    cells = "\n".join(cell.source for cell in written(text).cells if cell.cell_type == "code")
    (imported, stored, read), (has, sets, reads) = names(code), names(cells)
    assert HUB.search(code)
    assert "model" in stored
    assert stored <= (sets & reads) | read
    assert read <= imported | stored | has | set(dir(builtins))
    for line in code.splitlines():
        if line.startswith(("from ", "import ")):
            exec(line, {})


@pytest.mark.slow
@pytest.mark.notebooks
@each_notebook
def test_what_changes_for_another_model_runs(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the bundled model, a small Llama, in the place of the one on the hub."""
    code = for_another_model(text)
    if re.search(r"\.(txt|jsonl|csv)\b", code):
        pytest.skip("it reads a file of the reader's own")
    first = next(cell.source for cell in written(text).cells if cell.cell_type == "code")
    cells = [nbformat.v4.new_code_cell(source) for source in (first, HUB.sub('"pocket"', code))]
    execute(nbformat.v4.new_notebook(cells=cells), tmp_path, monkeypatch)


@each_notebook
def test_a_notebook_is_kept_without_outputs_and_paths_of_a_machine(text: Path) -> None:
    for cell in written(text).cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
        assert not MACHINE.search(cell.source)


def test_there_is_a_tour_first_and_a_text_for_every_notebook() -> None:
    assert TEXTS[0].stem == "00_tour"
    assert [text.stem for text in TEXTS] == sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))
    assert {text.name for text in TEXTS} == {path.name for path in CLAIMS.glob("*.py")}
