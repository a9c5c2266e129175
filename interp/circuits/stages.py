"""Staged discovery of a circuit by path patching (Wang et al. 2022; Merullo et al. 2024).

From the logits backwards: a stage finds the heads that feed the queries, keys or values of the heads of earlier stages
(or the logits themselves), and each of them gets a role only if it passes the test of that role: it attends where the
role attends, and copies if the role copies. Its place in a list never decides.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict

import numpy as np

from interp.circuits.circuit import all_heads
from interp.circuits.discovery import Discovery, Thresholds
from interp.circuits.evidence import CopyScores, Link, attention_between, copy_scores
from interp.circuits.stage import RoleTest, Stage, StageResult
from interp.heads.ablation import Head
from interp.heads.scores import model_record
from interp.metrics import logit_difference
from interp.patching.pairs import check_pairs
from interp.patching.path import PathPatchingResult, path_patching
from interp.tasks.prompts import PromptSet
from interp.tracing.model import Model


def discover(
    model: Model,
    prompts: PromptSet,
    task: str,
    stages: Sequence[Stage],
    said: Mapping[str, Sequence[int]],
    *,
    thresholds: Thresholds | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Discovery:
    """Run the stages on prompts with answers, distractors, counterfactuals and the roles that the stages name.

    `said` are the tokens that a copying head would say for a role, one a prompt. Raises BadInput, before any forward
    pass, for no prompts, prompts without these, and answers that begin with the same token as their distractors.
    """
    thresholds = thresholds or Thresholds()
    check_pairs(model, prompts, (logit_difference(),))
    links = tuple(dict.fromkeys(test.link for stage in stages for test in stage.tests))
    attention = {link: values.mean(0) for link, values in attention_between(model, prompts, links).items()}
    copies = copy_scores(model, prompts, said)
    done: list[StageResult] = []
    every = len(all_heads(model))
    for number, stage in enumerate(stages):
        receivers = tuple(head for result in done for head, role in result.found.items() if role in stage.feeds)
        patched = None
        if not stage.feeds or any(layer > 0 for layer, _ in receivers):  # nothing is sent to the first layer
            patched = path_patching(
                model,
                prompts,
                _sites(model, stage, receivers),
                positions=stage.at,
                metrics=(logit_difference(),),
                seed=seed,
                progress=_share(progress, number, len(stages), every),
            )
        here = {test.link: attention[test.link] for test in stage.tests}
        found = {} if patched is None else _classify(stage, patched, here, copies, thresholds)
        done.append(StageResult(stage, receivers, patched, here, found))
    return Discovery(
        task=task,
        stages=tuple(done),
        copies=copies,
        accuracy=answered(model, prompts),
        model=model_record(model),
        parameters={"prompts": prompts.hash, "n": len(prompts), "thresholds": asdict(thresholds)},
        seed=seed,
    )


def answered(model: Model, prompts: PromptSet, batch: int = 64) -> float:
    """Share of the prompts after which the first token of the answer is the most probable of all."""
    right = 0
    for start in range(0, len(prompts), batch):
        part = prompts[start : start + batch]
        said = model.run(part).logits.argmax(-1).tolist()
        right += sum(token == answer[0] for token, answer in zip(said, part.answer_tokens, strict=True))
    return right / len(prompts)


def _sites(model: Model, stage: Stage, receivers: Sequence[Head]) -> list[str]:
    """The inputs of the receivers; those of several query heads that share a key/value head are one."""
    if stage.component == "logits":
        return ["logits"]
    group = 1 if stage.component == "q" else model.spec.heads // model.spec.kv_heads
    return list(dict.fromkeys(f"{stage.component}.{layer}.{head // group}" for layer, head in receivers))


def _classify(
    stage: Stage,
    patched: PathPatchingResult,
    attention: Mapping[Link, np.ndarray],
    copies: CopyScores,
    thresholds: Thresholds,
) -> dict[Head, str]:
    """Role by head, strongest effect first; a head that passes several tests has the one it attends most for."""
    found: dict[Head, str] = {}
    for head in patched.top(len(patched.senders)):
        passed = [
            test for test in stage.tests if _passes(test, head, patched.effects[head], attention, copies, thresholds)
        ]
        if passed:
            found[head] = max(passed, key=lambda test: attention[test.link][head]).role
    return found


def _passes(
    test: RoleTest,
    head: Head,
    effect: float,
    attention: Mapping[Link, np.ndarray],
    copies: CopyScores,
    thresholds: Thresholds,
) -> bool:
    if test.sign * effect < thresholds.effect or attention[test.link][head] < thresholds.attention:
        return False
    score = {1: copies.positive, -1: copies.negative}.get(test.copies)
    return score is None or bool(score[head] >= thresholds.copy)


def _share(
    progress: Callable[[int, int], None] | None, number: int, stages: int, heads: int
) -> Callable[[int, int], None] | None:
    """Progress of one stage as a share of all."""
    if progress is None:
        return None
    return lambda done, total: progress(number * heads + done * heads // max(total, 1), stages * heads)
