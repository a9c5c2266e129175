"""Pruning that removes weights: the projections of attention lose the heads, and the output stays what gating gives.

A query head goes with its rows of W_Q and its columns of W_O; a key/value head goes when every query head of its group
does. What is left must still share evenly: the groups that remain have equally many query heads. A layer that loses all
its heads keeps query head 0 with zeros in W_O, because attention modules do not come without heads: it adds nothing.

Where every layer keeps equally many heads and the architecture can say so, `Compaction.save` writes an ordinary folder
that `from_pretrained` loads. Elsewhere the weights get a plan file beside them, and `load_compacted` reads both.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from transformers import AutoConfig, GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from kernels.errors import InvalidRequest, UnsupportedRequest

PLAN_FILE = "compaction.json"
WEIGHTS_FILE = "model.safetensors"
FORMAT = 1


@dataclass(frozen=True)
class Layout:
    """Where a family keeps its projections: `attention` and their names within a block of `base_model.blocks`.

    fused: q, k, v in one projection, all of q before k before v ("concatenated"), or head after head ("interleaved").
    reads_config: its attention reads the number of heads from the configuration that all layers share.
    """

    blocks: str = "layers"
    attention: str = "self_attn"
    projections: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    output: str = "o_proj"
    fused: Literal["", "concatenated", "interleaved"] = ""
    reads_config: bool = False


_SEPARATE = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text")
LAYOUTS: Mapping[str, Layout] = {
    **dict.fromkeys(_SEPARATE, Layout()),
    "opt": Layout("decoder.layers", output="out_proj"),
    "phi3": Layout(projections=("qkv_proj",), fused="concatenated", reads_config=True),
    "gpt2": Layout("h", "attn", ("c_attn",), "c_proj", fused="concatenated"),
    "gpt_neox": Layout("layers", "attention", ("query_key_value",), "dense", fused="interleaved"),
}
"""By `model_type`. A family belongs here if nothing but its projections mixes or counts heads."""


@dataclass(frozen=True)
class Kept:
    """The query and key/value heads that a layer keeps, in the numbering of the whole model."""

    heads: tuple[int, ...]
    kv_heads: tuple[int, ...]
    silent: bool = False

    @property
    def counts(self) -> tuple[int, int]:
        return len(self.heads), len(self.kv_heads)


@dataclass(frozen=True)
class Compaction:
    """Which query heads a model loses: `removed[layer]`, of `heads` that share `kv_heads`, each `head_dim` wide.

    Raises InvalidRequest for heads that do not exist, UnsupportedRequest where what remains cannot share key/value
    heads evenly.
    """

    heads: int
    kv_heads: int
    head_dim: int
    removed: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        for layer, removed in enumerate(self.removed):
            unknown = [head for head in removed if not 0 <= head < self.heads]
            if unknown:
                raise InvalidRequest(f"there is no head {unknown[0]} in layer {layer}: it has 0 to {self.heads - 1}")
        _ = self.kept

    @classmethod
    def of(cls, model: PreTrainedModel, removed: Mapping[int, Sequence[int]]) -> Compaction:
        """The heads `{layer: heads}` of this model; layers that are not named lose none."""
        config, attentions = model.config, _attentions(model)
        unknown = [layer for layer in removed if not 0 <= layer < len(attentions)]
        if unknown:
            raise InvalidRequest(f"there is no layer {unknown[0]}: the model has 0 to {len(attentions) - 1}")
        heads = config.num_attention_heads
        kv_heads = getattr(config, "num_key_value_heads", None) or heads
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
        lists = (sorted({int(head) for head in removed.get(layer, ())}) for layer in range(len(attentions)))
        return cls(heads, kv_heads, head_dim, tuple(map(tuple, lists)))

    @property
    def kept(self) -> tuple[Kept, ...]:
        """What every layer keeps."""
        return tuple(self._kept(layer) for layer in range(len(self.removed)))

    def _kept(self, layer: int) -> Kept:
        group = self.heads // self.kv_heads
        left: dict[int, list[int]] = {}
        for head in sorted(set(range(self.heads)) - set(self.removed[layer])):
            left.setdefault(head // group, []).append(head)
        if not left:
            return Kept((0,), (0,), silent=True)
        sizes = {kv_head: len(heads) for kv_head, heads in left.items()}
        if len(set(sizes.values())) > 1:
            raise UnsupportedRequest(
                f"layer {layer} would keep {sizes} query heads by key/value head; they are shared evenly, so remove "
                "equally many of each, or whole groups"
            )
        return Kept(tuple(head for heads in left.values() for head in heads), tuple(left))

    def obstacle(self, model: PreTrainedModel) -> str | None:
        """Why the smaller model is no ordinary folder of its architecture; None where it is."""
        counts = {kept.counts for kept in self.kept}
        if len(counts) > 1:
            return f"its layers keep different numbers of query and key/value heads, {sorted(counts)}"
        try:
            config = type(model.config).from_dict({**model.config.to_dict(), **self._settings(model.config)})
            with torch.device("meta"):
                smaller = type(model)(config)
        except (ValueError, StrictDataclassError) as error:
            return f"a {model.config.model_type} configuration refuses these heads: {error}"
        heads, _ = counts.pop()
        layout = _layout(model)
        if _width(getattr(_attentions(smaller)[0], layout.output)) != heads * self.head_dim:
            return f"{model.config.model_type} models take the width of a head from the number of heads"
        return None

    def _settings(self, config: PreTrainedConfig) -> dict[str, int]:
        """What an ordinary configuration says of the smaller model."""
        heads, kv_heads = self.kept[0].counts
        settings = {"num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": self.head_dim}
        if not hasattr(config, "num_key_value_heads"):
            del settings["num_key_value_heads"]
        return settings

    def apply(self, model: PreTrainedModel) -> None:
        """Slice the weights of `model` in place; it must be the whole model. Raises before anything is changed."""
        layout, attentions, config = _layout(model), _attentions(model), model.config
        if len(attentions) != len(self.removed):
            raise InvalidRequest(f"{len(self.removed)} layers of heads for a model of {len(attentions)}")
        for layer, attention in enumerate(attentions):
            self._check_whole(layer, attention, layout)
        ordinary = self.obstacle(model) is None
        for attention, kept in zip(attentions, self.kept, strict=True):
            _slice(attention, layout, self, kept)
            if layout.reads_config and not ordinary:
                attention.config = OwnHeads(config, len(kept.heads))  # type: ignore[assignment]
        if ordinary:
            for name, value in self._settings(config).items():
                setattr(config, name, value)

    def _check_whole(self, layer: int, attention: nn.Module, layout: Layout) -> None:
        names = (*layout.projections, layout.output)
        for module in (getattr(attention, name) for name in names):
            if type(module) not in (nn.Linear, Conv1D) or not module.weight.is_floating_point():
                raise UnsupportedRequest(
                    f"layer {layer} projects with {type(module).__name__}; plain weights are sliced"
                )
        width = _width(getattr(attention, layout.output))
        if width != self.heads * self.head_dim:
            raise InvalidRequest(
                f"layer {layer} has {width // self.head_dim} heads of {self.head_dim}; the plan is of {self.heads}"
            )

    def save(self, model: PreTrainedModel, folder: str | Path, *, allow_plan_file: bool = False) -> None:
        """Write the sliced model to a new folder, whole or not at all.

        Where no ordinary folder can hold it raises UnsupportedRequest, or with `allow_plan_file` writes one that
        `load_compacted` reads. Raises InvalidRequest where there is such a folder already.
        """
        folder = Path(folder)
        if folder.exists():
            raise InvalidRequest(f"{folder} exists already; name a new folder")
        widths = [_width(getattr(x, _layout(model).output)) for x in _attentions(model)]
        if widths != [len(kept.heads) * self.head_dim for kept in self.kept]:
            raise InvalidRequest("the model does not have the heads of this plan: apply it first")
        reason = self.obstacle(model)
        if reason and not allow_plan_file:
            raise UnsupportedRequest(f"no ordinary folder can hold this model: {reason}; give allow_plan_file=True")
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
            whole = Path(temporary) / "model"
            if reason is None:
                model.save_pretrained(whole)
            else:
                self._save_with_plan(model, whole)
            whole.rename(folder)

    def _save_with_plan(self, model: PreTrainedModel, folder: Path) -> None:
        folder.mkdir()
        config = deepcopy(model.config)
        config.architectures, config.dtype = [type(model).__name__], model.dtype
        config.save_pretrained(folder)
        if model.can_generate():
            model.generation_config.save_pretrained(folder)
        save_model(model, str(folder / WEIGHTS_FILE))
        plan = json.dumps({"format": FORMAT, **asdict(self)}, indent=1)
        (folder / PLAN_FILE).write_text(plan + "\n", encoding="utf-8")


class OwnHeads:
    """The configuration that all layers share, with another number of heads."""

    def __init__(self, shared: PreTrainedConfig, heads: int) -> None:
        self.shared = shared
        self.num_attention_heads = heads

    def __getattr__(self, name: str) -> Any:
        if name == "shared" or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.shared, name)


def compact(model: PreTrainedModel, removed: Mapping[int, Sequence[int]]) -> Compaction:
    """Remove query heads `{layer: heads}` from `model`, in place, and say what was done. Raises as Compaction does."""
    compaction = Compaction.of(model, removed)
    compaction.apply(model)
    return compaction


def load_compacted(folder: str | Path) -> PreTrainedModel:
    """A model from a folder with a plan file, on the CPU, in the precision it was saved in, ready to run.

    Raises InvalidRequest for a folder without a plan, or whose plan and weights do not belong together.
    """
    folder = Path(folder)
    compaction = _read_plan(folder / PLAN_FILE)
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    model: PreTrainedModel = getattr(transformers, config.architectures[0])._from_config(config, dtype=config.dtype)
    compaction.apply(model)
    try:
        load_model(model, folder / WEIGHTS_FILE)
    except (RuntimeError, SafetensorError, FileNotFoundError) as error:
        raise InvalidRequest(f"{folder} does not hold the weights that its {PLAN_FILE} describes: {error}") from error
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    return model.eval()


def _layout(model: PreTrainedModel) -> Layout:
    family = model.config.model_type
    if family not in LAYOUTS:
        raise UnsupportedRequest(f"{family} models are not sliced; there are {', '.join(LAYOUTS)}")
    return LAYOUTS[family]


def _attentions(model: PreTrainedModel) -> list[nn.Module]:
    layout = _layout(model)
    return [getattr(block, layout.attention) for block in model.base_model.get_submodule(layout.blocks)]


def _width(projection: nn.Module) -> int:
    """How many features go into a projection."""
    return projection.nx if isinstance(projection, Conv1D) else projection.in_features  # type: ignore[return-value]


@torch.no_grad()
def _slice(attention: nn.Module, layout: Layout, whole: Compaction, kept: Kept) -> None:
    dim, width, kv_width = whole.head_dim, whole.heads * whole.head_dim, whole.kv_heads * whole.head_dim
    heads, kv_heads = _features(kept.heads, dim), _features(kept.kv_heads, dim)
    rows = [heads, kv_heads, kv_heads]
    if layout.fused == "interleaved":
        rows = [_features(kept.heads, 3 * dim)]
    elif layout.fused == "concatenated":
        rows = [torch.cat([heads, width + kv_heads, width + kv_width + kv_heads])]
    for name, index in zip(layout.projections, rows, strict=True):
        _select(getattr(attention, name), index, outputs=True)
    output = getattr(attention, layout.output)
    _select(output, heads, outputs=False)
    if kept.silent:
        output.weight.zero_()
    counts = {
        "num_heads": len(kept.heads),
        "num_key_value_heads": len(kept.kv_heads),
        "num_key_value_groups": len(kept.heads) // len(kept.kv_heads),
        "split_size": len(heads),
    }
    for name, value in counts.items():
        if hasattr(attention, name):
            setattr(attention, name, value)


def _features(heads: Sequence[int], dim: int) -> Tensor:
    """The features of these heads, each `dim` wide, one head after the other."""
    return (torch.tensor(heads)[:, None] * dim + torch.arange(dim)).flatten()


def _select(projection: nn.Module, index: Tensor, *, outputs: bool) -> None:
    """Keep these output (or input) features of a projection."""
    transposed = isinstance(projection, Conv1D)
    weight, bias = projection.weight, projection.bias
    assert isinstance(weight, Tensor)
    axis = 0 if outputs != transposed else 1
    kept = weight.detach().index_select(axis, index.to(weight.device)).contiguous()
    projection.weight = nn.Parameter(kept, requires_grad=weight.requires_grad)
    if outputs and isinstance(bias, Tensor):
        kept = bias.detach().index_select(0, index.to(bias.device))
        projection.bias = nn.Parameter(kept, requires_grad=bias.requires_grad)
    name = ("nf" if outputs else "nx") if transposed else ("out_features" if outputs else "in_features")
    setattr(projection, name, len(index))


def _read_plan(file: Path) -> Compaction:
    if not file.is_file():
        raise InvalidRequest(f"{file.parent} holds no {PLAN_FILE}: load an ordinary folder with from_pretrained")
    try:
        plan = json.loads(file.read_text(encoding="utf-8"))
        if plan["format"] != FORMAT:
            raise InvalidRequest(f"{file} has format {plan['format']!r}; this version reads {FORMAT}")
        removed = tuple(tuple(int(head) for head in heads) for heads in plan["removed"])
        return Compaction(int(plan["heads"]), int(plan["kv_heads"]), int(plan["head_dim"]), removed)
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise InvalidRequest(f"{file} is not a plan of removed heads: {error!r}") from error
