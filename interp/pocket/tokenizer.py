"""The bundled model's tokenizer: byte-level BPE, one token a digit, one token for every word that can be an answer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from random import Random

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from interp.pocket.skills import SKILLS
from interp.tasks.vocabulary import vocabulary

VOCABULARY_SIZE = 2048
CONTEXT = 2048
BOS, EOS, PAD = "<s>", "</s>", "<pad>"


def build_tokenizer(seed: int = 0, documents: int = 6000) -> PreTrainedTokenizerFast:
    """Train the tokenizer on the same kinds of documents the model reads; always the same for the same seed.

    Raises ValueError when a word that must be one token (with its leading space) is not.
    """
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(_corpus(seed, documents), trainer)
    bpe.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, bpe.token_to_id(BOS))]
    )
    split = [word for word in vocabulary().single_tokens if len(bpe.encode(f" {word}", add_special_tokens=False)) != 1]
    if split:
        raise ValueError(f"{len(split)} words are not single tokens, {split[:5]} among them: train on more documents")
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer saved in `folder`."""
    return PreTrainedTokenizerFast.from_pretrained(folder)


def _corpus(seed: int, documents: int) -> Iterator[str]:
    rng = Random(f"tokenizer {seed}")
    skills = list(SKILLS.values())
    for n in range(documents):
        yield skills[n % len(skills)].document(rng, 256).text
    # A word is merged into one token when it is frequent; those that can be an answer are made so.
    yield from _repeat(vocabulary().single_tokens, documents // 20)


def _repeat(words: Iterable[str], times: int) -> Iterator[str]:
    for word in words:
        yield f" {word}" * times
