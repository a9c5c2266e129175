"""Retrieval scoring at the longest context of the bundled model, beside the published way of doing it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import interp
from interp.heads.retrieval import retrieval_scores
from interp.tasks.needle import needle_prompts
from interp.tasks.prompts import PromptSet
from tests.benchmarks.measure import Target, compare, report

pytestmark = pytest.mark.bench

NEW_TOKENS = 7


def longest_prompts(model: interp.Model, needles: int = 1) -> PromptSet:
    """Needle tests that leave room for nothing but the answer."""
    assert model.spec.context is not None
    room = model.spec.context - NEW_TOKENS - 1
    return needle_prompts(model.tokenizer, [room], [0, 50, 100], n_needles=needles, context=model.spec.context)


@torch.no_grad()
def eager_scores(hf: Any, tokenizer: Any, tokens: Any, span: tuple[int, int], cached: bool) -> np.ndarray:
    """One test in eager attention: `cached` keeps the prompt's keys and values, else every step recomputes the text."""
    start, end = span
    score = np.zeros((hf.config.num_hidden_layers, hf.config.num_attention_heads))
    ids, cache = list(tokens), None
    if cached:
        cache = hf(torch.tensor([ids[:-1]]), use_cache=True).past_key_values
    for _ in range(NEW_TOKENS):
        step = torch.tensor([ids[-1:] if cached else ids])
        out = hf(step, past_key_values=cache, use_cache=cached, output_attentions=True)
        word = int(out.logits[0, -1].argmax())
        for layer, rows in enumerate(out.attentions):
            keys = rows[0, :, -1].argmax(-1).tolist()
            for head, key in enumerate(keys):
                score[layer, head] += (start <= key < end and tokens[key] == word) / (end - start)
        ids.append(word)
        if word == hf.config.eos_token_id or "\n" in tokenizer.decode(word):
            break
    return score


def test_scoring_the_longest_context() -> None:
    model, eager = interp.load("pocket"), interp.load("pocket", attention="eager").hf
    prompts = longest_prompts(model)
    rows = list(zip(prompts.tokens, prompts.spans["value"], strict=True))

    def ours(method: Any) -> np.ndarray:
        return retrieval_scores(model, prompts, gate=-1.0, method=method, max_new_tokens=NEW_TOKENS).samples

    def theirs(cached: bool) -> np.ndarray:
        return np.stack([eager_scores(eager, model.tokenizer, *row, cached) for row in rows])

    np.testing.assert_allclose(ours("stepwise"), theirs(False), atol=1e-9)
    comparison = compare(
        "retrieval",
        f"pocket, {len(prompts)} needle tests of {max(map(len, prompts.tokens))} tokens",
        {
            "eager, everything recomputed": lambda: theirs(False),
            "eager, prompt cached": lambda: theirs(True),
            "stepwise": lambda: ours("stepwise"),
            "chunk": lambda: ours("chunk"),
        },
        rounds=3,
        targets=(Target("stepwise", 0.25), Target("chunk", 0.25)),
    )
    report(comparison)


PEAK = """
import json, sys
sys.path.insert(0, {root!r})
import interp
from interp.heads.retrieval import retrieval_scores
from tests.benchmarks.test_retrieval import NEW_TOKENS, eager_scores, longest_prompts
from tests.peak_memory import peak_memory
model = interp.load("pocket", attention={attention!r})
prompts = longest_prompts(model)
before = peak_memory()
{work}
print(json.dumps([before, peak_memory()]))
"""
WORK = {
    "plain generation": "model.generate(prompts, max_new_tokens=NEW_TOKENS)",
    "stepwise": "retrieval_scores(model, prompts, gate=-1.0, max_new_tokens=NEW_TOKENS)",
    "chunk": "retrieval_scores(model, prompts, gate=-1.0, method='chunk')",
    "eager, everything recomputed": (
        "[eager_scores(model.hf, model.tokenizer, *row, False) for row in zip(prompts.tokens, prompts.spans['value'])]"
    ),
}


def test_peak_memory_beside_plain_generation(root: Path) -> None:
    """Each in a process of its own; the peak is the resident set's."""
    peaks = {}
    for name, work in WORK.items():
        code = PEAK.format(root=str(root), attention="eager" if "eager" in name else None, work=work)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
        before, peak = json.loads(done.stdout.splitlines()[-1])
        peaks[name] = (peak, peak - before)
    base, base_own = peaks["plain generation"]
    print("\nretrieval: peak memory at the longest context")
    for name, (peak, own) in peaks.items():
        print(f"  {name:<30} {peak:6.0f} MiB  {peak / base:5.2f} x")
        print(f"  {'  beyond the loaded model':<30} {own:6.0f} MiB  {own / base_own:5.2f} x")
    for name in ("stepwise", "chunk"):
        ratio = peaks[name][0] / base
        verdict = "met" if ratio <= 1.3 else "MISSED"
        print(f"  target {verdict}: {name} at {ratio:.2f} x of plain generation, asked for at most 1.3 x")
