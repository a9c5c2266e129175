"""At 8192 tokens nothing the size of the attention matrix is ever held."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

TOKENS, HEADS, DIM = 8192, 3, 32
MATRIX = HEADS * TOKENS * TOKENS * 4 / 2**20
"""MiB of the scores in float32: 768."""

SCRIPT = f"""
import torch
from kernels.attention import head_attention
from kernels.patterns import full, pruned, streaming, strided
from kernels.types import CaptureSpec, HeadPlan, MaskSpec
from tests.peak_memory import peak_memory as peak

q, k, v = (torch.randn(1, {HEADS}, {TOKENS}, {DIM}) for _ in range(3))
everything = CaptureSpec(entropy=True, column_sums=True, spans=torch.tensor([[[9, 50]]]))
head_attention(q[:, :, :300], k[:, :, :300], v[:, :, :300], capture=everything, backend="sdpa")
before = peak()
for arguments in (
    dict(capture=everything),
    dict(plan=HeadPlan.of([streaming(4, 256), pruned(), strided(64, 2, 0, length={TOKENS})])),
    dict(mask=MaskSpec(starts=torch.tensor([100]))),
):
    out, _ = head_attention(q, k, v, backend="sdpa", **arguments)
    assert out.shape == (1, {TOKENS}, {HEADS}, {DIM})
    print(peak() - before)
"""


def test_a_long_context_needs_a_fraction_of_its_matrix(root: Path) -> None:
    """With statistics of all rows, with sparse heads, with padding."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, cwd=root, timeout=200)
    assert done.returncode == 0, done.stderr
    peaks = list(map(float, done.stdout.split()))
    assert len(peaks) == 3
    assert max(peaks) < min(150, MATRIX / 6), peaks
