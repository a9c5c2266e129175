"""Hypervectors: what is bound comes back, what is bundled is found, what was never put in is not."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from interp.errors import BadInput
from interp.tasks.analogies import Structure
from probes.vsa.algebra import NAMES, Algebra
from probes.vsa.codebook import Codebook, chance_cosine, ranks
from probes.vsa.decode import by_key, factorise, factorise_bundle, from_text, mentioned, oracle, unbound

MAP = Algebra("MAP")
seeds = st.integers(0, 2**31 - 1)


def words(count: int) -> tuple[str, ...]:
    return tuple(f"w{i}" for i in range(count))


@pytest.mark.parametrize("name", ["MAP", "BSC", "FHRR"])
@given(seed=seeds, dimensions=st.integers(1, 300))
@settings(max_examples=25, deadline=None)
def test_unbinding_undoes_binding(name: str, seed: int, dimensions: int) -> None:
    algebra = Algebra(name)
    a, b = algebra.random(2, dimensions, seed)
    back = algebra.unbind(algebra.bind(a, b), a)
    if name == "FHRR":
        torch.testing.assert_close(back, b)
    else:
        assert torch.equal(back, b)


@given(seed=seeds)
@settings(max_examples=10, deadline=None)
def test_unbinding_undoes_circular_convolution_well_enough_to_be_recognised(seed: int) -> None:
    codebook = Codebook(words(100), Algebra("HRR"), 1024, seed)
    bound = codebook.algebra.bind(codebook["w0"], codebook["w1"])
    assert codebook.nearest(codebook.algebra.unbind(bound, codebook["w0"])[None]) == ["w1"]
    assert codebook.algebra.similarity(bound[None], codebook.vectors).abs().max() < 0.2


@pytest.mark.parametrize("name", NAMES)
def test_random_hypervectors_are_nearly_orthogonal_and_reproducible(name: str) -> None:
    algebra = Algebra(name)
    vectors = algebra.random(20, 2048, 3)
    assert torch.equal(vectors, algebra.random(20, 2048, 3))
    assert not torch.equal(vectors, algebra.random(20, 2048, 4))
    cosines = algebra.similarity(vectors, vectors)
    torch.testing.assert_close(cosines.diagonal(), torch.ones(20))
    assert (cosines - torch.eye(20)).abs().max() < 0.12


@pytest.mark.parametrize("name", NAMES)
def test_components_stand_for_their_hypervector(name: str) -> None:
    algebra = Algebra(name)
    vectors = algebra.random(5, 128, 0)
    components = algebra.components(vectors)
    assert components.shape == (5, algebra.width(128))
    assert components.square().mean() == pytest.approx(0.5 if name == "FHRR" else 1, rel=0.01)
    back = algebra.from_components(components)
    assert back.dtype == vectors.dtype
    torch.testing.assert_close(back, vectors)


@given(seed=st.integers(0, 10_000))
@settings(max_examples=5, deadline=None)
def test_cleanup_finds_more_than_99_percent_of_three_bundled_pairs_at_4096_dimensions(seed: int) -> None:
    codebook = Codebook(words(300), MAP, 4096, seed)
    generator = torch.Generator().manual_seed(seed)
    found = 0
    for _ in range(50):
        picked = torch.randperm(300, generator=generator)[:6].tolist()
        names = [codebook.concepts[i] for i in picked]
        pairs = tuple(zip(names[::2], names[1::2], strict=True))
        bundle = codebook.encode(Structure(pairs, names[1], names[0]))
        found += sum(int(unbound(bundle, (key,), codebook).argmax()) == codebook.index(value) for key, value in pairs)
    assert found / 150 > 0.99


@pytest.mark.parametrize("name", NAMES)
def test_every_algebra_encodes_roles_and_fillers(name: str) -> None:
    codebook = Codebook((*words(50), "role:a", "role:b"), Algebra(name), 2048, 0)
    structure = Structure((("role:a", "w1"), ("role:b", "w2")), "w2", "role:b")
    bundle = codebook.encode(structure)
    assert int(by_key(bundle[None], [structure], codebook).argmax()) == 2
    assert int(unbound(bundle, ("role:a",), codebook).argmax()) == 1


def test_a_bundle_is_most_similar_to_its_members() -> None:
    codebook = Codebook(words(30), MAP, 2048)
    bundle = codebook.encode(Structure((), "w3", members=("w3", "w7", "w9")))
    assert set(codebook.cleanup(bundle[None])[0].topk(3).indices.tolist()) == {3, 7, 9}


def test_chance_is_above_nothing_and_below_what_is_there() -> None:
    codebook = Codebook(words(200), MAP, 4096)
    bundle = codebook.encode(Structure((("w0", "w1"), ("w2", "w3")), "w1", "w0"))
    clean = codebook.algebra.unbind(bundle, codebook["w0"])[None]
    chance = chance_cosine(codebook, clean)
    assert 0.02 < chance < 0.1 < float(codebook.cleanup(clean).max())
    unrelated = codebook.random(99).vectors[:1]
    assert float(codebook.cleanup(unrelated).max()) < 0.1
    assert codebook.nearest(torch.cat([clean, unrelated])) == ["w1", None]


def test_ties_count_against_the_target_and_what_cannot_be_named_is_last() -> None:
    scores = torch.tensor([[3.0, 1.0, 1.0], [-torch.inf, 0.0, -torch.inf]])
    assert ranks(scores, [1, 0]).tolist() == [2, 3]
    assert ranks(scores, [0, 1]).tolist() == [0, 0]


@given(seed=st.integers(0, 10_000), factors=st.sampled_from([2, 3]))
@settings(max_examples=10, deadline=None)
def test_a_resonator_network_recovers_planted_factors(seed: int, factors: int) -> None:
    codebook = Codebook(words(30), MAP, 2048, seed)
    domains = [words(30)[i * 10 : (i + 1) * 10] for i in range(factors)]
    generator = torch.Generator().manual_seed(seed)
    planted = tuple(domain[int(torch.randint(10, (), generator=generator))] for domain in domains)
    product = codebook[planted[0]]
    for name in planted[1:]:
        product = codebook.algebra.bind(product, codebook[name])
    noise = torch.rand(2048, generator=generator) < 0.2
    found = factorise(torch.where(noise, -product, product), domains, codebook)
    assert found.concepts == planted
    assert found.cosine == pytest.approx(1 - 2 * noise.float().mean().item(), abs=1e-5)
    unrelated = factorise(codebook.random(1).vectors[0], domains, codebook)
    assert abs(unrelated.cosine) < 0.15 < found.cosine


def test_a_bundle_of_products_is_factorised_one_by_one() -> None:
    codebook = Codebook(words(40), MAP, 4096)
    pairs = (("w1", "w21"), ("w5", "w33"))
    bundle = codebook.encode(Structure(pairs, "w21", "w1"))
    found = factorise_bundle(bundle, (words(40)[:20], words(40)[20:]), codebook, 2)
    assert {each.concepts for each in found} == set(pairs)


TEXT = "Analogy: w1 : w2 = w3 :"
ASKED = Structure((("w1", "w2"), ("w3", "w4")), "w4", "w3")


def test_queries_come_from_the_text_alone() -> None:
    codebook = Codebook(words(50), MAP, 4096)
    bundle = codebook.encode(ASKED)[None]
    assert mentioned(TEXT, codebook) == ["w3", "w2", "w1"]
    for choice in ("last", "new"):
        assert int(from_text(bundle, [TEXT], codebook, choice).argmax()) == 4
        lost = from_text(bundle, ["nothing is said"], codebook, choice)
        assert lost.max() < 0.1
    assert int(from_text(bundle, ["w3 w2 w1"], codebook, "last").argmax()) == 2
    assert int(from_text(bundle, ["w3 w2 w1"], codebook, "new").argmax()) == 4


def test_the_oracle_is_a_bound_on_every_other_decoder() -> None:
    codebook = Codebook(words(50), MAP, 256)
    noisy = [codebook.encode(ASKED) * torch.where(torch.rand(256) < 0.35, -1.0, 1.0) for _ in range(20)]
    bundle, asked, target = torch.stack(noisy), [ASKED] * 20, [4] * 20
    best = ranks(oracle(bundle, asked, codebook), target)
    assert (best <= ranks(by_key(bundle, asked, codebook), target)).all()
    assert (best < ranks(by_key(bundle, asked, codebook.random(0)), target)).any()


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (lambda: Codebook(()), "an empty codebook"),
        (lambda: Codebook(("a", "b", "a")), "'a' is in the codebook twice"),
        (lambda: Codebook(("a",), MAP, 0), "at least one dimension"),
        (lambda: Codebook(("Paris", "Rome"))["Pariss"], "did you mean 'Paris'"),
        (lambda: Codebook(words(50))["w77"], "it has 50"),
        (lambda: Algebra("VTB"), "there is no algebra 'VTB'"),
        (lambda: MAP.bind(torch.ones(3), torch.ones(4)), "of 3 and of 4 dimensions"),
        (lambda: Codebook(("a",), MAP, 8).cleanup(torch.ones(1, 9)), "of 9 and of 8 dimensions"),
        (lambda: factorise(torch.ones(8), (("a",),), Codebook(("a",), MAP, 8)), "at least two domains"),
        (lambda: factorise(torch.ones(8), (("a",), ()), Codebook(("a",), MAP, 8)), "each with a concept"),
        (lambda: factorise(torch.ones(8), (("a",), ("a",)), Codebook(("a",), Algebra("HRR"), 8)), "not HRR"),
        (lambda: from_text(torch.ones(1, 8), ["a"], Codebook(("a",), MAP, 8), "first"), "'last' or 'new'"),
        (lambda: Structure((("a", "b"),), "c", "a"), "not bound to its key"),
        (lambda: Structure((("a", "b"),), "b", "a", roles=(("role:x", "a"),)), "fills none of the roles"),
        (lambda: Structure((), "b"), "has no key"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(request_, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        request_()
