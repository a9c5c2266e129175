# ruff: noqa: F821 - the names are the notebook's
at = example.bindings
assert [row["found"] for row in rows] == [at[0][1], at[0][0], at[1][1], at[1][0]]

one = first[first.metric == "precision@1"].set_index(["method", "decoder"])
for decoder in ("key", "last", "new"):
    assert one.low["hypervector", decoder] > 0.5
assert one.high["random codebook", ""] < 0.1
assert abs(one.value["hypervector", "key"] - one.value["linear probe", ""]) < 0.1
cosine = first[first.metric == "cosine"].set_index("method").value
assert cosine["hypervector"] - cosine["constant hypervector"] < 0.05

assert pairs.low["third word → answer"] > 0.6
assert pairs.high[["first word → second word", "second word → first word"]].max() < 0.3
never = frame.set_index("method")
assert never.value["hypervector"] == 0
assert never.low["linear probe"] > 0.1

at_most = moved.frame[moved.frame.strength == 1.5].set_index("direction")
assert 0.35 < at_most.follows["pattern"] < 0.65
assert at_most.follows_low["pattern"] > 0.3 > 0.1 > at_most.follows_high["random"]
assert set(at_most.n) == {101}
