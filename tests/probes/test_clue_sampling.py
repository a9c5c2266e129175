"""Samples depend on their question and seed alone, and survive a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

import interp
from interp.errors import BadInput, PromptTooLong, UnwritableOutput
from interp.tasks.problems import Problems
from probes.sampling import collect
from probes.traces import Experience
from tests import families

SETTINGS = {"temperature": 1.0, "max_new_tokens": 6, "batch_size": 3, "seed": 4}


def build() -> interp.Model:
    return interp.wrap(families.build("llama"), tokenizer=families.word_tokenizer())


def problems(questions: int = 4) -> Problems:
    """The answer is the last word; `w5` or the like is right."""
    return Problems(
        "words",
        tuple(f"q{i}" for i in range(questions)),
        tuple(f"w{10 + i} w{20 + i}" for i in range(questions)),
        tuple(f"w{30 + i}" for i in range(questions)),
        pattern=r"w\d+",
        compare="exact",
    )


@pytest.fixture(scope="module")
def model() -> interp.Model:
    return build()


def samples(experience: Experience) -> dict[str, list[tuple[int, ...]]]:
    return {q: [r.tokens for r in experience if r.question == q] for q in experience.questions}


def test_every_question_has_its_samples_their_answers_and_whether_they_are_right(model: interp.Model) -> None:
    calls: list[tuple[int, int]] = []
    experience = collect(model, problems(), 5, progress=lambda *c: calls.append(c), **SETTINGS)  # type: ignore[arg-type]
    assert [len(rows) for rows in samples(experience).values()] == [5] * 4
    assert len({r.tokens for r in experience}) > 15
    assert calls == [(n, 20) for n in (3, 5, 8, 10, 13, 15, 18, 20)]
    for response in experience:
        words = model.tokenizer.decode(response.tokens, skip_special_tokens=True).split()
        number = int(response.question[1:])
        assert response.prompt == (10 + number, 20 + number)
        assert response.answer == (words[-1] if words else None)
        assert response.correct == (response.answer == f"w{30 + number}")
    first = experience[0]
    trace = model.run([list(first.trace)], logits="all").logits[0].log_softmax(-1)
    said = [float(trace[t - 1, first.trace[t]]) for t in range(2, len(first.trace))]
    assert first.log_probability == pytest.approx(np.mean(said), abs=1e-4)


def test_other_questions_and_their_order_change_no_response_and_another_seed_all(model: interp.Model) -> None:
    whole = samples(collect(model, problems(), 5, **SETTINGS))  # type: ignore[arg-type]
    one = problems(3)
    reversed_ = Problems(
        "words", one.questions[::-1], one.prompts[::-1], one.answers[::-1], pattern=r"w\d+", compare="exact"
    )
    again = samples(collect(model, reversed_, 5, **SETTINGS))  # type: ignore[arg-type]
    assert again == {question: whole[question] for question in ("q2", "q1", "q0")}
    other = samples(collect(model, problems(), 5, **{**SETTINGS, "seed": 5}))  # type: ignore[arg-type]
    assert all(other[question] != whole[question] for question in whole)
    assert all(rows[:2] != rows[3:] for rows in whole.values())  # the second batch has a seed of its own


SLOWLY = """
    import sys, time
    from pathlib import Path
    from probes.sampling import collect
    from tests.probes.test_clue_sampling import SETTINGS, build, problems

    model = build()
    generate = model.generate
    def slow(*arguments, **options):
        time.sleep(0.2)
        return generate(*arguments, **options)
    model.generate = slow
    collect(model, problems(), 5, path=Path(sys.argv[1]), **SETTINGS)
"""


def test_a_killed_collection_goes_on_and_ends_with_the_same_traces(
    model: interp.Model, tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, journal = tmp_path / "run", tmp_path / "run.journal.jsonl"
    script = [sys.executable, "-c", textwrap.dedent(SLOWLY), str(run)]
    with subprocess.Popen(script, cwd=root, env={**os.environ, "PYTHONPATH": str(root)}) as job:
        while not journal.exists() or journal.read_text().count("\n") < 4:
            assert job.poll() is None, "the job ended before it was killed"
            time.sleep(0.02)
        job.send_signal(signal.SIGKILL)
    finished = [json.loads(line)["key"] for line in journal.read_text().splitlines()[1:] if line.endswith("}")]
    assert 3 <= len(finished) < 8
    assert not run.exists()
    with pytest.raises(BadInput, match="--resume"):
        collect(model, problems(), 5, path=run, **SETTINGS)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="n_samples was 5 and is 6"):
        collect(model, problems(), 6, path=run, resume=True, **SETTINGS)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="problems was"):
        collect(model, problems(3), 5, path=run, resume=True, **SETTINGS)  # type: ignore[arg-type]

    generated: list[int] = []
    generate = model.generate
    monkeypatch.setattr(model, "generate", lambda *a, **k: (generated.append(len(a[0])), generate(*a, **k))[1])
    resumed = collect(model, problems(), 5, path=run, resume=True, **SETTINGS)  # type: ignore[arg-type]
    assert len(generated) == 8 - len(finished)
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
    monkeypatch.undo()
    uninterrupted = collect(model, problems(), 5, **SETTINGS)  # type: ignore[arg-type]
    assert resumed.responses == uninterrupted.responses
    assert Experience.load(run).responses == uninterrupted.responses
    with pytest.raises(UnwritableOutput, match="already holds a run"):
        collect(model, problems(), 5, path=run, **SETTINGS)  # type: ignore[arg-type]


def test_what_cannot_be_sampled_is_refused_before_anything_is_written(model: interp.Model, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for settings, error, message in (
        ({"temperature": 0.0}, BadInput, "all samples of a question are the same"),
        ({"temperature": -1.0}, BadInput, "temperature=-1.0"),
        ({"batch_size": 0}, BadInput, "at least 1"),
        ({"max_new_tokens": families.CONTEXT}, PromptTooLong, "new ones"),
    ):
        with pytest.raises(error, match=message):
            collect(model, problems(), 5, path=run, **{**SETTINGS, **settings})  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="no tokenizer"):
        collect(interp.wrap(families.build("llama")), problems(), 5, path=run)
    encoder = interp.wrap(families.build("bert"), tokenizer=families.word_tokenizer())
    with pytest.raises(BadInput, match="cannot generate"):
        collect(encoder, problems(), 5, path=run, **SETTINGS)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
