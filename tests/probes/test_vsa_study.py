"""On the bundled model: structure is read from held-out prompts, and the model's answer follows what is read."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import save as save_arrays

import interp
from interp.errors import BadInput, UnreadableFile
from interp.next_token import next_token
from interp.plots.vsa import precision_by_layer, precision_by_task
from interp.tasks.analogies import Structure, analogy_prompts, structures, syntax_prompts
from interp.tasks.prompts import PromptSet
from interp.tracing.model import Model
from probes.vsa.baselines import logit_scores
from probes.vsa.causal import CausalCheck, causal_check, with_answer
from probes.vsa.encoder import Training
from probes.vsa.reading import analogy_words, pieces, read_text, require_concepts
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
    pocket: Model, prompts: PromptSet, probe: HyperdimensionalProbe, tmp_path: Path
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
    beyond = check.beyond_random().set_index("direction").loc["pattern"]
    assert beyond.low > 0.1
    assert beyond.difference == pytest.approx(
        outcome.loc[("pattern", 1.5), "follows"] - outcome.loc[("random", 1.5), "follows"]
    )
    for row, own in zip(check.frame.itertuples(), check.outcomes, strict=True):
        np.testing.assert_allclose(own.mean(0), [row.follows, row.kept, row.shift], atol=1e-5)
    check.save(tmp_path / "run")
    back = CausalCheck.load(tmp_path / "run")
    pd.testing.assert_frame_equal(back.frame, check.frame)
    pd.testing.assert_frame_equal(back.beyond_random(), check.beyond_random())
    assert back.plot().to_json() == check.plot().to_json()
    assert (back.site, back.parameters) == (SITE, dict(check.parameters))
    with pytest.raises(BadInput, match="not 'hyperdimensional-causal'"):
        CausalCheck.load(probe.save(tmp_path / "another").path)


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
    assert back.plot().to_json() == probe.plot().to_json()
    pd.testing.assert_frame_equal(back.frame, probe.frame)
    assert probe.codebook.plot().data[0].z.shape == (len(probe.codebook),) * 2
    with pytest.raises(UnreadableFile, match="not a run"):
        HyperdimensionalProbe.load(tmp_path)


def test_a_typed_text_is_read_beside_chance_and_the_models_own_word(
    probe: HyperdimensionalProbe, pocket: Model, prompts: PromptSet
) -> None:
    rows = probe.split.test[:20]
    said = structures(prompts)
    hits = []
    for i in rows:
        read = read_text(pocket, probe, prompts.texts[i], "linear/before/clusters", [str(said[i].key)])
        assert list(read.frame["query"]) == [said[i].key] * 5
        assert (read.frame.cosine.diff().dropna() <= 0).all()
        hits.append(read.frame.iloc[0].concept == said[i].target)
        first = read.frame.iloc[0]
        assert first.beyond == (first.cosine > probe.chance)
    assert np.mean(hits) > 0.6
    assert read.frame.random.max() < probe.chance
    assert read.said.said[0] == next_token(pocket, prompts.texts[i]).said[0]
    bars = [trace for trace in read.plot().data if trace.type == "bar"]
    assert list(bars[0].x) == list(read.frame.cosine)


def test_an_encoder_of_the_answer_reads_what_the_model_goes_on_to_say(
    probe: HyperdimensionalProbe, pocket: Model, prompts: PromptSet
) -> None:
    text = prompts.texts[int(probe.split.test[0])]
    after = probe.decode(pocket, text, "linear/after/clusters")
    answered = pocket.generate(text, max_new_tokens=1).texts[0]
    moved = replace(probe, encoders={"linear/before/clusters": probe.encoder("linear/after/clusters")})
    again = moved.decode(pocket, text + answered, "linear/before/clusters", list(dict.fromkeys(after["query"])))
    pd.testing.assert_frame_equal(after, again)


@pytest.mark.parametrize("moment", ["before", "after"])
def test_several_texts_are_decoded_as_each_alone(
    probe: HyperdimensionalProbe, pocket: Model, prompts: PromptSet, moment: str
) -> None:
    texts = [prompts.texts[i] for i in probe.split.test[:3]] + ["no concept"]
    name = f"linear/{moment}/clusters"
    together = probe.decode(pocket, texts, name, top=2)
    for number, text in enumerate(texts):
        own = together[together.text == number].drop(columns="text").reset_index(drop=True)
        pd.testing.assert_frame_equal(own, probe.decode(pocket, text, name, top=2), atol=1e-5, rtol=1e-4)
    assert list(together["query"][together.text == 3]) == ["", ""]
    with pytest.raises(BadInput, match="no prompts"):
        probe.decode(pocket, [], name)


def test_a_study_keeps_the_encoders_it_is_told_to(probe: HyperdimensionalProbe, tmp_path: Path) -> None:
    name = "linear/before/clusters"
    run = probe.keeping([name]).save(tmp_path / "run", half=True)
    back = HyperdimensionalProbe.load(run.path)
    assert list(back.encoders) == [name]
    pd.testing.assert_frame_equal(back.frame, probe.frame)
    torch.testing.assert_close(back.encoder(name).weights[0], probe.encoder(name).weights[0], rtol=1e-3, atol=1e-4)
    with pytest.raises(BadInput, match="no encoder 'linear/before/mean'"):
        probe.keeping(["linear/before/mean"])


@pytest.mark.parametrize("typed", ["Paris : France :: Rome : ?", "Paris:France::Rome", "Paris : France = Rome :"])
def test_an_analogy_is_read_from_what_is_typed(typed: str) -> None:
    assert analogy_words(typed) == ("Paris", "France", "Rome")


@pytest.mark.parametrize("typed", ["", "Paris", "Paris : France", ":::", "a : b :: : ?", "a : b :: c : d", "a = b : c"])
def test_what_is_no_analogy_is_refused(typed: str) -> None:
    with pytest.raises(BadInput, match="A : B :: C"):
        analogy_words(typed)


def test_words_that_are_no_concepts_are_named_with_those_that_are(probe: HyperdimensionalProbe, pocket: Model) -> None:
    require_concepts(["Paris", "France"], pocket, probe.codebook)
    assert pieces(pocket, "Paris") == (" Paris",)
    with pytest.raises(BadInput, match="did you mean 'Paris'"):
        require_concepts(["paris", "France"], pocket, probe.codebook)
    with pytest.raises(BadInput, match=r"'Constantinople' is not in the codebook.*\d tokens, no single one"):
        require_concepts(["Constantinople"], pocket, probe.codebook)


@pytest.mark.parametrize(
    "damage", ["linear/before/clusters.weight.0", "linear/before/clusters.centre", "split.test", None]
)
def test_a_damaged_study_is_refused(probe: HyperdimensionalProbe, tmp_path: Path, damage: str | None) -> None:
    run = probe.save(tmp_path / "run")
    if damage is None:
        record = json.loads((run.path / "run.json").read_text())
        record["parameters"]["concepts"] = 7
        (run.path / "run.json").write_text(json.dumps(record))
    else:
        arrays = {**run.arrays, damage: np.zeros((2, 3, 4), dtype=np.float32)}
        (run.path / "arrays.safetensors").write_bytes(save_arrays(arrays))
    with pytest.raises(UnreadableFile, match="has shape|does not say"):
        HyperdimensionalProbe.load(run.path)


def test_figures_by_layer_and_task_hold_the_numbers_of_the_table(probe: HyperdimensionalProbe) -> None:
    figure = precision_by_layer(probe.frame, probe.title)
    lines = [trace for trace in figure.data if trace.name == "hypervector, linear encoder"]
    assert len(lines) == 2  # a panel before the answer, and one after it
    assert list(lines[0].x) == [SITE, "clusters"]
    for line, moment in zip(lines, ("before", "after"), strict=True):
        for ingestion, shown in zip(line.x, line.y, strict=True):
            about = {"encoder": "linear", "moment": moment, "ingestion": ingestion, "decoder": "key"}
            assert shown == value(probe, method="hypervector", **about)
    tasks = precision_by_task({"<b>one</b>": probe.frame, "two": probe.frame})
    (bars,) = [trace for trace in tasks.data if trace.name == "next token"]
    assert list(bars.x) == ["&lt;b&gt;one&lt;/b&gt;", "two"]
    assert list(bars.y) == [value(probe, method="next token")] * 2


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
