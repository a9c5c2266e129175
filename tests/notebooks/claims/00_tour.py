# ruff: noqa: F821 - the names are the notebook's
from interp.heads.scores import RETRIEVAL_HEAD

digit, other_digit = prompts.answers[0][0], prompts.answers[1][0]
assert digit != other_digit


def says(result):
    """The most probable token under the edits."""
    return result.said[int(result.edited.argmax())]


assert says(patched) == other_digit, "the heads carry the other prompt's number"
assert says(unmoved) == digit, "random heads do not"
assert again.above(RETRIEVAL_HEAD) == [(2, 0), (2, 1)]

summary = report.summary().iloc[0]
assert summary.n == 12
assert summary.high < 0.25
assert summary.random_low > 0.5
