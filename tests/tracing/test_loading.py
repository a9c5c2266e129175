"""Models come from folders, names and objects; what cannot be loaded or traced says why in a sentence."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel

import interp
from interp.errors import BadInput, ModelNotLoadable, SiteUnavailable, UnsupportedArchitecture
from interp.tracing.sites import SITES
from tests.families import FAMILIES, VOCAB, build, prompts, randomise, word_tokenizer
from tests.tracing.test_reads import close


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny Llama and its tokenizer."""
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    build("llama").save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy of it to damage."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


def test_a_folder_loads_with_its_tokenizer_ready_to_read(saved: Path) -> None:
    for name in (saved, str(saved)):
        model = interp.load(name, device="cpu")
        assert model.spec.name == "tiny-llama"
        close(model.run("w3 w4 w5").logits, interp.wrap(build("llama")).run([[3, 4, 5]]).logits)
        assert not model.hf.training
        assert not any(p.requires_grad for p in model.hf.parameters())


def test_the_specification_has_the_model_s_numbers(family: str, model: interp.Model) -> None:
    spec, config = model.spec, FAMILIES[family][1]
    wide = config.get("hidden_size") or config.get("n_embd") or config.get("dim")
    assert (spec.layers, spec.heads, spec.head_dim, spec.width, spec.vocab) == (2, 4, 32, wide, VOCAB)
    grouped = {"falcon": 1, "falcon_grouped": 2}
    assert spec.kv_heads == grouped.get(family, config.get("num_key_value_heads", spec.heads))
    if "mlp_post" in model.refusals:
        assert spec.mlp_width == config.get("moe_intermediate_size", config["intermediate_size"])
    else:
        assert spec.mlp_width == model.run(prompts(1, 2), read="mlp_post.0")["mlp_post.0"].shape[-1]
    assert spec.parameters == sum(p.numel() for p in model.hf.parameters())
    assert spec.context == (None if family == "bloom" else 96)
    local = ["mistral", "mixtral", "qwen2_moe", "gemma2", "gemma3", "gpt_oss", "gpt_neo", "cohere2"]
    assert model.sliding_window == (6 if family in local else 3 if family == "modernbert" else None)
    assert (spec.family, spec.dtype) == (FAMILIES[family][0], "float32")


def test_attention_and_dtype_are_those_asked_for(saved: Path) -> None:
    assert interp.load(saved).attention == "sdpa"
    model = interp.load(saved, attention="eager", dtype="bfloat16", device="cpu")
    assert (model.attention, model.spec.dtype) == ("eager", "bfloat16")
    assert interp.load(saved, dtype=torch.float64).spec.dtype == "float64"


def test_a_device_map_is_followed(saved: Path) -> None:
    pytest.importorskip("accelerate")
    model = interp.load(saved, device_map={"": "cpu"})
    close(model.run("w3 w4").logits, interp.load(saved, device="cpu").run("w3 w4").logits)
    before = model.run("w3 w4").logits
    model.run("w3 w4", read="resid_pre.1")
    assert torch.equal(model.run("w3 w4").logits, before)
    assert model.doctor().ok
    with pytest.raises(BadInput, match="exclude each other"):
        interp.load(saved, device_map="cpu", device="cpu")


