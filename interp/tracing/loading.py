"""From a name, a folder or an object in memory to a `Model`."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES
from transformers.pytorch_utils import Conv1D

from interp.errors import BadInput, ModelNotLoadable, UnsupportedArchitecture, choose
from interp.tracing.architectures import Parts, locate_parts
from interp.tracing.backends.contract import Adopted
from interp.tracing.doctor import first_failure, random_tokens, site_equations
from interp.tracing.families import ARCHITECTURES
from interp.tracing.model import Model
from interp.tracing.spec import ModelSpec
from interp.tracing.structure import count, recognise
from kernels import integration
from kernels.compaction import PLAN_FILE
from kernels.errors import UnsupportedRequest

BACKENDS = {
    "hooks": "interp.tracing.backends.hooks",
    "nnsight": "interp.tracing.backends.nnsight",
    "transformer_lens": "interp.tracing.backends.transformer_lens",
}
"""Each backend's module, whose `adopt` takes an object over; imported when first used."""
LIBRARIES: dict[str, str] = {
    "nnsight": "nnsight",
    "transformer_lens": "transformer_lens",
}
"""The package an object's class comes from, and the backend that runs on such objects natively."""
REMOTE = {"nnsight": "interp.tracing.backends.nnsight_remote"}
"""Backends that can also run models on a remote service, and the module that does."""
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
TOKENIZERS = ("tokenizer.json", "*.model", "vocab.*")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def load(
    name_or_path: str | Path,
    *,
    backend: str = "hooks",
    attention: str | None = None,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device | None = None,
    device_map: Any = None,
    revision: str | None = None,
    tokenizer: Any = None,
    trust_remote_code: bool = False,
    remote: bool = False,
) -> Model:
    """Load a bundled model (`"pocket"`), a local folder or a hub id.

    Args:
        attention: transformers' attention implementation (`"sdpa"`, `"eager"`, `"flex_attention"`, …) or our kernels
        (`"workbench"`); its default otherwise. dtype: `"auto"` keeps the checkpoint's. device: the first GPU if there
        is one, else the CPU; exclusive with `device_map`, which spreads the model (accelerate). tokenizer: a folder or
        hub id (or tokenizer object) when the model's own folder has none. remote: the model stays on the remote service
        of `backend="nnsight"` (NDIF); no weights are loaded here.

    Raises:
        ModelNotLoadable: nothing there, no tokenizer, no safetensors weights, or weights that cannot be read.
        UnsupportedArchitecture: its parts could not be found, or do not obey the site equations.
        RemoteUnavailable: there is no key for the remote service, or nobody answers.
    """
    check_backend(backend)
    if device is not None and device_map is not None:
        raise BadInput("device and device_map exclude each other; give one")
    if backend == "transformer_lens" and attention not in (None, "eager"):
        raise BadInput(f"a TransformerBridge always computes eager attention, so attention={attention!r} cannot be had")
    common = {"revision": revision, "trust_remote_code": trust_remote_code}
    if remote:
        if device is not None or device_map is not None or dtype != "auto":
            raise BadInput("device, device_map and dtype are the remote service's own choice; leave them out")
        return _load_remote(str(name_or_path), tokenizer, backend, {**common, "attn_implementation": attention})
    source = _resolve(str(name_or_path))
    try:
        config = AutoConfig.from_pretrained(source, **common)
    except Exception as error:
        raise _not_loadable(source, "the configuration", error) from error
    _refuse_encoder_decoder(config)
    if attention == integration.NAME:
        _install_kernels(config)
    words = _load_tokenizer(source if tokenizer is None else tokenizer, common)
    options = {"attn_implementation": attention, "device_map": device_map, "dtype": dtype}
    try:
        hf, report = _auto_class(config).from_pretrained(
            source,
            **common,
            **{k: v for k, v in options.items() if v is not None},
            use_safetensors=True,
            output_loading_info=True,
        )
        if device_map is None:
            hf = hf.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except Exception as error:
        raise _not_loadable(source, "the model", error) from error
    missing = report["missing_keys"]
    if any(key.startswith("pooler.") for key in missing):
        hf.pooler = None  # nothing reads it, and at random it would change the fingerprint
    if absent := sorted(key for key in missing if not key.startswith("pooler.")):
        more = f" and {len(absent) - 3} more" if len(absent) > 3 else ""
        raise ModelNotLoadable(f"the weights of {source} lack {', '.join(absent[:3])}{more}")
    name = _display_name(str(name_or_path))
    return wrap(hf.eval().requires_grad_(False), tokenizer=words, backend=backend, name=name)


