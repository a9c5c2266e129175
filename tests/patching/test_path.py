"""Path patching: the definition with hooks by hand, single edges in double precision, and what must have no effect."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import interp
from interp.errors import BadInput, UnknownSite
from interp.metrics import kl, log_probability, logit_difference
from interp.patching.pairs import corrupted
from interp.patching.path import PathPatchingResult, path_patching
from interp.runs import Journal, load_run
from tests.families import build, word_tokenizer
from tests.patching.edges_by_hand import double_llama, run
from tests.patching.random_pairs import difference, ids, random_pairs

PAIRS = random_pairs()
CLEAN, TWIN = ids(PAIRS)
METRIC = [logit_difference()]


@pytest.fixture(scope="module")
def gpt2() -> interp.Model:
    return interp.wrap(build("gpt2", "sdpa", torch.float64, n_layer=3))


@pytest.fixture(scope="module")
def llama() -> interp.Model:
    return interp.wrap(double_llama())


class ByHand:
    """The two passes of the definition on a GPT-2, with torch hooks and a pass for each sender."""

    def __init__(self, model: interp.Model, freeze_mlps: bool) -> None:
        self.hf: Any = model.hf
        self.blocks = self.hf.transformer.h
        self.dim = model.spec.head_dim
        self.freeze_mlps = freeze_mlps
        self.clean, self.corrupt = self.record(CLEAN), self.record(TWIN)

    def hooked(self, ids: Tensor, hooks: list[tuple[torch.nn.Module, Callable[..., Any]]]) -> Tensor:
        """Logits of the last position; a hook on c_proj sees its input, one on any other module its output."""
        handles = [
            module.register_forward_pre_hook(hook) if module in self.projections else module.register_forward_hook(hook)
            for module, hook in hooks
        ]
        try:
            with torch.no_grad():
                return self.hf(ids).logits[:, -1]
        finally:
            for handle in handles:
                handle.remove()

    @property
    def projections(self) -> list[torch.nn.Module]:
        return [block.attn.c_proj for block in self.blocks]

    def record(self, ids: Tensor) -> dict[torch.nn.Module, Tensor]:
        """Input of every c_proj and output of every MLP."""
        kept: dict[torch.nn.Module, Tensor] = {}
        hooks: list[Any] = [(module, lambda m, args: kept.update({m: args[0]})) for module in self.projections]
        hooks += [(block.mlp, lambda m, _, out: kept.update({m: out})) for block in self.blocks]
        self.hooked(ids, hooks)
        return kept

    def heads(self, head: int) -> slice:
        return slice(head * self.dim, (head + 1) * self.dim)

    def patched(self, sender: tuple[int, int], receivers: list[str], positions: list[int]) -> Tensor:
        layer, head = sender
        recorded: dict[str, Tensor] = {}
        hooks: list[Any] = []

        def freeze(module: torch.nn.Module, _args: Any) -> tuple[Tensor]:
            z = self.clean[module].clone()
            if module is self.blocks[layer].attn.c_proj:
                for p in positions:
                    z[:, p, self.heads(head)] = self.corrupt[module][:, p, self.heads(head)]
            return (z,)

        for receiver in receivers:  # recorded before anything is frozen
            hooks.append(self.on(receiver, lambda value, name: recorded.update({name: value.clone()})))
        hooks += [(module, freeze) for module in self.projections]
        if self.freeze_mlps:
            hooks += [(block.mlp, lambda m, _args, _out: self.clean[m]) for block in self.blocks]
        self.hooked(CLEAN, hooks)

        def overwrite(value: Tensor, name: str) -> None:
            for p in positions:
                value[:, p] = recorded[name][:, p]

        return difference(self.hooked(CLEAN, [self.on(r, overwrite) for r in receivers]), PAIRS)

    def on(self, receiver: str, act: Callable[[Tensor, str], Any]) -> Any:
        """A hook in which `act` sees a receiver's values, and may change them in place."""
        name, layer, *head = receiver.split(".")
        if name == "resid_post":
            return self.blocks[int(layer)], lambda _m, _args, out: act(
                out[0] if isinstance(out, tuple) else out, receiver
            )
        start = "qkv".index(name) * len(self.blocks[0].attn.c_proj.weight)
        columns = self.heads(int(head[0])) if head else slice(0, len(self.blocks[0].attn.c_proj.weight))

        def hook(_module: Any, _args: Any, out: Tensor) -> Tensor:
            out = out.clone()
            act(out[..., start + columns.start : start + columns.stop], receiver)
            return out

        return self.blocks[int(layer)].attn.c_attn, hook