def test_revision_reaches_model_and_tokenizer(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def recorder(original: Callable[..., Any]) -> Callable[..., Any]:
        def from_pretrained(source: str | Path, **options: Any) -> Any:
            if source != "some-one/some-model":
                return original(source, **options)
            seen.append(options["revision"])
            assert options["trust_remote_code"] is False
            return original(saved, **{**options, "revision": None})

        return from_pretrained

    for auto in (transformers.AutoTokenizer, transformers.AutoConfig, transformers.AutoModelForCausalLM):
        monkeypatch.setattr(auto, "from_pretrained", recorder(auto.from_pretrained))
    interp.load("some-one/some-model", revision="v2")
    assert seen == ["v2", "v2", "v2"]


def damage_missing(folder: Path) -> None:
    shutil.rmtree(folder)


def damage_header(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(b"\xff" * 64 + weights.read_bytes()[64:])


def damage_half(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])


def damage_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def damage_tensor(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.self_attn.q_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def damage_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def damage_tokenizer_text(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{")


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no folder": (damage_missing, "there is no folder .*model; give a folder, a hub id or one of"),
    "no config.json": (lambda f: (f / "config.json").unlink(), "holds no config.json"),
    "config.json cut short": (damage_config, "cannot be loaded"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "holds no weights"),
    "pickled weights only": (damage_pickle, r"only pickled weights \(pytorch_model.bin\), which can run code"),
    "a corrupt header": (damage_header, "the model in .* cannot be loaded: .*header"),
    "half a file": (damage_half, "the model in .* cannot be loaded"),
    "a missing tensor": (damage_tensor, r"the weights of .* lack model.layers.1.self_attn.q_proj.weight$"),
    "no tokenizer": (lambda f: [p.unlink() for p in f.glob("tokenizer*")], "holds no tokenizer; pass tokenizer="),
    "a tokenizer without words": (lambda f: (f / "tokenizer.json").unlink(), "holds no tokenizer"),
    "a corrupt tokenizer": (damage_tokenizer_text, "the tokenizer in .* cannot be loaded"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_folder_that_cannot_be_loaded_says_why(folder: Path, damage: str) -> None:
    break_it, message = DAMAGE[damage]
    break_it(folder)
    with pytest.raises(ModelNotLoadable, match=message) as caught:
        interp.load(folder)
    assert "\n" not in str(caught.value)


def test_a_folder_without_tokenizer_loads_with_one_from_elsewhere(folder: Path, saved: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()
    for tokenizer in (str(saved), word_tokenizer()):
        assert interp.load(folder, tokenizer=tokenizer).run("w3").tokens.tolist() == [[3]]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("some-one/no-such-model", "some-one/no-such-model is neither bundled nor a folder here"),
        ("./nowhere", "there is no folder"),
        ("two words", "there is no folder"),
    ],
)
def test_a_name_that_leads_nowhere_says_so(name: str, message: str) -> None:
    with pytest.raises(ModelNotLoadable, match=message) as caught:
        interp.load(name)
    assert "\n" not in str(caught.value)


def test_a_file_is_not_a_model_folder(saved: Path) -> None:
    with pytest.raises(ModelNotLoadable, match="is a file; give the folder"):
        interp.load(saved / "config.json")


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"backend": "hoks"}, BadInput),
        ({"dtype": "float99"}, BadInput),
        ({"attention": "no_such_attention"}, ModelNotLoadable),
        ({"device": "no_such_device"}, ModelNotLoadable),
    ],
)
def test_options_that_do_not_exist_are_refused(saved: Path, options: dict[str, str], error: type[Exception]) -> None:
    with pytest.raises(error, match=next(iter(options.values()))):
        interp.load(saved, **options)  # type: ignore[arg-type]


def random_model(model_type: str, **settings: Any) -> PreTrainedModel:
    sizes = {
        "vocab_size": VOCAB,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "max_position_embeddings": 96,
        "pad_token_id": 0,
    }
    torch.manual_seed(0)
    settings = {name: value for name, value in {**sizes, **settings}.items() if value is not None}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **settings))
    randomise(model)
    return model.eval()


@pytest.mark.parametrize("model_type", ["granite", "starcoder2", "smollm3", "olmo", "olmoe"])
def test_families_outside_the_table_are_recognised_by_their_structure_and_proven(model_type: str) -> None:
    model = interp.wrap(random_model(model_type))
    names = [name for name in SITES if name not in model.parts.refusals]
    assert len(model.run(prompts(), read=names, logits="all")) > 20
    assert model.doctor().ok, str(model.doctor())


def test_bitnet_is_not_in_the_table(model_of: Callable[..., interp.Model]) -> None:
    assert model_of("bitnet").spec.family == "bitnet"
    assert "bitnet" not in interp.tracing.families.ARCHITECTURES


