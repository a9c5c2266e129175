"""Encoders: trained together as they would be alone, and judged on what they did not see."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.linear_model import Ridge

from interp.errors import BadInput, UnreadableFile
from interp.runs import save_run
from interp.tasks.analogies import Structure
from probes.vsa.algebra import Algebra
from probes.vsa.codebook import Codebook
from probes.vsa.decode import by_key
from probes.vsa.encoder import Encoder, Examples, Training, linear_encoders, loss, loss_gradient, train_encoders
from probes.vsa.ingestion import ingest, sum_of_centres, upper_half
from probes.vsa.splits import split

MAP = Algebra("MAP")
QUICK = Training(hidden=32, dropout=0.2, epochs=40, patience=5)


def planted(algebra: Algebra = MAP, n: int = 240, noise: float = 0.3) -> tuple[Examples, Codebook, list[Structure]]:
    """States that are the sum of a filler's feature vector in each of two roles, and noise."""
    rng = np.random.default_rng(0)
    names = tuple(f"w{i}" for i in range(6))
    codebook = Codebook(("role:a", "role:b", *names), algebra, 128)
    features = rng.standard_normal((2, len(names), 16))
    picks = rng.integers(0, len(names), (n, 2))
    said = [Structure((("role:a", names[a]), ("role:b", names[b])), names[b], "role:b") for a, b in picks]
    states = features[0, picks[:, 0]] + features[1, picks[:, 1]] + noise * rng.standard_normal((n, 16))
    targets = torch.stack([codebook.encode(each) for each in said])
    rows = np.arange(n)
    both = {"first": states.astype(np.float32), "second": (states @ rng.standard_normal((16, 16))).astype(np.float32)}
    return Examples(both, targets, rows[:160], rows[160:200]), codebook, said


def right(encoder: Encoder, states: np.ndarray, said: list[Structure], codebook: Codebook) -> float:
    found = by_key(encoder(states[200:]), said[200:], codebook).argmax(-1).tolist()
    return float(np.mean([codebook.concepts[i] == each.target for i, each in zip(found, said[200:], strict=True)]))


def test_encoders_trained_together_are_those_trained_alone() -> None:
    data, _, _ = planted()
    together = train_encoders(data, MAP, QUICK)
    for name, states in data.states.items():
        alone = train_encoders(Examples({name: states}, data.targets, data.train, data.validation), MAP, QUICK)[name]
        assert alone.epochs == together[name].epochs
        assert alone.cosine == pytest.approx(together[name].cosine, abs=1e-4)
        for one, other in zip(alone.weights, together[name].weights, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-3)
    assert together["first"].epochs > 1


@pytest.mark.parametrize("name", ["MAP", "BSC", "HRR", "FHRR"])
def test_planted_structure_is_decoded_from_states_and_not_with_another_codebook(name: str) -> None:
    algebra = Algebra(name)
    data, codebook, said = planted(algebra)
    training = Training(hidden=64, dropout=0.1, rate=3e-3, epochs=60)
    for encoder in (linear_encoders(data, algebra)["first"], train_encoders(data, algebra, training)["first"]):
        assert right(encoder, data.states["first"], said, codebook) > 0.85
        assert right(encoder, data.states["first"], said, codebook.random(0)) < 0.6


def test_shuffled_states_teach_nothing() -> None:
    data, codebook, said = planted()
    mixed = {"first": np.random.default_rng(1).permutation(data.states["first"])}
    encoder = linear_encoders(Examples(mixed, data.targets, data.train, data.validation), MAP)["first"]
    assert right(encoder, mixed["first"], said, codebook) < 0.5


def test_the_gradient_is_that_of_the_loss() -> None:
    outputs = torch.randn(2, 5, 7, requires_grad=True)
    components = torch.where(torch.rand(5, 7) > 0.5, 1.0, -1.0)
    for binary in (True, False):
        (expected,) = torch.autograd.grad(loss(outputs, components, binary).sum(), outputs)
        torch.testing.assert_close(loss_gradient(outputs.detach(), components, binary), expected)
    one = outputs[0].detach()
    entropy = torch.nn.functional.binary_cross_entropy_with_logits(one, (components + 1) / 2)
    squared = torch.nn.functional.mse_loss(one, components)
    torch.testing.assert_close(loss(one, components, True), entropy + 0.1 * squared)


