"""On the bundled model: structure is read from held-out prompts, and the model's answer follows what is read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import interp
from interp.errors import BadInput, UnreadableFile
from interp.tasks.analogies import Structure, analogy_prompts, structures, syntax_prompts
from interp.tasks.prompts import PromptSet
from interp.tracing.model import Model
from probes.vsa.baselines import logit_scores
from probes.vsa.causal import causal_check, with_answer
from probes.vsa.encoder import Training
from probes.vsa.states import answer_states
from probes.vsa.study import HyperdimensionalProbe, hyperdimensional_probe

SITE = "resid_post.2"


@pytest.fixture(scope="module")
def pocket() -> Model:
    return interp.load("pocket")


@pytest.fixture(scope="module")
def prompts(pocket: Model) -> PromptSet:
    return analogy_prompts(pocket.tokenizer, 500)


@pytest.fixture(scope="module")
def probe(pocket: Model, prompts: PromptSet) -> HyperdimensionalProbe:
    return hyperdimensional_probe(
        pocket,
        prompts,
        dimensions=512,
        ingestions=("clusters", SITE),
        moments=("before", "after"),
        training=Training(hidden=64, epochs=2),
    )


def value(probe: HyperdimensionalProbe, metric: str = "precision@1", subset: str = "all", **which: str) -> float:
    rows = probe.frame[(probe.frame.metric == metric) & (probe.frame.subset == subset)]
    for name, wanted in which.items():
        rows = rows[rows[name] == wanted]
    assert len(rows) == 1
    return float(rows.value.iloc[0])


LINEAR = {"encoder": "linear", "moment": "before", "ingestion": "clusters"}


def test_held_out_analogies_are_read_far_above_chance_and_without_an_oracle(probe: HyperdimensionalProbe) -> None:
    chance = value(probe, method="random codebook", **LINEAR)
    for decoder in ("key", "last", "new"):
        assert value(probe, decoder=decoder, **LINEAR) > 0.6 > 0.1 > chance
    assert value(probe, decoder="oracle", **LINEAR) >= value(probe, decoder="last", **LINEAR)
    assert value(probe, method="commonest target") < 0.1
    assert value(probe, method="linear probe", moment="before", ingestion="clusters") > 0.6


def test_precision_grows_with_k_and_every_number_has_its_interval(probe: HyperdimensionalProbe) -> None:
    rows = [value(probe, f"precision@{k}", decoder="key", **LINEAR) for k in (1, 3, 5)]
    assert rows == sorted(rows)
    assert (probe.frame.low <= probe.frame.value + 1e-9).all()
    assert (probe.frame.value <= probe.frame.high + 1e-9).all()
    assert set(probe.frame[probe.frame.decoder == "oracle"].needs) == {"target"}
    assert set(probe.frame[probe.frame.decoder == "last"].needs) == {"text"}


def test_right_and_wrong_answers_are_told_apart(
    pocket: Model, prompts: PromptSet, probe: HyperdimensionalProbe
) -> None:
    own = value(probe, method="next token")
    assert probe.parameters["model_right"] == pytest.approx(own, abs=0.05)
    assert value(probe, subset="right", method="next token") > 0.99
    assert value(probe, subset="wrong", method="next token") < 0.5
    states = answer_states(pocket, prompts[:8], moments=("before", "after"))
    logits = pocket.run([list(row) for row in prompts[:8].tokens], logits="last").logits
    said = logits.argmax(-1).tolist()
    assert states.right.tolist() == [
        token == own[0] for token, own in zip(said, prompts[:8].answer_tokens, strict=True)
    ]
    plain = pocket.run([list(row) for row in prompts[:8].tokens], read="resid_post.1-3", positions=-1)
    np.testing.assert_allclose(
        states.vectors["before", "clusters"], sum(plain[site][:, 0].numpy() for site in plain), rtol=1e-3, atol=1e-3
    )
    before, after = (states.vectors[moment, "clusters"] for moment in ("before", "after"))
    assert not np.allclose(before, after)
    row = [*prompts.tokens[3], said[3]]
    trace = pocket.run([row], read=["resid_post.1", "resid_post.2", "resid_post.3"], positions=-1)
    np.testing.assert_allclose(after[3], sum(trace[site][0, 0].numpy() for site in trace), rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_bound_pairs_do_not_generalise_to_unseen_pairs_and_roles_do(pocket: Model) -> None:
    prompts = syntax_prompts(pocket.tokenizer, 1200)
    settings = {"by": "pair", "dimensions": 512, "training": None}
    pairs, roles = (hyperdimensional_probe(pocket, prompts, encoding=each, **settings) for each in ("pairs", "roles"))
    assert value(pairs, decoder="key", encoder="linear") < 0.1
    assert value(roles, decoder="role", encoder="linear") > 0.4
    assert value(roles, method="random codebook") < 0.05


def test_direct_logit_attribution_of_a_norm_free_sum(pocket: Model, prompts: PromptSet) -> None:
    """The last layers' writing, normalised by the scale of the whole stream, computed by hand."""
    few = prompts[:4]
    concepts = [each.target for each in structures(few)]
    concepts = list(dict.fromkeys(concepts))
    own, attributed = logit_scores(pocket, few, concepts)
    trace = pocket.run(
        [list(row) for row in few.tokens], read=["resid_pre.1", "resid_post.3", "final_norm"], positions=-1
    )
    stream, start = trace["resid_post.3"][:, 0], trace["resid_pre.1"][:, 0]
    norm, unembed = pocket.hf.model.norm, pocket.hf.lm_head.weight
    scale = (stream.square().mean(-1, keepdim=True) + norm.variance_epsilon).sqrt()
    ids = [pocket.tokenizer(f" {name}")["input_ids"][-1] for name in concepts]
    whole = (stream / scale * norm.weight) @ unembed[ids].mT
    torch.testing.assert_close(own, whole.detach(), rtol=1e-3, atol=1e-3)
    part = ((stream - start) / scale * norm.weight) @ unembed[ids].mT
    assert torch.equal(attributed.argsort(-1), part.argsort(-1))