def without_layers(hf: Any) -> Any:
    del hf.model.layers
    return hf


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "a residual multiplier": (
        lambda: random_model("granite", residual_multiplier=0.3),
        "does not obey the site equation 'resid_pre \\+ attn_out \\+ mlp_out = resid_post \\(0\\)'",
    ),
    "norms after the sum": (lambda: random_model("exaone4"), "none of input_layernorm.* in model.layers"),
    "no attention": (lambda: random_model("mamba", num_attention_heads=None), "none of self_attn"),
    "fused projections": (
        lambda: random_model("persimmon", head_dim=None, num_key_value_heads=None),
        "no separate query, key and value projections in model.layers.N.self_attn",
    ),
    "a family's name and other modules": (
        lambda: without_layers(build("llama")),
        "should keep 'model.layers' where the family 'llama' does",
    ),
    "an encoder-decoder": (
        lambda: AutoModelForSeq2SeqLM.from_config(
            AutoConfig.for_model("t5", vocab_size=VOCAB, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
        ),
        "is an encoder-decoder",
    ),
    "a plain module": (lambda: nn.Linear(2, 2), "cannot wrap a Linear"),
    "a path": (lambda: "some/folder", "cannot wrap a str"),
    "nothing": (lambda: None, "cannot wrap a NoneType"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_traced_says_what_is_missing(case: str) -> None:
    make, message = REFUSED[case]
    with pytest.raises(UnsupportedArchitecture, match=message):
        interp.wrap(make())


def test_a_recognised_family_whose_attention_goes_elsewhere_is_refused() -> None:
    model = random_model("olmo")
    attention = model.model.layers[1].self_attn

    def forward(hidden_states: torch.Tensor, **_: Any) -> tuple[torch.Tensor, None]:
        return attention.o_proj(attention.q_proj(hidden_states)), None

    attention.forward = forward
    with pytest.raises(UnsupportedArchitecture, match="(never reached|does not go through)"):
        interp.wrap(model)


def test_wrapping_changes_nothing_and_wrapping_twice_shares_the_lock() -> None:
    hf = build("llama")
    before = {name: value.clone() for name, value in hf.state_dict().items()}
    first, tokenizer = interp.wrap(hf), word_tokenizer()
    second = interp.wrap(first, tokenizer=tokenizer)
    assert second.hf is first.hf is hf
    assert second.tokenizer is tokenizer
    assert interp.wrap(second).tokenizer is tokenizer
    assert first.lock is second.lock
    assert all(torch.equal(value, before[name]) for name, value in hf.state_dict().items())
    assert all(p.requires_grad for p in hf.parameters())


def test_a_text_model_inside_a_multimodal_one_is_traced() -> None:
    text = AutoConfig.for_model("gemma3_text", **FAMILIES["gemma3"][1])
    config = AutoConfig.for_model(
        "gemma3",
        text_config=text,
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
        },
    )
    torch.manual_seed(0)
    hf = transformers.Gemma3ForConditionalGeneration(config).eval()
    randomise(hf)
    model = interp.wrap(hf)
    assert model.doctor().ok, str(model.doctor())
    with torch.no_grad():
        close(model.run(prompts(), logits="all").logits, hf(prompts()).logits)


def test_the_fingerprint_identifies_weights_and_not_where_they_are(saved: Path, tmp_path: Path) -> None:
    model = interp.load(saved)
    moved = Path(shutil.copytree(saved, tmp_path / "elsewhere"))
    assert len(model.fingerprint) == 16
    assert interp.load(moved, attention="eager").fingerprint == model.fingerprint
    assert interp.wrap(build("llama", "sdpa")).fingerprint == model.fingerprint
    model.hf.set_attn_implementation("eager")
    assert interp.wrap(model.hf).fingerprint == model.fingerprint
    assert interp.wrap(build("qwen3")).fingerprint != model.fingerprint
    assert interp.load(saved, dtype="bfloat16").fingerprint != model.fingerprint
    with torch.no_grad():
        model.hf.model.layers[1].mlp.down_proj.weight[3, 5] += 1e-3
    assert interp.wrap(model.hf).fingerprint != interp.load(saved).fingerprint
    other_rope = build("llama", rope_parameters={"rope_type": "default", "rope_theta": 5000.0})
    assert interp.wrap(other_rope).fingerprint != interp.load(saved).fingerprint


def test_the_description_says_where_every_site_is_or_why_it_is_not(model: interp.Model, family: str) -> None:
    described = model.describe()
    frame = described.frame.set_index("site")
    assert len(frame) == len(SITES)
    refused = {name if SITES[name].scope == "model" else f"{name}.L" for name in model.parts.refusals}
    assert set(frame.index[~frame["available"]]) == refused
    assert (frame.loc[~frame["available"], "reason"] != "").all()
    assert FAMILIES[family][0] in str(described)
    assert "<table" in described._repr_html_()


def test_offloaded_weights_have_no_fingerprint_and_no_head_outputs() -> None:
    hf = build("llama")
    hf.model.layers[0].self_attn.o_proj.to("meta")
    model = interp.wrap(hf)
    with pytest.raises(BadInput, match=r"layers.0.self_attn.o_proj.weight are offloaded"):
        model.fingerprint  # noqa: B018
    with pytest.raises(SiteUnavailable, match="offloaded"):
        model.run(prompts(), read="head_out.1")


class Quantised(nn.Module):
    """Weights in another form than a matrix of floats, as quantisation libraries hold them."""

    def __init__(self, exact: nn.Linear, weight: torch.Tensor) -> None:
        super().__init__()
        self.exact = exact
        self.register_buffer("weight", weight)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.exact(z)


@pytest.mark.parametrize("weight", [torch.zeros(3, dtype=torch.uint8), torch.zeros(64, 128)])
def test_quantised_output_weights_refuse_head_outputs_only(weight: torch.Tensor) -> None:
    hf = build("llama")
    attention = hf.model.layers[1].self_attn
    attention.o_proj = Quantised(attention.o_proj, weight)
    model = interp.wrap(hf)
    with pytest.raises(
        SiteUnavailable, match=r"W_O \(Quantised\) does not hold .* load the model without quantisation"
    ):
        model.run(prompts(), read="head_out.0")
    close(model.run(prompts(), edits=interp.scale("z.0.1", 2.0)).logits, _reference(interp.scale("z.0.1", 2.0)))
    assert model.doctor().ok


def test_weights_of_eight_bits_are_no_matrix_to_slice() -> None:
    hf = build("llama")
    hf.model.layers[0].self_attn.o_proj.to(torch.float8_e4m3fn)
    assert "does not hold a plain floating-point matrix" in interp.wrap(hf).refusals["head_out"]


@pytest.mark.filterwarnings("ignore:.*torch.ao.quantization is deprecated")
def test_a_quantised_model_is_traced_except_where_weights_are_read() -> None:
    exact = interp.wrap(build("llama"))
    quantization = pytest.importorskip("torch.ao.quantization")
    model = interp.wrap(quantization.quantize_dynamic(build("llama"), {nn.Linear}))
    plain, rough = (m.run(prompts(), read="resid_post.1")["resid_post.1"] for m in (exact, model))
    assert 0 < (plain - rough).norm() < 0.2 * plain.norm()
    edited = model.run(prompts(), read="resid_post.1", edits=interp.zero("z.0.1"))["resid_post.1"]
    assert (edited - rough).abs().max() > 1e-2
    diagnosis = model.doctor()
    refused = diagnosis.frame[diagnosis.frame["result"] == "refused"]
    assert list(refused["check"]) == ["sum of head_out + bias = W_O z"]
    with pytest.raises(SiteUnavailable, match="does not hold a plain floating-point matrix"):
        model.run(prompts(), read="head_out.0")
    with pytest.raises(BadInput, match=r"is packed \(.*\), so its bytes cannot be read"):
        model.fingerprint  # noqa: B018


def test_a_model_on_the_meta_device_has_shapes_and_says_that_it_cannot_run() -> None:
    with torch.device("meta"):
        model = interp.wrap(
            AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **FAMILIES["llama"][1])).eval()
        )
    assert model.spec.heads == 4
    assert "meta device" in model.describe().frame.set_index("site").loc["head_out.L", "reason"]
    for call in (lambda: model.run(prompts()), lambda: model.generate(prompts()), lambda: model.prefill(prompts(1))):
        with pytest.raises(BadInput, match="LlamaForCausalLM is on the meta device: it has shapes and no weights"):
            call()
    with pytest.raises(BadInput, match="a model whole in memory has a fingerprint"):
        model.fingerprint  # noqa: B018


def _reference(edit: interp.Edit) -> torch.Tensor:
    return interp.wrap(build("llama")).run(prompts(), edits=edit).logits