def _load_remote(name: str, tokenizer: Any, backend: str, options: dict[str, Any]) -> Model:
    """The model of a hub id as the remote service of a backend has it."""
    service = import_module(_home(backend, remote=True))
    service.check()
    if Path(name).exists() or not HUB_ID.fullmatch(name):
        raise ModelNotLoadable(f"{name} is no hub id, and a remote service knows models by nothing else")
    common = {key: options[key] for key in ("revision", "trust_remote_code")}
    words = _load_tokenizer(name if tokenizer is None else tokenizer, common)
    return wrap(service.skeleton(name, words, options), backend=backend, name=name, remote=True)


def wrap(
    model: Any, tokenizer: Any = None, *, backend: str | None = None, name: str | None = None, remote: bool = False
) -> Model:
    """A `Model` over a language model object that is already in memory; the object itself is not changed.

    Args:
        model: a transformers model, or an object of another library that a backend runs on natively.
        backend: `"hooks"`, …; the one the object belongs to by default.
        remote: run on the remote service of nnsight (NDIF) what an nnsight model of a hub id names.

    Raises UnsupportedArchitecture for objects and families that cannot be traced, saying what is missing;
    RemoteUnavailable without a key for the remote service, or when nobody answers.
    """
    if isinstance(model, Model):
        remote = remote or model.remote
        tokenizer = model.tokenizer if tokenizer is None else tokenizer
        model = model.backend_object if model.backend.name.startswith(backend or "") else model.hf
    adopted = _adopt(model, backend, remote)
    model, tokenizer = adopted.hf, adopted.tokenizer if tokenizer is None else tokenizer
    whole = getattr(model, "config", None)
    if not isinstance(model, nn.Module) or not isinstance(whole, PreTrainedConfig):
        raise UnsupportedArchitecture(f"cannot wrap a {type(model).__name__}; give a transformers language model")
    _refuse_encoder_decoder(whole)
    config = whole.get_text_config()
    architecture = ARCHITECTURES.get(whole.model_type) or ARCHITECTURES.get(config.model_type)
    known = architecture is not None
    parts = locate_parts(model, architecture or recognise(model, config), config)
    spec = _spec(
        model,
        config,
        parts,
        name or _display_name(getattr(config, "_name_or_path", "")) or type(model).__name__,
    )
    if remote and not known:
        raise UnsupportedArchitecture(
            f"the family {spec.family!r} is not in the table, and its structure cannot be proven without weights here"
        )
    wrapped = Model(model, parts, spec, tokenizer, adopted.build(parts, spec))
    return wrapped if known else _proven(wrapped)


def check_backend(backend: str) -> None:
    """Refuse a name that is no backend's."""
    if backend not in BACKENDS:
        raise BadInput(f"there is no backend {backend!r}; {choose(backend, BACKENDS)}")


def _refuse_encoder_decoder(config: Any) -> None:
    if config.is_encoder_decoder:
        raise UnsupportedArchitecture(
            f"{config.model_type!r} is an encoder-decoder; sites are defined for one stack of blocks: a decoder or an "
            "encoder"
        )


def _install_kernels(config: Any) -> None:
    """Let transformers find our kernels by their name, unless the family could not use them."""
    try:
        integration.check_family(config)
    except UnsupportedRequest as error:
        raise UnsupportedArchitecture(str(error)) from error
    integration.install()


def _auto_class(config: Any) -> Any:
    """transformers' loader for what was saved: blocks without a head, a masked language model, or a causal one."""
    saved_as = config.architectures[0] if config.architectures else None
    if saved_as is not None and saved_as == MODEL_MAPPING_NAMES.get(config.model_type):
        return AutoModel
    architecture = ARCHITECTURES.get(config.model_type)
    if architecture is None or architecture.causal:
        return AutoModelForCausalLM
    masked = saved_as is None or saved_as.endswith(("ForMaskedLM", "ForPreTraining"))
    return AutoModelForMaskedLM if masked else AutoModel


def _home(backend: str, remote: bool) -> str:
    """The module of a backend, here or on its remote service."""
    check_backend(backend)
    if remote and backend not in REMOTE:
        raise BadInput(f"the {backend} backend has no remote service; {choose(backend, REMOTE)}")
    return REMOTE[backend] if remote else BACKENDS[backend]


