"""A circuit as a graph: heads by layer, the logits on top, a line wherever one head feeds another."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go

from interp.circuits.discovery import Discovery
from interp.circuits.stage import StageResult
from interp.heads.ablation import Head
from interp.plots.template import COLOURS, INK, TEMPLATE, literal, transparent

LOGITS = "logits"
FEEDS = {"logits": "write to the logits", "q": "feed queries", "k": "feed keys", "v": "feed values"}
SYMBOLS = {"logits": "circle", "q": "square", "k": "hexagon", "v": "diamond"}
"""A head's shape says what it feeds, its colour which role it has."""
THROUGH = {"q": "the queries of", "k": "the keys of", "v": "the values of"}
NO_ROLE = "no role"
ROLE_COLOURS = (*COLOURS[:6], "#882255", "#999933")
"""By the order of the tests; wine and olive of Tol's muted scheme follow, as there are more roles than colours."""
ROW_PIXELS = 105
LEAST_SIZE, MOST_SIZE = 30, 46
"""Of a head, in pixels: its name fits into it."""
SHIFTS = (0.0, 0.2, -0.2, 0.4, -0.4, 0.6, -0.6)
"""Of a row of heads, in gaps between two of them."""
SWEEPS = 2
NEAR = 0.05
"""Of a line and the middle of a head, as a share of the width."""
EDGE = transparent(INK, 0.6)

Node = Head | str
Place = tuple[float, float]


def circuit_graph(discovery: Discovery, size: int | None = None) -> go.Figure:
    """Heads with roles by layer, and a line from every head to those whose inputs it was found to feed.

    Dots and lines grow with the effect of the stage that found the head; dashed lines push against the answer. With a
    `size`, only heads among that many with the largest effects are drawn, those without a role too.
    """
    roles = discovery.roles if size is None else {h: discovery.roles.get(h, "") for h in discovery.strongest(size)}
    edges = [
        (result, head, target)
        for result in discovery.stages
        for head in result.found
        for target in result.receivers or (LOGITS,)
        # what a head writes is read in later layers alone
        if head in roles and (isinstance(target, str) or (target in roles and target[0] > head[0]))
    ]
    places = _places(roles, [(head, target) for _, head, target in edges])
    figure = go.Figure()
    for result, head, target in edges:
        _add_edge(figure, result, head, target, places)
    for number, (role, component) in enumerate(_tests(discovery).items()):
        heads = [head for head, own in roles.items() if own == role]
        colour = ROLE_COLOURS[number % len(ROLE_COLOURS)]
        _add_heads(figure, discovery, heads, role, places, FEEDS[component], colour, SYMBOLS[component])
    rest = [head for head, own in roles.items() if not own]
    _add_heads(figure, discovery, rest, NO_ROLE, places, "other heads", "rgba(0, 0, 0, 0)", "circle-open")
    x, y = places[LOGITS]
    figure.add_trace(
        go.Scatter(
            x=[x],
            y=[y],
            mode="markers+text",
            text=[LOGITS],
            textposition="top center",
            marker={"symbol": "square", "color": INK, "size": 14},
            customdata=[[discovery.accuracy]],
            hovertemplate="what the model says: the answer after %{customdata[0]:.0%} of the prompts<extra></extra>",
            showlegend=False,
        )
    )
    _lay_out(figure, discovery, roles, places)
    return figure


def _tests(discovery: Discovery) -> dict[str, str]:
    """Every role that was tested for, with what a head of it feeds."""
    tests: dict[str, str] = {}
    for result in discovery.stages:
        for test in result.stage.tests:
            tests.setdefault(test.role, result.stage.component)
    return tests


def _places(heads: dict[Head, str], edges: list[tuple[Head, Node]]) -> dict[Node, Place]:
    """Where heads and logits stand: layers with heads upwards, the heads of one spread evenly.

    Rows are moved aside, one after the other, so that few lines run through heads that they do not end at.
    """
    layers = sorted({layer for layer, _ in heads})
    rows = [sorted(head for head in heads if head[0] == layer) for layer in layers]
    aside = [0.0] * len(rows)

    def placed() -> dict[Node, Place]:
        places: dict[Node, Place] = {LOGITS: (0.5, float(len(rows)))}
        for y, own in enumerate(rows):
            gap = 1 / (len(own) + 1)
            places |= {head: ((i + 1 + aside[y]) * gap, float(y)) for i, head in enumerate(own)}
        return places

    for _ in range(SWEEPS):
        for y in range(len(rows)):
            costs = []
            for shift in SHIFTS:
                aside[y] = shift
                costs.append(_struck(placed(), edges))
            aside[y] = SHIFTS[int(np.argmin(costs))]
    return placed()


def _struck(places: dict[Node, Place], edges: list[tuple[Head, Node]]) -> int:
    """How many heads stand in the way of a line, counted for every line."""
    if not edges:
        return 0
    points = np.array(list(places.values()))
    start, end = (np.array([places[edge[side]] for edge in edges]) for side in (0, 1))
    above = (points[:, 1] - start[:, None, 1]) / (end - start)[:, None, 1]
    across = start[:, None, 0] + above * (end - start)[:, None, 0]
    return int(((above > 0) & (above < 1) & (np.abs(across - points[:, 0]) < NEAR)).sum())


