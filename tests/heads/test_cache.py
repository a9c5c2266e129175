"""KV bytes against recall: answers are those of real decoding, bytes are counted, and retrieval heads carry it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import BloomConfig, BloomForCausalLM

import interp
from interp.errors import BadInput, MaskMismatch, PromptTooLong
from interp.heads.cache import CacheStudy, cache_study, random_instead
from interp.heads.mask import HeadMask
from interp.heads.retrieval import retrieval_scores
from interp.runs import Journal
from interp.tasks.needle import needle_prompts
from interp.tasks.prompts import PromptSet
from kernels.errors import InvalidRequest, UnsupportedRequest

SINKS, RECENT = 3, 8
KEY = 2 * 32 * 4
"""Bytes of a key and its value of one head of the tiny model."""


def mask_of(model, scores, **more):
    spec = model.spec
    return HeadMask(
        np.array(scores, dtype=float), model=spec.name, family=spec.family, fingerprint=model.fingerprint,
        kv_heads=spec.kv_heads, **more
    )  # fmt: skip


@pytest.fixture(scope="module")
def mask(llama):
    """Key/value heads in the order 1-1, 0-0, 1-0, 0-1."""
    return mask_of(llama, [[0.5, 0.6, 0.0, 0.1], [0.3, 0.2, 0.1, 0.9]])


@torch.no_grad()
def greedy(hf, tokens, seen=None):
    """The next two tokens, everything computed anew at each step, `seen` `[query key]` by a mask."""
    ids = list(tokens)
    for _ in range(2):
        bias = {}
        if seen is not None:
            shown = seen(torch.arange(len(ids))[:, None] - torch.arange(len(ids)), torch.arange(len(ids)))
            bias["attention_mask"] = torch.zeros(shown.shape).masked_fill(~shown, torch.finfo().min)[None, None]
        ids.append(int(hf(torch.tensor([ids]), use_cache=False, **bias).logits[0, -1].argmax()))
    return ids[-2:]


def streamed(distance, key):
    return (distance >= 0) & ((distance < RECENT) | (key < SINKS))


@pytest.fixture(scope="module")
def asked(llama, prompts):
    """The random prompts with what the model says itself in thirds: with every key, with few, and neither."""
    said = []
    for i, tokens in enumerate(prompts.tokens):
        whole, few = greedy(llama.hf, tokens), greedy(llama.hf, tokens, streamed)
        said.append([whole, few, [1 + whole[0] % 6, 1]][i % 3])
    words = [" " + " ".join(llama.tokenizer.convert_ids_to_tokens(two)) for two in said]
    built = PromptSet.build(llama.tokenizer, prompts.texts, words)
    return replace(built, metadata=tuple({"length": 50 if i < 6 else 20} for i in range(len(built))))


@pytest.fixture(scope="module")
def study(llama, asked, mask):
    return cache_study(llama, asked, mask, [0, 1, 4], sinks=SINKS, window=RECENT, seeds=(0, 1, 2), chunk=7)


def answers(study, kept, heads):
    part = study.tests[(study.tests.kept == kept) & (study.tests["heads"] == heads)]
    return part[part.seed == part.seed.min()].set_index("test")


def test_answers_are_those_of_greedy_decoding_with_every_key_and_with_few(llama, asked, study):
    """Computed without any cache, the streaming heads by a mask of queries times keys."""
    decode = llama.tokenizer.decode
    whole = [decode(greedy(llama.hf, tokens)) for tokens in asked.tokens]
    few = [decode(greedy(llama.hf, tokens, streamed)) for tokens in asked.tokens]
    assert whole != few
    assert answers(study, "all", 4).response.tolist() == answers(study, "chosen", 4).response.tolist() == whole
    assert answers(study, "chosen", 0).response.tolist() == few
    for kept, heads, said in (("all", 4, whole), ("chosen", 0, few)):
        right = answers(study, kept, heads).right
        assert right.tolist() == [a.strip() == b.strip() for a, b in zip(said, asked.answers, strict=True)]
        assert 0 < right.mean() < 1


def test_bytes_are_those_of_the_heads_that_are_kept(asked, study):
    lengths = np.array([len(tokens) + 2 for tokens in asked.tokens])
    for kept, heads in (("all", 4), ("chosen", 0), ("chosen", 1), ("random", 1), ("chosen", 4)):
        part = answers(study, kept, heads)
        assert part.kv_bytes.tolist() == (KEY * (heads * lengths + (4 - heads) * (SINKS + RECENT))).tolist()
        assert part.full_bytes.tolist() == (KEY * 4 * lengths).tolist()
    row = study.frame[(study.frame.kept == "chosen") & (study.frame["heads"] == 1) & (study.frame.length == 20)].iloc[0]
    assert row.saved == pytest.approx(1 - (1 * lengths[6:] + 3 * 11).sum() / (4 * lengths[6:]).sum())


def test_the_frame_counts_each_length_apart_and_pairs_tests_with_the_full_cache(study):
    assert study.frame.groupby("length").n.unique().map(list).to_dict() == {20: [6], 50: [6]}
    for row in study.frame[study.frame.kept != "random"].itertuples():
        own = answers(study, row.kept, row.heads)
        whole = answers(study, "all", 4)[own.length == row.length].right
        right = own[own.length == row.length].right
        assert row.recall == right.mean()
        assert row.difference == pytest.approx(right.mean() - whole.mean())
        assert (row.lost, row.gained) == ((whole & ~right).sum(), (right & ~whole).sum())
        assert row.difference_low <= row.difference <= row.difference_high
    assert study.frame.lost.max() > 0
    assert study.frame.gained.max() > 0


def test_the_summary_is_the_mean_of_the_draws_beside_the_chosen_heads(study):
    summary = study.summary().set_index(["length", "heads"])
    assert list(summary.draws) == [3] * 6
    random = study.frame[(study.frame.kept == "random") & (study.frame["heads"] == 1) & (study.frame.length == 50)]
    row = summary.loc[(50, 1)]
    assert (row.random, row.least, row.most) == (random.recall.mean(), random.recall.min(), random.recall.max())
    assert row.random_difference == pytest.approx(random.difference.mean())
    assert row.random_difference_low <= row.random_difference <= row.random_difference_high


def test_query_heads_are_reduced_by_max_or_mean_and_scores_of_kv_heads_are_taken_as_they_are(llama, asked):
    scores = [[0.9, 0.0, 0.5, 0.6], [0.0, 0.1, 0.2, 0.2]]
    options = {"sinks": SINKS, "window": RECENT, "seeds": ()}

    def kept(mask, **more):
        study = cache_study(llama, asked[:1], mask, [1], **options, **more)
        return study.frame.which.iloc[1], study.parameters["reduction"]

    assert kept(mask_of(llama, scores)) == ("0-0", "max")
    assert kept(mask_of(llama, scores), reduction="mean") == ("0-1", "mean")
    assert kept(mask_of(llama, [[0, 0], [1, 0]], kind="kv")) == ("1-0", "")


def test_compensation_changes_answers_and_its_sums_are_counted(llama, asked, study, mask):
    with_token = cache_study(
        llama, asked, mask, [0], sinks=SINKS, window=RECENT, seeds=(), chunk=7, compensation=True
    )  # fmt: skip
    before, after = answers(study, "chosen", 0), answers(with_token, "chosen", 0)
    assert after.response.tolist() != before.response.tolist()
    assert (after.kv_bytes - before.kv_bytes == 2 * (2 * 2 * 32 * 4) + 2 * 8).all()


def test_random_heads_are_as_many_and_others_as_long_as_there_are_others():
    chosen = np.zeros((3, 4), dtype=bool)
    chosen.flat[[1, 5, 7]] = True
    draws = [random_instead(chosen, seed) for seed in range(20)]
    assert {int(draw.sum()) for draw in draws} == {3}
    assert not any((draw & chosen).any() for draw in draws)
    assert len({draw.tobytes() for draw in draws}) > 10
    assert np.array_equal(random_instead(chosen, 5), random_instead(chosen, 5))
    drawn = random_instead(~chosen, 0)
    assert drawn.sum() == 9
    assert drawn[chosen].all()


def test_an_interrupted_study_goes_on_with_the_answers_it_has(llama, asked, mask, study, tmp_path):
    options = {"sinks": SINKS, "window": RECENT, "seeds": (0, 1, 2), "chunk": 7}

    def stop(done, total):
        if done == 9:
            raise KeyboardInterrupt

    with Journal(tmp_path / "journal", {}) as journal, pytest.raises(KeyboardInterrupt):
        cache_study(llama, asked, mask, [0, 1, 4], **options, journal=journal, progress=stop)
    assert llama.attention == "sdpa"
    ran = []
    with Journal(tmp_path / "journal", {}, resume=True) as journal:
        assert len(journal.done) == 9
        again = cache_study(
            llama, asked, mask, [0, 1, 4], **options, journal=journal, progress=lambda *at: ran.append(at)
        )
        assert ran[-1] == (len(journal.done), len(journal.done))
    pd.testing.assert_frame_equal(again.tests, study.tests)
    pd.testing.assert_frame_equal(again.frame, study.frame)


def test_a_saved_study_is_read_as_it_was(study, tmp_path):
    run = study.save(tmp_path / "run")
    assert run.record.kind == "cache-study"
    again = CacheStudy.load(tmp_path / "run")
    pd.testing.assert_frame_equal(again.frame, study.frame)
    pd.testing.assert_frame_equal(again.summary(), study.summary())
    assert (again.parameters["sinks"], again.model["fingerprint"]) == (SINKS, study.model["fingerprint"])


def test_the_figure_shows_the_numbers_of_the_frame(study):
    figure = study.plot()
    part = study.frame[study.frame.length == 50]
    line, star = (
        next(trace for trace in figure.data if trace.name == f"{name}, 50 tokens")
        for name in ("heads by score", "full cache")
    )
    chosen = part[part.kept == "chosen"].sort_values("kv_bytes")
    assert list(line.y) == chosen.recall.tolist()
    assert list(line.x) == (chosen.kv_bytes / 2**20).tolist()
    assert star.y[0] == part[part.kept == "all"].recall.item()
    band = next(trace for trace in figure.data if trace.name == "random heads, 50 tokens, 3 draws")
    random = part[part.kept == "random"].groupby("heads").recall
    assert list(band.y) == [*random.max(), *random.min()[::-1]]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"heads": [5]}, BadInput, "from 0 to all 4"),
        ({"heads": [-1]}, BadInput, "from 0 to all 4"),
        ({"heads": []}, BadInput, "distinct numbers"),
        ({"heads": [1, 1]}, BadInput, "distinct numbers"),
        ({"chunk": 0}, BadInput, "chunk=0"),
        ({"window": 0}, InvalidRequest, "window=0"),
        ({"sinks": -2}, InvalidRequest, "sinks=-2"),
        ({"reduction": "median"}, BadInput, "valid: max, mean"),
    ],
)
def test_what_makes_no_study_is_refused_before_anything_runs(llama, asked, mask, monkeypatch, options, error, message):
    monkeypatch.setattr(llama.hf, "forward", None)
    with pytest.raises(error, match=message):
        cache_study(llama, asked, mask, **{"heads": [1], **options})
    assert llama.attention == "sdpa"


def test_masks_and_prompts_that_do_not_fit_the_model_are_refused(llama, asked, mask, prompts, make_model, monkeypatch):
    monkeypatch.setattr(llama.hf, "forward", None)
    with pytest.raises(MaskMismatch, match="other weights"):
        cache_study(llama, asked, replace(mask, fingerprint="another"), [1])
    with pytest.raises(MaskMismatch, match="scores 1 layers"):
        cache_study(llama, asked, HeadMask(np.zeros((1, 4))), [1])
    with pytest.raises(BadInput, match="these prompts have none"):
        cache_study(llama, replace(prompts, answers=(), answer_tokens=()), mask, [1])
    long = PromptSet.build(llama.tokenizer, ["a " * 254 + "b"], [" c d"])
    with pytest.raises(PromptTooLong, match="257 tokens is longer than the model's context of 256"):
        cache_study(llama, long, mask, [1])


def test_families_that_compute_attention_themselves_are_refused(asked, tokenizer):
    config = BloomConfig(vocab_size=7, hidden_size=64, n_layer=2, n_head=4)
    bloom = interp.wrap(BloomForCausalLM(config).eval(), tokenizer)
    with pytest.raises(UnsupportedRequest, match="'bloom' computes attention in its own code"):
        cache_study(bloom, asked, HeadMask(np.zeros((2, 4))), [1])


@pytest.fixture(scope="module")
def pocket():
    return interp.load("pocket")


@pytest.fixture(scope="module")
def retrieval_mask(pocket):
    return retrieval_scores(pocket, needle_prompts(pocket.tokenizer, [256], [0, 50, 100], n_needles=4)).mask()


def claim(pocket, mask, depths, needles, seeds):
    """With a sixteenth of the key/value heads whole, at the longest context: what `pocket` still recalls."""
    prompts = needle_prompts(pocket.tokenizer, [2000], depths, n_needles=needles, seed=1, context=pocket.spec.context)
    study = cache_study(pocket, prompts, mask, [1], seeds=seeds)
    assert study.tests.hidden.all()
    row = study.summary().iloc[0]
    assert row.n == len(depths) * needles
    assert study.frame.recall.iloc[0] > 0.85
    assert row.saved >= 0.7
    assert abs(row.difference) <= 0.01, study.summary().to_dict("records")
    assert row.most < 0.3
    assert row.random_difference_high < -0.5
    return row


@pytest.mark.slow
def test_with_its_retrieval_heads_whole_pocket_recalls_as_with_the_full_cache_and_with_random_ones_it_does_not(
    pocket, retrieval_mask
):
    claim(pocket, retrieval_mask, [30, 60], 3, (0, 1))


@pytest.mark.slow
def test_the_same_on_seventy_five_tests_and_five_draws(pocket, retrieval_mask):
    claim(pocket, retrieval_mask, [20, 35, 50, 65, 80], 15, range(5))
