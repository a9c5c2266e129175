"""What training leaves on disk: one file to go on from, and the folder that ships."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save, save_file
from torch import Tensor
from torch.optim import Optimizer
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from interp.runs import staged


def save_state(path: Path, model: LlamaForCausalLM, optimisers: Sequence[Optimizer], notes: Mapping[str, Any]) -> None:
    """Write weights, optimiser state and notes (JSON) to one safetensors file, whole or not at all."""
    tensors = {f"model.{name}": tensor for name, tensor in weights(model).items()}
    for n, optimiser in enumerate(optimisers):
        for parameter, state in optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{n}.{parameter}.{key}": value for key, value in state.items()}
    with staged(path) as partial:
        save_file(
            {name: tensor.contiguous() for name, tensor in tensors.items()}, partial, {"notes": json.dumps(notes)}
        )


def read_notes(path: Path) -> dict[str, Any]:
    """The notes of a state file."""
    with safe_open(path, "pt") as file:
        return dict(json.loads(file.metadata()["notes"]))


def load_state(path: Path, model: LlamaForCausalLM, optimisers: Sequence[Optimizer] = ()) -> None:
    """Put the weights, and the state of optimisers made over the same parameters, back in place."""
    states: list[dict[int, dict[str, Tensor]]] = [{} for _ in optimisers]
    kept = {}
    with safe_open(path, "pt") as file:
        for name in file.keys():  # noqa: SIM118 - it is no mapping
            kind, _, rest = name.partition(".")
            if kind == "model":
                kept[rest] = file.get_tensor(name)
            elif optimisers:
                n, parameter, key = rest.split(".")
                states[int(n)].setdefault(int(parameter), {})[key] = file.get_tensor(name)
    model.load_state_dict(kept, strict=False)  # the tied output matrix is the embedding
    for optimiser, state in zip(optimisers, states, strict=True):
        optimiser.load_state_dict({**optimiser.state_dict(), "state": state})


def weights(model: LlamaForCausalLM) -> dict[str, Tensor]:
    """All tensors of the model once: the output matrix is the embedding and is left out."""
    return {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}


def export(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path, notes: Mapping[str, Any]) -> None:
    """Write a folder that `AutoModelForCausalLM` and `AutoTokenizer` load.

    Weights are stored in half the bits (float16) so that two checkpoints fit the size that ships; the
    configuration asks for float32, in which they are loaded and measured. `training.json` keeps the notes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    new = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(new, ignore_errors=True)
    model.config.dtype = torch.float32
    model.config.architectures = ["LlamaForCausalLM"]
    model.config.save_pretrained(new)
    model.generation_config.save_pretrained(new)
    tokenizer.save_pretrained(new)
    halves = {name: tensor.half().contiguous().cpu() for name, tensor in weights(model).items()}
    (new / "model.safetensors").write_bytes(save(halves, {"format": "pt"}))
    (new / "training.json").write_text(json.dumps(notes, indent=2) + "\n", encoding="utf-8")
    for file in sorted(new.iterdir()):
        os.replace(file, folder / file.name)
    new.rmdir()
