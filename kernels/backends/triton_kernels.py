"""The device code of the `triton` backend: FlashAttention's online softmax (arXiv:2205.14135), statistics inside it.

A program has an item: the rows of one block of queries of one head or, where queries are few, of heads that share a
key/value head. It visits the tiles of keys that its lists name, first those that every row sees whole, then those
where each row's own keys have to be found. Scores are in units of log2, so that the exponential is 2^x. Rows run along
the first dimension of everything, keys along the second.
"""

# mypy: ignore-errors
# What is below is Triton's language, in the words of Python.

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)
LN2: tl.constexpr = tl.constexpr(0.6931471805599453)
LOWEST: tl.constexpr = tl.constexpr(-1e30)
"""The maximum of no scores."""
HIDDEN: tl.constexpr = tl.constexpr(-2e30)
"""The score of a hidden key: below LOWEST, so that its weight is 0, and finite, so that weight times score is 0 too."""
NOWHERE: tl.constexpr = tl.constexpr(2**30)
"""The argmax of no scores, after every key."""


class Inputs(NamedTuple):
    """Strides count elements; the innermost is 1. What is None is not there, and its code is not compiled."""

    q: Any
    k: Any
    v: Any
    out: Any
    q_b: Any
    q_h: Any
    q_t: Any
    k_b: Any
    k_h: Any
    k_t: Any
    v_b: Any
    v_h: Any
    v_t: Any


class Shape(NamedTuple):
    """MaskSpec: what becomes of a score, and which keys are shown. starts `[B T]`, key_mask `[B S]`."""

    scale: Any
    softcap: Any
    alibi: Any
    window: Any
    starts: Any
    starts_b: Any
    starts_t: Any
    key_mask: Any
    key_mask_b: Any


class Looks(NamedTuple):
    """HeadPlan: `of` `[B H]` is the number of a head's pattern, -1 of a head that is not computed.

    By that number: window, sinks, tokens `[S]` bytes, blocks `[query_block words]`, a bit a key block.
    """

    of: Any
    window: Any
    sinks: Any
    tokens: Any
    blocks: Any
    block: Any
    first_query_block: Any
    first_key_block: Any
    query_blocks: Any
    words: Any


class Gates(NamedTuple):
    """HeadGates: gate `[B H T]`, add `[B H T Dv]`, logit_scale `[B H T]`."""

    gate: Any
    gate_b: Any
    gate_h: Any
    gate_t: Any
    add: Any
    add_b: Any
    add_h: Any
    add_t: Any
    logit_scale: Any
    logit_b: Any
    logit_h: Any
    logit_t: Any


class Beside(NamedTuple):
    """Keys beside the cached ones: k `[B K E D]`, v `[B K E Dv]`, log_count `[B H E]`, all float32; count is E."""

    k: Any
    v: Any
    log_count: Any
    k_b: Any
    v_b: Any
    log_b: Any
    count: Any


class Stats(NamedTuple):
    """Where measurements go: slots `[B T]` is the row of a query, -1 for none; without slots its own number.

    Of a row, `[B H R]`; mass `[B H R SPANS]`. every_lse `[B H T]` is what column sums are made from, with `times`
    `[B T]` that a row is asked for. spans `[B SPANS 2]` are columns.
    """

    slots: Any
    slots_b: Any
    argmax: Any
    probability: Any
    entropy: Any
    log_sum_exp: Any
    mass: Any
    spans: Any
    spans_b: Any
    every_lse: Any
    times: Any
    column_sums: Any


class Walk(NamedTuple):
    """Which program does what: items `[n 3]` (batch row, first head, number of its list), order (blocks of queries).

    Lists: entry `2 * ((list * blocks + block) * SPLITS + split)` of offsets is where the runs of whole tiles begin, the
    next one where those of partial tiles do; a run is its first tile and the one after its last. visited counts.
    """

    items: Any
    order: Any
    offsets: Any
    runs: Any
    blocks: Any
    visited: Any