def test_the_answer_follows_the_probe_and_not_random_directions(
    pocket: Model, prompts: PromptSet, probe: HyperdimensionalProbe
) -> None:
    rows = probe.split.test.tolist()
    said = structures(prompts)
    check = causal_check(
        pocket,
        prompts.select(rows),
        [said[i] for i in rows],
        probe.encoder(f"linear/before/{SITE}"),
        probe.codebook,
        SITE,
        strengths=(1.5,),
        draws=2,
    )
    outcome = check.frame.set_index(["direction", "strength"])
    assert outcome.loc[("pattern", 1.5), "follows_low"] > outcome.loc[("random", 1.5), "follows_high"] + 0.1
    assert outcome.loc[("pattern", 0.0), "follows"] == 0
    assert outcome.loc[("pattern", 0.0), "kept"] == pytest.approx(probe.parameters["model_right"])
    assert outcome.loc[("pattern", 1.5), "kept"] < outcome.loc[("pattern", 0.0), "kept"]
    assert len(check.plot().data) == 6


def test_another_answer_takes_the_place_of_the_asked_pair() -> None:
    one = Structure((("a", "b"), ("c", "d")), "d", "c")
    other = Structure((("e", "f"), ("g", "h")), "h", "g")
    assert with_answer(one, other) == Structure((("a", "b"), ("g", "h")), "h", "g")
    assert with_answer(Structure((), "a", members=("a", "b")), Structure((), "c", members=("c",))) == Structure(
        (), "c", members=("c", "b")
    )


def test_a_probe_is_a_run(probe: HyperdimensionalProbe, pocket: Model, prompts: PromptSet, tmp_path: Path) -> None:
    probe.save(tmp_path / "run")
    back = HyperdimensionalProbe.load(tmp_path / "run")
    assert torch.equal(back.codebook.vectors, probe.codebook.vectors)
    assert back.encoders.keys() == probe.encoders.keys()
    assert back.chance == probe.chance
    text = prompts.texts[int(probe.split.test[0])]
    name = "linear/before/clusters"
    found = back.decode(pocket, text, name)
    assert found.equals(probe.decode(pocket, text, name))
    assert set(found["query"]) == {word for word in text.split() if word in probe.codebook}
    assert "cosine" in probe.frame.metric.values
    assert len(probe.plot().data) == 3
    assert probe.codebook.plot().data[0].z.shape == (len(probe.codebook),) * 2
    with pytest.raises(UnreadableFile, match="not a run"):
        HyperdimensionalProbe.load(tmp_path)


def test_requests_that_cannot_be_served(pocket: Model, prompts: PromptSet, probe: HyperdimensionalProbe) -> None:
    few = prompts[:40]
    with pytest.raises(BadInput, match="'pairs' or by 'roles'"):
        hyperdimensional_probe(pocket, few, encoding="words")  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="no moment 'during'"):
        hyperdimensional_probe(pocket, few, moments=("during",))
    with pytest.raises(BadInput, match="no ingestion 'resid_post.0'"):
        hyperdimensional_probe(pocket, few, ingestions=("resid_post.0",))
    with pytest.raises(BadInput, match="did you mean 'linear/before/clusters'"):
        probe.encoder("linear/before/cluster")
    with pytest.raises(BadInput, match="does not read that"):
        causal_check(
            pocket, few[:1], structures(few)[:1], probe.encoder("linear/before/clusters"), probe.codebook, "z.1"
        )
    with pytest.raises(BadInput, match="has another answer"):
        causal_check(
            pocket, few[:1], structures(few)[:1], probe.encoder("linear/before/clusters"), probe.codebook, SITE
        )
