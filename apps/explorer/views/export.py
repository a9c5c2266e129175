"""Export: a head mask in any format, any table, any figure, as files; and a mask read back."""

from __future__ import annotations

import io
import tempfile
import zipfile
from functools import partial
from pathlib import Path
from typing import get_args

import streamlit as st

from apps.explorer import show
from apps.explorer.results import figures_of, result_of
from interp.errors import BadInput, UnreadableFile
from interp.heads.formats import FORMATS, Loss, read_mask, write_mask
from interp.heads.mask import HeadMask, Reduction
from interp.plots.export import PICTURES, figure_bytes, lacking_for_pictures
from interp.runs import Run

SUFFIXES = {"safetensors": ".safetensors", "npy": ".npy", "duo": ".zip"}
"""Of mask files; the others are JSON, and duo is a folder."""
FIGURES = {".html": "text/html", ".png": "image/png", ".svg": "image/svg+xml", ".json": "application/json"}
PARQUET = "application/vnd.apache.parquet"
UPLOAD_BYTES = 20 * 2**20
UPLOADS = ("json", "safetensors", "npy")


@show.page
def page() -> None:
    st.title("Export")
    found = show.catalogue()
    readable = [name for name, entry in found.items() if entry.run is not None]
    run = show.choose_run("Run", found, readable, "export", "The folders hold no runs that can be read.")
    if run is not None:
        name = run.path.name
        st.subheader("Head mask")
        show.part(_mask, run, name)
        st.subheader("Tables")
        show.part(_table, run, name)
        st.subheader("Figures")
        show.part(_figures, run, name)
    st.subheader("Read a mask")
    show.part(_read_back)


def _mask(run: Run, name: str) -> None:
    mask = _own(run)
    if mask is None:
        st.info("This run holds no head mask: those of interp heads score do.")
        return
    left, middle, right = st.columns(3)
    ways = [*(["as saved"] if mask.selected is not None else []), "top", "threshold"]
    way = left.selectbox("Selected heads", ways, key="selection")
    if way == "top":
        mask = mask.top(middle.number_input("Heads", 1, mask.scores.size, min(8, mask.scores.size), key="top"))
    elif way == "threshold":
        mask = mask.threshold(middle.number_input("Least score", value=0.1, step=0.05, key="threshold"))
    form = right.selectbox("Format", list(FORMATS), key="format")
    if FORMATS[form].kind == "kv" and mask.kind == "query":
        rule = left.selectbox("Key/value heads score the", get_args(Reduction), key="reduction")
        chosen = len(mask.heads)
        mask = mask.to_kv(rule).top(min(chosen, mask.scores.shape[0] * int(mask.kv_heads or 1)))
    st.caption(f"{FORMATS[form].holds}. {show.text(repr(mask))}")
    data, losses = mask_file(mask, form)
    for loss in losses:
        st.caption(f"Not kept: {show.text(loss.field)} ({show.text(loss.why)})")
    st.download_button("Download the mask", data, f"{name}-{form}{SUFFIXES.get(form, '.json')}", key="download-mask")


def _own(run: Run) -> HeadMask | None:
    """The mask saved in a run, or its scores as one."""
    file = run.path / "mask.json"
    if file.is_file():
        return read_mask(file)
    return result_of(run).mask() if run.record.kind == "head-scores" else None


def mask_file(mask: HeadMask, form: str) -> tuple[bytes, tuple[Loss, ...]]:
    """A mask as the bytes of a file of this format (a folder as a ZIP), and what the format does not keep."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mask"
        losses = write_mask(mask, path, form)
        if path.is_file():
            return path.read_bytes(), losses
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in sorted(path.iterdir()):
                archive.write(file, file.name)
        return packed.getvalue(), losses


def tables(run: Run) -> list[str]:
    """The names of a run's tables, that of its result first."""
    further = sorted(path.stem for path in run.path.glob("*.parquet"))
    return ["table", *(name for name in further if name != "table")]


def _table(run: Run, name: str) -> None:
    names = tables(run)
    show.refuse_unknown("table", names, "table")
    which = st.selectbox("Table", names, key="table", bind="query-params", format_func=_said)
    frame = run.table(which)
    file = name if which == "table" else f"{name}-{which}"
    st.caption(f"{len(frame):,} rows of {len(frame.columns)} columns: {show.text(', '.join(map(str, frame)))}")
    row = st.container(horizontal=True)
    row.download_button("CSV", lambda: frame.to_csv(index=False).encode(), f"{file}.csv", "text/csv", key="csv")
    row.download_button(
        "Parquet", (run.path / f"{which}.parquet").read_bytes, f"{file}.parquet", PARQUET, key="parquet"
    )


def _said(table: str) -> str:
    return "of the result" if table == "table" else table


def _figures(run: Run, name: str) -> None:
    figures = figures_of(run)
    if not figures:
        st.info(f"Runs of kind {show.text(run.record.kind)} are tables only.")
        return
    lacking = lacking_for_pictures()
    if lacking:
        st.info(f"{show.text(lacking)}. On any page, the camera above a figure saves it as SVG.")
    for what, drawn in figures.items():
        file = f"{name}-{what.replace(' ', '-')}"
        row = st.container(horizontal=True)
        for suffix, mime in FIGURES.items():
            row.download_button(
                f"{what}: {suffix[1:].upper()}",
                partial(figure_bytes, drawn, suffix),
                f"{file}{suffix}",
                mime,
                key=f"{what}{suffix}",
                disabled=bool(lacking) and suffix in PICTURES,
            )


def _read_back() -> None:
    given = st.file_uploader(
        "A mask file: ours, or of one of the tools above", UPLOADS, key="upload", max_upload_size=UPLOAD_BYTES >> 20
    )
    if given is None:
        return
    mask = uploaded(given.name, given.getvalue())
    st.text(repr(mask))
    from interp.plots.heads import head_map

    show.figure(head_map(mask.scores, f"{mask.method or 'scores'} of {mask.kind} heads"), "uploaded")


def uploaded(name: str, content: bytes) -> HeadMask:
    """The mask in an uploaded file. Raises BadInput for its size or type, UnreadableFile for its content."""
    suffix = Path(name).suffix.lower()
    if suffix.removeprefix(".") not in UPLOADS:
        raise BadInput(f"{name[-40:]} is no mask file; valid: {', '.join(UPLOADS)}")
    if len(content) > UPLOAD_BYTES:
        raise BadInput(f"{len(content):,} bytes are more than a mask has; up to {UPLOAD_BYTES:,} are read")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"mask{suffix}"
        path.write_bytes(content)
        try:
            return read_mask(path)
        except (BadInput, RecursionError, MemoryError) as error:
            raise UnreadableFile(str(error).replace(str(path), "The file")) from error
