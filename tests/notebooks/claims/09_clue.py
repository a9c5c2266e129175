# ruff: noqa: F821 - the names are the notebook's
assert len(scored) == 96
assert scored.frame.question.nunique() == 12
assert 0.1 < scored.correct.mean() < 0.6

broken = scored.frame[~scored.frame.end_found]
whole = scored.frame[scored.frame.end_found]
assert len(broken) > 5
assert not broken.correct.any()
assert broken.to_success.mean() > 3 * whole.to_success.mean()

margin = verification.value("clue margin", "auc")
assert 70 < len(answered) <= 90
assert margin.low < 0.5 < margin.high, "not told apart from guessing"
assert every.estimate > margin.estimate, "those that break off raise it"
paired = verification.against[verification.against.metric == "auc"].set_index("score")
assert paired.low["length"] < 0 < paired.high["length"], "nor from the length"
assert paired.high["log-probability"] < 0
assert verification.value("log-probability", "auc").low > 0.75
near = verification.value("clue", "auc").estimate
assert margin.estimate < near < verification.value("log-probability", "auc").estimate - 0.15
