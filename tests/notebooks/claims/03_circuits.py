# ruff: noqa: F821 - the names are the notebook's
assert set(ioi.by_role["mover"]) == {(2, 0), (2, 1)}
assert set(ioi.by_role["subject suppressor"]) == {(2, 6), (2, 7)}
assert {layer for layer, _ in ioi.by_role["own token"]} == {0}

assert len(evaluation.full) == 32
assert 0.6 < evaluation.kept.low < evaluation.kept.high < 0.85
assert len(evaluation.random) == 10
assert evaluation.random.kept.max() < 0.3

left = evaluation.completeness.set_index("K")
assert left.circuit["subject suppressor"] < 0.1 * left.circuit["nothing"]
assert left.circuit["mover"] > 0.9 * left.circuit["nothing"]

assert ioi.accuracy > 0.9
assert colours.accuracy < 0.5
at_share = reuse.frame[reuse.frame.share >= 0.02]
assert (at_share.overlap_low <= at_share.overlap_chance_high).all()

without = {role: report.summary().iloc[0] for role, report in reports.items()}
assert without["mover"].high < 0.25
assert without["mover"].random_low > 0.5
assert without["subject suppressor"].low > 0.75