def _add_edge(figure: go.Figure, result: StageResult, head: Head, target: Node, places: dict[Node, Place]) -> None:
    """A line as wide as the effect, and in its middle a point that says what it is."""
    (x0, y0), (x1, y1) = places[head], places[target]
    effect = float(result.effects[head])
    name = "pushes against the answer" if effect < 0 else "pushes towards the answer"
    figure.add_trace(
        go.Scatter(
            x=[x0, x1],
            y=[y0, y1],
            mode="lines",
            name=name,
            line={"color": EDGE, "width": 1.5 + 7 * min(abs(effect), 1), "dash": "dash" if effect < 0 else "solid"},
            hoverinfo="skip",
            showlegend=all(trace.name != name for trace in figure.data),
            legendgroup="lines",
            legendgrouptitle={"text": "a line: the lower head<br>feeds the upper one"},
        )
    )
    where = "to the logits" if isinstance(target, str) else f"into {THROUGH[result.stage.component]} {_name(target)}"
    receivers = len(result.receivers)
    others = [] if receivers < 2 else [f"measured into all {receivers} heads fed together"]
    figure.add_trace(
        go.Scatter(
            x=[(x0 + x1) / 2],
            y=[(y0 + y1) / 2],
            mode="markers",
            marker={"size": 16, "opacity": 0},
            hovertext=[_lines(f"{_name(head)} {where}, at {result.stage.at}", _effect(result, head), *others)],
            hoverinfo="text",
            showlegend=False,
        )
    )


def _add_heads(
    figure: go.Figure,
    discovery: Discovery,
    heads: list[Head],
    role: str,
    places: dict[Node, Place],
    group: str,
    colour: str,
    symbol: str,
) -> None:
    if not heads:
        return  # none has the role, or all are drawn with that of an earlier stage
    grown = (MOST_SIZE - LEAST_SIZE) * discovery.scores.clip(max=1)
    figure.add_trace(
        go.Scatter(
            x=[places[head][0] for head in heads],
            y=[places[head][1] for head in heads],
            mode="markers+text",
            name=literal(role),
            text=[_name(head) for head in heads],
            textfont={"color": INK if role == NO_ROLE else _readable_on(colour), "size": 13, "weight": 700},
            customdata=[list(head) for head in heads],
            marker={
                "color": INK if role == NO_ROLE else colour,
                "symbol": symbol,
                "opacity": 1,
                "size": [LEAST_SIZE + float(grown[head]) for head in heads],
                "line": {"color": INK, "width": 1},
            },
            hovertext=[_said(discovery, head, role) for head in heads],
            hoverinfo="text",
            legendgroup=group,
            legendgrouptitle={"text": group},
        )
    )


def _lay_out(figure: go.Figure, discovery: Discovery, roles: dict[Head, str], places: dict[Node, Place]) -> None:
    layers = sorted({layer for layer, _ in roles})
    top = places[LOGITS][1]
    figure.update_layout(
        title={
            "text": literal(f"{discovery.task} circuit of {discovery.model['name']}"),
            "subtitle": {"text": "thicker line, larger dot: corrupting what passes there moves the answer further"},
        },
        template=TEMPLATE,
        height=max(420, int(ROW_PIXELS * (top + 1)) + 110),
        margin={"t": 80},
        xaxis={"visible": False, "range": [-0.02, 1.02]},
        yaxis={
            "title": "layer",
            "range": [-0.6, top + 0.6],
            "tickvals": list(range(len(layers))),
            "ticktext": [str(layer) for layer in layers],
            "zeroline": False,
        },
        legend={"itemsizing": "constant", "tracegroupgap": 6},
    )
    if not roles:
        text = "no head passes the test of any role"
        figure.add_annotation(text=text, x=0.5, y=0.25, xref="paper", yref="paper", showarrow=False)


def _said(discovery: Discovery, head: Head, role: str) -> str:
    """What hovering over a head says: its effect at every stage that found it, or at its strongest."""
    found = [result for result in discovery.stages if head in result.found]
    found = found or [max(discovery.stages, key=lambda result: abs(result.effects[head]))]
    return _lines(f"head {_name(head)}: {role}", *(f"{r.stage.name}: {_effect(r, head)}" for r in found))


def _effect(result: StageResult, head: Head) -> str:
    """The effect with its interval and n."""
    if result.patched is None:
        return "sends nothing"
    frame = result.patched.frame
    row = frame[(frame["layer"] == head[0]) & (frame["head"] == head[1])]
    if row.empty:
        return "sends nothing"
    one = row.iloc[0]
    low, high = one["effect_ratio_of_means_low"], one["effect_ratio_of_means_high"]
    return f"effect {one['effect_ratio_of_means']:.3f} [{low:.3f}, {high:.3f}], n={int(one['n'])}"


def _lines(*said: str) -> str:
    return "<br>".join(map(literal, said))


def _readable_on(colour: str) -> str:
    """Dark or pale, by the fill; neither vanishes from a light or a dark page."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return "#404040" if 0.299 * red + 0.587 * green + 0.114 * blue > 100 else "#BFBFBF"


def _name(head: Head) -> str:
    return f"{head[0]}.{head[1]}"