def test_training_stops_early_and_keeps_the_best() -> None:
    data, _, _ = planted()
    counted: list[int] = []
    random = Examples(data.states, data.targets[torch.randperm(240)], data.train, data.validation)
    found = train_encoders(
        random, MAP, Training(hidden=32, epochs=100, patience=3), lambda done, total: counted.append(done)
    )
    assert counted[-1] < 100
    assert counted[-1] >= max(each.epochs for each in found.values()) + 3 or counted[-1] == 100


def test_the_linear_encoder_is_scikit_learns_ridge(monkeypatch: pytest.MonkeyPatch) -> None:
    from probes.vsa import encoder as module

    monkeypatch.setattr(module, "RIDGES", (0.05,))
    data, _, _ = planted()
    own = linear_encoders(data, MAP)["first"]
    x = data.states["first"].astype(np.float64)
    train = x[data.train]
    scaled = (x - train.mean(0)) / train.std(0)
    theirs = Ridge(alpha=0.05 * len(train)).fit(scaled[data.train], data.targets[data.train].double().numpy())
    with torch.no_grad():
        outputs = own.outputs(torch.tensor(data.states["first"]))
    np.testing.assert_allclose(outputs.numpy(), theirs.predict(scaled), atol=1e-4)


@pytest.mark.parametrize("half", [False, True])
def test_an_encoder_survives_its_run(tmp_path: Path, half: bool) -> None:
    data, codebook, _ = planted()
    (encoder,) = list(
        train_encoders(
            Examples({"first": data.states["first"]}, data.targets, data.train, data.validation), MAP, QUICK
        ).values()
    )
    about = {"kind": "encoder", "parameters": {}, "model": {}, "seed": 0, "frame": pd.DataFrame({"a": [1]})}
    run = save_run(tmp_path / "run", arrays=encoder.arrays("x/y", half), **about)
    back = Encoder.from_run("x/y", run, codebook, encoder.cosine, encoder.epochs)
    states = data.states["first"]
    if half:
        assert run.arrays["x/y.weight.0"].nbytes == encoder.weights[0].numel() * 2
        assert float((back(states) == encoder(states)).float().mean()) > 0.99
    else:
        assert torch.equal(back(states), encoder(states))
    with pytest.raises(UnreadableFile, match="no weights of the encoder 'x/z'|no array 'x/z"):
        Encoder.from_run("x/z", run, codebook, 0.0, 0)
    with pytest.raises(UnreadableFile, match="has shape"):
        Encoder.from_run("x/y", run, Codebook(codebook.concepts, MAP, 64), 0.0, 0)


def test_what_varies_is_read_and_not_what_every_bundle_shares() -> None:
    data, codebook, said = planted(noise=2.0)
    encoder = linear_encoders(data, MAP)["first"]
    mean = data.targets[data.train].float().mean(0)
    torch.testing.assert_close(encoder.centre, mean)
    assert mean.mean() < -0.4  # ties of two bound pairs
    states = data.states["first"][200:]
    outputs = encoder.outputs(torch.tensor(states))
    assert torch.equal(encoder(states), torch.where(outputs > mean, 1.0, -1.0))
    assert torch.equal(encoder.uncentred(states), torch.where(outputs > 0, 1.0, -1.0))

    def found(vectors: torch.Tensor) -> float:
        best = by_key(vectors, said[200:], codebook).argmax(-1).tolist()
        return float(np.mean([codebook.concepts[i] == each.target for i, each in zip(best, said[200:], strict=True)]))

    assert found(encoder(states)) > found(encoder.uncentred(states)) + 0.1


