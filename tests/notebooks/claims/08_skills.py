# ruff: noqa: F821 - the names are the notebook's
before, after = (task.accuracy(each) for each in (model, tuned.model))
assert before < 0.35
assert after - before > 0.2
assert found[1e-2].history.kept.iloc[-1] > 0.9

rows = result.frame.set_index(["method", "budget"])
assert set(result.frame.n) == {96}
assert rows.recovered["localized", 1e-2] > 0.5
assert rows.recovered["localized", 1e-1] > 0.85
for method in ("random", "same matrices"):
    assert rows.recovered[method, 1e-2] < 0.15
    assert rows.recovered_low["localized", 1e-2] > rows.recovered[method, 1e-2]
assert rows.recovered["random", 1e-1] < 0.2
assert 0.2 < rows.recovered["same matrices", 1e-1] < 0.5 < rows.recovered_low["localized", 1e-1]
table = found[1e-1].mask.breakdown()
assert 0.2 < (table.chosen**2 / table["size"]).sum() / table.chosen.sum() < 0.3, "met by chance: a quarter"

layers, modules = (shares[by].set_index(by) for by in ("layer", "module"))
assert layers.share.idxmax() == 0
assert layers.share[0] > layers.chance_high[0]
for matrix in ("v_proj", "o_proj"):
    assert modules.share[f"self_attn.{matrix}.weight"] > modules.chance_high[f"self_attn.{matrix}.weight"]
for matrix in ("gate_proj", "up_proj"):
    assert modules.share[f"mlp.{matrix}.weight"] < modules.chance_low[f"mlp.{matrix}.weight"]
