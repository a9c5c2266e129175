"""A model for people: its shape on a card, and the resolved table of its sites."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

import pandas as pd

from interp.tables import html_table
from interp.tracing.architectures import Architecture
from interp.tracing.sites import SITES
from interp.tracing.spec import ModelSpec

if TYPE_CHECKING:
    from interp.tracing.model import Model


@dataclass(frozen=True)
class Description:
    """A model's shape and its sites; `frame` has one row a site (site, shape, where, available, reason)."""

    spec: ModelSpec
    backend: str
    attention: str
    frame: pd.DataFrame
    remark: str = ""

    def __str__(self) -> str:
        s = self.spec
        head = (
            f"{s.name}: {s.family}, {s.layers} layers, {s.heads} heads ({s.kv_heads} key/value), "
            f"head width {s.head_dim}, width {s.width}, MLP {s.mlp_width}, vocabulary {s.vocab}, "
            f"context {s.context}, {s.dtype}; {self.backend} backend, {self.attention} attention"
            f"{self.remark and f' ({self.remark})'}"
        )
        return f"{head}\n{self.frame.to_string(index=False)}"

    def _repr_html_(self) -> str:
        return f"<p>{escape(str(self).splitlines()[0])}</p>{html_table(self.frame)}"


def card(model: Model) -> str:
    """What a model shows of itself in a notebook; nothing is computed from its weights."""
    s = model.spec
    sizes = {
        "layers": s.layers,
        "heads": s.heads,
        "key/value heads": s.kv_heads,
        "head width": s.head_dim,
        "width": s.width,
        "MLP width": s.mlp_width,
        "vocabulary": s.vocab,
        "context": s.context or "any",
    }
    place = "on a remote service" if model.remote else str(model.device)
    about = f"{s.family}, {s.parameters:,} parameters in {s.dtype}, {place}; {model.backend.name} backend"
    about = f"{about}, {model.attention} attention"
    return f"<p><b>{escape(s.name)}</b>: {escape(about)}</p>{html_table(pd.DataFrame([sizes]))}"


def describe(model: Model) -> Description:
    where = module_paths(model.parts.architecture)
    rows = []
    for name, site in SITES.items():
        reason = model.refusals.get(name, "")
        rows.append(
            {
                "site": name if site.scope == "model" else f"{name}.L",
                "shape": site.shape,
                "where": "" if reason else where[name],
                "available": not reason,
                "reason": reason,
                "meaning": site.meaning,
            }
        )
    remark = getattr(model.backend, "remark", "")
    return Description(model.spec, model.backend.name, model.attention, pd.DataFrame(rows), remark)


def module_paths(a: Architecture) -> dict[str, str]:
    """The module whose input or output each site is, with `{L}` for the layer."""
    block = f"{a.blocks}.{{L}}"
    mid = f"input of {block} + output of {block}.{a.attn_out}"
    q, k, v = a.projections if len(a.projections) == 3 else a.projections * 3
    kernel = f"attention kernel of {block}.{a.attn}"
    return {
        "embed": f"input of {a.blocks}.0",
        "resid_pre": f"input of {block}",
        "attn_in": f"input of {block}.{a.attn}",
        "q": f"output of {block}.{q}",
        "k": f"output of {block}.{k}",
        "v": f"output of {block}.{v}",
        "q_rot": f"query of the {kernel}",
        "k_rot": f"key of the {kernel}",
        "pattern": f"recomputed rows of the {kernel}",
        "attention_stats": f"rows of the {kernel}, recomputed unless it measures them",
        "z": f"input of {block}.{a.o}",
        "head_out": f"z through the slices of {block}.{a.o}",
        "attn_out": f"output of {block}.{a.attn_out}",
        "resid_mid": mid if a.norm_after_attn is None else f"output of {block}.{a.norm_after_attn}",
        "mlp_in": f"input of {block}.{a.mlp}",
        "mlp_post": f"input of {block}.{a.mlp_down}",
        "mlp_out": f"output of {block}.{a.mlp_out}",
        "resid_post": f"output of {block}",
        "final_norm": f"output of {a.final_norm}",
        "logits": "output of the model",
    }
