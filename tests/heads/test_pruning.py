"""Pruning removes what is worth least, measures it, and does no work for what is gone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from interp.errors import BadInput, MaskMismatch
from interp.heads.ablation import fit
from interp.heads.answers import recall_under
from interp.heads.effects import ablation_effects
from interp.heads.fed import Fed
from interp.heads.importance import gate_gradients
from interp.heads.mask import HeadMask
from interp.heads.pruning import prune
from interp.runs import Journal, load_run
from kernels import integration
from kernels.attention import explain
from kernels.compaction import compact


@pytest.fixture(scope="module")
def few(prompts):
    return prompts[4:9]


def left_without(model, prompts, heads):
    fitted = fit(model, "zero", Fed.answering(prompts), [0, 1])
    return recall_under(model, prompts, fitted, heads).log_probability


def test_one_shot_pruning_follows_the_ranking_and_measures_every_prefix_of_it(llama, few):
    worth = gate_gradients(llama, few).importance("mean-of-abs")
    expected = [divmod(int(i), 4) for i in np.argsort(worth, axis=None)]
    result = prune(llama, few, 8, strategy="one-shot", seeds=())
    assert list(result.order) == expected
    chosen = result.frame[result.frame["heads"] == "chosen"].set_index("removed")
    for k in range(1, 9):
        assert chosen.value[k] == pytest.approx(left_without(llama, few, expected[:k]).mean(), abs=1e-5)
    assert result.frame.value[0] == pytest.approx(recall_under(llama, few).log_probability.mean())
    assert (result.frame.low <= result.frame.value).all()
    assert (result.frame.n == len(few)).all()


def test_greedy_pruning_ranks_again_with_what_is_gone_gone(llama, few):
    result = prune(llama, few, 3, strategy="greedy", by="effect", seeds=())
    gone: list[tuple[int, int]] = []
    for head in result.order:
        effects = ablation_effects(llama, few, ablation="zero", removed=gone).effects
        assert divmod(int(np.nanargmin(effects)), 4) == head
        gone.append(head)
    once = prune(llama, few, 3, strategy="greedy", by="effect", every=3, seeds=())
    assert once.order == prune(llama, few, 3, strategy="one-shot", by="effect", seeds=()).order


def test_removing_by_exact_effect_costs_less_than_removing_at_random(llama, few):
    frame = prune(llama, few[:3], 4, by="effect", every=2, seeds=(0, 1)).frame
    at = frame[frame.removed == 4]
    assert at[at["heads"] == "chosen"].value.item() > at[at["heads"] == "random"].value.max()


def test_random_orders_differ_by_seed_and_only_by_it(llama, few):
    orders = {prune(llama, few[:1], 2, strategy="random", seed=seed, seeds=()).order for seed in range(5)}
    assert len(orders) > 3
    again = prune(llama, few[:1], 2, strategy="random", seed=3, seeds=())
    assert again.order == prune(llama, few[:1], 2, strategy="random", seed=3, seeds=()).order


def test_a_mask_gives_the_order_of_its_scores_lowest_first(llama, few):
    scores = np.arange(8.0).reshape(2, 4)[:, ::-1]
    mask = HeadMask(scores, kv_heads=2)
    result = prune(llama, few, 3, strategy="one-shot", by="mask", mask=mask, seeds=())
    assert result.order == ((0, 3), (0, 2), (0, 1))
    assert result.removed() == {0: [3, 2, 1]}
    assert result.removed(1) == {0: [3]}


def test_all_heads_can_go(llama, few):
    result = prune(llama, few, 8, strategy="random", seeds=())
    every = [(layer, head) for layer in range(2) for head in range(4)]
    assert sorted(result.order) == every
    expected = left_without(llama, few, every).mean()
    assert result.frame.value.iloc[-1] == pytest.approx(expected, abs=1e-5)


def test_whole_groups_go_together_and_the_sliced_model_answers_as_the_pruned_one(make_model, few):
    model = make_model("llama", "sdpa")
    result = prune(model, few, 4, by="importance", unit="kv-group", seeds=())
    assert all(
        a[0] == b[0] and a[1] // 2 == b[1] // 2 for a, b in zip(result.order[::2], result.order[1::2], strict=True)
    )
    compact(model.hf, result.removed())
    with torch.no_grad():
        said = [
            model.hf(torch.tensor([[*tokens, *answer[:-1]]])).logits[0, len(tokens) - 1 :].log_softmax(-1)
            for tokens, answer in zip(few.tokens, few.answer_tokens, strict=True)
        ]
    sliced = [
        float(rows[range(len(answer)), list(answer)].mean())
        for rows, answer in zip(said, few.answer_tokens, strict=True)
    ]
    assert np.mean(sliced) == pytest.approx(result.frame.value.iloc[-1], abs=1e-4)
    assert result.frame.value.iloc[-1] != pytest.approx(result.frame.value.iloc[0], abs=1e-3)


def test_on_the_kernels_removed_heads_are_not_computed(make_model, few, monkeypatch):
    integration.install()
    model = make_model("llama", "workbench")
    left_without(model, few, [(0, 0)])  # its first use compares the kernels with eager attention
    flops = []

    def counted(*args, **kwargs):
        flops.append(explain(*args, **kwargs).flops)
        return original(*args, **kwargs)

    original = integration.head_attention
    monkeypatch.setattr(integration, "head_attention", counted)

    def work(heads):
        flops.clear()
        left_without(model, few, heads)
        return sum(flops)

    whole = work([])
    half = work([(layer, head) for layer in range(2) for head in (0, 1)])
    assert half == pytest.approx(whole / 2)
    assert work([(layer, head) for layer in range(2) for head in range(4)]) == 0


def test_an_interrupted_pruning_does_nothing_twice(llama, few, tmp_path, monkeypatch):
    whole = prune(llama, few, 3, seeds=(0,))
    with Journal(tmp_path / "j.jsonl", {}) as journal, pytest.raises(KeyboardInterrupt):

        def stop(done, total):
            if done == 3:
                raise KeyboardInterrupt

        prune(llama, few, 3, seeds=(0,), journal=journal, progress=stop)
    kept = set(Journal(tmp_path / "j.jsonl", {}, resume=True).done)
    assert any(key.startswith("importance") for key in kept)
    assert any(key.startswith("metric") for key in kept)
    added: list[str] = []
    append = Journal.append
    monkeypatch.setattr(Journal, "append", lambda self, key, value: (added.append(key), append(self, key, value)))
    with Journal(tmp_path / "j.jsonl", {}, resume=True) as journal:
        again = prune(llama, few, 3, seeds=(0,), journal=journal)
    assert added
    assert not kept & set(added)
    assert again.order == whole.order
    np.testing.assert_allclose(again.frame.value, whole.frame.value, atol=1e-7)


def test_a_run_keeps_the_order_and_the_steps(llama, few, tmp_path):
    result = prune(llama, few, 2, seeds=(0,))
    run = load_run(result.save(tmp_path / "run").path)
    assert [tuple(head) for head in run.arrays["order"]] == list(result.order)
    assert run.frame.equals(result.frame)
    assert run.record.parameters["budget"] == 2
    drawn = {trace.name: list(trace.x) for trace in result.plot().data if trace.name}
    assert drawn == {"zero: chosen heads": [0, 1, 2], "zero: random heads": [0, 1, 2]}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"budget": 9}, "9 heads cannot be removed.*has 8"),
        ({"budget": 0}, "0 heads cannot be removed"),
        ({"budget": 3, "unit": "kv-group"}, "multiple of 2"),
        ({"budget": 2, "strategy": "gready"}, "did you mean 'greedy'"),
        ({"budget": 2, "by": "magnitude"}, "not ranked by 'magnitude'"),
        ({"budget": 2, "by": "mask", "strategy": "one-shot"}, "needs a mask"),
        ({"budget": 2, "every": 0}, "at least one head"),
        ({"budget": 2, "unit": "layer"}, "no unit 'layer'"),
        ({"budget": 2, "metric": "recall"}, "recall has no gradient"),
    ],
)
def test_a_request_that_cannot_be_served_is_refused(llama, few, arguments, said):
    with pytest.raises(BadInput, match=said):
        prune(llama, few, **arguments)


def test_a_mask_of_another_model_is_refused(llama, few):
    with pytest.raises(MaskMismatch):
        prune(llama, few, 1, strategy="one-shot", by="mask", mask=HeadMask(np.ones((3, 4))))
