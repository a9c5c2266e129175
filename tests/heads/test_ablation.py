"""Every ablation is what its name says, by hooks written by hand, and the same on the kernels as on eager attention."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from einops import rearrange

import interp
from interp.errors import BadInput
from interp.heads.ablation import KINDS, Ablation, check_heads, fit
from interp.heads.answers import recall_under
from interp.heads.causal import ablation_report
from interp.heads.fed import Fed
from interp.tasks.copying import copy_prompts
from interp.tasks.needle import needle_prompts
from interp.tasks.prompts import PromptSet
from kernels import integration

HEADS = [(0, 1), (1, 2), (1, 3)]
EVERY = (
    "zero",
    "mean",
    "mean-positional",
    "mean-template:group",
    "resample:1",
    "uniform",
    "uniform-at-decode",
    "scale:0.3",
)


@pytest.fixture(scope="module")
def grouped(prompts, tokenizer):
    """The random prompts in two groups."""
    metadata = [{"group": "ab"[i % 2]} for i in range(len(prompts))]
    spans = {"value": [(2 * a, 2 * b - 1) for a, b in prompts.spans["value"]]}
    return PromptSet.build(tokenizer, prompts.texts, prompts.answers, spans=spans, metadata=metadata)


@pytest.fixture(scope="module")
def outputs(llama, grouped):
    """Of every prompt with its answer the outputs of all heads, `[layer tokens head dim]`, from plain hooks."""
    return [z_of(llama.hf, tokens) for tokens in Fed.answering(grouped).tokens]


@torch.no_grad()
def z_of(hf, tokens):
    seen = []
    handles = [
        block.self_attn.o_proj.register_forward_pre_hook(lambda _m, args: seen.append(args[0][0]))
        for block in hf.model.layers
    ]
    hf(torch.tensor([tokens]))
    for handle in handles:
        handle.remove()
    return rearrange(torch.stack(seen), "l t (h d) -> l t h d", h=4)


@torch.no_grad()
def log_probabilities(hf, prompts, replace):
    """Mean log-probability of every answer, where `replace(i, layer, head, z)` gives a head's output `[tokens dim]`."""
    result = []
    for i, (tokens, answer) in enumerate(zip(prompts.tokens, prompts.answer_tokens, strict=True)):

        def hook(layer, i=i):
            def edit(_module, args):
                z = rearrange(args[0].clone(), "1 t (h d) -> t h d", h=4)
                for at, head in HEADS:
                    if at == layer:
                        z[:, head] = replace(i, layer, head, z[:, head])
                return (rearrange(z, "t h d -> 1 t (h d)"),)

            return edit

        handles = [
            block.self_attn.o_proj.register_forward_pre_hook(hook(layer)) for layer, block in enumerate(hf.model.layers)
        ]
        logits = hf(torch.tensor([[*tokens, *answer[:-1]]])).logits[0, len(tokens) - 1 :]
        for handle in handles:
            handle.remove()
        result.append(float(logits.log_softmax(-1)[range(len(answer)), list(answer)].mean()))
    return np.array(result)


def without(model, prompts, ablation, heads=HEADS, **options):
    fitted = fit(model, ablation, Fed.answering(prompts), {layer for layer, _ in heads})
    return recall_under(model, prompts, fitted, heads, **options).log_probability


def positional(outputs, members, layer, head, length):
    """The mean at each position, aligned at the end, by plain loops."""
    rows = [outputs[i][layer, :, head] for i in members]
    overall = torch.cat(rows).mean(0)
    backwards = []
    for distance in range(1, length + 1):
        reaching = [row[-distance] for row in rows if len(row) >= distance]
        backwards.append(torch.stack(reaching).mean(0) if len(reaching) > 1 else overall)
    return torch.stack(backwards[::-1])


def test_zero_and_scale_multiply_the_output(llama, grouped):
    for ablation, factor in (("zero", 0.0), ("scale:0.3", 0.3), ("scale:-1", -1.0)):
        by_hand = log_probabilities(llama.hf, grouped, lambda i, layer, head, z, f=factor: f * z)
        np.testing.assert_allclose(without(llama, grouped, ablation), by_hand, atol=1e-5)