@pytest.mark.parametrize("freeze_mlps", [False, True])
@pytest.mark.parametrize(
    ("receivers", "positions", "where"),
    [
        (["q.2.1", "q.2.3"], -1, [-1]),
        (["v.1.2", "q.2.0"], "first", [2]),
        (["k.2"], (1, 4), [1, 4]),
        (["v.2.0"], None, list(range(9))),
        (["resid_post.2"], None, list(range(9))),
        (["resid_post.1"], -1, [-1]),
    ],
)
def test_it_is_the_definition(
    gpt2: interp.Model, receivers: list[str], positions: Any, where: list[int], freeze_mlps: bool
) -> None:
    result = path_patching(gpt2, PAIRS, receivers, positions=positions, freeze_mlps=freeze_mlps, metrics=METRIC)
    by_hand = ByHand(gpt2, freeze_mlps)
    wanted = np.stack([by_hand.patched(sender, receivers, where).numpy() for sender in result.senders])
    np.testing.assert_allclose(result.values[:, 0], wanted, atol=1e-10)
    assert np.abs(wanted - result.clean[0]).max() > 1e-3


def test_mlps_on_the_way_matter(gpt2: interp.Model) -> None:
    free, frozen = (path_patching(gpt2, PAIRS, "q.2.1", freeze_mlps=f, metrics=METRIC) for f in (False, True))
    assert np.abs(free.values - frozen.values).max() > 1e-3
    late = [i for i, (layer, _) in enumerate(free.senders) if layer == 1]
    assert np.abs(free.values[late] - frozen.values[late]).max() > 1e-3  # the MLP of the sender's own layer


@pytest.mark.parametrize("receiver", ["q.1.2", "k.1.1", "v.1.0", "logits", "resid_post.1"])
def test_frozen_mlps_leave_one_edge(llama: interp.Model, receiver: str) -> None:
    """Equal to corrupting a single edge of the model written out as a graph; k and v serve two query heads there."""
    result = path_patching(llama, PAIRS, receiver, freeze_mlps=True, metrics=METRIC)
    heads, layers = llama.spec.heads, llama.spec.layers
    letter, _, head = receiver.partition(".1.")
    columns = [layers * (3 * heads + 1)]
    if letter in "qkv":
        readers = [int(head)] if letter == "q" else [2 * int(head), 2 * int(head) + 1]
        columns = [3 * heads + 1 + "qkv".index(letter) * heads + reader for reader in readers]
    with torch.no_grad():
        moved = run(llama.hf, TWIN).writes - run(llama.hf, CLEAN).writes
        for i, (layer, sender) in enumerate(result.senders):
            epsilon = torch.zeros(len(moved), layers * (3 * heads + 1) + 1, dtype=torch.float64)
            epsilon[1 + layer * (heads + 1) + sender, columns] = 1
            wanted = difference(run(llama.hf, CLEAN, epsilon, moved).logits, PAIRS).numpy()
            np.testing.assert_allclose(result.values[i, 0], wanted, atol=1e-11)
    assert np.abs(result.values[:, 0] - result.clean[0]).max() > 1e-3


