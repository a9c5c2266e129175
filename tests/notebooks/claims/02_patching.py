# ruff: noqa: F821 - the names are the notebook's
def interval(result, **place):
    """The interval of the one row of a patching result that is about this place."""
    frame = result.frame
    for column, value in place.items():
        frame = frame[frame[column] == value]
    (row,) = frame.itertuples()
    return row.normalised_ratio_of_means_low, row.normalised_ratio_of_means_high


for result, role in ((twice_by_position, "S2"), (name_by_position, "IO")):
    assert interval(result, layer=2, position=role)[0] > 0.7
    assert interval(result, layer=3, position="end")[0] > 0.9
    assert abs(interval(result, layer=3, position=role)[1]) < 0.2
    assert max(abs(end) for layer in range(4) for end in interval(result, layer=layer, position="S1+1")) < 0.05

for own, other, heads in ((name_by_head, twice_by_head, movers), (twice_by_head, name_by_head, tellers)):
    best = own.frame.nlargest(2, share)
    assert set(zip(best.layer, best["head"], strict=True)) == set(heads)
    for layer, head in heads:
        assert interval(own, layer=layer, head=head)[0] > 0.2
        assert max(abs(end) for end in interval(other, layer=layer, head=head)) < 0.05

for rows in restored.values():
    these, nothing = rows.pop("these heads"), rows.pop("nothing")
    assert len(rows) == 4
    assert all(bootstrap_interval(these - random).low > 3 for random in rows.values())
    assert all(abs((random - nothing).mean()) < 1 for random in rows.values())

assert agreement > 0.95
