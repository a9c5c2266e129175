"""Triton kernels for GPUs: gates, patterns and statistics inside the loop of one online softmax.

`triton_kernels` is the device code, `triton_tiles` the lists of what it visits, `triton_call` turns a request into
arguments. Queries that are few become one item with those of the heads that share their keys; where items are too few
for the device, the keys of each are split. On the CPU all of it runs in Triton's interpreter, if TRITON_INTERPRET=1 was
set before Python started.
"""

from __future__ import annotations

import os
import shutil
from functools import cache

import torch

from kernels.backends.triton_call import Call
from kernels.backends.triton_kernels import INTERPRETED
from kernels.request import Output, Request, Work

WIDEST = 256
"""Widest head: the tiles of a wider one do not fit the shared memory of a processor."""

MOST_SPANS = 32
"""Most spans whose mass is summed: each is code of its own in the loop."""


def supports(request: Request) -> str | None:
    if reason := _why_not_on(request.q.device):
        return reason
    if request.q.dtype == torch.float64:
        return "q is torch.float64; scores are float32 here"
    if request.needs_grad:
        return "it computes no gradients"
    if max(request.q.shape[3], request.v.shape[3]) > WIDEST:
        return f"heads of {request.q.shape[3]} and {request.v.shape[3]} dimensions; at most {WIDEST} fit"
    capture = request.capture
    if capture is not None and capture.spans is not None and capture.spans.shape[1] > MOST_SPANS:
        return f"CaptureSpec.spans has {capture.spans.shape[1]} spans; at most {MOST_SPANS} are summed in the loop"
    return None


@cache
def _why_not_on(device: torch.device) -> str | None:
    if device.type not in ("cpu", "cuda"):
        return f"its kernels are not compiled for {device.type}"
    if INTERPRETED:
        return None
    if device.type == "cpu":
        return "on the CPU it runs in Triton's interpreter alone: set TRITON_INTERPRET=1 before Python starts"
    if torch.version.hip is None and torch.cuda.get_device_capability(device) < (8, 0):
        return f"{torch.cuda.get_device_name(device)} has a compute capability below 8.0"
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return "Triton builds what starts a kernel with a C compiler: no gcc, no clang (the variable CC names another)"
    return None


def predict(request: Request) -> Work:
    """The tiles in the lists, which are those that the kernels visit."""
    return Work(Call(request).flops, request.io_bytes)


def run(request: Request) -> Output:
    call = Call(request).make()
    return Output(call.out, call.stats(), call.flops)
