"""Perplexity scores every token of a text once, each with the tokens its window holds before it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from interp.errors import BadInput, PromptTooLong
from interp.heads.ablation import fit
from interp.heads.causal import ablation_report
from interp.heads.perplexity import perplexity, sliding_windows, text_losses

TEXT = " ".join("abcdef"[n] for n in np.random.default_rng(3).integers(6, size=90))


@torch.no_grad()
def losses_by_hand(model, window, stride, special=()):
    """The loss of every token of the text, by one plain pass for each token over what its window holds."""
    ids = model.tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    room = window - len(special)
    losses = []
    for i in range(0 if special else 1, len(ids)):
        end = min(room, len(ids)) if i < room else room + stride * (-(-(i + 1 - room) // stride))
        start = max(0, min(end, len(ids)) - room)
        logits = model.hf(torch.tensor([[*special, *ids[start:i]]])).logits[0, -1]
        losses.append(-float(logits.log_softmax(-1)[ids[i]]))
    return losses


@pytest.mark.parametrize(("window", "stride"), [(200, 100), (40, 40), (40, 17), (30, 1)])
def test_every_token_is_scored_once_in_its_window(llama, window, stride):
    if stride == 40:
        stride = 39
    windows = sliding_windows(llama, TEXT, window=window, stride=stride)
    losses = text_losses(llama, windows)
    by_hand = losses_by_hand(llama, window, stride)
    assert windows.tokens == len(by_hand) == 89
    assert losses[:, 0].sum() == pytest.approx(sum(by_hand), rel=1e-5)
    assert perplexity(losses) == pytest.approx(np.exp(np.mean(by_hand)), rel=1e-5)


def test_windows_weigh_by_their_tokens_not_alike(llama):
    losses = text_losses(llama, sliding_windows(llama, TEXT, window=40, stride=30))
    assert len(set(losses[:, 1])) > 1
    means = np.exp((losses[:, 0] / losses[:, 1]).mean())
    assert perplexity(losses) != pytest.approx(means, rel=1e-4)


def test_special_tokens_begin_every_window(llama, tokenizer, monkeypatch):
    """A tokenizer that puts a token before a text, as most do."""
    plain = tokenizer.__call__

    class Beginning:
        is_fast = True
        pad_token_id = tokenizer.pad_token_id

        def __call__(self, text, add_special_tokens=True, **options):
            ids = plain(text, add_special_tokens=False)["input_ids"]
            return {"input_ids": [5, *ids] if add_special_tokens else ids}

    monkeypatch.setattr(llama, "tokenizer", Beginning())
    windows = sliding_windows(llama, TEXT, window=40, stride=20)
    assert all(row[0] == 5 for row in windows.fed.tokens)
    assert windows.tokens == 90
    by_hand = losses_by_hand(llama, 40, 20, special=(5,))
    assert text_losses(llama, windows)[:, 0].sum() == pytest.approx(sum(by_hand), rel=1e-5)


@pytest.mark.parametrize("ablation", ["zero", "mean-positional", "resample", "uniform"])
def test_ablating_heads_changes_it_in_batches_as_alone(llama, ablation):
    windows = sliding_windows(llama, TEXT, window=30, stride=15)
    fitted = fit(llama, ablation, windows.fed, [1])
    together, alone = (text_losses(llama, windows, fitted, [(1, 0)], batch_size=n) for n in (4, 1))
    np.testing.assert_allclose(together, alone, atol=1e-3)
    assert np.abs(together[:, 0] - text_losses(llama, windows)[:, 0]).max() > 0.01


def test_a_report_of_text_has_perplexity_relative_to_the_whole_model(llama):
    windows = sliding_windows(llama, TEXT, window=30, stride=15)
    report = ablation_report(llama, windows, [(1, 0)], ablations=["zero"], seeds=(0,))
    whole, chosen, _random = report.frame.perplexity
    assert whole == pytest.approx(perplexity(text_losses(llama, windows)))
    assert report.frame.relative[1] == pytest.approx(chosen / whole)
    assert (report.frame.tokens == 89).all()
    assert report.summary().times_baseline.item() == pytest.approx(chosen / whole)
    with pytest.raises(BadInput, match="depth and length"):
        report.by_length_and_depth()


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"text": "a"}, BadInput, "has 1 tokens; perplexity needs at least 2"),
        ({"text": ""}, BadInput, "has 0 tokens"),
        ({"text": TEXT, "window": 257}, PromptTooLong, "context of 256"),
        ({"text": TEXT, "window": 20, "stride": 21}, BadInput, "cannot move by 21"),
        ({"text": TEXT, "window": 1}, BadInput, "cannot move"),
    ],
)
def test_a_text_or_window_that_cannot_be_scored_is_refused(llama, options, error, said):
    with pytest.raises(error, match=said):
        sliding_windows(llama, **options)