def test_mean_replaces_the_output_by_its_mean_over_all_tokens_of_all_prompts(llama, grouped, outputs):
    def replace(_i, layer, head, _z):
        return torch.cat([z[layer, :, head] for z in outputs]).mean(0)

    np.testing.assert_allclose(
        without(llama, grouped, "mean"), log_probabilities(llama.hf, grouped, replace), atol=1e-5
    )


def test_positional_means_are_aligned_at_the_end(llama, grouped, outputs):
    def replace(_i, layer, head, z):
        return positional(outputs, range(len(outputs)), layer, head, len(z))

    by_hand = log_probabilities(llama.hf, grouped, replace)
    np.testing.assert_allclose(without(llama, grouped, "mean-positional"), by_hand, atol=1e-5)


def test_template_means_stay_within_a_template(llama, grouped, outputs):
    def replace(i, layer, head, z):
        members = [j for j in range(len(outputs)) if j % 2 == i % 2]
        return positional(outputs, members, layer, head, len(z))

    by_hand = log_probabilities(llama.hf, grouped, replace)
    np.testing.assert_allclose(without(llama, grouped, "mean-template:group"), by_hand, atol=1e-5)
    assert np.abs(by_hand - without(llama, grouped, "mean-positional")).max() > 1e-4


def test_resampling_takes_the_output_of_a_prompt_with_another_answer(llama, grouped, outputs):
    donors = fit(llama, "resample:1", Fed.answering(grouped), [0]).donors
    assert all(grouped.answers[i] != grouped.answers[j] for i, j in enumerate(donors))
    assert donors == fit(llama, "resample:1", Fed.answering(grouped), [0]).donors
    assert donors != fit(llama, "resample:2", Fed.answering(grouped), [0]).donors

    def replace(i, layer, head, z):
        donor = outputs[donors[i]][layer, :, head]
        return torch.cat([donor] * -(-len(z) // len(donor)))[-len(z) :]

    by_hand = log_probabilities(llama.hf, grouped, replace)
    np.testing.assert_allclose(without(llama, grouped, "resample:1"), by_hand, atol=1e-5)


@torch.no_grad()
def test_uniform_attention_averages_the_values_seen(llama, grouped):
    """At layer 0, whose values no ablation has touched."""
    attention = llama.hf.model.layers[0].self_attn
    values = []
    handle = attention.v_proj.register_forward_hook(lambda _m, _a, out: values.append(out[0]))
    tokens = Fed.answering(grouped).tokens[3]
    llama.hf(torch.tensor([tokens]))
    handle.remove()
    v = rearrange(values[0], "t (k d) -> t k d", k=2)[:, 0]
    expected = v.cumsum(0) / torch.arange(1, len(v) + 1)[:, None]
    fitted = fit(llama, "uniform", Fed.answering(grouped), [0])
    z = llama.run([list(tokens)], read="z.0", edits=fitted.edits([(0, 1)]))["z.0"][0, :, 1]
    torch.testing.assert_close(z, expected)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
@pytest.mark.parametrize("ablation", EVERY)
def test_the_kernels_and_eager_attention_agree_on_every_ablation(make_model, grouped, family, ablation):
    integration.install()
    eager, kernels = (make_model(family, attention) for attention in ("eager", "workbench"))
    for batch_size in (1, 5):
        on_kernels = without(kernels, grouped, ablation, batch_size=batch_size)
        np.testing.assert_allclose(on_kernels, without(eager, grouped, ablation, batch_size=batch_size), atol=2e-4)
    unharmed = recall_under(eager, grouped).log_probability
    assert np.abs(on_kernels - unharmed).max() > 1e-3, "the ablation has no effect"


def test_every_kind_is_tried_here():
    assert {Ablation.parse(text).kind for text in EVERY} == set(KINDS)


def test_layers_may_lose_all_their_heads(llama, make_model, grouped):
    """Allowed and defined: attention of the layer adds what its output projection adds to nothing."""
    heads = [(1, head) for head in range(4)]
    silent = without(llama, grouped, "zero", heads)

    handle = llama.hf.model.layers[1].self_attn.o_proj.register_forward_pre_hook(lambda _m, args: (args[0] * 0,))
    by_hand = recall_under(llama, grouped).log_probability
    handle.remove()
    np.testing.assert_allclose(silent, by_hand, atol=1e-5)
    np.testing.assert_allclose(without(make_model("llama", "workbench"), grouped, "zero", heads), by_hand, atol=1e-4)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("zeros", "did you mean 'zero'"),
        ("scale:much", "'much' is not the factor"),
        ("scale:nan", "no finite factor"),
        ("zero:3", "takes nothing after a colon"),
        ("resample:x", "not the seed"),
    ],
)
def test_an_ablation_that_is_none_is_refused(text, said):
    with pytest.raises(BadInput, match=said):
        Ablation.parse(text)