def test_the_sum_of_centres_is_scikit_learns_k_means() -> None:
    layers = torch.randn(4, 12, 6, generator=torch.Generator().manual_seed(0))
    own = sum_of_centres(layers, 5, seed=3)
    start = torch.randperm(12, generator=torch.Generator().manual_seed(3))[:5].sort().values
    for states, total in zip(layers.numpy(), own.numpy(), strict=True):
        theirs = KMeans(5, init=states[start.numpy()], n_init=1, max_iter=1000, tol=0).fit(states)
        np.testing.assert_allclose(total, theirs.cluster_centers_.sum(0), atol=1e-4)


def test_a_prompt_is_ingested_the_same_in_any_company() -> None:
    layers = torch.randn(6, 9, 4)
    assert torch.equal(sum_of_centres(layers)[2:3], sum_of_centres(layers[2:3]))
    assert not torch.allclose(sum_of_centres(layers), layers.sum(1))
    assert torch.equal(sum_of_centres(layers[:, :4]), layers[:, :4].sum(1))


def test_simple_ingestions_are_what_they_say() -> None:
    states = {f"resid_post.{i}": np.full((2, 3), float(i)) for i in (1, 2, 3)}
    found = ingest(states, ("last", "mean", "concatenation", "resid_post.1"))
    assert found["last"].tolist() == [[3] * 3] * 2
    assert found["mean"].tolist() == [[2] * 3] * 2
    assert found["concatenation"].tolist() == [[1] * 3 + [2] * 3 + [3] * 3] * 2
    assert found["resid_post.1"].tolist() == [[1] * 3] * 2
    with pytest.raises(BadInput, match="did you mean 'clusters'"):
        ingest(states, ("cluster",))


def test_the_upper_half_begins_at_hidden_state_l_over_2() -> None:
    from dataclasses import replace

    import interp

    spec = interp.load("pocket").spec
    assert upper_half(spec) == ("resid_post.1", "resid_post.2", "resid_post.3")
    assert upper_half(replace(spec, layers=1)) == ("resid_pre.0", "resid_post.0")


def analogies(pairs: int = 12, n: int = 300) -> list[Structure]:
    rng = np.random.default_rng(0)
    made = []
    for _ in range(n):
        one, two = rng.choice(pairs, 2, replace=False)
        made.append(Structure(((f"a{one}", f"b{one}"), (f"a{two}", f"b{two}")), f"b{two}", f"a{two}"))
    return made


def test_no_pair_is_on_two_sides() -> None:
    said = analogies()
    sides = split(said, "pair", seed=1)
    asked = {said[i].asked for i in sides.test}
    held = asked | {said[i].asked for i in sides.validation}
    assert asked
    assert not any(said[i].pairs & held for i in sides.train)
    assert not any(said[i].pairs & asked for i in sides.validation)
    assert sides.dropped == len(said) - sum(map(len, (sides.train, sides.validation, sides.test))) > 0


def test_a_combination_is_on_one_side_whatever_its_order() -> None:
    said = analogies()
    sides = split(said, "combination")
    train, test = ({said[i].pairs for i in rows} for rows in (sides.train, sides.test))
    assert test
    assert not train & test
    assert sides.dropped == 0
    assert {pair for i in sides.train for pair in said[i].pairs} >= {said[i].asked for i in sides.test}


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (lambda: Training(hidden=0), "hidden"),
        (lambda: Training(dropout=1), "dropout"),
        (lambda: split(analogies(), "word"), "not 'word'"),
        (lambda: split(analogies(2, 5), "pair"), "give more prompts"),
        (lambda: Examples({"x": np.ones((3, 2))}, torch.ones(4, 8), np.arange(2), np.arange(2)), "3 states for 4"),
        (lambda: Examples({"x": np.full((3, 2), np.nan)}, torch.ones(3, 8), np.arange(2), np.arange(2)), "NaN"),
        (lambda: Examples({}, torch.ones(3, 8), np.arange(2), np.arange(2)), "needs states"),
        (lambda: linear_encoders(planted()[0], MAP)["first"](np.ones((1, 3))), "16 features, not 3"),
    ],
)
def test_what_cannot_be_fitted_is_refused(request_, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        request_()
