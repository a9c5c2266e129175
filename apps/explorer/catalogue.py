"""The runs that can be opened, by name. A run that is damaged, foreign or elsewhere is an entry with its problem.

Nothing is ever opened by a path that came from outside: a name either is in the catalogue or it is not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from interp.errors import BadInput, UnreadableFile, WorkbenchError, choose
from interp.runs import Run, RunRecord, load_run, run_folders

RECORD_BYTES = 4 * 2**20
"""Of a run.json; ours have a few thousand."""
DEPTH = 20
"""Of what a run.json nests; ours nest three or four deep."""
TABLE_CELLS = 5_000_000
FILE_BYTES = 512 * 2**20
TYPES: Mapping[str, type] = {
    "kind": str,
    "parameters": dict,
    "model": dict,
    "versions": dict,
    "seed": int,
    "started": str,
    "finished": str,
}


@dataclass(frozen=True)
class Entry:
    """A folder with a run.json, under the name it has in the explorer; `problem` says why it cannot be opened."""

    name: str
    run: Run | None
    problem: str = ""


def entries(folders: Mapping[str, Path]) -> dict[str, Entry]:
    """Every run of the folders, by `FOLDER/RUN`. Folders that are not there have none."""
    found = [(f"{name}/{path.name}", folder, path) for name, folder in folders.items() for path in _inside(folder)]
    return {name: entry(name, folder, path) for name, folder, path in found}


def entry(name: str, folder: Path, path: Path) -> Entry:
    """One folder's entry, with everything checked that can be without reading its data."""
    try:
        if not path.resolve().is_relative_to(folder.resolve()):
            raise UnreadableFile(f"{path.name} leads out of the runs folder, so it is not opened")
        for file in path.rglob("*"):
            _require_modest(file)
        run = load_run(path)
        _require_types(run.record)
    except (WorkbenchError, OSError) as error:
        return Entry(name, None, str(error))
    return Entry(name, run)


def chosen(found: Mapping[str, Entry], name: str) -> Run:
    """The run of this name, ready to be read. Raises BadInput for an unknown one, UnreadableFile for a damaged one."""
    if name not in found:
        raise BadInput(f"there is no run {name!r}; {choose(name, found) if found else 'the folders hold no runs'}")
    run = found[name].run
    if run is None:
        raise UnreadableFile(found[name].problem)
    for file in run.path.glob("*.parquet"):
        _require_small_table(file)
    return run


def _inside(folder: Path) -> list[Path]:
    return run_folders(folder) if folder.is_dir() else []


def _require_modest(file: Path) -> None:
    limit = RECORD_BYTES if file.suffix == ".json" and file.name == "run.json" else FILE_BYTES
    if file.is_symlink():
        raise UnreadableFile(f"{file.name} in it is a link, and runs hold none, so it is not opened")
    if not (file.is_file() or file.is_dir()):
        raise UnreadableFile(f"{file.name} in it is neither a file nor a folder, so it is not opened")
    if (size := file.stat().st_size) > limit:
        raise UnreadableFile(f"{file.name} has {size:,} bytes, more than the explorer reads ({limit:,})")


def _require_types(record: RunRecord) -> None:
    for field in fields(RunRecord):
        wanted = TYPES.get(field.name)
        value = getattr(record, field.name)
        if wanted is not None and not isinstance(value, wanted):
            raise UnreadableFile(f"its {field.name} is of type {type(value).__name__}, not {wanted.__name__}")
    if not -(2**63) <= record.seed < 2**63:
        raise UnreadableFile("its seed has more than 64 bits")
    level: list[object] = [record.parameters, record.model, record.versions]
    for _ in range(DEPTH):
        level = [below for value in level for below in _inner(value)]
    if level:
        raise UnreadableFile(f"its run.json is nested more than {DEPTH} deep")


def _inner(value: object) -> list[object]:
    if isinstance(value, Mapping):
        return list(value.values())
    return value if isinstance(value, list) else []


def _require_small_table(file: Path) -> None:
    """Refuse a table that is small on disk and would not be in memory, from what its footer says."""
    import pyarrow.parquet as parquet

    try:
        about = parquet.read_metadata(file)
    except Exception as error:
        raise UnreadableFile(f"{file.name} cannot be read: {error}") from error
    if about.num_rows * about.num_columns > TABLE_CELLS:
        raise UnreadableFile(
            f"{file.name} has {about.num_rows:,} rows of {about.num_columns} columns, more than the explorer shows "
            f"({TABLE_CELLS:,} cells)"
        )
