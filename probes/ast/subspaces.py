"""How alike the subspaces are in which probes find syntax: between layers, seeds, and models of one width."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from scipy.linalg import subspace_angles

from interp.errors import BadInput
from probes.ast.probe import AstProbe


def principal_angles(a: AstProbe, b: AstProbe) -> np.ndarray:
    """The principal angles between two probes' subspaces, in radians, the least first; as many as the lesser rank.

    Raises BadInput for probes of states of different widths.
    """
    if len(a.projection) != len(b.projection):
        raise BadInput(
            f"subspaces of {len(a.projection)} features ({a.site}) and of {len(b.projection)} ({b.site}) share no space"
        )
    return subspace_angles(a.projection.double().numpy(), b.projection.double().numpy())[::-1]


def similarity(a: AstProbe, b: AstProbe) -> float:
    """Mean squared cosine of the principal angles: 1 for subspaces one of which holds the other, 0 for orthogonal ones.

    Raises BadInput as `principal_angles`.
    """
    return float(np.mean(np.cos(principal_angles(a, b)) ** 2))


def chance(a: AstProbe, b: AstProbe) -> float:
    """The expected similarity of two random subspaces of these ranks."""
    return max(a.rank, b.rank) / len(a.projection)


def similarities(rows: Mapping[str, AstProbe], columns: Mapping[str, AstProbe] | None = None) -> pd.DataFrame:
    """Every probe of `rows` against every one of `columns` (the same by default), with chance beside.

    Raises BadInput as `principal_angles`.
    """
    others = rows if columns is None else columns
    found = [
        {"row": row, "column": column, "similarity": similarity(a, b), "chance": chance(a, b)}
        for row, a in rows.items()
        for column, b in others.items()
    ]
    return pd.DataFrame(found)
