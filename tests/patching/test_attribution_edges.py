"""Edge scores: the derivative of a model written out edge by edge, exact in a linear model, complete as steps grow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import interp
from interp.errors import BadInput, UnreadableFile, UnsupportedArchitecture
from interp.metrics import accuracy, kl, logit_difference
from interp.patching.eap import EdgeScores, edge_scores
from interp.patching.eap_control import strangers, with_control
from interp.patching.eap_graph import EdgeGraph, GraphShape, read_graph
from tests.families import DECODERS, build
from tests.patching.edges_by_hand import double_llama, run
from tests.patching.random_pairs import difference, ids, random_pairs

PAIRS = random_pairs()
CLEAN, TWIN = ids(PAIRS)
METRIC = logit_difference()


@pytest.fixture(scope="module")
def llama() -> nn.Module:
    return double_llama()


@pytest.fixture(scope="module")
def eap(llama: nn.Module) -> EdgeScores:
    return edge_scores(interp.wrap(llama), PAIRS, METRIC)


def change(hf: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return run(hf, TWIN).writes - run(hf, CLEAN).writes


def exact(hf: nn.Module, shape: GraphShape) -> np.ndarray:
    """Change of the metric with one edge corrupted at a time, `[source destination]`."""
    moved, effects = change(hf), np.zeros(shape.edges.shape)
    with torch.no_grad():
        base = difference(run(hf, CLEAN).logits, PAIRS).mean()
        for edge in np.argwhere(shape.edges):
            one = torch.zeros(shape.edges.shape, dtype=torch.float64)
            one[tuple(edge)] = 1
            effects[tuple(edge)] = difference(run(hf, CLEAN, one, moved).logits, PAIRS).mean() - base
    return effects


def test_the_model_by_hand_is_the_model(llama: nn.Module) -> None:
    with torch.no_grad():
        torch.testing.assert_close(run(llama, CLEAN).logits, llama(CLEAN).logits[:, -1], rtol=1e-12, atol=1e-12)


def test_eap_is_the_derivative_along_every_edge(llama: nn.Module, eap: EdgeScores) -> None:
    epsilon = torch.zeros(eap.scores.shape, dtype=torch.float64, requires_grad=True)
    value = difference(run(llama, CLEAN, epsilon, change(llama)).logits, PAIRS).mean()
    (derivative,) = torch.autograd.grad(value, epsilon)
    np.testing.assert_allclose(eap.scores, derivative.numpy(), atol=1e-12)
    assert (np.abs(eap.scores) > 1e-3).sum() > 50
    assert (eap.scores[~eap.shape.edges] == 0).all()


def test_nothing_stays_on_the_parameters() -> None:
    hf = build("gpt2")
    edge_scores(interp.wrap(hf), PAIRS[:1], METRIC)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in hf.parameters())


class Scale(nn.Module):
    """A norm that divides by what it always divided by."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 0.7 * x


def test_eap_equals_exact_patching_where_patterns_and_norms_are_frozen(llama: nn.Module, eap: EdgeScores) -> None:
    """Uniform attention, norms that only scale, linear MLPs: nothing is left that a first order misses."""
    hf = double_llama()
    width = hf.config.hidden_size
    generator = torch.Generator().manual_seed(0)
    hf.model.norm = Scale()
    for layer in hf.model.layers:
        layer.input_layernorm, layer.post_attention_layernorm = Scale(), Scale()
        layer.self_attn.q_proj.weight.zero_()
        weight = torch.randn(width, width, generator=generator, dtype=torch.float64) / width**0.5
        layer.mlp.forward = lambda x, weight=weight: x @ weight
    scores = edge_scores(interp.wrap(hf), PAIRS, METRIC)
    effects = exact(hf, scores.shape)
    np.testing.assert_allclose(scores.scores, effects, atol=1e-10)
    assert np.abs(effects).max() > 0.1
    curved = exact(llama, eap.shape)
    assert np.abs(curved - eap.scores).max() > 0.1 * np.abs(curved).max()


FAMILIES = ["gpt2", "gpt_neox", "olmo2", "gemma2", "opt", "falcon_grouped", "gptj"]
OTHERS = [name for name in (*DECODERS, "modernbert") if name not in (*FAMILIES, "opt_post_norm", "bitnet")]
"""The rest, but for post-norm blocks and a family that is only found in single precision."""


