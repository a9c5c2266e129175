"""The last token of every prompt, computed again from any layer on.

In a causal model a change at the last token changes nothing before it. So what fitting a subspace needs of a prompt is
its residual stream at the last token and the keys and values of the tokens before: one base run, which all layers,
epochs and directions share. From there a training step costs one token a prompt and only the layers after the change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, Protocol

import psutil
import torch
from torch import Tensor, nn
from transformers import DynamicCache

from interp.errors import BadInput, MemoryBudgetExceeded, SiteUnavailable, choose
from interp.patching.blocks import forward_replaced, running_blocks
from interp.patching.earlier_keys import earlier_keys
from interp.patching.shared import ATTENTION
from interp.tracing.backends.attachment import running
from interp.tracing.batch import Encoded as Prompts
from interp.tracing.batch import Padded, check_length, check_tokens, pad
from interp.tracing.edits import patch
from interp.tracing.families import ARCHITECTURES
from interp.tracing.model import Model

Executor = Literal["auto", "shared", "plain"]
EXECUTORS: tuple[Executor, ...] = ("auto", "shared", "plain")
BASE_BATCH = 32
MEMORY_SHARE = 0.25
"""Of the free memory, what the base run may keep unless told otherwise."""


class LastTokens(Protocol):
    """Prompts whose last token can be computed again.

    `resid` `[layer prompt width]` is what leaves each block at the last token, `logits` `[prompt vocab]` follow it.
    """

    name: str
    resid: Tensor
    logits: Tensor

    def logits_from(self, layers: Sequence[int], hidden: Sequence[Tensor], prompts: Sequence[Tensor]) -> list[Tensor]:
        """Logits `[row vocab]` of each group of rows.

        Rows of group i are `prompts[i]` `[row]` with `hidden[i]` `[row width]` in place of what leaves block
        `layers[i]` at their last token. Differentiable in `hidden` where gradients are on.
        """
        ...


def last_tokens(
    model: Model, tokens: Sequence[Sequence[int]], *, executor: Executor = "auto", memory: int | None = None
) -> tuple[LastTokens, str]:
    """Run prompts once; also returns why this executor was chosen.

    executor: `"shared"` keeps keys and values and computes one token a step, `"plain"` runs whole prompts through
    `Model.run`, `"auto"` shares where that is known to be exact and fits into `memory` bytes (a quarter of what is free
    by default).

    Raises BadInput, PromptTooLong, MemoryBudgetExceeded before anything runs.
    """
    if executor not in EXECUTORS:
        raise BadInput(f"there is no executor {executor!r}; {choose(executor, EXECUTORS)}")
    if model.hf.training:
        raise BadInput("the model is in training mode, so dropout is on; call model.hf.eval() first")
    if "logits" in model.refusals:
        raise SiteUnavailable("logits", model.refusals["logits"])
    prompts = Prompts(tuple(map(tuple, tokens)))
    check_tokens(prompts, model.spec.vocab)
    check_length(prompts, model.spec.context)
    reason = refusal(model)
    needed = _bytes(model, prompts)
    budget = int(MEMORY_SHARE * _free_memory(model.device)) if memory is None else memory
    if reason is None and needed > budget:
        reason = f"keys and values would take {needed / 2**20:,.0f} MiB, the budget is {budget / 2**20:,.0f} MiB"
        if executor == "shared":
            raise MemoryBudgetExceeded(f"{reason}; give fewer items, raise memory, or use executor='plain'")
    if executor == "shared" and reason is not None:
        raise BadInput(f"executor='shared' cannot be used: {reason}; 'auto' and 'plain' run whole prompts")
    if executor == "plain" or reason is not None:
        return Plain(model, prompts), reason if executor == "auto" and reason else "asked for"
    return Shared(model, prompts), "the model is causal, so a change at the last token changes nothing before it"


def refusal(model: Model) -> str | None:
    """Why computing the last token alone is not known to be exact here, if so."""
    architecture = model.parts.architecture
    if model.backend.name != "hooks":
        return f"the {model.backend.name} backend runs whole forward passes"
    if not architecture.causal:
        return f"{architecture.family} is an encoder, whose tokens see what comes after them"
    if architecture.family not in ARCHITECTURES:
        return f"the family {architecture.family} is not in the table of families, so what its layers share is unknown"
    if model.attention not in ATTENTION:
        return f"{model.attention} attention is not among {', '.join(ATTENTION)}"
    if len(set(getattr(model.hf, "hf_device_map", None) or ())) > 1:
        return "the layers are spread over several devices"
    return None


class Shared:
    """Keeps the keys and values of all earlier tokens; all groups of a call share one pass over one token a row."""

    name = "shared"

    def __init__(self, model: Model, prompts: Prompts) -> None:
        self.model = model
        first = model.parts.architecture.first_position
        pad_id = prompts.rows[0][0]  # any token will do: nothing attends to padding
        self.padded = pad(prompts, 0, "left", pad_id, model.device, first)
        self._base_run()

    def _base_run(self) -> None:
        model, padded = self.model, self.padded
        count, layers = len(padded.input_ids), model.spec.layers
        resid: list[list[Tensor]] = [[] for _ in range(layers)]
        logits: list[Tensor] = []
        caches: list[DynamicCache] = []
        self._returns = [0] * layers

        def keep(layer: int) -> Callable[..., None]:
            def hook(_module: nn.Module, _args: Any, output: Any) -> None:
                self._returns[layer] = 0 if isinstance(output, Tensor) else len(output)
                resid[layer].append((output if isinstance(output, Tensor) else output[0])[:, -1])

            return hook

        with model.lock, torch.no_grad(), running(model.hf), ExitStack() as hooks:
            for layer, block in enumerate(model.parts.blocks):
                hooks.callback(block.module.register_forward_hook(keep(layer)).remove)
            for start in range(0, count, BASE_BATCH):
                rows = torch.arange(start, min(start + BASE_BATCH, count), device=model.device)
                caches.append(DynamicCache())
                with _last_only(model):
                    output = model.hf(**_inputs(padded, rows), past_key_values=caches[-1])
                logits.append(output.logits[:, -1])
        self.resid = torch.stack([torch.cat(parts) for parts in resid])
        self.logits = torch.cat(logits)
        joined = [[torch.cat([getattr(c.layers[n], part) for c in caches])[:, :, :-1] for n in range(layers)]
                  for part in ("keys", "values")]  # fmt: skip
        self._keys, self._values = joined

    def logits_from(self, layers: Sequence[int], hidden: Sequence[Tensor], prompts: Sequence[Tensor]) -> list[Tensor]:
        order = sorted(range(len(layers)), key=lambda i: layers[i])
        rows = torch.cat([prompts[i] for i in order]).to(self.model.device)
        logits = self._walk([(layers[i], hidden[i]) for i in order], rows)
        found = dict(zip(order, logits.split([len(prompts[i]) for i in order]), strict=True))
        return [found[i] for i in range(len(layers))]

    def _walk(self, groups: Sequence[tuple[int, Tensor]], rows: Tensor) -> Tensor:
        """Logits of groups in the order of their layers, each of which joins after its own block."""
        model, last = self.model, self.model.spec.layers - 1

        def joined(after: int, so_far: Tensor) -> Tensor:
            """What leaves block `after`: the rows computed so far, and those that begin here."""
            before = sum(len(hidden) for layer, hidden in groups if layer < after)
            return torch.cat([so_far[:before], *(hidden for layer, hidden in groups if layer == after)])

        def entering(layer: int, hidden: Tensor) -> Tensor:
            return joined(layer - 1, hidden[:, 0])[:, None]

        def leaving(_module: nn.Module, _args: Any, output: Any) -> Any:
            value = output if isinstance(output, Tensor) else output[0]
            new = joined(last, value[:, 0])[:, None]
            return new if isinstance(output, Tensor) else (new, *output[1:])

        inputs = _inputs(self.padded, rows)
        inputs = {**inputs, "input_ids": inputs["input_ids"][:, -1:], "position_ids": inputs["position_ids"][:, -1:]}
        cache = earlier_keys(self._keys, self._values, rows, self.padded.frame.width - 1)
        computed = range(groups[0][0] + 1, last + 1)
        with model.lock, running(model.hf), ExitStack() as stack:
            stack.enter_context(running_blocks(model, computed, entering, len(rows), self._returns))
            stack.callback(model.parts.blocks[last].module.register_forward_hook(leaving).remove)
            return model.hf(**inputs, past_key_values=cache).logits[:, -1]


class Plain:
    """Runs whole prompts, one group at a time, with the change as a patch: slow, and right wherever `Model.run` is."""

    name = "plain"

    def __init__(self, model: Model, prompts: Prompts) -> None:
        self.model = model
        self.tokens = prompts.rows
        resid, logits = [], []
        for start in range(0, len(self.tokens), BASE_BATCH):
            rows = [list(row) for row in self.tokens[start : start + BASE_BATCH]]
            trace = model.run(rows, read="resid_post", positions=-1, logits="last")
            resid.append(trace.stack("resid_post")[:, :, 0])
            logits.append(trace.logits)
        self.resid, self.logits = torch.cat(resid, dim=1), torch.cat(logits)

    def logits_from(self, layers: Sequence[int], hidden: Sequence[Tensor], prompts: Sequence[Tensor]) -> list[Tensor]:
        found = []
        for layer, new, rows in zip(layers, hidden, prompts, strict=True):
            chosen = [list(self.tokens[i]) for i in rows.tolist()]
            longest = max(map(len, chosen))
            edit = patch(f"resid_post.{layer}", new[:, None].expand(-1, longest, -1)).at(positions=-1)
            found.append(self.model.run(chosen, edits=edit, logits="last", grad=torch.is_grad_enabled()).logits)
        return found


@contextmanager
def _last_only(model: Model) -> Iterator[None]:
    """Unembed only the last token; a vocabulary is wide."""
    unembed = model.parts.unembed
    assert unembed is not None
    own = unembed.forward
    with forward_replaced(unembed, lambda hidden: own(hidden[:, -1:])):
        yield


def _inputs(padded: Padded, rows: Tensor) -> dict[str, Tensor]:
    return {name: tensor[rows] for name, tensor in padded.inputs().items()}


def _bytes(model: Model, prompts: Prompts) -> int:
    """What the base run keeps: residual streams, keys and values."""
    spec = model.spec
    size = next(model.hf.parameters()).element_size()
    a_token = 2 * spec.layers * spec.kv_heads * spec.head_dim
    a_prompt = spec.layers * spec.width + spec.vocab
    return size * len(prompts.rows) * (max(prompts.lengths) * a_token + a_prompt)


def _free_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)
