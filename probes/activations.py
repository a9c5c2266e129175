"""Activations of a data set, streamed to disk: larger than memory, interruptible, and tied to their model and texts.

While they are collected they lie beside the run that is to hold them: `NAME.activations.safetensors`, a memory map that
each chunk of texts fills a stretch of, and the journal of finished chunks. When all are there they become the run.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch

from interp.errors import BadInput, UnknownSite, UnreadableFile, choose
from interp.heads.scores import model_record
from interp.runs import Journal, load_run, require_free, save_run
from interp.tracing.batch import Prompts, check_length, check_tokens, encode
from interp.tracing.model import Model
from interp.tracing.sites import Site, expand

At = Literal["last", "mean"]
"""The last token, or the mean over all tokens."""
KIND = "activations"
FILE = "activations.safetensors"


@dataclass(frozen=True, eq=False, repr=False)
class Activations(Mapping[str, np.ndarray]):
    """Activations `[example feature]` of each site, in float32, read from disk as they are asked for.

    `texts` is the fingerprint of the tokens they were collected on, `model` the record of the model.
    """

    arrays: Mapping[str, np.ndarray]
    at: At
    texts: str
    model: Mapping[str, Any]
    path: Path | None = None
    tokens: tuple[tuple[int, ...], ...] = field(default=(), repr=False)

    def __getitem__(self, site: str) -> np.ndarray:
        if site not in self.arrays:
            raise UnknownSite(f"there are no activations of {site!r} here; {choose(site, self.arrays)}")
        return self.arrays[site]

    def __iter__(self) -> Iterator[str]:
        return iter(self.arrays)

    def __len__(self) -> int:
        return len(self.arrays)

    def __repr__(self) -> str:
        first = next(iter(self.arrays.values()))
        return f"Activations({len(self)} sites of {self.model['name']} at {self.at}, {len(first)} examples)"

    @classmethod
    def load(cls, path: str | Path) -> Activations:
        """Read what `collect` wrote; the arrays stay on disk. Raises UnreadableFile."""
        run = load_run(path)
        if run.record.kind != KIND:
            raise UnreadableFile(f"{path} is a run of {run.record.kind}, not of activations")
        about = run.record.parameters
        rows = [json.loads(row) for row in run.frame["tokens"]]
        tokens = tuple(tuple(row) for row in rows)
        return cls(_mapped(run.path / FILE), about["at"], about["texts"], run.record.model, run.path, tokens)

    def require(self, model: Model, texts: Prompts) -> Activations:
        """Itself, if it is of this model and these texts; raises BadInput naming what differs."""
        if self.model["fingerprint"] != model.fingerprint:
            raise BadInput(
                f"these activations are of {self.model['name']} ({self.model['fingerprint']}), not of "
                f"{model.spec.name} ({model.fingerprint}): collect them again"
            )
        now = fingerprint(encode(texts, model.tokenizer).rows)
        if self.texts != now:
            raise BadInput(f"these activations are of other texts ({self.texts}, not {now}): collect them again")
        return self


def collect(
    model: Model,
    texts: Prompts,
    sites: str | Site | Sequence[str | Site],
    *,
    at: At = "last",
    path: str | Path | None = None,
    chunk: int = 32,
    resume: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Activations:
    """The activations of `sites` for every text, at its last token or averaged over all its tokens.

    Sites with heads are laid out flat, heads first. With `path` the arrays are written there chunk by chunk and read
    back through a memory map, and `resume=True` goes on where an interrupted collection stopped; without, they are
    kept in memory. Raises BadInput on other parameters than those of the interrupted collection, PromptTooLong,
    UnknownSite, UnwritableOutput: all before the first forward pass.
    """
    if at not in ("last", "mean"):
        raise BadInput(f"activations are taken at 'last' or as 'mean', not {at!r}")
    encoded = encode(texts, model.tokenizer)
    check_tokens(encoded, model.spec.vocab)
    check_length(encoded, model.spec.context, 0)
    rows = encoded.rows
    record, digest = model_record(model), fingerprint(rows)
    read = expand(sites, model.spec.layers)
    shapes = {site: (len(rows), width) for site, width in _widths(model, rows, read).items()}
    starts = range(0, len(rows), chunk)
    started = datetime.now(timezone.utc)
    if path is None:
        arrays = {site: np.zeros(shape, dtype=np.float32) for site, shape in shapes.items()}
        for number, start in enumerate(starts):
            _fill(arrays, start, model, rows[start : start + chunk], read, at)
            if progress:
                progress(number + 1, len(starts))
        return Activations(arrays, at, digest, record, None, rows)
    path = Path(path)
    require_free(path)
    parameters = {"sites": list(shapes), "at": at, "texts": digest, "model": record["fingerprint"], "chunk": chunk}
    partial = path.with_name(f"{path.name}.{FILE}")
    with Journal(Journal.beside(path), parameters, resume) as journal:
        done = set(journal.done) if _allocate(partial, shapes) else set()
        mapped = _mapped(partial, "r+")
        for number, start in enumerate(starts):
            if str(start) not in done:
                _fill(mapped, start, model, rows[start : start + chunk], read, at)
                for array in mapped.values():
                    array.flush()
                journal.append(str(start), len(rows[start : start + chunk]))
            if progress:
                progress(number + 1, len(starts))
    del mapped
    save_run(
        path,
        kind=KIND,
        parameters=parameters,
        model=record,
        seed=0,
        frame=pd.DataFrame({"tokens": [json.dumps(row) for row in rows]}),
        files={FILE: lambda file: _link(partial, file)},
        started=started,
    )
    partial.unlink()
    journal.discard()
    return Activations.load(path)


def fingerprint(rows: Sequence[Sequence[int]]) -> str:
    """Sixteen hex digits over the tokens of every text, in order."""
    return hashlib.sha256(json.dumps([list(row) for row in rows]).encode()).hexdigest()[:16]


def _widths(model: Model, rows: Sequence[Sequence[int]], read: Sequence[Site]) -> dict[str, int]:
    """How many features each site has, from the shortest text; raises for sites that cannot be read."""
    for site in read:
        if not site.spec.shape.startswith("B T"):
            raise BadInput(f"{site} is no vector a token, so no probe can read it")
    shortest: Sequence[int] = min(rows, key=len)
    trace = model.run([list(shortest)], read=read, positions=-1)
    return {str(site): trace[site][0, -1].numel() for site in read}


def _fill(
    arrays: Mapping[str, np.ndarray],
    start: int,
    model: Model,
    rows: Sequence[Sequence[int]],
    read: Sequence[Site],
    at: At,
) -> None:
    """Run one chunk of texts and put its activations where they belong."""
    trace = model.run([list(row) for row in rows], read=read, positions=-1 if at == "last" else None)
    for site in read:
        value = trace[site].flatten(2).float()
        if at == "last":
            reduced = value[:, -1]
        else:
            real = (torch.arange(value.shape[1]) < trace.lengths[:, None]).to(value.device)[..., None]
            reduced = torch.where(real, value, 0).sum(1) / trace.lengths[:, None].to(value.device)
        arrays[str(site)][start : start + len(rows)] = reduced.cpu().numpy()


def _allocate(file: Path, shapes: Mapping[str, tuple[int, int]]) -> bool:
    """Lay out a safetensors file of these float32 arrays, all zero; whether exactly that was there already."""
    layout, end = {}, 0
    for site, shape in shapes.items():
        begin, end = end, end + 4 * int(np.prod(shape))
        layout[site] = {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(layout).encode()
    header = text + b" " * (-len(text) % 8)
    whole = len(header).to_bytes(8, "little") + header
    if file.exists() and file.stat().st_size == len(whole) + end:
        with file.open("rb") as opened:
            if opened.read(len(whole)) == whole:
                return True
    with file.open("wb") as opened:
        opened.write(whole)
        opened.truncate(len(whole) + end)  # the zeros take no space before they are filled
    return False


def _mapped(file: Path, mode: Literal["r", "r+"] = "r") -> dict[str, np.memmap]:
    """The arrays of a safetensors file of float32 arrays as memory maps. Raises UnreadableFile."""
    try:
        with file.open("rb") as opened:
            size = int.from_bytes(opened.read(8), "little")
            layout = json.loads(opened.read(size))
        layout.pop("__metadata__", None)
        return {
            site: np.memmap(file, np.dtype("<f4"), mode, 8 + size + about["data_offsets"][0], tuple(about["shape"]))
            for site, about in layout.items()
        }
    except (OSError, ValueError, KeyError, MemoryError) as error:
        raise UnreadableFile(f"{file} cannot be read: {error}") from error


def _link(source: Path, target: Path) -> None:
    """A second name for a file, so that a kill between the two loses nothing; a copy where there are no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
