# ruff: noqa: F821 - the names are the notebook's
assert result.layer == 1
accuracy = result.frame[result.frame.layer == 1].set_index("method").accuracy
assert accuracy["interchange"] > 0.8
assert accuracy["interchange"] > accuracy.drop("interchange").max() + 0.2
assert accuracy["logistic regression"] == accuracy["random"] == 0
assert result.fitted.accuracy.drop(1).max() < 0.2

rows = behaviour.frame.set_index(["setting", "intent"])
assert rows.loc[("silent", "none"), "prior"] > 0.95
assert rows.loc["instructed"].right.min() > 0.9
assert rows.loc["steered"].right_low.min() > 0.85
assert 50 < len(unseen) <= 60
assert behaviour.curve.context.iloc[0] < 0.1 < 0.9 < behaviour.curve.context.iloc[-1]

assert cost.frame.right.min() > 0.9
assert cost.frame.change.abs().max() <= 0.05
