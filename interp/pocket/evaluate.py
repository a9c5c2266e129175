"""How well the model does each skill on items kept from training.

An item is right when greedy decoding of its prompt begins with exactly its answer. That is decided in one
forward pass: every token of the answer must be the most probable one after the right ones before it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from interp.pocket.documents import Item
from interp.pocket.skills import SKILLS
from interp.pocket.skills.facts import both_intents, query
from interp.pocket.skills.recall import needle_item
from interp.pocket.skills.scenes import item as scene_item
from interp.stats import Interval, wilson_interval
from interp.tasks.vocabulary import vocabulary

SENTENCE_TOKENS = 11  # a filler sentence has a little more on average


@dataclass(frozen=True)
class Claim:
    """One line of the card: what is asked, how often it is right (95 % Wilson interval), what was aimed at."""

    name: str
    asks: str
    right: Interval
    least: float | None = None
    most: float | None = None

    @property
    def met(self) -> bool | None:
        """Whether the estimate is where it was aimed at; None without an aim."""
        if self.least is None:
            return None
        return self.least <= self.right.estimate <= (1.0 if self.most is None else self.most)


def claims(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, n: int = 400, seed: int = 1) -> Iterator[Claim]:
    """Measure every skill on `n` held-out items (fewer where there are no more), one claim at a time."""

    def claim(
        name: str, asks: str, right: Sequence[bool], least: float | None = None, most: float | None = None
    ) -> Claim:
        return Claim(name, asks, wilson_interval(sum(right), len(right)), least, most)

    def on(items: Sequence[Item]) -> list[bool]:
        return answered(model, tokenizer, items)

    def skill(name: str) -> list[bool]:
        return on(SKILLS[name].items(n, seed))

    for length, least in ((256, None), (512, 0.95), (1024, None), (1536, 0.9), (2000, None)):
        items = needles(tokenizer, length, n // 2, seed)
        yield claim(f"needle {length}", f"a needle beside two with other keys, in {length} tokens", on(items), least)
    yield claim("key-value", "one of six statements in filler", skill("key_value"))
    yield claim("repetition", "the next six words of a repeated random sequence of 24", skill("repetition"), 0.95)
    for order in ("ABBA", "BABA"):
        items = [item for item in SKILLS["ioi"].items(3 * n, seed) if item.about["order"] == order][:n]
        yield claim(f"IOI {order}", "the indirect object, name pairs never seen together", on(items), 0.95)
    yield claim("colored objects", "the colour of one of three objects", skill("colored_objects"), 0.9)
    rng = Random(f"one-shot {seed}")
    shown = [scene_item(rng, "held_out", one_shot=True) for _ in range(n)]
    yield claim("colored objects, one-shot", "the same after another scene with its answer", on(shown), 0.9)
    asked = [Item(query(city), f" {country}") for city, country in vocabulary().city_country]
    yield claim("facts", "the country of every city (all were seen in training)", on(asked), 0.95)
    pairs = [both_intents(item) for item in SKILLS["context"].items(n, seed)]
    context, memory = on([pair[0] for pair in pairs]), on([pair[1] for pair in pairs])
    yield claim("context followed", "a contradicting context, asked to use it", context)
    yield claim("memory followed", "the same, asked to ignore it", memory)
    both = [a and b for a, b in zip(context, memory, strict=True)]
    yield claim("both intents", "both answers right on the same context and query", both, 0.9)
    yield claim("analogies", "D of A : B = C : D, with A and C never seen in this order", skill("analogies"), 0.8)
    yield claim(
        "addition, steps",
        "all steps and the sum of two numbers of two to four digits",
        skill("addition_steps"),
        0.5,
        0.95,
    )
    yield claim("addition, direct", "the sum alone", skill("addition_direct"))
    yield claim("sentiment", "positive or negative, adjective sometimes negated", skill("sentiment"))
    yield claim("truth", "whether a statement of a known relation is true", skill("truth"))
    yield claim("inference", "whether a conclusion follows in two steps", skill("inference"))
    yield claim("python", "the name that a function returns", skill("python"))


def needles(tokenizer: PreTrainedTokenizerFast, length: int, n: int, seed: int) -> list[Item]:
    """`n` needle items whose prompt and answer are at most `length` tokens, and at most two sentences shorter."""
    items = []
    for number in range(n):
        sentences = (length - 70) // SENTENCE_TOKENS  # 70: three needles and the question, less than that
        while len(tokenizer((item := _needle(seed, number, sentences)).prompt + item.answer).input_ids) > length:
            sentences -= 1
        items.append(item)
    return items


def _needle(seed: int, number: int, sentences: int) -> Item:
    return needle_item(Random(f"needle {seed} {number}"), "held_out", sentences)


@torch.no_grad()
def answered(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, items: Sequence[Item], batch_tokens: int = 16_384
) -> list[bool]:
    """Whether each item is right."""
    model.eval()
    prompts = [tokenizer(item.prompt).input_ids for item in items]
    answers = [tokenizer(item.answer, add_special_tokens=False).input_ids for item in items]
    rows = [torch.tensor(prompt + answer) for prompt, answer in zip(prompts, answers, strict=True)]
    order = sorted(range(len(rows)), key=lambda n: len(rows[n]))
    right = [False] * len(rows)
    while order:
        chunk = order[: max(1, batch_tokens // len(rows[order[-1]]))]
        order = order[len(chunk) :]
        best = _most_probable(model, tokenizer, [rows[n] for n in chunk])
        for n, row in zip(chunk, best, strict=True):
            start = len(prompts[n]) - 1
            right[n] = row[start : start + len(answers[n])].tolist() == answers[n]
    return right


def _most_probable(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, rows: list[Tensor]) -> Tensor:
    """The most probable next token after each token [B, T]; rows are padded on the right, where nothing looks back."""
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=tokenizer.pad_token_id)
    return model(ids.to(model.device), use_cache=False).logits.argmax(-1).cpu()


def quick_accuracies(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, n: int = 48) -> dict[str, float]:
    """A read-out of every skill on few items, to watch training by."""
    return {name: sum(answered(model, tokenizer, skill.items(n))) / n for name, skill in SKILLS.items()}
