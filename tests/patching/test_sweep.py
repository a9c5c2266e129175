"""The shared executor against one edit at a time through `Model.run`, and what a long sweep must survive."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import interp
import kernels.integration
from interp import Edit, Site
from interp.errors import BadInput, MemoryBudgetExceeded, PromptTooLong, SiteUnavailable, UnknownSite
from interp.metrics import accuracy, kl, log_probability, logit, logit_difference
from interp.patching.sweep import SweepResult, sweep
from interp.runs import Journal, load_run
from interp.tracing.plan import check_site, features
from interp.tracing.sites import SITES
from tests.families import CONTEXT, VOCAB, build, prompts, ragged

torch.set_num_threads(1)
TOLERANCE = 1e-4
FAMILIES = ("gpt2", "llama", "mistral", "gemma2", "gpt_neox", "bloom", "falcon", "opt_post_norm")
"""Learned positions; grouped heads; windows; sandwich norms; parallel blocks; ALiBi; one key head; norms after sums."""
LENGTHS = (9, 5, 7)


class Prompts(NamedTuple):
    tokens: Sequence[Sequence[int]]
    spans: dict[str, list[tuple[int, int]]]


RAGGED = Prompts(ragged(LENGTHS), {"S": [(2, 3), (3, 5), (1, 2)]})
METRICS = (*(logit(token, name=f"logit {token}") for token in (3, 77, 150)), logit(9, position="S"))


@cache
def model_of(family: str, attention: str = "eager") -> interp.Model:
    if attention == "workbench":
        kernels.integration.install()
    return interp.wrap(build(family, attention))


def one_at_a_time(model: interp.Model, prompts: Any, groups: Sequence[Any]) -> np.ndarray:
    """METRICS `[edit metric prompt]` by `Model.run` alone."""
    values = []
    for group in groups:
        logits = model.run(prompts, edits=group, logits="all").logits
        rows = range(len(prompts.tokens))
        last = [len(tokens) - 1 for tokens in prompts.tokens]
        named = [stop - 1 for _, stop in prompts.spans["S"]]
        at = [[logits[i, last[i], t] for i in rows] for t in (3, 77, 150)] + [[logits[i, named[i], 9] for i in rows]]
        values.append([[float(x) for x in row] for row in at])
    return np.array(values)


def sites(model: interp.Model) -> list[Site]:
    """Every site of the model that can be edited, whole and by head."""
    found = []
    for name, spec in SITES.items():
        layers = [None] if spec.scope == "model" else range(model.spec.layers)
        heads = (None, 0) if spec.heads else (None,)
        found += [Site(name, layer, head) for layer in layers for head in heads if spec.editable]
    return [site for site in found if not refused(model, site) and site.name not in ("final_norm", "logits")]


def refused(model: interp.Model, site: Site) -> bool:
    try:
        check_site(site, model.spec, model.refusals)
    except SiteUnavailable:
        return True
    return False


KINDS: dict[str, Callable[[Site, Callable[..., Tensor], tuple[int, ...]], Edit]] = {
    "zero": lambda site, draw, shape: interp.zero(site),
    "scale": lambda site, draw, shape: interp.scale(site, 1.7),
    "mean": lambda site, draw, shape: interp.mean(site, draw(*shape)),
    "add": lambda site, draw, shape: interp.add(site, draw(*shape)),
    "patch": lambda site, draw, shape: interp.patch(site, draw(3, 9, *shape)),
    "patch one": lambda site, draw, shape: interp.patch(site, draw(1, 9, *shape)),
    "resample": lambda site, draw, shape: interp.resample(site, draw(4, 9, *shape), seed=3),
    "set_coordinate": lambda site, draw, shape: interp.set_coordinate(site, draw(*shape).flatten(), 3.0),
    "project_out": lambda site, draw, shape: interp.project_out(site, draw(2, *shape).flatten(1)),
    "swap_subspace": lambda site, draw, shape: interp.swap_subspace(
        site, draw(2, *shape).flatten(1), draw(3, 9, *shape)
    ),
}


def make(model: interp.Model, site: Site, kind: str, seed: int = 0) -> Edit:
    generator = torch.Generator().manual_seed(seed)
    shape = features(site, model.spec)[1 if site.head is not None else 0 :]
    return KINDS[kind](site, lambda *size: torch.randn(*size, generator=generator), shape)


POSITIONS = st.sampled_from([None, -1, -2, 0, 2, (1, 3), (-4, -1), slice(2, -1), slice(-2, None), slice(None, 3), "S"])
ROWS = st.sampled_from([None, None, (1,), (0, 2)])


@st.composite
def groups(draw: st.DrawFn, model: interp.Model) -> list[list[Edit]]:
    """Groups of one to three edits of any site, kind, positions and prompts."""

    def edit() -> Edit:
        if "pattern" not in model.refusals and draw(st.integers(0, 9)) == 0:
            head = draw(st.sampled_from(["", ".2"]))
            forced = interp.attend(f"pattern.{draw(st.integers(0, 1))}{head}", draw(st.sampled_from(["uniform", "S"])))
            return forced.at(positions=draw(st.sampled_from([-1, slice(-2, None)])), rows=draw(ROWS))
        site = draw(st.sampled_from(sites(model)))
        # What is left of a whole head_out is rounding, which a norm that follows would blow up to full size.
        kind = draw(st.sampled_from([k for k in KINDS if (site.name, k) != ("head_out", "zero")]))
        return make(model, site, kind, draw(st.integers(0, 99))).at(positions=draw(POSITIONS), rows=draw(ROWS))

    return [[edit() for _ in range(draw(st.integers(1, 3)))] for _ in range(draw(st.integers(1, 5)))]


@pytest.mark.parametrize("family", FAMILIES)
def test_any_edits_equal_one_at_a_time(family: str) -> None:
    model = model_of(family)

    @settings(max_examples=10, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(groups(model))
    def check(drawn: list[list[Edit]]) -> None:
        result = sweep(model, RAGGED, drawn, METRICS)
        assert result.parameters["executor"] == "shared"
        np.testing.assert_allclose(result.values, one_at_a_time(model, RAGGED, drawn), atol=TOLERANCE, rtol=0)

    check()


@pytest.mark.parametrize(("family", "attention"), [("llama", "sdpa"), ("llama", "workbench"), ("gpt2", "eager")])
def test_every_site_acts_and_equals_one_at_a_time(family: str, attention: str) -> None:
    """An edit of all positions changes the last logits, whatever its site: nothing passes by doing nothing."""
    model = model_of(family, attention)
    edits = [make(model, site, kind) for site in sites(model) for kind in ("project_out", "patch")]
    result = sweep(model, RAGGED, edits, METRICS)
    np.testing.assert_allclose(result.values, one_at_a_time(model, RAGGED, edits), atol=TOLERANCE, rtol=0)
    effects = np.abs(result.values - result.base).max((1, 2))
    assert {str(edits[i]) for i in np.flatnonzero(effects < 1e-3)} == set()


def test_patching_everything_at_the_bottom_is_the_other_run_in_both_directions() -> None:
    model = model_of("llama", "sdpa")
    clean, corrupt = (Prompts(prompts(3, 8, seed).tolist(), {"S": [(1, 2)] * 3}) for seed in (1, 2))
    for base, donor in ((clean, corrupt), (corrupt, clean)):
        trace = model.run(donor, read=["resid_pre", "z"])
        result = sweep(model, base, [interp.patch("resid_pre.0", trace), interp.patch("z.1.3", trace)], METRICS)
        other = sweep(model, donor, [interp.scale("z.0.0", 1.0)], METRICS)
        np.testing.assert_allclose(result.values[0], other.base, atol=TOLERANCE)
        assert np.abs(result.values[1] - other.base).max() > 0.1


@pytest.mark.parametrize("family", ["mistral", "bloom"])
def test_a_prompt_among_longer_ones_gives_what_it_gives_alone(family: str) -> None:
    model = model_of(family)
    edits = [make(model, site, "mean").at(positions=(1, -2)) for site in sites(model)]
    together = sweep(model, RAGGED, edits, METRICS)
    for i, tokens in enumerate(RAGGED.tokens):
        alone = sweep(model, Prompts([tokens], {"S": [RAGGED.spans["S"][i]]}), edits, METRICS)
        np.testing.assert_allclose(together.values[:, :, [i]], alone.values, atol=TOLERANCE)


def test_metrics_of_the_whole_vocabulary_equal_the_plain_executors() -> None:
    model = model_of("gemma2")
    metrics = (kl(), accuracy(5), log_probability([3, 4, 5]), kl(torch.randn(3, VOCAB), name="from elsewhere"))
    edits = [interp.scale(f"z.{layer}.{head}", 3.0) for layer in range(2) for head in range(4)]
    shared, plain = (sweep(model, RAGGED, edits, metrics, executor=name) for name in ("shared", "plain"))
    np.testing.assert_allclose(shared.values, plain.values, atol=TOLERANCE)
    np.testing.assert_allclose(shared.base, plain.base, atol=TOLERANCE)
    assert np.abs(shared.base[0]).max() < 1e-5 < np.abs(shared.values[:, 0]).min()


def test_an_edit_after_what_a_metric_reads_leaves_exactly_the_base_value() -> None:
    result = sweep(model_of("llama"), RAGGED, [interp.zero("resid_pre.0").at(positions=-1)], METRICS)
    elsewhere = [i for i, tokens in enumerate(RAGGED.tokens) if RAGGED.spans["S"][i][1] < len(tokens)]
    assert elsewhere == [0, 2]
    assert np.array_equal(result.values[0, 3, elsewhere], result.base[3, elsewhere])
    assert (result.values[0, :3] != result.base[:3]).all()


# What is computed


def counted(model: interp.Model, edits: Sequence[Any], rows: Any, **options: Any) -> tuple[int, SweepResult]:
    counter = FlopCounterMode(display=False)
    with counter:
        result = sweep(model, rows, edits, logit_difference(3, 4), **options)
    return counter.get_total_flops(), result


@pytest.mark.parametrize("executor", ["shared", "plain"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_flops_it_reports_are_those_torch_counts(family: str, executor: str) -> None:
    edits = [interp.zero(f"z.{layer}.{head}").at(positions=p) for layer in (0, 1) for head in (0, 1) for p in (2, -1)]
    flops, result = counted(model_of(family), edits, prompts(3, 24).tolist(), executor=executor)
    assert result.parameters["flops_spent"] == pytest.approx(flops, rel=0.02)


def test_little_is_computed_that_could_be_avoided() -> None:
    model, rows = interp.wrap(build("llama", num_hidden_layers=6)), prompts(2, 40).tolist()
    last = [interp.zero(f"z.{layer}.{head}").at(positions=-1) for layer in range(6) for head in range(4)]
    grid = [interp.zero(f"resid_pre.{layer}").at(positions=p) for layer in range(6) for p in range(40)]
    for edits in (last, grid):
        parameters = sweep(model, rows, edits, logit_difference(3, 4)).parameters
        assert 1 <= parameters["flops_spent"] / parameters["flops_unavoidable"] <= 1.3
    plain = sweep(model, rows, last, logit_difference(3, 4), executor="plain").parameters
    assert plain["flops_spent"] > 10 * sweep(model, rows, last, logit_difference(3, 4)).parameters["flops_spent"]


@pytest.mark.parametrize(
    ("wrapped", "edit", "reason"),
    [
        (lambda: interp.wrap(build("gpt2"), backend="nnsight"), interp.zero("z.0.1"), "nnsight backend"),
        (lambda: model_of("bert"), interp.zero("z.0.1"), "encoder"),
        (lambda: model_of("bitnet"), interp.zero("z.0.1"), "not in the table of families"),
        (lambda: model_of("gpt2"), interp.zero("final_norm"), "after the last layer"),
    ],
)
def test_where_sharing_is_not_known_to_be_exact_the_whole_model_runs_and_the_result_says_why(
    wrapped: Callable[[], interp.Model], edit: Edit, reason: str
) -> None:
    model = wrapped()
    result = sweep(model, RAGGED, [edit], METRICS)
    assert result.parameters["executor"] == "plain"
    assert reason in result.parameters["reason"]
    np.testing.assert_allclose(result.values, one_at_a_time(model, RAGGED, [edit]), atol=TOLERANCE)
    with pytest.raises(BadInput, match=reason):
        sweep(model, RAGGED, [edit], METRICS, executor="shared")


# Memory, interruption, progress


EDITS = [
    interp.scale(f"z.{layer}.{head}", 2.0).at(positions=p) for layer in (0, 1) for head in range(4) for p in (1, 3)
]


class Calls:
    """Counts the forward passes of a model and the rows of each, and fails those of more than `most`."""

    def __init__(self, model: interp.Model, most: int | None = None, error: BaseException | None = None) -> None:
        self.rows: list[int] = []
        self.model, self.most, self.error = model, most, error

    def __enter__(self) -> Calls:
        def before(_module: Any, _args: Any, kwargs: Any) -> None:
            self.rows.append(len(kwargs["input_ids"]))
            if self.most is not None and self.rows[-1] > self.most and self.error is not None:
                raise self.error

        self.handle = self.model.hf.register_forward_pre_hook(before, with_kwargs=True)
        return self

    def __exit__(self, *_: object) -> None:
        self.handle.remove()


OUT_OF_MEMORY = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: 9 bytes"),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("executor", ["shared", "plain"])
def test_running_out_of_memory_halves_the_chunk_and_goes_on(error: BaseException, executor: str) -> None:
    model = model_of("llama")
    wanted = sweep(model, RAGGED, EDITS, METRICS, executor=executor)
    with Calls(model, most=2, error=error) as calls:
        result = sweep(model, RAGGED, EDITS, METRICS, executor=executor)
    np.testing.assert_allclose(result.values, wanted.values, atol=1e-5)
    assert max(calls.rows) > 2
    assert 2 in calls.rows or 1 in calls.rows
    assert_untouched(model)


def test_one_edit_that_does_not_fit_and_any_other_failure_are_raised() -> None:
    model = model_of("llama")
    with Calls(model, most=0, error=MemoryError()), pytest.raises(MemoryBudgetExceeded, match="prompt 0 alone"):
        sweep(model, RAGGED, EDITS, METRICS)
    with Calls(model, most=3, error=RuntimeError("shape mismatch")), pytest.raises(RuntimeError, match="mismatch"):
        sweep(model, RAGGED, EDITS, METRICS)
    assert_untouched(model)


def assert_untouched(model: interp.Model) -> None:
    for name, module in model.hf.named_modules():
        assert not module._forward_hooks, name
        assert not module._forward_pre_hooks, name
        assert "forward" not in module.__dict__, name


def test_a_smaller_budget_makes_more_and_smaller_chunks_of_the_same_values() -> None:
    model = model_of("llama")
    with Calls(model) as roomy:
        wanted = sweep(model, RAGGED, EDITS, METRICS, memory=2**30)
    with Calls(model) as tight:
        result = sweep(model, RAGGED, EDITS, METRICS, memory=2**17)
    np.testing.assert_allclose(result.values, wanted.values, atol=1e-5)
    assert len(tight.rows) > len(roomy.rows)
    assert max(tight.rows) < max(roomy.rows)
    assert_untouched(model)


def test_progress_counts_edits_up_to_all_of_them() -> None:
    seen: list[tuple[int, int]] = []
    sweep(model_of("llama"), RAGGED, EDITS, METRICS, memory=2**17, progress=lambda *step: seen.append(step))
    assert seen == sorted(seen)
    assert len(seen) > 2
    assert seen[-1] == (len(EDITS), len(EDITS))
    assert {total for _, total in seen} == {len(EDITS)}


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, os.getcwd())
from tests.patching.test_sweep import *

def progress(done, total):
    if done >= 4:
        os.kill(os.getpid(), signal.SIGKILL)

journal = Journal(sys.argv[1], {})
sweep(model_of("llama"), RAGGED, EDITS, METRICS, memory=2**17, journal=journal, progress=progress)
"""


