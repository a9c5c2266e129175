# ruff: noqa: F821 - the names are the notebook's
at = points.set_index("dataset")
early, late = at.loc["sentiment"], at.loc["comparison"]
assert early.converging == 0.5, "the third of four layers"
assert late.converging == 0.75, "the fourth"
assert early.converging_high < late.converging_low
assert at.loc["country"].converging >= early.converging

reached = best.set_index(["dataset", "series"])
for dataset in ("sentiment", "country", "comparison"):
    for control in ("control", "shuffled", "untrained", "bag of tokens"):
        assert reached.value[dataset, "probe"] > reached.value[dataset, control], (dataset, control)
for dataset in ("sentiment", "comparison"):
    own = reached.loc[dataset]
    assert own.low["probe"] > 0.9 > 0.75 > own.drop("probe").high.max()
assert reached.value["country", "probe"] < min(
    reached.value["sentiment", "probe"], reached.value["comparison", "probe"]
)
assert reached.low["country", "bag of tokens"] > 0.5
assert set(points.n) == {n}
