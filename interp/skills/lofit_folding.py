"""Head offsets folded into the weights: W_O (z + v) = W_O z + W_O v, and the second term is a bias of W_O.

The folded model is an ordinary one: it needs no hooks, and other software loads it. Where a family builds W_O without a
bias but has a switch for one in its configuration, the switch is turned and every bias that comes with it is 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from einops import einsum
from torch import Tensor, nn

from interp.errors import BadInput, SiteUnavailable, UnsupportedArchitecture
from interp.runs import require_free, staged
from interp.skills.lofit_offsets import HeadOffsets
from interp.tracing.backends.attachment import output_weights
from interp.tracing.loading import wrap
from interp.tracing.model import Model

BIAS_SWITCHES = ("attention_bias", "bias")
"""Configuration entries by which families decide whether W_O has a bias."""


@torch.no_grad()
def fold(model: Model, offsets: HeadOffsets) -> Model:
    """A model whose biases hold the offsets; it shares all other weights with `model`, which stays as it is.

    Raises MaskMismatch for offsets of another model, SiteUnavailable where W_O cannot be sliced by head (quantised,
    offloaded), UnsupportedArchitecture where the family has neither a bias on W_O nor a switch for one.
    """
    offsets.check(model)
    _refuse_unfoldable(model)
    hf = sharing_weights(model.hf)
    if any(getattr(block.o, "bias", None) is None for block in model.parts.blocks):
        _add_biases(hf, model)
    folded = wrap(hf, model.tokenizer, name=model.spec.name)
    for layer, block in enumerate(folded.parts.blocks):
        bias: Tensor = block.o.bias  # type: ignore[assignment]
        shift = _shift(offsets, layer, output_weights(block.o, model.spec.head_dim))
        block.o.bias = nn.Parameter((bias.double() + shift).to(bias.dtype), requires_grad=False)
    return folded


def save_folded(model: Model, offsets: HeadOffsets, folder: str | Path) -> float:
    """Write the folded model and its tokenizer to a new folder, whole or not at all.

    Returns the largest difference of its logits from those of the model under the offsets as edits, on random tokens,
    as a share of the largest logit.
    Raises as `fold`; UnwritableOutput where something is already there.
    """
    require_free(folder)
    folded = fold(model, offsets)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(model.spec.vocab, (2, min(32, model.spec.context or 32)), generator=generator)
    hooked = model.run(ids, edits=offsets.edits(model), logits="all").logits
    difference = (hooked - folded.run(ids, logits="all").logits).abs().max() / hooked.abs().max()
    with staged(folder) as partial:
        folded.hf.save_pretrained(partial)  # type: ignore[operator]
        if model.tokenizer is not None:
            model.tokenizer.save_pretrained(partial)
    return float(difference)


def _refuse_unfoldable(model: Model) -> None:
    if model.backend.name != "hooks":
        raise BadInput(f"weights are folded where backend='hooks' finds them; this model is on {model.backend.name}")
    if "head_out" in model.refusals:
        raise SiteUnavailable("head_out", model.refusals["head_out"])


def sharing_weights(hf: nn.Module) -> nn.Module:
    """A copy of the modules and the configuration over the same parameters and buffers."""
    shared = {id(tensor): tensor for tensor in (*hf.parameters(), *hf.buffers())}
    return deepcopy(hf, shared)


def _add_biases(hf: Any, model: Model) -> None:
    """Give every W_O a bias of 0, and turn the switch that makes the family load it."""
    paths = {module: path for path, module in model.hf.named_modules()}
    wanted = {f"{paths[block.o]}.bias" for block in model.parts.blocks}
    own = hf.state_dict()
    for switch, built in _switched(hf):
        added = built.keys() - own.keys()
        biases_only = own.keys() <= built.keys() and all(name.endswith(".bias") for name in added)
        if biases_only and wanted <= built.keys():
            setattr(hf.config.get_text_config(), switch, True)
            for name in added:
                module = hf.get_submodule(name.removesuffix(".bias"))
                module.bias = nn.Parameter(module.weight.new_zeros(built[name].shape), requires_grad=False)
            return
    raise UnsupportedArchitecture(
        f"{model.spec.family} builds W_O without a bias, and its configuration has no switch for one "
        f"({' or '.join(BIAS_SWITCHES)}), so a folded model could not be saved and loaded: use the offsets as edits"
    )


def _switched(hf: Any) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Each switch that is off, and the weights (shapes only) the family would have with it on."""
    for switch in BIAS_SWITCHES:
        config = deepcopy(hf.config)
        if getattr(config.get_text_config(), switch, None) is False:
            setattr(config.get_text_config(), switch, True)
            with torch.device("meta"):
                yield switch, type(hf)(config).state_dict()


def _shift(offsets: HeadOffsets, layer: int, w_o: Tensor) -> Tensor:
    """What the offsets of a layer add to its attention output, `[width]` in float64; `w_o` is `[head dim width]`."""
    vectors = torch.zeros(w_o.shape[:2], dtype=torch.float64, device=w_o.device)
    for (where, head), vector in zip(offsets.heads, offsets.vectors.to(vectors), strict=True):
        if where == layer:
            vectors[head] = vector
    return einsum(vectors, w_o.double(), "h d, h d w -> w")
