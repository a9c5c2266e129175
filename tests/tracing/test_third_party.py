"""Real weights that nobody here made load, pass the self-check and generate as transformers does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import interp


@pytest.mark.parametrize(("name", "family"), [("stories260k", "llama"), ("bitllama-1.3m", "bitnet")])
def test_a_third_party_model_is_traced(shared: Path, name: str, family: str) -> None:
    model = interp.load(shared / "models" / name, device="cpu")
    assert model.spec.family == family
    assert model.doctor().ok, str(model.doctor())
    prompt = "Once upon a time, there was a little girl named Lily."
    ids = torch.tensor(model.tokenizer(prompt)["input_ids"])[None]
    wanted = model.hf.generate(ids, max_new_tokens=20, do_sample=False)[0, ids.shape[1] :].tolist()
    assert list(model.generate(prompt, max_new_tokens=20).tokens[0]) == wanted
