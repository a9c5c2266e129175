"""What attention costs with gates, plans and statistics, beside PyTorch's kernels and transformers' eager attention.

CPU-time ratios are medians of interleaved rounds; beside them stand the least wall times, which mean something only on
a quiet machine. Each subject runs in a process whose idle threads sleep: waiting threads that spin would count as work.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoConfig, AutoModelForCausalLM

from kernels.attention import head_attention
from kernels.benchmark import (
    STATISTICS,
    Shape,
    Work,
    agree,
    attention,
    eager,
    half_pruned,
    half_streaming,
    torch_sdpa,
)
from kernels.compaction import compact
from kernels.integration import install
from kernels.measure import SLEEPING_THREADS
from kernels.types import CaptureSpec
from tests.benchmarks.measure import Target, compare, report
from tests.peak_memory import peak_memory

pytestmark = pytest.mark.bench

HEADS, DIM = 12, 64
COLUMN_SUMS = replace(STATISTICS, column_sums=True)
HALF_PRUNED, HALF_STREAMING = half_pruned(HEADS), half_streaming(HEADS)


def flex(q: Tensor, k: Tensor, v: Tensor) -> Work:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    compiled = torch.compile(flex_attention, dynamic=False)
    length = q.shape[2]
    causal = create_block_mask(lambda b, h, i, j: i >= j, None, None, length, length, device="cpu")
    return lambda: compiled(q, k, v, block_mask=causal).transpose(1, 2)


def measure(subject: str, setting: str, alternatives: dict[str, Work], targets: dict[str, float], rounds: int) -> None:
    """Ratios to the first alternative, against their targets."""
    busy = os.getloadavg()[0]
    wanted = tuple(Target(name, ratio) for name, ratio in targets.items())
    setting = f"{setting}, {torch.get_num_threads()} threads, a load of {busy:.1f} at the start"
    report(compare(subject, setting, alternatives, rounds=rounds, targets=wanted))


def prefill(length: int, rounds: int) -> None:
    shape = Shape(length, length, HEADS, HEADS, DIM)
    q, k, v = shape.tensors()
    setting = str(shape)
    rows = CaptureSpec(torch.arange(length - 64, length), entropy=True, spans=STATISTICS.spans)
    peers = {
        "torch SDPA": torch_sdpa(q, k, v),
        "cpu": attention(q, k, v),
        "cpu, all statistics": attention(q, k, v, capture=STATISTICS),
        "sdpa, statistics of 64 rows": attention(q, k, v, "sdpa", capture=rows),
    }
    if length <= 2048:  # eager holds the matrix several times over
        peers |= {"FlexAttention, compiled": flex(q, k, v), "transformers eager, statistics": eager(q, k, v)}
    bounds = {"cpu": 1.0, "sdpa, statistics of 64 rows": 1.15}
    measure(f"kernels-prefill-{length}", setting, agree(peers), bounds, rounds)

    ours = {
        "cpu": attention(q, k, v),
        "cpu, once more": attention(q, k, v),
        "all statistics of all rows": attention(q, k, v, capture=STATISTICS),
        "and column sums": attention(q, k, v, capture=COLUMN_SUMS),
        "half the heads pruned": attention(q, k, v, plan=HALF_PRUNED),
        "half the heads streaming (4 + 256)": attention(q, k, v, plan=HALF_STREAMING),
    }
    bounds = {"all statistics of all rows": 1.10, "half the heads pruned": 0.55}
    if length >= 8192:
        bounds["half the heads streaming (4 + 256)"] = 0.62
    measure(f"kernels-own-{length}", setting, ours, bounds, rounds)


def statistics() -> None:
    shape = Shape(2048, 2048, HEADS, HEADS, DIM)
    q, k, v = shape.tensors()
    alternatives = {"transformers eager, statistics": eager(q, k, v), "cpu": attention(q, k, v, capture=STATISTICS)}
    measure("kernels-statistics", str(shape), agree(alternatives), {"cpu": 0.15}, 5)


def decode() -> None:
    shape = Shape(1, 16384, 32, 8, 128)
    q, k, v = shape.tensors()
    setting = str(shape)
    ours = {
        "cpu": attention(q, k, v),
        "cpu, all statistics": attention(q, k, v, capture=STATISTICS),
        "torch SDPA": torch_sdpa(q, k, v),
        "torch SDPA, group as rows": lambda: scaled_dot_product_attention(q.view(1, 8, 4, 128), k, v).view(
            1, 1, 32, 128
        ),
    }
    measure("kernels-decode", setting, agree(ours), {"cpu, all statistics": 1.15}, 15)
    eagerly = {
        "transformers eager, statistics": eager(q, k, v),
        "cpu, all statistics": attention(q, k, v, capture=STATISTICS),
    }
    measure("kernels-decode-eager", setting, agree(eagerly), {"cpu, all statistics": 0.10}, 5)


def whole_model(length: int, rounds: int) -> None:
    """A forward pass of four layers: under SDPA, under the kernels, and with half the heads sliced away.

    A Llama of GPT-2's width, the MLP in Llama's own proportion: how much attention weighs decides what pruning saves.
    """
    install()
    layers, width = 4, HEADS * DIM
    config = AutoConfig.for_model(
        "llama", vocab_size=2048, hidden_size=width, intermediate_size=8 * width // 3, num_hidden_layers=layers,
        num_attention_heads=HEADS, num_key_value_heads=HEADS, max_position_embeddings=length,
    )  # fmt: skip
    torch.manual_seed(0)
    plain = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    ours = deepcopy(plain)
    ours.set_attn_implementation("workbench")
    half = deepcopy(plain)
    compact(half, {layer: range(HEADS // 2) for layer in range(layers)})
    ids = torch.randint(2048, (1, length), generator=torch.Generator().manual_seed(0))
    works: dict[str, Work] = {
        name: partial(lambda model: model(ids, use_cache=False, logits_to_keep=1).logits, model)
        for name, model in (("sdpa", plain), ("workbench", ours))
    }
    half_ours = deepcopy(half)
    half_ours.set_attn_implementation("workbench")
    works = agree(works) | {
        "half the heads compacted": lambda: half(ids, use_cache=False, logits_to_keep=1),
        "half the heads compacted, workbench": lambda: half_ours(ids, use_cache=False, logits_to_keep=1),
    }
    setting = f"{layers} layers of width {width}, {length} tokens, float32"
    targets = {"workbench": 1.03, "half the heads compacted": 0.80}
    measure(f"kernels-model-{length}", setting, works, targets, rounds)


def threads() -> None:
    """The wall time of two threads against one; no target of CPU time can see a missing second thread."""
    cores = torch.get_num_threads()
    q, k, v = Shape(2048, 2048, HEADS, HEADS, DIM).tensors()
    least = {1: float("inf"), 2: float("inf")}
    for _ in range(15):
        for count in least:
            torch.set_num_threads(count)
            start = time.perf_counter()
            head_attention(q, k, v, backend="cpu", capture=STATISTICS)
            least[count] = min(least[count], time.perf_counter() - start)
    ratio = least[2] / least[1]
    print(f"\nkernels-threads: least wall time of 1 thread {1e3 * least[1]:.1f} ms, of 2 {1e3 * least[2]:.1f} ms")
    verdict = "met" if ratio <= 0.65 else "MISSED" if cores > 1 else "not to be had on one core"
    print(f"  target {verdict}: 2 threads at {ratio:.3f} x, asked for at most 0.65 x; {cores} cores to run on")


def peak(name: str) -> None:
    """Print how far the resident set rises above the inputs, in MiB."""
    q, k, v = Shape(8192, 8192, HEADS, HEADS, DIM).tensors()
    small = tuple(x[:, :, :64].contiguous() for x in (q, k, v))
    work = eager if name == "transformers eager" else lambda *x: attention(*x, capture=STATISTICS)
    work(*small)()
    before = peak_memory()
    work(q, k, v)()
    print(peak_memory() - before)


SUBJECTS: dict[str, Callable[..., None]] = {
    "prefill-2048": lambda: prefill(2048, 7),
    "prefill-8192": lambda: prefill(8192, 3),
    "statistics": statistics,
    "decode": decode,
    "model-128": lambda: whole_model(128, 15),
    "model-2048": lambda: whole_model(2048, 5),
    "threads": threads,
}


def in_own_process(root: Path, *arguments: str, **options: Any) -> str:
    command = [sys.executable, "-m", "tests.benchmarks.test_kernels", *arguments]
    return subprocess.run(command, check=True, cwd=root, env={**os.environ, **SLEEPING_THREADS}, **options).stdout


@pytest.mark.parametrize("subject", SUBJECTS)
def test_speed(root: Path, subject: str) -> None:
    in_own_process(root, subject)


def test_peak_memory(root: Path) -> None:
    """At 8192 tokens, beyond the inputs."""
    names = ("transformers eager", "cpu")
    own = {name: float(in_own_process(root, "peak", name, capture_output=True, text=True)) for name in names}
    for name, size in own.items():
        print(f"\nkernels-memory: {name}, all statistics of 8192 tokens: {size:.0f} MiB", end="")
    ratio = own["cpu"] / own["transformers eager"]
    print(f"\n  target {'met' if ratio <= 0.02 else 'MISSED'}: cpu at {ratio:.4f} x, asked for at most 0.02 x")


def main(subject: str, *arguments: str) -> None:
    torch.set_num_threads(min(2, torch.get_num_threads()))
    with torch.no_grad():
        if subject == "peak":
            peak(*arguments)
        else:
            SUBJECTS[subject]()


if __name__ == "__main__":
    main(*sys.argv[1:])