class Partials(NamedTuple):
    """States of the softmax of items whose keys several programs share, `[split item block row …]`."""

    top: Any
    total: Any
    out: Any
    argmax: Any
    entropy: Any
    mass: Any


class Rows(NamedTuple):
    """The rows of an item: their queries, positions, heads and patterns; one head and pattern unless packed."""

    b: Any
    h: Any
    t: Any
    position: Any
    start: Any
    look: Any
    logit_scale: Any
    real: Any
    kv_head: Any


class State(NamedTuple):
    """An online softmax: largest score, sum of 2^(score - top), weighted values and what is measured beside."""

    top: Any
    total: Any
    out: Any
    argmax: Any
    entropy: Any
    mass: Any


@triton.jit
def tanh(x):
    """A polynomial near 0, where 1 - 2 / (e^2x + 1) would lose digits."""
    u = x * x
    near = x * (1.0 + u * (-0.33333333 + u * (0.13333333 + u * (-0.053968254 + u * 0.021869489))))
    e = tl.exp2(tl.abs(x) * (-2.0 * LOG2E))
    far = (1.0 - e) / (1.0 + e)
    return tl.where(u < 0.0625, near, tl.where(x < 0, -far, far))


@triton.jit
def rows_of(b, h, t, real, shape, looks, gates, q_offset, HEADS: tl.constexpr, GROUP: tl.constexpr):
    """Everything about rows of heads h `[1]` or `[R]` and queries t `[R]`."""
    b = b.to(tl.int64)
    look = tl.load(looks.of + b * HEADS + h, mask=h < HEADS, other=-1)
    real = real & (look >= 0)
    start = tl.zeros_like(t)
    if shape.starts is not None:
        start = tl.load(shape.starts + b * shape.starts_b + t * shape.starts_t, mask=real, other=0)
    logit_scale = tl.full(t.shape, 1.0, tl.float32)
    if gates.logit_scale is not None:
        at = gates.logit_scale + b * gates.logit_b + h * gates.logit_h + t * gates.logit_t
        logit_scale = tl.load(at, mask=real, other=0.0)
    return Rows(b, h, t, t + q_offset, start, look, logit_scale, real, tl.min(h, 0) // GROUP)


@triton.jit
def load_queries(x, rows, D: tl.constexpr, BLOCK_D: tl.constexpr, UPCAST: tl.constexpr):
    """q `[R D]` of the rows, zeros past them."""
    d = tl.arange(0, BLOCK_D)[None, :]
    at = x.q + rows.b * x.q_b + (rows.h.to(tl.int64) * x.q_h + rows.t.to(tl.int64) * x.q_t)[:, None] + d
    q = tl.load(at, mask=rows.real[:, None] & (d < D), other=0.0)
    return q.to(tl.float32) if UPCAST else q


@triton.jit
def load_keys(
    base, stride, tile, keys, W: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_N: tl.constexpr, WHOLE: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    """Keys or values `[N W]` of a tile; zeros past the last, which a WHOLE tile does not hold."""
    n = tl.arange(0, BLOCK_N)[:, None]
    w = tl.arange(0, BLOCK_W)[None, :]
    at = base + (tile * BLOCK_N).to(tl.int64) * stride + (n * stride + w)
    if WHOLE and W == BLOCK_W:
        values = tl.load(at)
    elif WHOLE:
        values = tl.load(at, mask=(w < W) & (n >= 0), other=0.0)
    else:
        values = tl.load(at, mask=(tile * BLOCK_N + n < keys) & (w < W), other=0.0)
    return values.to(tl.float32) if UPCAST else values


@triton.jit
def scores_of(q, k, column, rows, shape, gates, q_offset, kv_offset, HEADS: tl.constexpr):
    """Scores `[R N]` of the keys in columns `[N]`, in units of log2, hidden keys among them."""
    s = tl.dot(q, tl.trans(k), input_precision="ieee")
    if shape.softcap is not None:
        s = shape.softcap * LOG2E * tanh(s * (shape.scale / shape.softcap))
    else:
        s = s * (shape.scale * LOG2E)
    if shape.alibi is not None:
        slope = tl.load(shape.alibi + rows.h, mask=rows.h < HEADS, other=0.0) * LOG2E
        s -= slope[:, None] * (rows.position[:, None] - (column + kv_offset)[None, :]).to(tl.float32)
    if gates.logit_scale is not None:
        s *= rows.logit_scale[:, None]
    return s


@triton.jit
def seen(column, rows, shape, looks, keys, kv_offset, CAUSAL: tl.constexpr):
    """Which keys of the columns `[N]` each row sees, `[R N]`."""
    key = (column + kv_offset)[None, :]
    position = rows.position[:, None]
    inside = column < keys
    if shape.key_mask is not None:
        inside = inside & (tl.load(shape.key_mask + rows.b * shape.key_mask_b + column, mask=inside, other=0) != 0)
    shown = rows.real[:, None] & inside[None, :]
    if CAUSAL:
        shown = shown & (key <= position)
    if shape.window is not None:
        shown = shown & (key > position - shape.window)
    if shape.starts is not None:
        shown = shown & (key >= rows.start[:, None])
    if looks.window is not None:
        look = tl.maximum(rows.look, 0)[:, None]
        chosen = position - key < tl.load(looks.window + look)
        chosen = chosen | (key - rows.start[:, None] < tl.load(looks.sinks + look))
        if looks.tokens is not None:
            chosen = chosen | (tl.load(looks.tokens + look.to(tl.int64) * keys + column[None, :], inside[None, :]) != 0)
        if looks.blocks is not None:
            key_block = key // looks.block - looks.first_key_block
            query_block = tl.where(rows.real, rows.position // looks.block - looks.first_query_block, 0)[:, None]
            at = (look.to(tl.int64) * looks.query_blocks + query_block) * looks.words + (key_block >> 5)
            chosen = chosen | (((tl.load(looks.blocks + at, mask=shown, other=0) >> (key_block & 31)) & 1) != 0)
        shown = shown & chosen
    return shown


@triton.jit
def empty_state(BLOCK_M: tl.constexpr, BLOCK_DV: tl.constexpr, SPANS: tl.constexpr):
    row = tl.zeros([BLOCK_M], tl.float32)
    mass = tl.zeros([BLOCK_M, triton.next_power_of_2(SPANS) if SPANS else 1], tl.float32)
    return State(row + LOWEST, row, tl.zeros([BLOCK_M, BLOCK_DV], tl.float32), row.to(tl.int32) + NOWHERE, row, mass)


@triton.jit
def visit(
    state, q, tile, x, rows, shape, looks, gates, stats, keys, q_offset, kv_offset,
    HEADS: tl.constexpr, CAUSAL: tl.constexpr, WHOLE: tl.constexpr,
    SPANS: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
    BLOCK_N: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """The state after one more tile of keys."""
    column = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    k = load_keys(x.k, x.k_t, tile, keys, D, BLOCK_D, BLOCK_N, WHOLE, UPCAST)
    s = scores_of(q, k, column, rows, shape, gates, q_offset, kv_offset, HEADS)
    if not WHOLE:
        s = tl.where(seen(column, rows, shape, looks, keys, kv_offset, CAUSAL), s, HIDDEN)
    best = tl.max(s, 1)
    top = tl.maximum(state.top, best)
    decay = tl.exp2(state.top - top)
    away = s - top[:, None]
    w = tl.exp2(away)
    total = state.total * decay + tl.sum(w, 1)
    argmax = state.argmax
    if stats.argmax is not None:  # the first of equal keys, in whatever order the tiles are visited
        where = tl.min(tl.where(s == best[:, None], column[None, :], NOWHERE), 1)
        where = tl.where(best == state.top, tl.minimum(where, state.argmax), where)
        argmax = tl.where(best >= state.top, where, state.argmax)
    entropy = state.entropy
    if stats.entropy is not None:  # the sum of w log2 w, moved to the new top
        entropy = decay * (state.entropy + state.total * (state.top - top)) + tl.sum(w * away, 1)
    mass = state.mass
    if SPANS:
        mass = mass * decay[:, None]
        span = tl.arange(0, mass.shape[1])[None, :]
        for i in tl.static_range(SPANS):
            first = tl.load(stats.spans + rows.b * stats.spans_b + 2 * i)
            last = tl.load(stats.spans + rows.b * stats.spans_b + 2 * i + 1)
            within = (column >= first) & (column < last)
            mass += tl.where(span == i, tl.sum(tl.where(within[None, :], w, 0.0), 1)[:, None], 0.0)
    v = load_keys(x.v, x.v_t, tile, keys, DV, BLOCK_DV, BLOCK_N, WHOLE, UPCAST)
    out = tl.dot(w.to(v.dtype), v, state.out * decay[:, None], input_precision="ieee")
    return State(top, total, out, argmax, entropy, mass)


@triton.jit
def finish(
    state, x, rows, shape, gates, beside, stats, queries, kv_offset, captured,
    HEADS: tl.constexpr, GROUP: tl.constexpr, SPANS: tl.constexpr,
    D: tl.constexpr, DV: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Take in the keys beside, write the output after gates, and what was measured."""
    top, total, out = state.top, state.total, state.out
    d, dv = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_DV)
    if beside.k is not None:
        q = load_queries(x, rows, D, BLOCK_D, UPCAST).to(tl.float32)
        for i in range(beside.count):
            at = rows.kv_head * beside.count + i
            k = tl.load(beside.k + rows.b * beside.k_b + at * D + d, mask=d < D, other=0.0)
            v = tl.load(beside.v + rows.b * beside.v_b + at * DV + dv, mask=dv < DV, other=0.0)
            count = tl.load(beside.log_count + rows.b * beside.log_b + rows.h * beside.count + i, rows.h < HEADS, 0.0)
            s = tl.sum(q * k[None, :], 1) * (shape.scale * LOG2E) * rows.logit_scale + count * LOG2E
            higher = tl.maximum(top, s)
            decay, w = tl.exp2(top - higher), tl.exp2(s - higher)
            top, total, out = higher, total * decay + w, out * decay[:, None] + w[:, None] * v[None, :]
    counted = tl.where(total == 0, 1.0, total)
    lse = tl.where(total == 0, float("-inf"), top + tl.log2(counted))
    z = out / counted[:, None]

    t, h, real = rows.t.to(tl.int64), rows.h.to(tl.int64), rows.real
    inside = real[:, None] & (dv < DV)[None, :]
    if gates.gate is not None:
        gate = tl.load(gates.gate + rows.b * gates.gate_b + h * gates.gate_h + t * gates.gate_t, mask=real, other=0.0)
        z = tl.where((gate == 0)[:, None], 0.0, gate[:, None] * z)
    if gates.add is not None:
        at = (rows.b * gates.add_b + h * gates.add_h + t * gates.add_t)[:, None] + dv[None, :]
        z += tl.load(gates.add + at, mask=inside, other=0.0)
    at = ((rows.b * queries + t) * HEADS + h)[:, None] * DV + dv[None, :]
    tl.store(x.out + at, z.to(x.out.dtype.element_ty), mask=inside)

    if stats.every_lse is not None:
        tl.store(stats.every_lse + (rows.b * HEADS + h) * queries + t, lse * LN2, mask=real)
    slot = t
    if stats.slots is not None:
        slot = tl.load(stats.slots + rows.b * stats.slots_b + t, mask=real, other=-1).to(tl.int64)
        real = real & (slot >= 0)
    at = (rows.b * HEADS + h) * captured + slot
    known = tl.where(lse == float("-inf"), 0.0, lse)
    share = tl.exp2(state.top - known)
    if stats.argmax is not None:
        where = tl.where(state.argmax == NOWHERE, -1, state.argmax + kv_offset)
        tl.store(stats.argmax + at, where.to(tl.int64), mask=real)
    if stats.probability is not None:
        tl.store(stats.probability + at, share, mask=real)
    if stats.log_sum_exp is not None:
        tl.store(stats.log_sum_exp + at, lse * LN2, mask=real)
    if stats.entropy is not None:
        entropy = -share * (state.entropy + state.total * (state.top - known))
        tl.store(stats.entropy + at, tl.where(state.total == 0, 0.0, entropy * LN2), mask=real)
    if SPANS:
        span = tl.arange(0, state.mass.shape[1])[None, :]
        at = at[:, None] * SPANS + span
        tl.store(stats.mass + at, state.mass * share[:, None], mask=real[:, None] & (span < SPANS))


@triton.jit
def rows_of_item(
    walk, shape, looks, gates, queries, q_offset,
    PACK: tl.constexpr, HEADS: tl.constexpr, GROUP: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """The rows of this program, the number of their list and of their block of queries."""
    item = walk.items + 3 * tl.program_id(1)
    # volatile: read again after the loop, the rows are made anew, and take no registers while it runs.
    b, first, number = tl.load(item, volatile=True), tl.load(item + 1, volatile=True), tl.load(item + 2)
    block = tl.load(walk.order + tl.program_id(0), volatile=True)
    r = tl.arange(0, BLOCK_M)
    if PACK > 1:
        h, t, real = first + r // queries, r % queries, r < PACK * queries
    else:
        h, t = first + tl.arange(0, 1), block * BLOCK_M + r
        real = t < queries
    rows = rows_of(b, h, t, real, shape, looks, gates, q_offset, HEADS, GROUP)
    return rows, number, block


@triton.jit(do_not_specialize=["queries", "keys", "q_offset", "kv_offset", "captured"])
def attend(
    x, shape, looks, gates, beside, stats, walk, partials, queries, keys, q_offset, kv_offset, captured,
    HEADS: tl.constexpr, GROUP: tl.constexpr, PACK: tl.constexpr, SPLITS: tl.constexpr, CAUSAL: tl.constexpr,
    SPANS: tl.constexpr, D: tl.constexpr, DV: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Grid: blocks of queries, items, splits."""
    rows, number, block = rows_of_item(walk, shape, looks, gates, queries, q_offset, PACK, HEADS, GROUP, BLOCK_M)
    q = load_queries(x, rows, D, BLOCK_D, UPCAST)
    here = Inputs(
        x.q, x.k + rows.b * x.k_b + rows.kv_head.to(tl.int64) * x.k_h,
        x.v + rows.b * x.v_b + rows.kv_head.to(tl.int64) * x.v_h, x.out,
        x.q_b, x.q_h, x.q_t, x.k_b, x.k_h, x.k_t, x.v_b, x.v_h, x.v_t,
    )  # fmt: skip
    state = empty_state(BLOCK_M, BLOCK_DV, SPANS)
    offset = walk.offsets + 2 * ((number * walk.blocks + block) * SPLITS + tl.program_id(2))
    visited = 0
    for run in range(tl.load(offset), tl.load(offset + 1)):
        first, last = tl.load(walk.runs + 2 * run), tl.load(walk.runs + 2 * run + 1)
        visited += last - first
        for i in range(last - first):
            state = visit(
                state, q, first + i, here, rows, shape, looks, gates, stats, keys, q_offset, kv_offset,
                HEADS, CAUSAL, True, SPANS, D, DV, BLOCK_D, BLOCK_DV, BLOCK_N, UPCAST,
            )  # fmt: skip
    for run in range(tl.load(offset + 1), tl.load(offset + 2)):
        first, last = tl.load(walk.runs + 2 * run), tl.load(walk.runs + 2 * run + 1)
        visited += last - first
        for i in range(last - first):
            state = visit(
                state, q, first + i, here, rows, shape, looks, gates, stats, keys, q_offset, kv_offset,
                HEADS, CAUSAL, False, SPANS, D, DV, BLOCK_D, BLOCK_DV, BLOCK_N, UPCAST,
            )  # fmt: skip
    program = (tl.program_id(2) * tl.num_programs(1) + tl.program_id(1)) * walk.blocks + block
    if walk.visited is not None:
        tl.store(walk.visited + program, visited)
    if SPLITS == 1:
        rows, _, _ = rows_of_item(walk, shape, looks, gates, queries, q_offset, PACK, HEADS, GROUP, BLOCK_M)
        finish(
            state, x, rows, shape, gates, beside, stats, queries, kv_offset, captured,
            HEADS, GROUP, SPANS, D, DV, BLOCK_D, BLOCK_DV, UPCAST,
        )  # fmt: skip
    else:
        at = program.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
        tl.store(partials.top + at, state.top)
        tl.store(partials.total + at, state.total)
        tl.store(partials.out + at[:, None] * BLOCK_DV + tl.arange(0, BLOCK_DV)[None, :], state.out)
        if stats.argmax is not None:
            tl.store(partials.argmax + at, state.argmax)
        if stats.entropy is not None:
            tl.store(partials.entropy + at, state.entropy)
        if SPANS:
            span = tl.arange(0, state.mass.shape[1])[None, :]
            tl.store(partials.mass + at[:, None] * state.mass.shape[1] + span, state.mass)


@triton.jit(do_not_specialize=["queries", "keys", "q_offset", "kv_offset", "captured"])
def merge(
    x, shape, looks, gates, beside, stats, walk, partials, queries, keys, q_offset, kv_offset, captured,
    HEADS: tl.constexpr, GROUP: tl.constexpr, PACK: tl.constexpr, SPLITS: tl.constexpr, CAUSAL: tl.constexpr,
    SPANS: tl.constexpr, D: tl.constexpr, DV: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """What `attend` left of items whose keys were split. Grid: blocks of queries, items."""
    rows, _, block = rows_of_item(walk, shape, looks, gates, queries, q_offset, PACK, HEADS, GROUP, BLOCK_M)
    state = empty_state(BLOCK_M, BLOCK_DV, SPANS)
    top, total, out, argmax, entropy, mass = state
    span = tl.arange(0, mass.shape[1])[None, :]
    for split in range(SPLITS):
        program = (split * tl.num_programs(1) + tl.program_id(1)) * walk.blocks + block
        at = program.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
        best, weight = tl.load(partials.top + at), tl.load(partials.total + at)
        higher = tl.maximum(top, best)
        ours, theirs = tl.exp2(top - higher), tl.exp2(best - higher)
        if stats.argmax is not None:
            where = tl.load(partials.argmax + at)
            where = tl.where(best == top, tl.minimum(where, argmax), where)
            argmax = tl.where(best >= top, where, argmax)
        if stats.entropy is not None:
            more = tl.load(partials.entropy + at) + weight * (best - higher)
            entropy = ours * (entropy + total * (top - higher)) + theirs * more
        if SPANS:
            more = tl.load(partials.mass + at[:, None] * mass.shape[1] + span)
            mass = mass * ours[:, None] + more * theirs[:, None]
        more = tl.load(partials.out + at[:, None] * BLOCK_DV + tl.arange(0, BLOCK_DV)[None, :])
        out = out * ours[:, None] + more * theirs[:, None]
        top, total = higher, total * ours + weight * theirs
    finish(
        State(top, total, out, argmax, entropy, mass), x, rows, shape, gates, beside, stats, queries, kv_offset,
        captured, HEADS, GROUP, SPANS, D, DV, BLOCK_D, BLOCK_DV, UPCAST,
    )  # fmt: skip


@triton.jit
def add_columns(
    sums, k, block, column, x, rows_head, shape, looks, gates, stats, queries, keys, q_offset, kv_offset,
    HEADS: tl.constexpr, GROUP: tl.constexpr, CAUSAL: tl.constexpr, WHOLE: tl.constexpr, D: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """The sums `[N]` after one more block of queries."""
    b, h = rows_head
    t = block * BLOCK_M + tl.arange(0, BLOCK_M)
    rows = rows_of(b, h + tl.arange(0, 1), t, t < queries, shape, looks, gates, q_offset, HEADS, GROUP)
    q = load_queries(x, rows, D, BLOCK_D, UPCAST)
    s = scores_of(q, k, column, rows, shape, gates, q_offset, kv_offset, HEADS)
    times = tl.load(stats.times + rows.b * queries + t, mask=t < queries, other=0.0)
    lse = tl.load(stats.every_lse + (rows.b * HEADS + h) * queries + t, mask=times > 0, other=float("-inf"))
    shown = ((times > 0) & (lse > float("-inf")))[:, None]
    if not WHOLE:
        shown = shown & seen(column, rows, shape, looks, keys, kv_offset, CAUSAL)
    p = tl.exp2(tl.where(shown, s - lse[:, None] * LOG2E, float("-inf")))
    return sums + tl.sum(p * times[:, None], 0)


@triton.jit(do_not_specialize=["queries", "keys", "q_offset", "kv_offset"])
def columns(
    x, shape, looks, gates, stats, walk, queries, keys, q_offset, kv_offset,
    HEADS: tl.constexpr, GROUP: tl.constexpr, CAUSAL: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """The probability that keys receive, from the log-sum-exp of the rows. Grid: tiles of keys, heads."""
    item = walk.items + 3 * tl.program_id(1)
    b, h, number = tl.load(item), tl.load(item + 1), tl.load(item + 2)
    tile = tl.program_id(0)
    base = x.k + b.to(tl.int64) * x.k_b + (h // GROUP).to(tl.int64) * x.k_h
    k = load_keys(base, x.k_t, tile, keys, D, BLOCK_D, BLOCK_N, False, UPCAST)
    column = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    sums = tl.zeros([BLOCK_N], tl.float32)
    offset = walk.offsets + 2 * (number * walk.blocks + tile)
    visited = 0
    for run in range(tl.load(offset), tl.load(offset + 1)):
        first, last = tl.load(walk.runs + 2 * run), tl.load(walk.runs + 2 * run + 1)
        visited += last - first
        for i in range(last - first):
            sums = add_columns(
                sums, k, first + i, column, x, (b, h), shape, looks, gates, stats, queries, keys, q_offset, kv_offset,
                HEADS, GROUP, CAUSAL, True, D, BLOCK_D, BLOCK_M, UPCAST,
            )  # fmt: skip
    for run in range(tl.load(offset + 1), tl.load(offset + 2)):
        first, last = tl.load(walk.runs + 2 * run), tl.load(walk.runs + 2 * run + 1)
        visited += last - first
        for i in range(last - first):
            sums = add_columns(
                sums, k, first + i, column, x, (b, h), shape, looks, gates, stats, queries, keys, q_offset, kv_offset,
                HEADS, GROUP, CAUSAL, False, D, BLOCK_D, BLOCK_M, UPCAST,
            )  # fmt: skip
    if walk.visited is not None:
        tl.store(walk.visited + tl.program_id(1) * walk.blocks + tile, visited)
    tl.store(stats.column_sums + (b.to(tl.int64) * HEADS + h) * keys + column, sums, mask=column < keys)


INTERPRETED = not isinstance(attend, triton.JITFunction)
"""Whether the kernels run in the interpreter: decided when they were defined, by TRITON_INTERPRET."""