def test_names_read_back_as_the_same_ablation():
    for text in EVERY:
        assert str(Ablation.parse(text)) == text
    for one, other in pairwise(map(Ablation.parse, EVERY)):
        assert one != other


def test_ablations_that_need_more_of_the_prompts_say_so(llama, grouped, prompts):
    fed = Fed.answering(grouped)
    with pytest.raises(BadInput, match="no prompt says its 'template'; valid: group"):
        fit(llama, "mean-template", fed, [0])
    with pytest.raises(BadInput, match="have no metadata"):
        fit(llama, "mean-template", Fed.answering(prompts), [0])
    with pytest.raises(BadInput, match="single prompt"):
        fit(llama, "mean-positional", Fed.answering(grouped[:1]), [0])
    with pytest.raises(BadInput, match="no donor"):
        fit(llama, "resample", Fed.answering(grouped[:1]), [0])
    with pytest.raises(BadInput, match="plain text has none"):
        fit(llama, "uniform-at-decode", Fed(fed.tokens, (0,) * len(fed)), [0])
    with pytest.raises(BadInput, match="no prompts"):
        Fed.answering(grouped[:0])


def test_heads_that_are_not_there_are_refused(llama):
    with pytest.raises(BadInput, match=r"no head 1\.4.*heads 0 to 3"):
        check_heads(llama, [(1, 4)])
    with pytest.raises(BadInput, match="distinct"):
        check_heads(llama, [(1, 1), (1, 1)])


def test_the_study_through_the_kernels_is_the_study_through_eager_hooks_on_pocket():
    ablations = ["zero", "mean", "resample", "uniform-at-decode"]
    frames = []
    for attention in ("eager", "workbench"):
        model = interp.load("pocket", attention=attention)
        prompts = needle_prompts(model.tokenizer, [160], [20, 80], n_needles=2)
        report = ablation_report(model, prompts, [(2, 0), (2, 1)], ablations=ablations, seeds=(0,))
        assert set(report.frame.attention) == {attention}
        frames.append(report.frame.drop(columns=["attention", "log_probability"]))
        frames[-1].attrs["said"] = report.samples[:, :, 2]
    assert frames[0].equals(frames[1])
    np.testing.assert_allclose(frames[1].attrs["said"], frames[0].attrs["said"], atol=2e-3)


@pytest.mark.parametrize("folder", ["stories260k", "bitllama-1.3m"])
def test_the_study_through_the_kernels_is_the_study_through_eager_hooks_on_real_models(shared, folder):
    frames = []
    for attention in ("eager", "workbench"):
        model = interp.load(shared / "models" / folder, attention=attention)
        prompts = copy_prompts(model.tokenizer, 12)
        report = ablation_report(model, prompts, [(1, 0), (3, 5)], ablations=["mean", "zero", "uniform"], seeds=(0, 1))
        frames.append(report.samples)
    np.testing.assert_array_equal(frames[0][:, :, 0], frames[1][:, :, 0])
    np.testing.assert_allclose(frames[0][:, :, 2], frames[1][:, :, 2], atol=5e-3)
    assert np.abs(frames[0][1:, :, 2] - frames[0][0, :, 2]).max() > 0.01
