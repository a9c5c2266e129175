"""Attention between roles against whole attention matrices, copy scores against the weights themselves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import interp
from interp.circuits.evidence import attention_between, copy_scores
from interp.errors import BadInput
from interp.tasks.ioi import ioi_prompts
from interp.tasks.prompts import PromptSet


@pytest.fixture(scope="module")
def llama(planted):
    """A random grouped-query model of two layers that reads the planted model's tokens."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(planted.tokenizer),
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        bos_token_id=None,
        eos_token_id=None,
    )
    hf = LlamaForCausalLM(config)
    for parameter in hf.parameters():
        parameter.data.mul_(6 if parameter.ndim > 1 else 1)
    return interp.wrap(hf.eval(), planted.tokenizer)


@torch.no_grad()
def whole_attention(model, tokens):
    model.hf.set_attn_implementation("eager")
    try:
        return torch.stack(model.hf(torch.tensor([tokens]), output_attentions=True).attentions)[:, 0].double().numpy()
    finally:
        model.hf.set_attn_implementation("sdpa")


def test_attention_between_roles_equals_entries_of_whole_matrices(llama, abc):
    links = [("end", "IO"), ("end", "S2"), ("S2", "S1"), ("S2", "S1+1")]
    found = attention_between(llama, abc, links)
    assert set(found) == set(links)
    for i in (0, 7, 31):
        rows = whole_attention(llama, abc.tokens[i])
        for query, key in links:
            a, b = abc.spans[query][i][0], abc.spans[key][i][0]
            np.testing.assert_allclose(found[query, key][i], rows[:, :, a, b], atol=1e-5)


def test_a_role_of_several_tokens_is_attended_to_as_a_whole_and_from_its_last(llama):
    text = "Because Emma and Mary liked the restaurant, Emma sold a puzzle to"
    spans = {"people": [(text.index("Emma"), text.index(" liked"))], "end": [(len(text) - 2, len(text))]}
    prompts = PromptSet.build(llama.tokenizer, [text], spans=spans)
    rows = whole_attention(llama, prompts.tokens[0])
    found = attention_between(llama, prompts, [("end", "people"), ("people", "people")])
    np.testing.assert_allclose(found["end", "people"][0], rows[:, :, -1, 1:4].sum(-1), atol=1e-5)
    np.testing.assert_allclose(found["people", "people"][0], rows[:, :, 3, 1:4].sum(-1), atol=1e-5)


def test_copy_scores_equal_the_value_and_output_weights_applied_to_token_states(llama, abc):
    said = {
        "IO": [tokens[0] for tokens in abc.answer_tokens],
        "S1": [tokens[0] for tokens in abc.distractor_tokens],
    }
    scores = copy_scores(llama, abc, said, top=12)
    states = {}
    for role, tokens in said.items():
        for i, token in enumerate(tokens):
            with torch.no_grad():
                hidden = llama.hf(torch.tensor([abc.tokens[i]]), output_hidden_states=True).hidden_states[1][0]
            states.setdefault(token, hidden[abc.spans[role][i][0]])
    assert scores.n == len(states) == 8
    assert np.isnan(scores.positive[0]).all()
    body, dim = llama.hf.model, 32
    for layer in (1, 2):
        block = body.layers[layer]
        for head in range(4):
            kv = head // 2
            value = block.self_attn.v_proj.weight[kv * dim : (kv + 1) * dim]
            output = block.self_attn.o_proj.weight[:, head * dim : (head + 1) * dim]
            for sign, share in ((1, scores.positive), (-1, scores.negative)):
                hits = []
                for token, state in states.items():
                    with torch.no_grad():
                        written = sign * output @ value @ block.input_layernorm(state)
                        logits = llama.hf.lm_head(body.norm(written))
                    hits.append(token in logits.topk(12).indices.tolist())
                assert share[layer, head] == pytest.approx(np.mean(hits))
    assert 0 < np.nanmean(scores.positive) < 1


def test_a_planted_mover_copies_and_its_opposite_writes_against(planted, abc, found):
    copies = found.copies
    assert copies.positive[2, 0] == 1
    assert copies.negative[2, 0] == 0
    assert (copies.positive[2, 3], copies.negative[2, 3]) == (0, 1)


def test_unknown_roles_are_refused(planted, abc):
    with pytest.raises(BadInput, match="no token position is called 'S3'; valid: IO, S1"):
        attention_between(planted, abc, [("end", "S3")])
    with pytest.raises(BadInput, match="no token position is called 'I0'"):
        copy_scores(planted, abc, {"I0": [0] * len(abc)})


def test_a_model_without_structure_copies_little(llama):
    prompts = ioi_prompts(llama.tokenizer, 16, style="pocket")
    scores = copy_scores(llama, prompts, {"IO": [tokens[0] for tokens in prompts.answer_tokens]})
    assert np.nanmax(scores.positive) < 0.9