@pytest.mark.parametrize("family", [*FAMILIES, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
def test_edges_out_of_a_head_add_up_to_the_head(family: str) -> None:
    """Before and after norms, in parallel blocks and with fused projections: all a head does, it does through edges."""
    model = interp.wrap(build(family, dtype=torch.float64))
    scores = edge_scores(model, PAIRS, METRIC)
    trace = model.run(CLEAN, read="z", grad=True, logits="last")
    leaves = [trace.leaves[interp.Site("z", layer)].value for layer in range(model.spec.layers)]
    gradients = torch.autograd.grad(difference(trace.logits, PAIRS).mean(), leaves)
    moved = model.run(TWIN, read="z").stack("z") - trace.stack("z").detach()
    nodes = (moved * torch.stack(gradients)).sum((1, 2, 4)).numpy()
    of_heads = scores.scores.sum(1)[1:].reshape(model.spec.layers, -1)[:, : model.spec.heads]
    np.testing.assert_allclose(of_heads, nodes, atol=2e-6)  # some of these families normalise in single precision
    assert np.abs(nodes).max() > 1e-2


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_eap_ig_accounts_for_the_whole_change_as_steps_grow(family: str) -> None:
    model = interp.wrap(build(family, dtype=torch.float64))
    one, missing = PAIRS[:1], []
    for steps in (5, 15, 45):
        scores = edge_scores(model, one, METRIC, method="eap-ig", steps=steps)
        missing.append(abs(scores.scores[0].sum() - scores.change.mean()))
    assert missing[2] < missing[1] < missing[0]
    assert missing[2] < 0.1 * np.abs(scores.change).mean()
    plain = edge_scores(model, one, METRIC)
    assert abs(plain.scores[0].sum() - plain.change.mean()) > 5 * missing[2]


def test_batches_change_nothing(llama: nn.Module, eap: EdgeScores) -> None:
    one = edge_scores(interp.wrap(llama), PAIRS, METRIC, batch_size=1)
    np.testing.assert_allclose(one.scores, eap.scores, atol=1e-12)
    np.testing.assert_allclose(one.standard_errors, eap.standard_errors, atol=1e-12)
    assert one.n == 3
    assert (eap.standard_errors[eap.shape.edges] > 0).all()


def test_post_norm_families_and_steps_functions_are_refused() -> None:
    with pytest.raises(UnsupportedArchitecture, match="not a sum of what nodes write"):
        edge_scores(interp.wrap(build("opt_post_norm")), PAIRS, METRIC)
    model = interp.wrap(build("gpt2"))
    with pytest.raises(BadInput, match="without a gradient"):
        edge_scores(model, PAIRS, accuracy())
    with pytest.raises(BadInput, match="give a reference"):
        edge_scores(model, PAIRS, kl())
    with pytest.raises(BadInput, match="did you mean 'eap-ig'"):
        edge_scores(model, PAIRS, METRIC, method="eap_ig")  # type: ignore[arg-type]


def test_gpt2_small_has_as_many_edges_as_the_authors_count() -> None:
    assert GraphShape(12, 12, 768).edges.sum() == 32_491


def test_destinations_are_in_the_authors_order() -> None:
    shape = GraphShape(2, 2, 8)
    assert shape.sources == ["input", "a0.h0", "a0.h1", "m0", "a1.h0", "a1.h1", "m1"]
    assert shape.destinations[:7] == ["a0.h0<q>", "a0.h1<q>", "a0.h0<k>", "a0.h1<k>", "a0.h0<v>", "a0.h1<v>", "m0"]
    assert shape.destinations[-1] == "logits"
    reads = {
        name: [s for s, edge in zip(shape.sources, column, strict=True) if edge]
        for name, column in zip(shape.destinations, shape.edges.T, strict=True)
    }
    assert reads["a0.h1<k>"] == ["input"]
    assert reads["m0"] == ["input", "a0.h0", "a0.h1"]
    assert reads["a1.h0<v>"] == ["input", "a0.h0", "a0.h1", "m0"]
    assert reads["logits"] == shape.sources
    parallel = GraphShape(2, 2, 8, parallel=True)
    assert parallel.edges[:, 6].sum() == 1
    assert parallel.edges.sum() < shape.edges.sum()


def test_a_run_holds_the_scores_and_the_graph(eap: EdgeScores, tmp_path: Path) -> None:
    run = eap.save(tmp_path / "run")
    assert run.record.kind == "edge-scores"
    np.testing.assert_array_equal(run.arrays["scores"], eap.scores)
    assert run.frame.loc[0, "score"] == eap.scores.ravel()[np.abs(eap.scores).argmax()]
    np.testing.assert_allclose(read_graph(tmp_path / "run" / "importances.pt").scores, -eap.scores, rtol=1e-6)


def test_scores_read_back_are_those_that_were_saved(eap: EdgeScores, tmp_path: Path) -> None:
    again = EdgeScores.load(eap.save(tmp_path / "run").path)
    pd.testing.assert_frame_equal(again.frame, eap.frame)
    assert again.plot().to_json() == eap.plot().to_json()
    assert (again.shape, again.method, again.metric) == (eap.shape, eap.method, eap.metric)
    assert again.parameters == eap.parameters
    np.testing.assert_array_equal(again.change, eap.change)


def test_the_control_scores_the_answers_of_other_prompts(llama: nn.Module, eap: EdgeScores, tmp_path: Path) -> None:
    others = strangers(PAIRS, seed=1)
    assert sorted(others.answer_tokens) == sorted(PAIRS.answer_tokens)
    assert others.tokens == PAIRS.tokens
    whole = list(zip(PAIRS.answer_tokens, PAIRS.distractor_tokens, strict=True))
    drawn = [whole.index(pair) for pair in zip(others.answer_tokens, others.distractor_tokens, strict=True)]
    assert all(own != other for own, other in enumerate(drawn))
    model = interp.wrap(llama)
    both = with_control(model, PAIRS, METRIC, eap, seed=1)
    np.testing.assert_allclose(both.control, edge_scores(model, others, METRIC).scores, rtol=1e-6)
    np.testing.assert_array_equal(both.scores, eap.scores)
    again = EdgeScores.load(both.save(tmp_path / "run").path)
    pd.testing.assert_frame_equal(again.frame, both.frame)
    assert "control" in again.frame
    source, destination = np.argwhere(both.shape.edges)[0]
    said = both.plot().data[0].text[source][destination]
    assert f"{both.control[source, destination]:.4f} under the answers of other prompts" in said
    assert "other prompts" not in eap.plot().to_json()
    with pytest.raises(BadInput, match="two or more"):
        strangers(PAIRS[:1])


@pytest.mark.parametrize("suffix", ["json", "pt"])
def test_a_graph_survives_its_file(eap: EdgeScores, tmp_path: Path, suffix: str) -> None:
    circuit = eap.graph().top(20)
    path = tmp_path / f"importances.{suffix}"
    getattr(circuit, f"to_{suffix}")(path)
    again = read_graph(path)
    assert again.shape == circuit.shape
    np.testing.assert_allclose(again.scores, circuit.scores, rtol=1e-6)
    np.testing.assert_array_equal(again.in_graph, circuit.in_graph)
    np.testing.assert_array_equal(again.nodes_in_graph, circuit.nodes_in_graph)
    assert 0 < circuit.in_graph.sum() <= 20


def test_files_have_the_keys_and_types_that_the_authors_read(eap: EdgeScores, tmp_path: Path) -> None:
    graph = eap.graph()
    graph.to_pt(tmp_path / "g.pt")
    content = torch.load(tmp_path / "g.pt", weights_only=True)
    cfg = {"n_layers": 2, "n_heads": 4, "d_model": 64, "parallel_attn_mlp": False}
    assert content["cfg"] == cfg
    assert content["src_nodes"] == graph.shape.sources
    assert content["dst_nodes"] == graph.shape.destinations
    assert content["edges_scores"].shape == content["edges_in_graph"].shape == (11, 27)
    assert content["edges_in_graph"].dtype == content["nodes_in_graph"].dtype == torch.bool
    graph.to_json(tmp_path / "g.json")
    document = json.loads((tmp_path / "g.json").read_text())
    assert document["cfg"] == cfg
    assert set(document["nodes"]) == {*graph.shape.sources, "logits"}
    assert len(document["edges"]) == 110
    assert document["edges"]["a0.h2->m0"] == {"score": pytest.approx(graph["a0.h2->m0"]), "in_graph": True}
    assert graph["a0.h2->m0"] == -eap.scores[3, 12]  # they score a loss


def test_a_circuit_is_the_best_edges_that_lead_somewhere() -> None:
    shape = GraphShape(2, 1, 4)
    scores = np.where(shape.edges, 0.01, 0.0)
    named = {"input->a0.h0<v>": 3.0, "a0.h0->logits": -2.5, "input->m1": 2.0, "m0->a1.h0<q>": 1.5}
    for name, score in named.items():
        source, destination = name.split("->")
        scores[shape.sources.index(source), shape.destinations.index(destination)] = score
    graph = EdgeGraph.scored(shape, scores)
    kept = {name for name, _, member in graph.top(4).named() if member}
    assert kept == {"input->a0.h0<v>", "a0.h0->logits"}  # nothing leaves m1, nothing enters m0
    signed = {name for name, _, member in graph.top(3, absolute=False).named() if member}
    assert signed == set()  # without the negative edge no path reaches the logits
    assert graph.top(int(shape.edges.sum())).in_graph.sum() == shape.edges.sum()
    with pytest.raises(BadInput, match="top 99"):
        graph.top(99)
    with pytest.raises(BadInput, match="is no edge"):
        graph["logits->input"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "does not hold an edge graph"),
        ('{"cfg": {"n_layers": 1, "n_heads": 1}, "nodes": {}, "edges": {}}', "lacks d_model"),
        (
            '{"cfg": {"n_layers": 1, "n_heads": 1, "d_model": 4}, "nodes": {},'
            ' "edges": {"m0->a0.h0<q>": {"score": 1, "in_graph": true}}}',
            "is no edge",
        ),
    ],
)
def test_files_that_hold_no_graph_are_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "graph.json"
    path.write_text(content)
    with pytest.raises(UnreadableFile, match=message):
        read_graph(path)


def test_a_pt_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Runs:
        def __reduce__(self) -> Any:
            return print, ("run",)

    torch.save({"cfg": Runs()}, tmp_path / "graph.pt")
    with pytest.raises(UnreadableFile, match="does not hold an edge graph"):
        read_graph(tmp_path / "graph.pt")
