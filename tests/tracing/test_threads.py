"""Two threads may use one model, or two wrappers of it, at once: each gets its own right answers."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable

import pytest
import torch

import interp
from tests.families import build, prompts

ROUNDS = 60


@pytest.fixture(autouse=True)
def switch_often() -> object:
    """Threads take turns every 10 microseconds, so that what can go wrong does."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def wrong_answers(jobs: list[Callable[[], torch.Tensor]], rounds: int = ROUNDS) -> int:
    """Run every job in its own thread `rounds` times; how often a result differed from running alone."""
    expected = [job() for job in jobs]
    wrong: list[object] = []
    start = threading.Barrier(len(jobs))

    def work(job: Callable[[], torch.Tensor], wanted: torch.Tensor) -> None:
        start.wait()
        for _ in range(rounds):
            try:
                got = job()
            except Exception as error:  # noqa: BLE001
                wrong.append(error)
            else:
                if not torch.equal(got, wanted):
                    wrong.append(got)

    threads = [threading.Thread(target=work, args=pair) for pair in zip(jobs, expected, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(wrong)


def jobs_on(first: interp.Model, second: interp.Model) -> list[Callable[[], torch.Tensor]]:
    ids = prompts()
    edit, force = interp.scale("z.0.1", -3.0), interp.attend("pattern.1", "uniform")
    return [
        lambda: first.run(ids, edits=edit).logits,
        lambda: second.run(ids, read="resid_post.1")["resid_post.1"],
        lambda: first.run(ids, read="pattern.1", edits=force, logits="last").logits,
        lambda: torch.tensor(second.generate(ids, max_new_tokens=2, edits=edit).log_probabilities),
    ]


def test_threads_on_one_model_get_right_answers(llama: interp.Model) -> None:
    assert wrong_answers(jobs_on(llama, llama)) == 0


def test_threads_on_two_wrappers_of_one_model_get_right_answers(llama: interp.Model) -> None:
    assert wrong_answers(jobs_on(llama, interp.wrap(llama.hf))) == 0


def test_without_the_lock_the_same_threads_fail() -> None:
    """The test above can fail: what protects it is the lock."""

    class NoLock:
        def __enter__(self) -> None: ...
        def __exit__(self, *_: object) -> None: ...

    model = interp.wrap(build("llama", "sdpa"))
    model.lock = NoLock()  # type: ignore[assignment]
    assert wrong_answers(jobs_on(model, model), rounds=20) > 0


def test_models_of_one_family_do_not_disturb_each_other(llama: interp.Model) -> None:
    other = interp.wrap(build("llama", "sdpa"))
    ids = prompts()
    force = interp.attend("pattern.1", "uniform")

    def plain() -> torch.Tensor:
        with torch.no_grad():
            return other.hf(ids).logits

    jobs: list[Callable[[], torch.Tensor]] = [
        lambda: llama.run(ids, read="attention_stats", edits=force, logits="last").logits,
        lambda: other.run(ids, edits=force).logits,
    ]
    assert wrong_answers(jobs) == 0
    assert wrong_answers([jobs[0], plain]) == 0
