"""Perturbations do what they say, as often as they say, and refuse what the platform lacks."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest
import torch

import interp
from interp.errors import BadInput
from probes.perturbations import PREFIXES, Perturbation, linear_layers, round_to_nearest
from tests import families

TEXT = " ".join(f"w{i}" for i in range(3, 90))


@pytest.fixture(scope="module")
def model() -> interp.Model:
    return interp.wrap(families.build("llama"), tokenizer=families.word_tokenizer(), name="tiny")


@pytest.mark.parametrize("name", ["tokens:0.2", "prefix", "characters:0.2"])
def test_noise_is_seeded(name: str) -> None:
    model = interp.load("pocket")
    noise = Perturbation.parse(name)
    assert str(noise) == name
    texts = ["The film was great."] * 20
    assert noise.rows(model, texts, 1) == noise.rows(model, texts, 1)
    assert noise.rows(model, texts, 1) != noise.rows(model, texts, 2)
    assert noise.model(model) is model


def test_token_noise_replaces_as_many_tokens_as_its_rate_and_no_special_ones(model: interp.Model) -> None:
    clean = model.tokenizer(f"<s> {TEXT}")["input_ids"]
    rows = np.array(Perturbation("tokens", 0.2).rows(model, [f"<s> {TEXT}"] * 100))
    assert (rows[:, 0] == clean[0]).all()
    assert (rows[:, 1:] >= 3).all()
    assert np.mean(rows[:, 1:] != np.array(clean)[1:]) == pytest.approx(0.2, abs=0.02)


def test_the_papers_prefix_is_a_fair_coin() -> None:
    pocket = interp.load("pocket")
    rows = Perturbation("prefix").rows(pocket, ["The film was great."] * 200)
    texts = [pocket.tokenizer.decode(row) for row in rows]
    first = np.mean([PREFIXES[0] in text for text in texts])
    assert all("The film was great." in text and any(p in text for p in PREFIXES) for text in texts)
    assert 0.4 < first < 0.6


def test_characters_change_at_the_rate_and_only_letters() -> None:
    from probes.perturbations import _misspelt

    rng = np.random.default_rng(0)
    text = "Abc, def. " * 400
    noisy = _misspelt(text, 0.3, rng)
    changed = [a != b for a, b in zip(text, noisy, strict=True)]
    letters = [a.isalpha() for a in text]
    assert not any(c for c, letter in zip(changed, letters, strict=True) if not letter)
    assert sum(changed) / sum(letters) == pytest.approx(0.3 * 25 / 26, abs=0.03)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("bits", [8, 4])
def test_rounded_weights_lie_on_the_levels_nearest_to_them(family: str, bits: int) -> None:
    model = interp.wrap(families.build(family), tokenizer=families.word_tokenizer())
    rounded = Perturbation(f"rtn-int{bits}").model(model)
    levels = 2 ** (bits - 1) - 1
    layers = list(zip(linear_layers(model.hf), linear_layers(rounded.hf), strict=True))
    assert len(layers) > 4
    for before, after in layers:
        old, new = (layer.weight if family == "llama" else layer.weight.T for layer in (before, after))
        step = old.abs().amax(1, keepdim=True) / levels
        assert torch.allclose(new / step, (new / step).round(), atol=1e-3)
        assert bool(((old - new).abs() <= step / 2 * 1.001).all())
        assert len(torch.unique((new / step).round())) > bits
    assert torch.equal(model.hf.get_input_embeddings().weight, rounded.hf.get_input_embeddings().weight)
    assert rounded.fingerprint != model.fingerprint
    error = [
        (Perturbation(f"rtn-int{b}").model(model).run([[5, 6, 7]]).logits - model.run([[5, 6, 7]]).logits).norm()
        for b in (4, 8)
    ]
    assert error[0] > error[1] > 0


def test_a_row_of_zeros_stays_zero() -> None:
    layer = torch.nn.Linear(4, 2)
    torch.nn.init.zeros_(layer.weight)
    round_to_nearest(layer, 4)
    assert torch.equal(layer.weight, torch.zeros(2, 4))


def test_number_types_are_those_computed_in(model: interp.Model) -> None:
    assert Perturbation("bf16").model(model).spec.dtype == "bfloat16"
    half = interp.wrap(families.build("llama", dtype=torch.bfloat16), tokenizer=families.word_tokenizer())
    assert Perturbation("fp32").model(half).spec.dtype == "float32"
    assert half.spec.dtype == "bfloat16"


def test_torchao_is_refused_where_it_is_not_installed(model: interp.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("probes.perturbations.find_spec", lambda name: None)
    with pytest.raises(BadInput, match="rtn-int8, which simulates"):
        Perturbation("torchao-int8").model(model)


@pytest.mark.skipif(find_spec("torchao") is None, reason="torchao is not installed")
def test_torchao_quantises_the_blocks(model: interp.Model) -> None:
    changed = Perturbation("torchao-int8").model(model)
    assert changed.fingerprint != model.fingerprint
    apart = (changed.run([[5, 6, 7]]).logits - model.run([[5, 6, 7]]).logits).abs().max()
    assert 0 < apart < 1


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("tokens", "tokens:0.1, with a rate"),
        ("tokens:2", "above 0 and up to 1"),
        ("tokens:x", "no number"),
        ("prefix:0.1", "prefix, without a rate"),
        ("rtn-int5", "did you mean 'rtn-int"),
    ],
)
def test_a_perturbation_that_is_none_is_refused(name: str, what: str) -> None:
    with pytest.raises(BadInput, match=what):
        Perturbation.parse(name)