def test_a_counterfactual_that_changes_nothing_before_the_position_has_no_effect_there(gpt2: interp.Model) -> None:
    twin = [(*clean[:-1], other[-1]) for clean, other in zip(CLEAN.tolist(), TWIN.tolist(), strict=True)]
    assert PAIRS.counterfactual is not None
    late = replace(PAIRS, counterfactual=replace(PAIRS.counterfactual, tokens=tuple(map(tuple, twin))))
    control = path_patching(gpt2, late, "v.2", positions="first", metrics=METRIC)
    np.testing.assert_allclose(control.values[:, 0], np.broadcast_to(control.clean[0], (len(control.senders), 3)))
    assert np.abs(path_patching(gpt2, late, "q.2", positions=-1, metrics=METRIC).effects[:2]).max() > 1e-3


@pytest.mark.parametrize("family", ["gemma2", "falcon_alibi", "opt_post_norm", "mixtral", "gpt_oss", "gptj"])
def test_single_tokens_stand_for_whole_prompts_in_every_kind_of_family(family: str) -> None:
    """The definition through whole runs of the model, beside the walk over single tokens."""
    model = interp.wrap(build(family, dtype=torch.float64))
    clean, corrupt = model.run(PAIRS, read="z"), model.run(TWIN, read="z")
    for layer, receiver in ((0, "q.1.1"), (1, "resid_post.1")):  # the second passes the first block by
        frozen = [interp.patch(f"z.{n}", clean) for n in range(layer + 1)]
        frozen.append(interp.patch(f"z.{layer}.2", corrupt))
        recorded = model.run(PAIRS, read=receiver, edits=frozen)
        patched = model.run(PAIRS, edits=interp.patch(receiver, recorded[receiver]), logits="last")
        result = path_patching(model, PAIRS, receiver, [(layer, 2)], metrics=METRIC)
        np.testing.assert_allclose(result.values[0, 0], difference(patched.logits, PAIRS).numpy(), atol=1e-5)
        assert np.abs(result.values - result.clean).max() > 1e-4


@pytest.mark.parametrize("component", ["q", "k", "v"])
def test_edges_equal_the_direct_paths_of_transformer_lens(component: Any) -> None:
    """They patch clean writes into the corrupted run, one edge at a time: ours with the two sides exchanged."""
    from transformer_lens.patching import get_act_patch_direct_path

    model = interp.wrap(build("gpt2"), word_tokenizer())
    bridge: Any = interp.wrap(model.hf, word_tokenizer(), backend="transformer_lens").backend_object
    with torch.no_grad():
        caches = [bridge.run_with_cache(ids)[1] for ids in (CLEAN, TWIN)]

        def metric(logits: Tensor) -> Tensor:
            return difference(logits[:, -1], PAIRS).mean()

        wanted = get_act_patch_direct_path(bridge, TWIN, *caches, metric, 0, 1, component, verbose=False)[1]
    exchanged = replace(corrupted(PAIRS), counterfactual=replace(PAIRS, counterfactual=None))
    ours = [
        path_patching(model, exchanged, f"{component}.1.{head}", [(0, 1)], freeze_mlps=True, metrics=METRIC)
        for head in range(model.spec.heads)
    ]
    np.testing.assert_allclose([result.values.mean() for result in ours], wanted.numpy(), atol=1e-4)
    assert np.ptp(wanted.numpy()) > 1e-3


