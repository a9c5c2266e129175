"""What a sweep costs per edit beside TransformerLens' patching sweeps and an nnsight loop under SDPA, on equal results.

The peers pay the same for every edit, so they are timed on a few; the sweep on edits of every layer, and of every
position where these differ.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

import interp
from interp.metrics import logit_difference
from interp.patching.sweep import SweepResult, sweep
from kernels.measure import Timing
from tests.benchmarks.measure import Comparison, Target, report
from tests.families import word_tokenizer

pytestmark = pytest.mark.bench

LAYERS, HEADS, WIDTH = 12, 12, 768
ANSWER, DISTRACTOR = 5, 6
ROUNDS = 2
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
COMMON = {"bos_token_id": 0, "eos_token_id": 0}
MODELS: dict[str, dict[str, Any]] = {
    "gpt2": {"vocab_size": 50257, "n_layer": LAYERS, "n_head": HEADS, "n_embd": WIDTH, "n_positions": 1024},
    "llama": {
        "vocab_size": 32000,
        "hidden_size": WIDTH,
        "intermediate_size": 2048,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "max_position_embeddings": 1024,
    },
}


@dataclass(frozen=True)
class Place:
    """What one edit patches: `head` None for the residual stream, `position` None for all tokens."""

    layer: int
    head: int | None
    position: int | None


@dataclass(frozen=True)
class Row:
    """A line of the table. `lens` and `nnsight`: how many times as fast as they the sweep should be."""

    what: str
    prompts: int
    tokens: int
    places: tuple[Place, ...]
    lens: float
    nnsight: float | None
    peers: int


def heads(position: int | None, each: int = 1) -> tuple[Place, ...]:
    return tuple(Place(layer, head, position) for layer in range(LAYERS) for head in range(0, HEADS, each))


ROWS = {
    "a": Row(
        "resid_pre, layer x position",
        8,
        32,
        tuple(Place(layer, None, position) for layer in range(LAYERS) for position in range(2, 32, 4)),
        5,
        2,
        4,
    ),
    "b": Row("every third head, all positions", 8, 32, heads(None, each=3), 2.5, 2, 4),
    "c": Row("every sixth head, all positions", 1, 1024, heads(None, each=6), 6, None, 3),
    "d": Row("all heads, last position", 1, 256, heads(255), 30, 15, 4),
}


@pytest.fixture(scope="module", params=MODELS)
def hf(request: pytest.FixtureRequest) -> PreTrainedModel:
    torch.manual_seed(0)
    config = AutoConfig.for_model(request.param, **MODELS[request.param], **COMMON)
    return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").to(DEVICE).eval().requires_grad_(False)


@pytest.mark.parametrize("name", ROWS)
def test_a_sweep_beside_its_neighbours(hf: PreTrainedModel, name: str, tmp_path: Path) -> None:
    row, model = ROWS[name], interp.wrap(hf)
    assert model.fingerprint  # computed once a model, and not the sweep's work
    clean, corrupt = (
        torch.randint(3, 5000, (row.prompts, row.tokens), generator=torch.Generator().manual_seed(seed)).to(DEVICE)
        for seed in (0, 1)
    )
    donor = model.run(clean, read="z" if row.places[0].head is not None else "resid_pre", logits=None)
    few = row.places[:: len(row.places) // row.peers][: row.peers]
    alternatives: dict[str, tuple[Callable[[], Any], int]] = {
        "TransformerLens": (through_transformer_lens(hf, tmp_path, clean, corrupt, few), len(few)),
        "nnsight": (through_nnsight(hf, donor, corrupt, few), len(few)),
        "sweep": (lambda: ours(model, donor, corrupt, row.places), len(row.places)),
    }
    timings, results = per_edit(alternatives)
    result: SweepResult = results["sweep"]
    values = torch.from_numpy(result.values[:, 0])
    assert float((values - torch.from_numpy(result.base)).abs().max(1).values.min()) > 1e-5, "an edit without effect"
    mine = values[[row.places.index(place) for place in few]].mean(1)
    for peer in ("TransformerLens", "nnsight"):
        torch.testing.assert_close(torch.as_tensor(results[peer]).double().flatten().cpu(), mine, rtol=0, atol=1e-4)
    assert result.parameters["executor"] == "shared"
    flops = result.parameters["flops_spent"] / result.parameters["flops_unavoidable"]
    setting = (
        f"{row.what}, {row.prompts} x {row.tokens} tokens, {hf.config.model_type}; per edit, of {len(row.places)} "
        f"({len(few)} for the neighbours); {flops:.3f} x the FLOPs that cannot be avoided"
    )
    for peer, factor in (("TransformerLens", row.lens), ("nnsight", row.nnsight)):
        spent = {peer: timings[peer], "sweep": timings["sweep"]}
        targets = () if factor is None else (Target("sweep", 1 / factor),)
        assert report(compared(f"sweep-{name}-{hf.config.model_type}-{peer}", setting, spent, targets)).is_file()
    assert flops <= 1.3


def clock() -> float:
    """Seconds: of CPU time, which other processes do not add to; with a GPU, of the wall once its work is done."""
    if DEVICE == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


@dataclass
class Spent:
    """Seconds an edit in every round: by `clock`, and of the wall."""

    seconds: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)


def per_edit(alternatives: dict[str, tuple[Callable[[], Any], int]]) -> tuple[dict[str, Spent], dict[str, Any]]:
    """Time every alternative once a round; one round of the neighbours is thrown away. Also what they returned."""
    for name, (run, _) in alternatives.items():
        if name != "sweep":
            run()
    spent = {name: Spent() for name in alternatives}
    results = {}
    for turn in range(ROUNDS):
        for name in list(alternatives)[:: 1 if turn % 2 == 0 else -1]:
            run, edits = alternatives[name]
            wall, start = time.perf_counter(), clock()
            results[name] = run()
            spent[name].seconds.append((clock() - start) / edits)
            spent[name].wall.append((time.perf_counter() - wall) / edits)
    return spent, results


def compared(subject: str, setting: str, spent: dict[str, Spent], targets: tuple[Target, ...]) -> Comparison:
    base = next(iter(spent.values())).seconds
    timings = []
    for name, own in spent.items():
        ratios = [a / b for a, b in zip(own.seconds, base, strict=True)]
        timings.append(Timing(name, median(own.seconds), median(ratios), min(ratios), max(ratios), min(own.wall)))
    return Comparison(subject, setting, len(base), tuple(timings), targets)


def ours(model: interp.Model, donor: interp.Trace, corrupt: Tensor, places: Sequence[Place]) -> SweepResult:
    edits = [
        interp.patch(f"resid_pre.{p.layer}" if p.head is None else f"z.{p.layer}.{p.head}", donor).at(
            positions=p.position
        )
        for p in places
    ]
    return sweep(model, corrupt, edits, logit_difference(ANSWER, DISTRACTOR))


def difference(logits: Tensor) -> Tensor:
    return (logits[:, -1, ANSWER] - logits[:, -1, DISTRACTOR]).mean()


def through_transformer_lens(
    hf: PreTrainedModel, folder: Path, clean: Tensor, corrupt: Tensor, places: Sequence[Place]
) -> Callable[[], Tensor]:
    """Its own patching sweeps on these places, on its own modules over the same weights."""
    from transformer_lens import patching
    from transformer_lens.model_bridge import TransformerBridge

    logging.disable(logging.WARNING)
    word_tokenizer().save_pretrained(folder)
    hf.config.save_pretrained(folder)
    shared: dict[int, Any] = {id(t): t for t in [*hf.parameters(), *hf.buffers()]}
    own = copy.deepcopy(hf, shared)
    own.config = copy.deepcopy(hf.config)
    words = AutoTokenizer.from_pretrained(folder)
    bridge = TransformerBridge.boot_transformers(str(folder), device=DEVICE, hf_model=own, tokenizer=words)
    if places[0].head is None:
        method, axes = patching.get_act_patch_resid_pre, ["layer", "pos"]
        index = [(p.layer, p.position) for p in places]
    elif places[0].position is None:
        method, axes = patching.get_act_patch_attn_head_out_all_pos, ["layer", "head"]
        index = [(p.layer, p.head) for p in places]
    else:
        method, axes = patching.get_act_patch_attn_head_out_by_pos, ["layer", "pos", "head"]
        index = [(p.layer, p.position, p.head) for p in places]
    site = "hook_resid_pre" if places[0].head is None else "attn.hook_z"
    names = {f"blocks.{layer}.{site}" for layer in range(LAYERS)}
    with torch.no_grad():
        _, cache = bridge.run_with_cache(clean, names_filter=lambda name: name in names, use_cache=False)

    def run() -> Tensor:
        table = pd.DataFrame(index, columns=axes)
        with torch.no_grad():
            return method(bridge, corrupt, cache, difference, index_axis_names=None, index_df=table)

    return run


def through_nnsight(
    hf: PreTrainedModel, donor: interp.Trace, corrupt: Tensor, places: Sequence[Place]
) -> Callable[[], list[float]]:
    """A loop of traces that keep the last logits, under the model's own attention."""
    import nnsight

    model = nnsight.NNsight(hf)
    gpt2 = hf.config.model_type == "gpt2"
    blocks = model.transformer.h if gpt2 else model.model.layers
    width = WIDTH // HEADS

    def run() -> list[float]:
        values = []
        for place in places:
            block = blocks[place.layer]
            if place.head is None:
                new = donor[f"resid_pre.{place.layer}"][:, place.position]
                with torch.no_grad(), model.trace(corrupt, use_cache=False):
                    block.input[:, place.position] = new
                    logits = model.output.logits[:, -1:].save()
            else:
                o = block.attn.c_proj if gpt2 else block.self_attn.o_proj
                at = slice(None) if place.position is None else slice(place.position, place.position + 1)
                head = slice(place.head * width, (place.head + 1) * width)
                new = donor[f"z.{place.layer}.{place.head}"][:, at]
                with torch.no_grad(), model.trace(corrupt, use_cache=False):
                    o.input[:, at, head] = new
                    logits = model.output.logits[:, -1:].save()
            values.append(float(difference(logits)))
        return values

    return run
