# ruff: noqa: F821 - the names are the notebook's
own = versus.set_index("control")
for control in ("embedding", "untrained", "shifted", "right-branching", "balanced"):
    assert own.beyond[control], control
assert 0.35 < own.difference["untrained"] / own.difference["embedding"] < 0.65, "about half"
assert own.difference["untrained"] == own.difference[["embedding", "untrained", "right-branching", "balanced"]].min()
assert own.high["following token"] < 0
assert known.parameters["functions"]["test"] == 105
assert sum(known.parameters["functions"].values()) == 400

assert read.frame.set_index("reader").f1["probe"] > 0.3
other = study.comparisons().set_index("control")
for control in ("untrained", "right-branching"):
    assert not other.beyond[control]
    assert other.low[control] <= 0.02, control