def _adopt(model: Any, backend: str | None, remote: bool) -> Adopted:
    """Take the object over with the backend asked for, or with the one of the library it comes from."""
    packages = {kind.__module__.partition(".")[0] for kind in type(model).__mro__}
    native = next((LIBRARIES[package] for package in LIBRARIES if package in packages), "hooks")
    if native != "hooks" and backend not in (None, native):
        raise BadInput(
            f"{type(model).__name__} runs on the {native} backend; for {backend} give the transformers model inside it"
        )
    adopted: Adopted = import_module(_home(backend or native, remote)).adopt(model)
    return adopted


def _resolve(name: str) -> str:
    from interp.shipped import data_folder

    bundled = sorted(p.parent.name for p in data_folder().glob("*/config.json"))
    if name in bundled:
        return str(data_folder() / name)
    folder = Path(name).expanduser()
    if not folder.is_dir():
        if folder.exists():
            raise ModelNotLoadable(f"{name} is a file; give the folder that holds config.json")
        if name.startswith((".", "/", "~")) or not HUB_ID.fullmatch(name):
            raise ModelNotLoadable(f"there is no folder {name}; give a folder, a hub id or one of {', '.join(bundled)}")
        return name
    if not (folder / "config.json").is_file():
        raise ModelNotLoadable(f"{name} holds no config.json, so it is not a model folder")
    if (folder / PLAN_FILE).is_file():
        raise ModelNotLoadable(
            f"{name} holds a pruned model with other heads in every layer ({PLAN_FILE}), whose heads have no common "
            "numbers; kernels.compaction.load_compacted reads it as a transformers model"
        )
    if not any(folder.glob("*.safetensors")):
        pickles = sorted(p.name for pattern in PICKLES for p in folder.glob(pattern))
        held = (
            f"only pickled weights ({', '.join(pickles)}), which can run code when opened" if pickles else "no weights"
        )
        raise ModelNotLoadable(f"{name} holds {held}; save it with save_pretrained(…, safe_serialization=True)")
    return str(folder)


def _load_tokenizer(source: Any, common: dict[str, Any]) -> Any:
    if not isinstance(source, (str, Path)):
        return source
    from transformers import AutoTokenizer

    folder = Path(source)
    if folder.is_dir() and not any(any(folder.glob(pattern)) for pattern in TOKENIZERS):
        raise ModelNotLoadable(f"{source} holds no tokenizer; pass tokenizer=FOLDER or wrap() the model for token ids")
    try:
        return AutoTokenizer.from_pretrained(source, **common)
    except Exception as error:
        raise _not_loadable(str(source), "the tokenizer", error) from error


def _spec(model: nn.Module, config: Any, parts: Parts, name: str) -> ModelSpec:
    heads = count(config, "num_attention_heads")
    width = count(config, "hidden_size")
    architecture = parts.architecture
    positions = getattr(config, "max_position_embeddings", None)
    return ModelSpec(
        name=name,
        family=str(config.model_type),
        layers=len(parts.blocks),
        heads=heads,
        kv_heads=int(architecture.kv_heads or getattr(config, "num_key_value_heads", None) or heads),
        head_dim=int(getattr(config, "head_dim", None) or width // heads),
        width=width,
        mlp_width=_mlp_width(config, parts.blocks[0].mlp_down),
        vocab=count(config, "vocab_size"),
        context=None if positions is None else positions - architecture.first_position,
        dtype=str(next(model.parameters()).dtype).removeprefix("torch."),
        parameters=sum(p.numel() for p in model.parameters()),
    )


def _mlp_width(config: Any, down: nn.Module | None) -> int:
    """Neurons of the MLP, or of one expert."""
    if down is None:
        return int(getattr(config, "moe_intermediate_size", None) or config.intermediate_size)
    width = down.weight.shape[0] if isinstance(down, Conv1D) else getattr(down, "in_features", None)
    return int(width or count(config, "intermediate_size"))


def _proven(model: Model) -> Model:
    """Accept a family recognised by its structure only if the site equations hold on random tokens."""
    failure = first_failure(lambda: site_equations(model, random_tokens(model)))
    if failure is None:
        return model
    raise UnsupportedArchitecture(
        f"the family {model.spec.family!r} is not in the table, and its structure does not obey the site equation "
        f"{failure.name!r} (relative error {failure.error:.2g}{'; ' + failure.note if failure.note else ''})"
    )


def _display_name(name: str) -> str:
    return Path(name).name if Path(name).is_dir() else name


def _not_loadable(source: str, what: str, error: Exception) -> ModelNotLoadable:
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    if Path(source).is_dir():
        return ModelNotLoadable(f"{what} in {source} cannot be loaded: {text}")
    return ModelNotLoadable(
        f"{source} is neither bundled nor a folder here, and {what} cannot be had as a hub id: {text}"
    )
