"""What offsets of chosen heads are compared with: inference-time intervention, and LoRA at matched parameters."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from interp.errors import BadInput
from interp.skills.lofit_folding import sharing_weights
from interp.skills.lofit_heads import check_count
from interp.skills.lofit_offsets import HeadOffsets
from interp.skills.lofit_skill import Skill
from interp.skills.lofit_training import Objective, Recipe, Tokens, train
from interp.tasks.prompts import PromptSet
from interp.tracing.loading import wrap
from interp.tracing.model import Model

ITI_STRENGTHS = (1.0, 5.0, 10.0, 15.0, 20.0)
"""In standard deviations along the direction; Li et al. (2023) use 15 on LLaMA-7B."""
CHUNK = 64


def iti_offsets(model: Model, skill: Skill, count: int) -> HeadOffsets:
    """Inference-time intervention by mean difference (Li et al. 2023), on the `count` heads whose z tells answers best.

    The direction of a head is its mean z at the last token of prompts with their answers, less that with their
    distractors; heads are ranked by how well it tells the two apart on the half of the training prompts it was not
    measured on, and moved along it by a strength (in standard deviations) chosen for accuracy on the training prompts.
    Raises BadInput for prompts without distractors.
    """
    check_count(count, model)
    if not skill.train.distractors:
        raise BadInput(f"{skill.name} has no distractors, and ITI needs the mean difference of answers and distractors")
    right = _last_z(model, skill.train, skill.train.answer_tokens)
    wrong = _last_z(model, skill.train, skill.train.distractor_tokens)
    order = np.argsort(-_separation(right, wrong), axis=None, kind="stable")[:count]
    heads = tuple(divmod(int(i), model.spec.heads) for i in order)
    directions, spread = _direction(right, wrong)
    shift = torch.stack([directions[head] * spread[head] for head in heads]).float()

    def offsets(strength: float) -> HeadOffsets:
        metadata = {"method": "iti", "strength": strength, "prompts": skill.train.hash}
        return HeadOffsets(heads, strength * shift, model.spec.name, model.fingerprint, metadata)

    candidates = [offsets(strength) for strength in ITI_STRENGTHS]
    accuracy = [skill.right(model, skill.train, candidate.edits(model)).mean() for candidate in candidates]
    return candidates[int(np.argmax(accuracy))]


def _last_z(model: Model, prompts: PromptSet, completions: Tokens) -> Tensor:
    """z of every head at the last token of each prompt with its completion, `[prompt layer head head_dim]`."""
    rows = [(*prompt, *completion) for prompt, completion in zip(prompts.tokens, completions, strict=True)]
    traces = (model.run(rows[i : i + CHUNK], read="z", positions=-1) for i in range(0, len(rows), CHUNK))
    return torch.cat([rearrange(trace.stack("z").double().cpu(), "l b 1 h d -> b l h d") for trace in traces])


def _direction(right: Tensor, wrong: Tensor) -> tuple[Tensor, Tensor]:
    """Unit directions `[layer head head_dim]` from wrong to right, and the standard deviation along them."""
    difference = right.mean(0) - wrong.mean(0)
    unit = difference / difference.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    return unit, (torch.cat([right, wrong]) * unit).sum(-1).std(0)


def _separation(right: Tensor, wrong: Tensor) -> np.ndarray:
    """Share of held-out activations on their own side of the midpoint, `[layer head]`."""
    seen, held = slice(0, len(right) // 2 or 1), slice(len(right) // 2, None)
    unit, _ = _direction(right[seen], wrong[seen])
    middle = ((right[seen].mean(0) + wrong[seen].mean(0)) / 2 * unit).sum(-1)
    sides = [((right[held] * unit).sum(-1) > middle).double(), ((wrong[held] * unit).sum(-1) < middle).double()]
    return torch.cat(sides).mean(0).numpy()


@dataclass(frozen=True)
class Adapters:
    """Where low-rank adapters go: `modules` by path, all of one rank, with so many parameters to train."""

    modules: tuple[str, ...]
    rank: int
    parameters: int


def matched_adapters(model: Model, budget: int) -> Adapters:
    """The smallest set of query and value adapters with at least `budget` parameters.

    Rank 1 on as many modules as are needed, from the middle layer outwards, since no adapter is smaller than that; a
    higher rank on all of them where they are not enough. LoRA is thereby never given less than it is compared with.
    """
    paths = {module: path for path, module in model.hf.named_modules()}
    middle = (model.spec.layers - 1) / 2
    layers = sorted(range(model.spec.layers), key=lambda layer: abs(layer - middle))
    projections = [model.parts.blocks[layer].projections for layer in layers]
    modules = [module for each in projections for module in dict.fromkeys((each[0], each[-1]))]
    sizes = [sum(_in_and_out(module)) for module in modules]
    rank = max(1, -(-budget // sum(sizes)))
    chosen = next((n for n in range(1, len(sizes) + 1) if rank * sum(sizes[:n]) >= budget), len(sizes))
    return Adapters(tuple(paths[module] for module in modules[:chosen]), rank, rank * sum(sizes[:chosen]))


def fit_lora(model: Model, prompts: PromptSet, budget: int, recipe: Recipe, *, seed: int = 0) -> tuple[Model, Adapters]:
    """A model with LoRA adapters (Hu et al. 2022) of at least `budget` parameters, trained like the offsets.

    It shares the weights of `model`, which stays as it is. Raises BadInput where peft is not installed.
    """
    require_peft()
    from peft import LoraConfig, inject_adapter_in_model

    adapters = matched_adapters(model, budget)
    fused = isinstance(model.hf.get_submodule(adapters.modules[0]), Conv1D)
    config = LoraConfig(
        r=adapters.rank,
        lora_alpha=adapters.rank,
        target_modules=list(adapters.modules),
        fan_in_fan_out=fused,
        lora_dropout=0.0,
    )
    with torch.random.fork_rng(devices=[]):  # peft draws its first values from the global generator
        torch.manual_seed(seed)
        hf = inject_adapter_in_model(config, sharing_weights(model.hf)).eval()
    adapted = wrap(hf, model.tokenizer, name=f"{model.spec.name}-lora")
    parameters = [tensor for name, tensor in hf.named_parameters() if "lora_" in name]
    assert sum(tensor.numel() for tensor in parameters) == adapters.parameters
    train(Objective(adapted, prompts, recipe), parameters, list, learning_rate=recipe.lora_learning_rate, seed=seed)
    return adapted, adapters


def require_peft() -> None:
    """Raise BadInput where peft is not installed."""
    if find_spec("peft") is None:
        raise BadInput("LoRA needs peft, which is not installed: pip install 'interp-workbench[lora]'")


def _in_and_out(module: Any) -> tuple[int, int]:
    """Features that go into and come out of a linear map; an adapter of rank 1 has as many parameters."""
    width_in, width_out = module.weight.shape
    return int(width_in), int(width_out)
