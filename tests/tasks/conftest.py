"""Tokenizers to test with: a byte-level one and a SentencePiece-like one trained here, and real ones if there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from interp.shipped import data_folder
from interp.tasks.bundled import bundled_needles, filler_text


def _corpus() -> Iterator[str]:
    yield filler_text(0, 400)
    yield from (needle.needle + needle.question + needle.answer for needle in bundled_needles(0, 50))


@pytest.fixture(scope="session")
def byte_level() -> PreTrainedTokenizerBase:
    """Like GPT-2's: a space belongs to the word after it, no special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=800, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@pytest.fixture(scope="session")
def bracketing() -> PreTrainedTokenizerBase:
    """Like Llama's: spaces become `▁`, one is put in front, `<s>` goes before a text; and `</s>` after it."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    tokenizer.train_from_iterator(_corpus(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@pytest.fixture(scope="session", params=["byte_level", "bracketing"])
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def pocket() -> PreTrainedTokenizerBase:
    """The bundled model's: one token a digit, so a value is the same tokens in the needle and after the question."""
    return AutoTokenizer.from_pretrained(data_folder() / "pocket")


@pytest.fixture(scope="session")
def gpt2(shared: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(shared / "models/tokenizer-gpt2")


@pytest.fixture(scope="session")
def stories(shared: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(shared / "models/stories260k")
