# ruff: noqa: F821 - the names are the notebook's
assert mask.heads == [(2, 0), (2, 1)]
assert scores.frame.low[1] > 0.9
assert scores.frame.high[2] < 0.1

one, both = removal.summary().itertuples()
assert both.high < 0.25
assert both.random_low > 0.9
assert both.kept < one.kept < one.random

assert key_value_mask.heads == [(2, 0)]
assert key_value_mask.scores.size == 16

none, best = study.summary().itertuples()
whole = study.frame[study.frame.kept == "chosen"].iloc[-1]
assert whole.n == 12
assert whole.recall_low > 0.75
assert 0.78 < whole.saved < 0.80
assert none.recall == best.most == 0