def test_a_killed_sweep_goes_on_where_it_was_and_ends_with_identical_values(tmp_path: Path, root: Path) -> None:
    model, path = model_of("llama"), Journal.beside(tmp_path / "run")
    with Calls(model) as whole:
        wanted = sweep(model, RAGGED, EDITS, METRICS, memory=2**17)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    killed = subprocess.run([sys.executable, "-c", KILLED, str(path)], cwd=root, env=environment, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    with Journal(path, {}, resume=True) as journal, Calls(model) as rest:
        finished = len(journal.done)
        assert finished >= 2
        result = sweep(model, RAGGED, EDITS, METRICS, memory=2**17, journal=journal)
    assert np.array_equal(result.values, wanted.values)
    assert np.array_equal(result.base, wanted.base)
    assert 0 < len(rest.rows) < len(whole.rows)
    with Journal(path, {}, resume=True) as journal, Calls(model) as nothing:
        sweep(model, RAGGED, EDITS, METRICS, memory=2**17, journal=journal)
        assert nothing.rows == []
        other = sweep(model, RAGGED, EDITS[::-1], METRICS, memory=2**17, journal=journal)
    assert nothing.rows != []  # another sweep's chunks are not taken for its own
    np.testing.assert_allclose(other.values[::-1], wanted.values, atol=1e-5)


# What is refused


@pytest.mark.parametrize(
    ("edits", "metric", "error", "said"),
    [
        ([interp.zero("resid_pre.2")], logit(3), UnknownSite, "layers 0 to 1"),
        ([interp.zero("z.0.4")], logit(3), UnknownSite, "heads 0 to 3"),
        ([interp.zero("z.0").at(positions=5)], logit(3), BadInput, "position 5 is outside a prompt of 5"),
        ([interp.zero("z.0").at(positions="verb")], logit(3), BadInput, "'verb'"),
        ([interp.zero("z.0").at(rows=3)], logit(3), BadInput, "row 3 does not exist"),
        ([interp.zero("z.0").at(positions=slice(9, None))], logit(3), BadInput, "selects no token of any prompt"),
        ([interp.mean("z.0.1", torch.zeros(3))], logit(3), BadInput, "the site needs"),
        ([interp.zero("q_rot.0"), "z.0"], logit(3), BadInput, "'z'|not an edit"),
        ([], logit(3), BadInput, "at least one edit"),
        ([[]], logit(3), BadInput, "empty"),
        ([interp.zero("z.0")], logit(VOCAB), BadInput, "does not exist"),
        ([interp.zero("z.0")], logit_difference(3, 3), BadInput, "the same token 3"),
        ([interp.zero("z.0")], logit(), BadInput, "needs answers"),
        ([interp.zero("z.0")], logit(3, position=5), BadInput, "position 5 is outside"),
    ],
)
def test_what_cannot_be_is_refused_before_any_forward_pass(
    edits: list[Any], metric: Any, error: type[Exception], said: str
) -> None:
    with Calls(model_of("llama")) as calls, pytest.raises(error, match=said):
        sweep(model_of("llama"), RAGGED, edits, metric)
    assert calls.rows == []


@pytest.mark.parametrize(
    ("prompts", "options", "error", "said"),
    [
        ([], {}, BadInput, "no prompts"),
        ([[]], {}, BadInput, "a prompt without tokens"),
        ([[3] * (CONTEXT + 1)], {}, PromptTooLong, "context"),
        ([[VOCAB]], {}, BadInput, "token id"),
        ([[3, 4]], {"executor": "fast"}, BadInput, "no executor 'fast'"),
        ([[3, 4]], {"memory": 0}, BadInput, "memory=0"),
    ],
)
def test_bad_prompts_and_options_are_refused_before_any_forward_pass(
    prompts: Any, options: dict[str, Any], error: type[Exception], said: str
) -> None:
    with Calls(model_of("llama")) as calls, pytest.raises(error, match=said):
        sweep(model_of("llama"), prompts, [interp.zero("z.0")], logit(3), **options)
    assert calls.rows == []


def test_a_result_is_a_table_and_a_run(tmp_path: Path) -> None:
    result = interp.sweep(model_of("llama"), RAGGED, [EDITS[0], EDITS[1:3]], METRICS)
    frame = result.frame
    assert len(frame) == 2 * len(METRICS) * len(LENGTHS)
    assert frame[frame.edit == 1].what.unique().tolist() == ["scale(z.0.0) at 3 + scale(z.0.1) at 1"]
    row = frame[(frame.edit == 1) & (frame.metric == "logit 77") & (frame.prompt == 2)].iloc[0]
    assert (row.value, row.base) == (result.values[1, 1, 2], result.base[1, 2])
    run = load_run(result.save(tmp_path / "run").path)
    assert np.array_equal(run.arrays["values"], result.values)
    assert run.record.parameters["executor"] == "shared"
    assert run.record.model["fingerprint"] == model_of("llama").fingerprint


def test_a_run_read_back_holds_the_edits_and_gives_the_same_values_again(tmp_path: Path) -> None:
    reference = model_of("llama").run(RAGGED).logits
    metrics = (*METRICS, kl(reference, name="from a reference"))
    donor = model_of("llama").run(RAGGED, read="z.0")
    result = interp.sweep(model_of("llama"), RAGGED, [EDITS[0], EDITS[1:3], interp.patch("z.0.1", donor)], metrics)
    result.save(tmp_path / "run")
    again = SweepResult.load(tmp_path / "run")
    pd.testing.assert_frame_equal(again.frame, result.frame)
    assert (again.metrics, again.model, again.parameters) == (result.metrics, result.model, result.parameters)
    assert [len(group) for group in again.edits] == [1, 2, 1]
    rerun = interp.sweep(model_of("llama"), RAGGED, again.edits, again.metrics)
    np.testing.assert_allclose(rerun.values, result.values, atol=1e-6)
