"""Every edit equals the same change made in the hand-written forward pass, and changes the logits."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import interp
from interp.errors import BadInput, UnknownSite
from interp.tasks.prompts import PromptSet
from interp.tracing.sites import SITES
from tests.families import ENCODERS, FAMILIES, WINDOW, prompts
from tests.tracing.handwritten import HandModel
from tests.tracing.test_reads import REFUSED, close

EDITABLE = [name for name, spec in SITES.items() if spec.editable]
LAST = -1


def site_of(name: str, layer: int = 0, head: int | None = None) -> str:
    if SITES[name].scope == "model":
        return name
    return f"{name}.{layer}" if head is None else f"{name}.{layer}.{head}"


def random(*shape: int, seed: int = 3) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def assert_equals_by_hand(
    model: interp.Model,
    ids: Tensor,
    edits: interp.Edit | list[interp.Edit],
    changes: dict[str, Callable],
    what: str = "",
) -> None:
    """The edited logits are the hand-edited ones, and are far from the unedited ones."""
    with torch.no_grad():
        hand = HandModel(model.hf)
        plain, wanted = hand.run(ids)["logits"], hand.run(ids, changes)["logits"]
    edited = model.run(ids, edits=edits, logits="all").logits
    close(edited, wanted, what)
    assert (edited - plain).abs().max() > 1e-2, f"{what} had no effect"


def test_an_edit_of_every_site_equals_the_hand_edit(model: interp.Model, family: str) -> None:
    ids = prompts()
    for name in EDITABLE:
        if name in REFUSED.get(family, ()):
            continue
        site = site_of(name, layer=1)
        assert_equals_by_hand(model, ids, interp.scale(site, -0.6), {site: lambda x: -0.6 * x}, site)


def test_an_edit_of_one_head_leaves_the_others_alone(model: interp.Model, family: str) -> None:
    ids = prompts()
    for name in EDITABLE:
        if SITES[name].heads is None or name in REFUSED.get(family, ()):
            continue

        heads = model.spec.heads if SITES[name].heads == "query" else model.spec.kv_heads
        head = min(1, heads - 1)

        def change(x: Tensor, head: int = head) -> Tensor:
            x = x.clone()
            x[:, :, head] *= -0.6
            return x

        site = site_of(name, layer=0)
        assert_equals_by_hand(model, ids, interp.scale(f"{site}.{head}", -0.6), {site: change}, site)


def test_resid_mid_edits_reach_the_residual_stream_and_not_only_the_mlp(model: interp.Model, family: str) -> None:
    if "resid_mid" in REFUSED.get(family, ()):
        pytest.skip("parallel blocks have no resid_mid")
    trace = model.run(prompts(), read=["resid_post.0", "mlp_out.0"], edits=interp.zero("resid_mid.0"))
    norm = model.parts.blocks[0].norm_after_mlp
    close(trace["resid_post.0"], trace["mlp_out.0"] if norm is None else norm(trace["mlp_out.0"]))


KIND_SITES = ["embed", "resid_pre.1", "k.0.1", "q_rot.1.3", "z.1.2", "z.0", "head_out.1.0", "resid_mid.0", "mlp_post.1"]


def features(model: interp.Model, site: str) -> tuple[int, ...]:
    return tuple(model.run(prompts(1, 3), read=site)[site].shape[2:])


def on_head(site: str, f: Callable[[Tensor], Tensor]) -> dict[str, Callable[[Tensor], Tensor]]:
    """The change of `name.layer[.head]` as one of the whole site."""
    parsed = interp.Site.parse(site)

    def change(x: Tensor) -> Tensor:
        if parsed.head is None:
            return f(x)
        x = x.clone()
        x[:, :, parsed.head] = f(x[:, :, parsed.head])
        return x

    return {str(parsed.whole): change}


@pytest.mark.parametrize("site", KIND_SITES)
@pytest.mark.parametrize("family", ["llama", "gemma3", "modernbert"], indirect=True)
def test_every_kind_of_edit_equals_its_definition(model: interp.Model, site: str) -> None:
    ids, others = prompts(), prompts(seed=9)
    shape = features(model, site)
    size = torch.Size(shape).numel()
    donor = model.run(others, read=site)
    there = donor[site]
    vector = random(*shape)
    unit = random(size, seed=4)
    unit = unit / unit.norm()
    basis = torch.linalg.qr(random(size, 2, seed=5)).Q
    skewed = (basis @ random(2, 2, seed=6)).T

    def project(x: Tensor) -> Tensor:
        return (x.flatten(2) @ basis @ basis.T).reshape(x.shape)

    def set_to_two(x: Tensor) -> Tensor:
        flat = x.flatten(2)
        return (flat + (2.0 - flat @ unit)[..., None] * unit).reshape(x.shape)

    cases: dict[str, tuple[interp.Edit, Callable[[Tensor], Tensor]]] = {
        "zero": (interp.zero(site), torch.zeros_like),
        "scale": (interp.scale(site, -1.7), lambda x: -1.7 * x),
        "mean": (interp.mean(site, donor), lambda x: there.mean((0, 1)).expand_as(x)),
        "mean of a tensor": (interp.mean(site, vector), lambda x: vector.expand_as(x)),
        "patch": (interp.patch(site, donor), lambda x: there),
        "patch of one donor row": (interp.patch(site, there[:1]), lambda x: there[:1].expand_as(x)),
        "resample": (interp.resample(site, donor), lambda x: there.flip(0)),
        "add": (interp.add(site, vector, -2.0), lambda x: x - 2.0 * vector),
        "set_coordinate": (interp.set_coordinate(site, 5 * unit.reshape(shape), 2.0), set_to_two),
        "project_out": (interp.project_out(site, skewed), lambda x: x - project(x)),
        "swap_subspace": (interp.swap_subspace(site, skewed, donor), lambda x: x + project(there - x)),
    }
    for name, (edit, change) in cases.items():
        assert_equals_by_hand(model, ids, edit, on_head(site, change), f"{name}({site})")


SELECTIONS = {
    "one position": (4, [[4], [4], [4]]),
    "from the end": (-2, [[10], [10], [10]]),
    "several": ((0, 5, -1), [[0, 5, 11]] * 3),
    "a slice": (slice(2, -3), [list(range(2, 9))] * 3),
    "an open slice": (slice(-4, None), [[8, 9, 10, 11]] * 3),
    "a role": ("S2", [[3], [5, 6], [7]]),
}


@pytest.mark.parametrize("selection", SELECTIONS)
def test_positions_select_tokens_and_rows_select_prompts(llama: interp.Model, selection: str) -> None:
    positions, chosen = SELECTIONS[selection]
    ids = prompts(3)
    texts = tuple(" ".join(f"w{i}" for i in row) for row in ids.tolist())
    spans = {"S2": ((3, 4), (5, 7), (7, 8))}
    asked = PromptSet(texts=texts, tokens=tuple(map(tuple, ids.tolist())), spans=spans)
    edit = interp.scale("z.0.1", -3.0).at(positions=positions)
    for rows in (None, (0, 2)):
        mask = torch.zeros(3, 12, dtype=torch.bool)
        for row in range(3) if rows is None else rows:
            mask[row, chosen[row]] = True

        def change(x: Tensor, mask: Tensor = mask) -> Tensor:
            return torch.where(mask[..., None], -3.0 * x, x)

        with torch.no_grad():
            wanted = HandModel(llama.hf).run(ids, on_head("z.0.1", change))["logits"]
        close(llama.run(asked, edits=edit.at(rows=rows), logits="all").logits, wanted)


def test_selecting_positions_and_then_rows_keeps_both() -> None:
    edit = interp.zero("z.0").at(positions=[-1]).at(rows=0)
    assert edit.positions == (-1,)
    assert edit.rows == (0,)


@pytest.mark.parametrize("reads", ["resid_mid.0", "z.1", "embed"])
def test_edits_of_one_site_apply_in_the_order_given(llama: interp.Model, reads: str) -> None:
    ids, shape = prompts(), features(llama, reads)
    vector = random(*shape)
    double, shift = interp.scale(reads, 2.0), interp.add(reads, vector)
    assert_equals_by_hand(llama, ids, [double, shift], {reads: lambda x: 2 * x + vector})
    assert_equals_by_hand(llama, ids, [shift, double], {reads: lambda x: 2 * (x + vector)})
    trace = llama.run(ids, read=reads, edits=[shift, double])
    plain = llama.run(ids, read=reads)
    close(trace[reads], 2 * (plain[reads] + vector), "a read shows the value after the edits")


def test_edits_of_different_sites_compose(model: interp.Model) -> None:
    edits = [interp.zero("mlp_out.0"), interp.scale("z.1.2", 3.0), interp.scale("resid_pre.1", 0.5)]
    changes = {
        "mlp_out.0": torch.zeros_like,
        "resid_pre.1": lambda x: 0.5 * x,
        **on_head("z.1.2", lambda x: 3.0 * x),
    }
    assert_equals_by_hand(model, prompts(), edits, changes)


def visible(model: interp.Model, family: str, layer: int) -> Tensor:
    """Which keys each of twelve queries sees."""
    distance = torch.arange(12)[:, None] - torch.arange(12)
    types = getattr(model.hf.config, "layer_types", None)
    slides = family in ("mistral", "mixtral") if types is None else types[layer] == "sliding_attention"
    if family in ENCODERS:
        return distance.abs() <= (WINDOW // 2 if slides else 12)
    return (distance >= 0) & (distance < (WINDOW if slides else 12))


def forced(to: object, visible: Tensor) -> Callable[[Tensor], Tensor]:
    """Attention rows spread evenly over `to` where it can be seen."""
    target = visible.clone() if to == "uniform" else torch.zeros_like(visible)
    if to != "uniform":
        target[:, [p % len(visible) for p in ([to] if isinstance(to, int) else to)]] = True
        target &= visible
    even = target / target.sum(-1, keepdim=True).clamp(min=1)
    return lambda pattern: torch.where(target.any(-1)[:, None], even, pattern)


@pytest.mark.parametrize("to", ["uniform", 3, (1, -4)])
@pytest.mark.parametrize("family", [f for f in FAMILIES if "pattern" not in REFUSED.get(f, ())], indirect=True)
def test_attend_forces_rows_of_a_head_and_of_a_layer(model: interp.Model, family: str, to: object) -> None:
    ids = prompts()
    for layer in (0, 1):
        change = forced(to, visible(model, family, layer))

        def one_head(pattern: Tensor, change: Callable = change) -> Tensor:
            return torch.cat([pattern[:, :2], change(pattern)[:, 2:3], pattern[:, 3:]], dim=1)

        site = f"pattern.{layer}"
        assert_equals_by_hand(model, ids, interp.attend(site, to), {site: change}, site)
        assert_equals_by_hand(model, ids, interp.attend(f"{site}.2", to), {site: one_head}, f"{site}.2")


def test_attend_at_positions_and_rows_changes_only_those(llama: interp.Model) -> None:
    ids = prompts()
    change = forced("uniform", torch.ones(12, 12).tril().bool())

    def only(pattern: Tensor) -> Tensor:
        new = pattern.clone()
        new[1, :, [4, 11]] = change(pattern)[1, :, [4, 11]]
        return new

    edit = interp.attend("pattern.0", "uniform").at(positions=[4, -1], rows=1)
    assert_equals_by_hand(llama, ids, edit, {"pattern.0": only})


def test_a_pattern_that_is_read_shows_what_attend_forced(llama: interp.Model) -> None:
    ids = prompts()
    edit = interp.attend("pattern.0.1", 2)
    trace = llama.run(ids, read=["pattern.0", "attention_stats.0", "z.0"], edits=edit)
    with torch.no_grad():
        v = HandModel(llama.hf).run(ids)["v.0"]
    close(trace["pattern.0.1"][:, 2:, 2], torch.ones(2, 10))
    assert (trace["attention_stats.0.1"].argmax[:, 2:] == 2).all()
    close(trace["z.0.1"][:, 2:], v[:, 2:3, 0].expand(-1, 10, -1))


def test_a_gradient_reaches_the_tensors_of_an_edit(llama: interp.Model) -> None:
    ids = prompts()
    vector = random(64).requires_grad_()
    trace = llama.run(ids, edits=interp.add("resid_mid.0", vector), grad=True)
    trace.logits.pow(2).sum().backward()
    check = random(64).requires_grad_()
    for parameter in llama.hf.parameters():
        parameter.requires_grad_(False)
    HandModel(llama.hf).run(ids, {"resid_mid.0": lambda x: x + check})["logits"][:, -1].pow(2).sum().backward()
    torch.testing.assert_close(vector.grad, check.grad, rtol=1e-4, atol=1e-3)


def test_patching_between_prompts_of_unequal_length_uses_real_tokens_only(llama: interp.Model) -> None:
    short, long = prompts(1, 5)[0].tolist(), prompts(1, 9, seed=8)[0].tolist()
    donor = llama.run([short, long], read="resid_mid.0")
    target = prompts(2, 9, seed=2)
    alone = [llama.run([row], read="resid_mid.0")["resid_mid.0"][0] for row in (short, long)]

    def change(x: Tensor) -> Tensor:
        x = x.clone()
        x[0, :5], x[1] = alone
        return x

    assert_equals_by_hand(llama, target, interp.patch("resid_mid.0", donor), {"resid_mid.0": change})


def test_a_donor_without_the_position_asked_for_is_refused(llama: interp.Model) -> None:
    donor = llama.run([prompts(1, 5)[0].tolist(), prompts(1, 9)[0].tolist()], read="z.0")
    target = prompts(2, 9)
    with pytest.raises(BadInput, match="donor of prompt 0 has 5 tokens, so nothing for position 8"):
        llama.run(target, edits=interp.patch("z.0", donor).at(positions=-1))
    with pytest.raises(BadInput, match="has 5 tokens"):
        llama.run(target, edits=interp.resample("z.0", donor))
    llama.run(target, edits=interp.resample("z.0", donor).at(positions=slice(0, 5)))


def test_resampling_gives_no_prompt_its_own_activation_and_depends_on_the_seed_alone(llama: interp.Model) -> None:
    ids = prompts(5)
    donor = llama.run(ids, read="z.1")
    for seed in range(4):
        edit = interp.resample("z.1", donor, seed)
        got = llama.run(ids, read="z.1", edits=edit)["z.1"]
        sources = [int((donor["z.1"] - row).abs().sum((1, 2, 3)).argmin()) for row in got]
        assert sorted(sources) == list(range(5))
        assert all(source != row for row, source in enumerate(sources))
        assert torch.equal(llama.run(ids, read="z.1", edits=interp.resample("z.1", donor, seed))["z.1"], got)
    few = interp.resample("z.1", donor["z.1"][:2])
    assert llama.run(ids, read="z.1", edits=few)["z.1"].shape[0] == 5


def test_the_mean_of_padded_prompts_counts_real_tokens_only(llama: interp.Model) -> None:
    rows = [prompts(1, n, seed=n)[0].tolist() for n in (4, 9)]
    every = torch.cat([llama.run([row], read="z.0")["z.0"][0] for row in rows])
    for side in ("left", "right"):
        trace = llama.run(rows, read="z.0", padding_side=side)  # type: ignore[arg-type]
        close(trace.mean("z.0"), every.mean(0))
        close(trace.mean("z.0.3"), every[:, 3].mean(0))


REFUSALS = {
    "mean of another width": (lambda: interp.mean("z.0.1", torch.zeros(31)), "the site needs"),
    "vector of another width": (lambda: interp.add("resid_mid.0", torch.zeros(2)), "the site needs"),
    "basis of another width": (lambda: interp.project_out("z.0.1", torch.ones(1, 16)), "needs 32 features"),
    "donor of another shape": (lambda: interp.patch("z.0.1", torch.zeros(2, 12, 4, 32)), "donor has shape"),
    "three donor rows for two prompts": (lambda: interp.patch("embed", torch.zeros(3, 12, 64)), "1 or 2 rows"),
    "one row to resample": (lambda: interp.resample("embed", torch.zeros(1, 12, 64)), "at least two"),
    "a position outside": (lambda: interp.zero("z.0").at(positions=12), "outside a prompt of 12"),
    "a negative position outside": (lambda: interp.zero("z.0").at(positions=-13), "outside a prompt of 12"),
    "no positions": (lambda: interp.zero("z.0").at(positions=[]), "selects nothing"),
    "a slice with a step": (lambda: interp.zero("z.0").at(positions=slice(0, 8, 2)), "has a step"),
    "something else as a position": (lambda: interp.zero("z.0").at(positions=1.5), "not an int"),  # type: ignore[arg-type]
    "a role that is not there": (lambda: interp.zero("z.0").at(positions="S2"), "no token position is called 'S2'"),
    "a row that is not there": (lambda: interp.zero("z.0").at(rows=2), "row 2 does not exist; there are 2"),
    "dependent directions": (lambda: interp.project_out("z.0.1", torch.ones(2, 32)), "linearly dependent"),
    "a zero direction": (lambda: interp.set_coordinate("z.0.1", torch.zeros(32), 1.0), "not zero"),
    "a target outside": (lambda: interp.attend("pattern.0", 12), "outside a prompt of 12"),
    "something that is not an edit": (lambda: "z.0", "not an edit"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_an_edit_that_cannot_be_made_is_refused_before_the_model_runs(llama: interp.Model, case: str) -> None:
    make, message = REFUSALS[case]
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    handle = llama.hf.register_forward_pre_hook(count)
    try:
        with pytest.raises(BadInput, match=message):
            llama.run(prompts(), edits=[make()])
    finally:
        handle.remove()
    assert calls == 0


def test_edits_of_what_cannot_be_edited_are_refused() -> None:
    with pytest.raises(UnknownSite, match="attend"):
        interp.zero("pattern.0")
    with pytest.raises(UnknownSite, match="needs one layer"):
        interp.zero("z")
    with pytest.raises(UnknownSite, match="attend"):
        interp.attend("z.0.1", "uniform")
    with pytest.raises(UnknownSite, match=r"did you mean 'resid_post'"):
        interp.zero("resid_psot.0")
