"""Tables as HTML, for how objects show themselves in a notebook. Whatever a cell holds is text there, never markup."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

DIGITS = 4
"""Significant digits of a number."""
ROWS = 20
"""Of a table that a result shows of itself."""


def in_notebook(thing: object, *tables: pd.DataFrame, most: int | None = ROWS) -> str:
    """A thing as a notebook shows it: its repr, and the first rows of what it holds."""
    return f"<p>{escape(repr(thing))}</p>{''.join(html_table(table, most) for table in tables)}"


def html_table(frame: pd.DataFrame, most: int | None = None) -> str:
    """The first `most` rows of a table, text to the left and numbers to the right; below it how many more there are.

    Long texts lose their middle.
    """
    from pandas.api.types import is_bool_dtype, is_numeric_dtype

    kinds = (is_numeric_dtype(of) and not is_bool_dtype(of) for of in frame.dtypes)
    styles = ["text-align: right" if number else "text-align: left; white-space: pre-line" for number in kinds]
    shown = frame if most is None else frame.head(most)
    rows = [_row("th", map(str, frame.columns), styles)]
    rows += [_row("td", map(_text, row), styles) for row in shown.itertuples(index=False, name=None)]
    more = f"<p>… and {len(frame) - len(shown)} more</p>" if len(shown) < len(frame) else ""
    return f"<table>{''.join(rows)}</table>{more}"


def shortened(text: str, most: int = 160) -> str:
    """A long text without its middle, at most `most` characters."""
    half = (most - 3) // 2
    return text if len(text) <= most else f"{text[:half]} … {text[-half:]}"


def _row(tag: str, texts: Any, styles: list[str]) -> str:
    cells = (f'<{tag} style="{style}">{escape(text)}</{tag}>' for text, style in zip(texts, styles, strict=True))
    return f"<tr>{''.join(cells)}</tr>"


def _text(value: Any) -> str:
    return f"{value:.{DIGITS}g}" if isinstance(value, float) else shortened(str(value))
