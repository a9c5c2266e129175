"""The skills of the bundled model, one module a family, and the shares in which they are mixed."""

from __future__ import annotations

from interp.pocket.documents import Skill
from interp.pocket.skills import arithmetic, code, facts, names, recall, scenes, statements

# Recall and repetition documents are long (they fill a sequence); the others are packed, many to a sequence.
LONG: tuple[Skill, ...] = (
    Skill("needle", 3.0, recall.needle_document, recall.needle_item),
    Skill("key_value", 1.5, recall.key_value_document, recall.key_value_item),
    Skill("repetition", 0.7, recall.repetition_document, recall.repetition_item),
)
SHORT: tuple[Skill, ...] = (
    Skill("ioi", 6.0, names.ioi_document, names.ioi_item),
    Skill("colored_objects", 2.5, scenes.document, scenes.item),
    Skill("facts", 1.0, facts.fact_document, facts.fact_item),
    Skill("context", 1.2, facts.context_document, facts.context_item),
    Skill("analogies", 3.0, facts.analogy_document, facts.analogy_item),
    Skill("addition_steps", 1.0, arithmetic.steps_document, arithmetic.steps_item),
    Skill("addition_direct", 0.3, arithmetic.direct_document, arithmetic.direct_item),
    Skill("sentiment", 0.4, statements.sentiment_document, statements.sentiment_item),
    Skill("truth", 1.5, statements.truth_document, statements.truth_item),
    Skill("inference", 1.5, statements.inference_document, statements.inference_item),
    Skill("python", 0.6, code.document, code.item),
)
SKILLS: dict[str, Skill] = {skill.name: skill for skill in LONG + SHORT}
