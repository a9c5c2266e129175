"""Which heads LoFiT changes: a scale for every head, pulled towards nothing by L1, says where change pays.

The files of the authors hold such heads as an integer array `[head 2]` of rows (layer, head), best first.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from interp.errors import BadInput, MaskMismatch, UnreadableFile
from interp.heads.mask import Head, HeadCounts, HeadMask
from interp.runs import staged
from interp.skills.lofit_offsets import HeadOffsets, layer_edits
from interp.skills.lofit_training import PUBLISHED_SEED, Objective, Recipe, normal, train
from interp.tasks.prompts import PromptSet
from interp.tracing.edits import Edit
from interp.tracing.model import Model
from interp.tracing.sites import Site

SAVED_HEADS = 160
"""How many heads the authors' files list."""


def select_heads(model: Model, prompts: PromptSet, recipe: Recipe, *, seed: int = 0) -> HeadMask:
    """Step 1: fit `z ← (1 + A) ⊙ z` of all heads with an L1 penalty; the score of a head is the norm of its A.

    The best `recipe.heads` are selected. Raises BadInput for more heads than the model has, and as `Objective`.
    """
    check_count(recipe.heads, model)
    spec = model.spec
    objective = Objective(model, prompts, recipe)
    scales = normal((spec.layers, spec.heads, spec.head_dim), recipe, seed, model.device)
    losses = train(
        objective,
        [scales],
        lambda: scale_edits(model, scales),
        learning_rate=recipe.selection_learning_rate,
        seed=seed,
        penalty=lambda: recipe.l1 * scales.abs().sum(),
    )
    mask = HeadMask(
        scales.detach().norm(dim=-1).double().cpu().numpy(),
        method="lofit",
        model=spec.name,
        family=spec.family,
        fingerprint=model.fingerprint,
        kv_heads=spec.kv_heads,
        metadata={"seed": seed, "prompts": prompts.hash, "steps": len(losses), "last_loss": losses[-1]},
    )
    return mask.top(recipe.heads)


def fit_offsets(
    model: Model, prompts: PromptSet, heads: Sequence[Head], recipe: Recipe, *, seed: int = 0
) -> HeadOffsets:
    """Step 2: fit `z ← z + v` of the given heads, from scratch.

    Raises BadInput for no heads, heads the model does not have, and as `Objective`.
    """
    heads = tuple(heads)
    check_count(len(heads), model)
    for layer, head in heads:
        if not (0 <= layer < model.spec.layers and 0 <= head < model.spec.heads):
            raise BadInput(
                f"{model.spec.name} has no head {layer}-{head}: it has {model.spec.layers} layers of {model.spec.heads}"
            )
    objective = Objective(model, prompts, recipe)
    vectors = normal((len(heads), model.spec.head_dim), recipe, seed, model.device)
    losses = train(
        objective,
        [vectors],
        lambda: layer_edits(heads, vectors, model.spec.heads),
        learning_rate=recipe.learning_rate,
        seed=seed,
    )
    metadata = {"seed": seed, "prompts": prompts.hash, "steps": len(losses), "last_loss": losses[-1]}
    return HeadOffsets(heads, vectors, model.spec.name, model.fingerprint, metadata)


def scale_edits(model: Model, scales: Tensor) -> list[Edit]:
    """`z ← (1 + A) ⊙ z` at every layer; gradients reach `scales` `[layer head head_dim]`."""
    # A factor a feature, which `interp.scale` has no need of: it multiplies like any number, where its layer is.
    return [
        Edit("scale", Site("z", layer), parameters={"factor": (1 + own).to(next(block.o.parameters()).device)})
        for layer, (block, own) in enumerate(zip(model.parts.blocks, scales, strict=True))
    ]


def check_count(count: int, model: Model) -> None:
    """Raise BadInput unless `count` heads can be chosen of the model's."""
    total = model.spec.layers * model.spec.heads
    if not 1 <= count <= total:
        raise BadInput(f"{count} heads cannot be chosen: {model.spec.name} has {total}, so 1 to {total}")


def random_heads(model: Model, count: int, seed: int) -> tuple[Head, ...]:
    """The control: `count` heads of the model, drawn by `seed`. Raises BadInput."""
    check_count(count, model)
    drawn = np.random.default_rng(seed).choice(model.spec.layers * model.spec.heads, size=count, replace=False)
    return tuple(divmod(int(i), model.spec.heads) for i in sorted(drawn))


def all_heads(model: Model) -> tuple[Head, ...]:
    """Every head of the model."""
    return tuple((layer, head) for layer in range(model.spec.layers) for head in range(model.spec.heads))


def top_heads_name(model: str, task: str, count: int = SAVED_HEADS, seed: int = PUBLISHED_SEED) -> str:
    """The name the authors give such a file."""
    return f"{model}_{task}_Aonly_top{count}heads_{seed}.npy"


def write_top_heads(mask: HeadMask, path: str | Path, count: int = SAVED_HEADS) -> None:
    """Write the best heads, up to `count`, in the authors' format. Raises BadInput, UnwritableOutput."""
    if count < 1:
        raise BadInput(f"a file of {count} heads says nothing; ask for at least one")
    if mask.kind != "query":
        raise BadInput("this mask scores key/value heads, and LoFiT changes query heads")
    with staged(path) as partial, partial.open("wb") as file:  # given a name, NumPy would append its suffix
        np.save(file, np.array(mask.ranking[:count], dtype=np.int64), allow_pickle=False)


def read_top_heads(path: str | Path, like: HeadCounts, count: int | None = None) -> tuple[Head, ...]:
    """Read the best `count` heads (all by default) of a file of the authors', best first.

    `like` is the spec of the model they are for. Raises UnreadableFile, MaskMismatch for heads it does not have,
    BadInput where the file has fewer than `count`.
    """
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UnreadableFile(f"{path} is not a NumPy array of numbers: {error}") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "iu" or array.ndim != 2 or array.shape[1] != 2:
        raise UnreadableFile(f"{path} is no list of heads: an integer array [head 2] of rows (layer, head) is needed")
    heads = tuple((int(layer), int(head)) for layer, head in array)
    if not heads or len(set(heads)) < len(heads):
        raise UnreadableFile(f"{path} lists {'no head' if not heads else 'a head twice'}")
    for layer, head in heads:
        if not (0 <= layer < like.layers and 0 <= head < like.heads):
            raise MaskMismatch(
                f"{path} lists head {layer}-{head}; {like.name} has {like.layers} layers of {like.heads}"
            )
    if count is not None and not 1 <= count <= len(heads):
        raise BadInput(f"{count} heads cannot be taken of {path}, which lists {len(heads)}")
    return heads[:count]