def test_nothing_stays_on_the_model(gpt2: interp.Model) -> None:
    path_patching(gpt2, PAIRS, "q.2.1", metrics=METRIC)
    for module in gpt2.hf.modules():
        assert "forward" not in module.__dict__
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_chunks_and_batches_change_nothing(gpt2: interp.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = path_patching(gpt2, PAIRS, ["q.2.1", "v.2.0"])
    told: list[tuple[int, int]] = []
    monkeypatch.setattr("interp.patching.path.SENDER_MEMORY", 2**15)
    receivers = ["q.2.1", "v.2.0"]
    parts = path_patching(gpt2, PAIRS, receivers, batch_size=2, progress=lambda *now: told.append(now))
    np.testing.assert_allclose(parts.values, whole.values, atol=1e-9)
    assert told[-1] == (16, 16)
    assert len(told) > 2


def test_finished_parts_are_not_run_again(gpt2: interp.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("interp.patching.path.SENDER_MEMORY", 2**15)
    path = tmp_path / "path.journal.jsonl"
    with Journal(path, {}) as journal:
        whole = path_patching(gpt2, PAIRS, "q.2", journal=journal)
    lines = path.read_text().splitlines(keepends=True)
    kept = lines[: len(lines) // 2]
    path.write_text("".join(kept))
    with Journal(path, {}, resume=True) as journal:
        resumed = path_patching(gpt2, PAIRS, "q.2", journal=journal)
    again = path.read_text().splitlines(keepends=True)
    assert again[: len(kept)] == kept
    assert len(again) == len(lines) > 4
    np.testing.assert_array_equal(resumed.values, whole.values)


def test_the_frame_names_its_conventions_and_the_run_keeps_them(gpt2: interp.Model, tmp_path: Path) -> None:
    result = path_patching(gpt2, PAIRS, "logits")
    frame = result.frame
    assert len(frame) == 12
    assert (frame.n == 3).all()
    ld, way = result.values[:, 0], result.corrupted[0] - result.clean[0]
    np.testing.assert_allclose(frame.effect_ratio_of_means, (ld - result.clean[0]).mean(1) / way.mean())
    np.testing.assert_allclose(frame.effect_mean_of_ratios, ((ld - result.clean[0]) / way).mean(1))
    assert {"logit_difference_low", "kl", "accuracy", "log_probability_high"} <= set(frame)
    layer, head = result.top(1)[0]
    assert abs(result.effects[layer, head]) == np.abs(result.effects).max()
    result.to_npy(tmp_path / "map.npy")
    np.testing.assert_allclose(np.load(tmp_path / "map.npy"), -100 * result.effects)
    saved = result.save(tmp_path / "run")
    assert load_run(tmp_path / "run").record.kind == "path-patching"
    np.testing.assert_array_equal(saved.arrays["values"], result.values)
    early = path_patching(gpt2, PAIRS, "q.1.0", metrics=METRIC)
    early.to_npy(tmp_path / "early.npy")
    assert np.isnan(early.effects[1:]).all()
    assert (np.load(tmp_path / "early.npy")[1:] == 0).all()
    assert isinstance(result, PathPatchingResult)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"receivers": "q.9"}, UnknownSite, "layers 0 to 2"),
        ({"receivers": "q.2.7"}, UnknownSite, "heads 0 to 3"),
        ({"receivers": "mlp_post.1"}, UnknownSite, "no input that path patching replaces"),
        ({"receivers": []}, BadInput, "needs a receiver"),
        ({"receivers": ["q.2", "q.2.1"]}, BadInput, "part of q.2"),
        ({"receivers": "q.0"}, BadInput, "no head writes before"),
        ({"receivers": "q.1", "senders": [(1, 0)]}, BadInput, "writes after"),
        ({"receivers": "q.1", "senders": [(0, 0), (0, 0)]}, BadInput, "distinct"),
        ({"receivers": "q.1", "senders": [(0, 9)]}, UnknownSite, "heads 0 to 3"),
        ({"receivers": "q.1", "positions": "S2"}, BadInput, "no token position is called 'S2'"),
        ({"receivers": "q.1", "positions": 40}, BadInput, "outside a prompt of 9 tokens"),
        ({"metrics": [log_probability(answers=5000)]}, BadInput, "does not exist; the vocabulary"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(
    gpt2: interp.Model, monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    monkeypatch.setattr(gpt2.hf, "forward", lambda *_, **__: pytest.fail("the model was run"))
    with pytest.raises(error, match=message):
        path_patching(gpt2, PAIRS, **arguments)


def test_kl_is_from_the_clean_prediction(gpt2: interp.Model) -> None:
    result = path_patching(gpt2, PAIRS, "logits", metrics=[kl()])
    np.testing.assert_allclose(result.clean, 0, atol=1e-12)
    assert (result.corrupted > 0).all()
    assert (result.values >= 0).all()
