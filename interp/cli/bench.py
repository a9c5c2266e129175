"""`interp bench`: what things cost on this machine."""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interp.cli.console import emit, out, progress, say, show_frame
from interp.cli.options import Json, numbers
from interp.errors import BadInput, choose
from kernels.measure import SLEEPING_THREADS, Comparison, compare

if TYPE_CHECKING:
    from kernels.benchmark import Shape

app = typer.Typer(help="Measure what the kernels cost on this machine.", no_args_is_help=True)

DTYPES = ("float32", "bfloat16", "float16", "float64")


@app.callback()
def bench() -> None:
    """Measure what the kernels cost on this machine."""


@app.command(epilog="Example: interp bench kernels --lengths 512,2048")
def kernels(
    lengths: Annotated[str, typer.Option(help="Tokens of a prompt, such as 512,2048.")] = "2048",
    decode: Annotated[str, typer.Option(help="Keys that one new token looks at, such as 4096.")] = "16384",
    heads: Annotated[int, typer.Option(help="Query heads.", min=1)] = 12,
    kv_heads: Annotated[
        int | None, typer.Option(help="Key/value heads that they share.", min=1, show_default="as many")
    ] = None,
    dim: Annotated[int, typer.Option(help="Width of a head.", min=1)] = 64,
    dtype: Annotated[str, typer.Option(help=f"Number type: {', '.join(DTYPES)}.")] = "float32",
    device: Annotated[str, typer.Option(help="Where to measure, such as cpu or cuda.")] = "cpu",
    backend: Annotated[
        str, typer.Option(help="Backends, such as cpu,sdpa.", show_default="those that 'auto' tries on the device")
    ] = "",
    rounds: Annotated[int, typer.Option(help="Rounds, each in another order.", min=1)] = 7,
    threads: Annotated[
        int | None, typer.Option(help="Threads of the CPU.", min=1, show_default="torch's own choice")
    ] = None,
    json: Json = False,
) -> None:
    """Attention plain, with all statistics, with half the heads pruned or streaming, beside PyTorch and transformers.

    Ratios are medians over interleaved rounds, of CPU time on a CPU. The least wall time stands beside them, which
    means something while nothing else runs.
    """
    if "torch" not in sys.modules:
        os.environ.update(SLEEPING_THREADS)
    import torch

    from kernels.attention import BACKENDS, PREFERENCE
    from kernels.benchmark import Shape

    if dtype not in DTYPES:
        raise BadInput(f"--dtype {dtype}: {choose(dtype, DTYPES)}")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise BadInput(f"--device {device} cannot be used: {str(error).splitlines()[0]}") from error
    names = [name.strip() for name in backend.split(",") if name.strip()]
    for name in names:
        if name not in BACKENDS:
            raise BadInput(f"--backend {name}: {choose(name, BACKENDS)}")
    names = names or [name for name in PREFERENCE.get(torch.device(device).type, ("sdpa",)) if name != "reference"]
    shape: dict[str, Any] = {"heads": heads, "kv_heads": kv_heads or heads, "dim": dim, "device": device}
    shape["dtype"] = getattr(torch, dtype)
    shapes = [Shape(length, length, **shape) for length in numbers("--lengths", lengths, int)]
    shapes += [Shape(1, keys, **shape) for keys in numbers("--decode", decode, int)]
    if not shapes:
        raise BadInput("there is nothing to measure: give --lengths or --decode")
    if threads:
        torch.set_num_threads(threads)
    results = [_measure(shape, names, rounds, json) for shape in shapes]
    if json:
        emit({"machine": _machine(), "measured": [{**asdict(it), "left_out": left_out} for it, left_out in results]})


def _measure(shape: Shape, backends: list[str], rounds: int, quiet: bool) -> tuple[Comparison, dict[str, str]]:
    import psutil
    import torch

    from kernels.benchmark import alternatives, clock

    threads = torch.get_num_threads()
    load = f"a load of {psutil.getloadavg()[0]:.1f} at the start"
    setting = f"{shape}, {threads} thread{'s' if threads > 1 else ''}, {load}"
    works, left_out = alternatives(shape, backends)
    with progress(str(shape)) as report, torch.no_grad():
        result = compare("kernels", setting, works, rounds=rounds, clock=clock(shape.device), progress=report)
    if not quiet:
        _show(result, left_out)
    return result, left_out


def _show(result: Comparison, left_out: dict[str, str]) -> None:
    import pandas as pd

    first = result.timings[0]
    rows = [
        {
            "": timing.name,
            "ms": f"{1e3 * timing.seconds:.2f}",
            "ratio": f"{timing.ratio:.3f}",
            "range": f"{timing.least:.3f} to {timing.greatest:.3f}",
            "wall ms": f"{1e3 * timing.wall:.2f}",
            "wall ratio": f"{timing.wall / first.wall:.3f}",
        }
        for timing in result.timings
    ]
    show_frame(f"{result.setting}; {result.rounds} rounds, ratios to {first.name}", pd.DataFrame(rows))
    for name, reason in left_out.items():
        say(f"Left out: {name} ({reason}).")
    out.print()


def _machine() -> dict[str, Any]:
    import torch

    return {
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
