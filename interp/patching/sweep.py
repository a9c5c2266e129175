"""Many interventions on the same prompts, each computed only where it can matter.

    result = sweep(model, prompts, [zero(f"z.{l}.{h}") for l in range(12) for h in range(12)], logit_difference())
    result.values - result.base                     # [edit metric prompt]

A causal model under an edit at layer L and position p is unchanged before (L, p). The shared executor runs the prompts
once and recomputes only the rest, for many edits at a time; the plain one runs the whole model for every edit, and is
what the shared one must equal.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import psutil
import torch

from interp.errors import BadInput, choose
from interp.heads.scores import model_record
from interp.metrics import Metric
from interp.patching.flops import unavoidable
from interp.patching.plain import Plain
from interp.patching.request import Group, Request, check
from interp.patching.shared import Shared, refusal
from interp.patching.work import Executor, Work
from interp.runs import Journal, Run, load_run, save_run
from interp.tables import in_notebook
from interp.tracing.batch import Prompts
from interp.tracing.edit_files import load_edits, save_edits
from interp.tracing.edits import Edit
from interp.tracing.model import Model

ExecutorName = Literal["auto", "shared", "plain"]
EXECUTORS: tuple[ExecutorName, ...] = ("auto", "shared", "plain")
METRIC_FIELDS = ("kind", "answers", "distractors", "position", "name")
"""What JSON keeps of a metric."""
MEMORY_SHARE = 0.25
"""Of the free memory, what a sweep takes unless told otherwise."""


@dataclass(frozen=True, eq=False, repr=False)
class SweepResult:
    """`values` `[edit metric prompt]` under every group of edits, `base` `[metric prompt]` without any.

    `edits[i]` is the group that `values[i]` belongs to. `parameters` say which executor ran and why, and the FLOPs.
    """

    values: np.ndarray
    base: np.ndarray
    edits: tuple[Group, ...]
    metrics: tuple[Metric, ...]
    model: Mapping[str, Any]
    parameters: Mapping[str, Any]

    def __repr__(self) -> str:
        edits, metrics, prompts = self.values.shape
        return f"SweepResult({edits} edits x {metrics} metrics x {prompts} prompts on {self.model['name']})"

    @cached_property
    def frame(self) -> pd.DataFrame:
        """One row an edit, metric and prompt: what was edited, `value` and `base`."""
        edits, metrics, prompts = self.values.shape
        what = pd.DataFrame([_described(i, group) for i, group in enumerate(self.edits)])
        frame = what.loc[what.index.repeat(metrics * prompts)].reset_index(drop=True)
        frame["metric"] = np.tile(np.repeat([m.name for m in self.metrics], prompts), edits)
        frame["prompt"] = np.tile(np.arange(prompts), edits * metrics)
        frame["value"] = self.values.ravel()
        frame["base"] = np.tile(self.base.ravel(), edits)
        return frame

    def _repr_html_(self) -> str:
        return in_notebook(self, self.frame)

    def save(self, path: str | Path) -> Run:
        """Write a run folder: the table, the arrays, and the edits with their tensors. Raises UnwritableOutput."""
        references = {f"reference.{i}": m.reference for i, m in enumerate(self.metrics) if m.reference is not None}
        return save_run(
            path,
            kind="sweep",
            parameters={
                **self.parameters,
                "metrics": [{name: getattr(m, name) for name in METRIC_FIELDS} for m in self.metrics],
                "groups": [len(group) for group in self.edits],
            },
            model=self.model,
            seed=0,
            frame=self.frame,
            arrays={
                "values": self.values,
                "base": self.base,
                **{name: tensor.double().cpu().numpy() for name, tensor in references.items()},
            },
            files={"edits.json": lambda file: save_edits(file, [edit for group in self.edits for edit in group])},
        )

    @classmethod
    def load(cls, path: str | Path) -> SweepResult:
        """Read what `save` wrote. Raises UnreadableFile, BadInput for a run of another kind."""
        run = load_run(path, "sweep")
        parameters = dict(run.record.parameters)
        metrics = [_metric(run, i, about) for i, about in enumerate(parameters.pop("metrics"))]
        sizes = parameters.pop("groups")
        edits = iter(load_edits(run.path / "edits.json"))
        groups = tuple(tuple(islice(edits, size)) for size in sizes)
        values = run.array("values", len(groups), len(metrics), None)
        base = run.array("base", len(metrics), values.shape[2])
        return cls(values, base, groups, tuple(metrics), run.record.model, parameters)


def sweep(
    model: Model,
    prompts: Prompts,
    edits: Sequence[Edit | Sequence[Edit]],
    metric: Metric | Sequence[Metric],
    *,
    memory: int | None = None,
    executor: ExecutorName = "auto",
    journal: Journal | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> SweepResult:
    """Metrics of every prompt under each of many edits.

    Args:
        prompts: as `Model.run` takes them; a PromptSet also gives answers, distractors and role names.
        edits: each an Edit, or several that are made together.
        metric: one or several of `interp.metrics`.
        memory: bytes the working set may take; a quarter of the free memory by default. Where that was too much, chunks
            are halved until they fit.
        executor: `"shared"` computes only what an edit can change, and refuses where that is not known to be exact;
            `"plain"` runs the whole model for every edit; `"auto"` shares where it can, and the result says which and
            why.
        journal: finished chunks are kept there, and those it already holds are not run again.
        progress: called with the number of edits done and their total.

    Raises:
        BadInput, UnknownSite, SiteUnavailable, PromptTooLong: before any forward pass.
        MemoryBudgetExceeded: a single edit of a single prompt does not fit.
    """
    if executor not in EXECUTORS:
        raise BadInput(f"there is no executor {executor!r}; {choose(executor, EXECUTORS)}")
    if memory is not None and memory <= 0:
        raise BadInput(
            f"memory={memory} bytes hold nothing; give a positive number, or None for a share of what is free"
        )
    request = check(model, prompts, edits, metric)
    chosen, reason = _executor(request, executor)
    budget = int(MEMORY_SHARE * _free_memory(model.device)) if memory is None else memory
    values, base = Work(request, chosen, journal, progress).run(budget)
    return SweepResult(
        values=values,
        base=base,
        edits=request.groups,
        metrics=tuple(m.metric for m in request.metrics),
        model=model_record(model),
        parameters={
            "executor": chosen.name,
            "reason": reason,
            "flops_spent": chosen.flops,
            "flops_unavoidable": unavoidable(request),
        },
    )


def _executor(request: Request, wanted: ExecutorName) -> tuple[Executor, str]:
    """The executor, and why this one."""
    reason = refusal(request)
    if wanted == "plain" or (wanted == "auto" and reason is not None):
        return Plain(request), reason if wanted == "auto" and reason else "asked for"
    if reason is not None:
        raise BadInput(f"executor='shared' cannot be used: {reason}; 'auto' and 'plain' run it whole")
    return Shared(request), "the model is causal, so an edit changes nothing before its layer and position"


def _metric(run: Run, index: int, about: Mapping[str, Any]) -> Metric:
    """The metric of this number, with the logits that it measures from, where there were some."""
    tokens = {name: None if about[name] is None else tuple(about[name]) for name in ("answers", "distractors")}
    name = f"reference.{index}"
    reference = torch.from_numpy(run.array(name, None, None)) if name in run.arrays else None
    return Metric(**{**about, **tokens, "reference": reference})


def _described(index: int, group: Group) -> dict[str, Any]:
    """What a row of the frame says of its edits; of several, the first one's place and all their names."""
    first = group[0]
    return {
        "edit": index,
        "what": " + ".join(map(str, group)),
        "kind": first.kind,
        "site": first.site.name,
        "layer": first.site.layer,
        "head": first.site.head,
        "position": None if first.positions is None else str(first.positions),
    }


def _free_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)
