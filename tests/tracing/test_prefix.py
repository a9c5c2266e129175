"""Keys and values of a common beginning are computed once and change nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import interp
from interp.errors import BadInput, SiteDidNotFire
from tests.families import ENCODERS, REPRESENTATIVES, SDPA, build, prompts
from tests.tracing.test_reads import close, tensors

BEGIN = prompts(1, 10)[0].tolist()
ENDS = [prompts(1, n, seed=n)[0].tolist() for n in (5, 3, 5)]


def rows(cut: int = 10) -> list[list[int]]:
    return [[*BEGIN[:cut], *end] for end in ENDS]


PREFIXED = [family for family in REPRESENTATIVES if family not in ENCODERS] + ["gpt_neo", "falcon", "falcon_alibi"]


@pytest.fixture(params=PREFIXED)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def fast(family: str, model_of: Callable[..., interp.Model]) -> interp.Model:
    model = model_of(family, "sdpa" if family in SDPA else "eager")
    model.hf.generation_config.eos_token_id = None
    return model


@pytest.mark.parametrize("cut", [10, 4, 0])
def test_a_run_after_a_prefix_equals_the_whole_run(fast: interp.Model, cut: int) -> None:
    prefix = fast.prefill(BEGIN).crop(cut)
    names = [n for n in ("resid_post", "k", "k_rot", "pattern", "attention_stats", "z") if n not in fast.parts.refusals]
    edits = [interp.scale("z.0.1", -2.0).at(positions=[-1, -2])]
    if "pattern" in names:
        edits.append(interp.attend("pattern.1", -3).at(positions=-1))
    whole = fast.run(rows(cut), read=names, edits=edits, logits="all")
    short = fast.run(rows(cut), read=names, edits=edits, logits="all", prefix=prefix)
    last = fast.run(rows(cut), edits=edits, prefix=prefix)
    some = fast.run(rows(cut), read="z.1", edits=edits, prefix=prefix, positions=(-2, -1), logits=[-1, -3])
    for i, row in enumerate(rows(cut)):
        n = len(row) - cut
        close(short.logits[i, :n], whole.logits[i, cut : cut + n])
        close(last.logits[i], whole.logits[i, len(row) - 1])
        close(some.logits[i], whole.logits[i, [len(row) - 3, len(row) - 1]])
        close(some["z.1"][i], whole["z.1"][i, len(row) - 2 : len(row)])
        assert short.positions[i].tolist() == list(range(cut, cut + 5))
        for site in whole:
            for a, b in zip(tensors(short[site]), tensors(whole[site]), strict=True):
                if site.name in ("pattern", "attention_stats"):
                    a, b = a.transpose(1, 2), b.transpose(1, 2)
                close(a[i, :n], b[i, cut : cut + n], site)


def test_generation_after_a_prefix_equals_generation_without(fast: interp.Model) -> None:
    prefix = fast.prefill(BEGIN).crop(7)
    equal = [rows(7)[0], rows(7)[2]]
    edit = interp.scale("z.0", -1.5).at(positions=slice(-1, None))
    seen = "attention_stats" not in fast.parts.refusals
    read = ["attention_stats.1"] if seen else ["z.1"]
    for chosen in (equal, rows(7)):
        if fast.sliding_window is not None and chosen is not equal:
            with pytest.raises(BadInput, match="sliding window"):
                fast.generate(chosen, prefix=prefix)
            continue
        with_prefix = fast.generate(chosen, max_new_tokens=4, edits=edit, prefix=prefix, read=read)
        without = fast.generate(chosen, max_new_tokens=4, edits=edit, read=read)
        assert with_prefix.tokens == without.tokens
        assert with_prefix.trace is not None
        assert without.trace is not None
        for i, row in enumerate(chosen if seen else ()):
            n = len(row) + 3
            got = with_prefix.trace["attention_stats.1"].argmax[i, :, : n - 7]
            assert torch.equal(got, without.trace["attention_stats.1"].argmax[i, :, 7:n])


def test_left_padding_after_a_prefix_changes_nothing_or_is_refused(fast: interp.Model) -> None:
    prefix = fast.prefill(BEGIN)
    if fast.sliding_window is not None:
        with pytest.raises(BadInput, match="sliding window"):
            fast.run(rows(), prefix=prefix, padding_side="left")
        return
    seen = "pattern" not in fast.parts.refusals
    fold = interp.RowFold("last", lambda r, _positions, _layer: r.pattern[:, :, -1:])
    read = ["z.0", "pattern.1", fold] if seen else ["z.0"]
    right = fast.run(rows(), read=read, prefix=prefix, positions=-1, logits="all")
    left = fast.run(rows(), read=read, prefix=prefix, positions=-1, logits="all", padding_side="left")
    close(left["z.0"], right["z.0"])
    if seen:
        close(left["pattern.1"], right["pattern.1"])
        close(left.folds["last"][1], right.folds["last"][1])
    close(left.logits[1, :3], right.logits[1, :3])


def test_a_prefix_is_never_written_to(llama: interp.Model) -> None:
    prefix = llama.prefill(BEGIN)
    before = [t.clone() for t in (*prefix.keys, *prefix.values)]
    llama.run(rows(), prefix=prefix, edits=interp.zero("z.0").at(positions=-1))
    llama.generate(rows(), prefix=prefix, max_new_tokens=3)
    llama.generate(rows(4), prefix=prefix.crop(4), max_new_tokens=3)
    assert len(prefix) == 10
    assert all(torch.equal(a, b) for a, b in zip(before, (*prefix.keys, *prefix.values), strict=True))


def test_edits_given_to_prefill_act_inside_the_prefix(fast: interp.Model) -> None:
    everywhere = interp.scale("z.0.1", -2.0)
    some = interp.zero("mlp_out.1").at(positions=[2, 12])
    reach = [everywhere, some]
    if "pattern" not in fast.parts.refusals:
        reach.append(interp.attend("pattern.0.2", 3))
    if "k_rot" not in fast.parts.refusals:
        reach.append(interp.scale("k_rot.1", -0.5))
    prefix = fast.prefill(BEGIN, edits=[edit for edit in reach if edit is not some] + [some.at(positions=2)])
    early = prefix.edits[-1]
    late = some.at(positions=12)
    edits = [edit for edit in reach if edit is not some] + [early, late]
    with_prefix = fast.run(rows(), edits=edits, prefix=prefix)
    close(with_prefix.logits, fast.run(rows(), edits=edits).logits)
    assert (with_prefix.logits - fast.run(rows()).logits).abs().max() > 1e-2
    close(fast.run(rows(4), edits=edits[:-1], prefix=prefix.crop(4)).logits, fast.run(rows(4), edits=edits[:-1]).logits)


def test_what_does_not_fit_a_prefix_is_refused(llama: interp.Model) -> None:
    prefix = llama.prefill(BEGIN)
    with pytest.raises(BadInput, match="prompt 1 does not begin with the prefix's 10 tokens"):
        llama.run([rows()[0], rows(4)[0]], prefix=prefix)
    with pytest.raises(BadInput, match="go on after"):
        llama.run([BEGIN], prefix=prefix)
    for reaching in (interp.zero("z.0"), interp.zero("z.0").at(positions=9), interp.zero("z.0").at(positions=-6)):
        with pytest.raises(BadInput, match="reaches into the prefix"):
            llama.run(rows()[:1], edits=reaching, prefix=prefix)
    llama.run(rows()[:1], edits=interp.zero("z.0").at(positions=-5), prefix=prefix)
    edited = llama.prefill(BEGIN, edits=interp.zero("z.0"))
    with pytest.raises(BadInput, match=r"computed under zero\(z.0\)"):
        llama.run(rows(), prefix=edited)
    for relative in (interp.zero("z.0").at(positions=-1), interp.zero("z.0").at(positions=slice(0, -2))):
        with pytest.raises(BadInput, match="count from the start"):
            llama.prefill(BEGIN, edits=relative)
    with pytest.raises(BadInput, match="rows"):
        llama.prefill(BEGIN, edits=interp.zero("z.0").at(rows=0))
    with pytest.raises(BadInput, match="one token sequence, not 3"):
        llama.prefill(rows())
    with pytest.raises(BadInput, match="cannot crop"):
        prefix.crop(11)
    for inside in ({"read": "z.0", "positions": 9}, {"logits": [3, -1]}, {"logits": slice(0, None)}):
        with pytest.raises(BadInput, match="reach into the prefix of 10"):
            llama.run(rows(), prefix=prefix, **inside)
    with pytest.raises(BadInput, match="another model"):
        interp.wrap(build("llama", "sdpa")).run(rows(), prefix=prefix)


def test_prefill_edits_that_never_act_are_reported(llama: interp.Model) -> None:
    with pytest.raises(BadInput, match="position 10 is outside"):
        llama.prefill(BEGIN, edits=interp.zero("z.0").at(positions=10))
    with pytest.raises(SiteDidNotFire):
        llama.prefill(BEGIN, edits=interp.zero("z.0").at(positions=slice(10, None)))


def test_two_wrappers_of_one_model_share_prefixes(llama: interp.Model) -> None:
    again = interp.wrap(llama.hf)
    close(again.run(rows(), prefix=llama.prefill(BEGIN)).logits, llama.run(rows()).logits)


def test_how_much_of_a_prompt_a_prefix_covers(llama: interp.Model) -> None:
    prefix = llama.prefill(BEGIN)
    assert prefix.shared_with([*BEGIN, 3, 4]) == 10
    assert prefix.shared_with([*BEGIN[:6], 198, 4]) in (6, 7)
    assert prefix.shared_with(BEGIN) == 9
