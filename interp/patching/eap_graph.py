"""The graph of edge attribution: heads, MLPs, the input and the logits, joined through the residual stream.

Sources (rows) are what writes to the stream, in the order of the forward pass: `input`, then for each layer its heads
`a3.h5` and its MLP `m3`. Destinations (columns) are what reads it: for each layer `a3.h5<q>` of every head, then `<k>`,
then `<v>`, then `m3`; last `logits`. Files are those of EAP-IG (Hanna et al. 2024), which the MIB benchmark reads.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from interp.errors import BadInput, UnreadableFile
from interp.runs import staged

_CONFIG = {"n_layers": "layers", "n_heads": "heads", "d_model": "width", "parallel_attn_mlp": "parallel"}
_OPTIONAL = {"nodes_scores": "node_scores", "neurons_in_graph": "neurons_in_graph", "neurons_scores": "neuron_scores"}


@dataclass(frozen=True)
class GraphShape:
    """What decides which edges there are. `parallel`: attention and MLP of a block read the same stream."""

    layers: int
    heads: int
    width: int
    parallel: bool = False

    @cached_property
    def sources(self) -> list[str]:
        per_layer = ([*(f"a{n}.h{h}" for h in range(self.heads)), f"m{n}"] for n in range(self.layers))
        return ["input", *(name for names in per_layer for name in names)]

    @cached_property
    def destinations(self) -> list[str]:
        names = []
        for n in range(self.layers):
            names += [f"a{n}.h{h}<{letter}>" for letter in "qkv" for h in range(self.heads)]
            names.append(f"m{n}")
        return [*names, "logits"]

    def before(self, destination: int) -> int:
        """How many sources, counted from the input on, write before this destination reads."""
        layer, place = divmod(destination, 3 * self.heads + 1)
        if layer == self.layers:
            return len(self.sources)
        mlp = place == 3 * self.heads
        return 1 + layer * (self.heads + 1) + (self.heads if mlp and not self.parallel else 0)

    @cached_property
    def edges(self) -> np.ndarray:
        """Which pairs are edges, `[source destination]` bool."""
        counts = np.array([self.before(d) for d in range(len(self.destinations))])
        return np.arange(len(self.sources))[:, None] < counts

    @cached_property
    def readers(self) -> np.ndarray:
        """Which destinations are the inputs of which source node, `[source destination]` bool."""
        nodes = {name: i for i, name in enumerate(self.sources)}
        own = np.zeros((len(self.sources), len(self.destinations)), dtype=bool)
        for d, name in enumerate(self.destinations[:-1]):
            own[nodes[name.split("<")[0]], d] = True
        return own


@dataclass(frozen=True, eq=False, repr=False)
class EdgeGraph:
    """Scores of edges `[source destination]`, and the circuit that was chosen by them (`in_graph`, `nodes_in_graph`).

    Node and neuron scores (`[source]`, `[source width]`) are carried when a file holds them. Raises BadInput where the
    arrays do not fit the shape.
    """

    shape: GraphShape
    scores: np.ndarray
    in_graph: np.ndarray
    nodes_in_graph: np.ndarray
    node_scores: np.ndarray | None = None
    neurons_in_graph: np.ndarray | None = None
    neuron_scores: np.ndarray | None = None

    def __post_init__(self) -> None:
        sources, destinations = len(self.shape.sources), len(self.shape.destinations)
        wanted = {"scores": (sources, destinations), "in_graph": (sources, destinations), "nodes_in_graph": (sources,)}
        wanted |= {"node_scores": (sources,), "neurons_in_graph": (sources, self.shape.width)}
        wanted |= {"neuron_scores": (sources, self.shape.width)}
        for name, size in wanted.items():
            array = getattr(self, name)
            if array is not None and array.shape != size:
                raise BadInput(f"{name} of this graph must be {list(size)}; got {list(array.shape)}")

    @classmethod
    def scored(cls, shape: GraphShape, scores: np.ndarray) -> EdgeGraph:
        """Scores with every edge in the graph."""
        return cls(shape, scores, shape.edges.copy(), np.ones(len(shape.sources), dtype=bool))

    def __repr__(self) -> str:
        s = self.shape
        return f"EdgeGraph({s.layers} layers x {s.heads} heads: {self.in_graph.sum()} of {s.edges.sum()} edges)"

    def __getitem__(self, edge: str) -> float:
        """The score of an edge by its name, `a5.h1->a9.h6<q>`. Raises BadInput for what is no edge."""
        source, _, destination = edge.partition("->")
        if source in self.shape.sources and destination in self.shape.destinations:
            place = self.shape.sources.index(source), self.shape.destinations.index(destination)
            if self.shape.edges[place]:
                return float(self.scores[place])
        raise BadInput(
            f"{edge!r} is no edge of this graph; edges are named like input->a0.h0<q>, a0.h1->m1, m0->logits"
        )

    def top(self, count: int, absolute: bool = True) -> EdgeGraph:
        """The circuit of the `count` edges with the greatest scores, without nodes that nothing enters or leaves.

        Raises BadInput unless there are that many edges.
        """
        real = np.flatnonzero(self.shape.edges)
        if not 1 <= count <= len(real):
            raise BadInput(f"top {count} of {len(real)} edges cannot be taken")
        value = self.scores.ravel()[real]
        best = real[np.argsort(-(np.abs(value) if absolute else value), kind="stable")[:count]]
        chosen = np.zeros(self.scores.size, dtype=bool)
        chosen[best] = True
        return replace(self, in_graph=chosen.reshape(self.scores.shape)).pruned()

    def pruned(self) -> EdgeGraph:
        """Without edges into nodes that reach nothing, and out of nodes that nothing reaches."""
        edges, readers = self.in_graph & self.shape.edges, self.shape.readers
        while True:
            nodes = edges.any(1) & (readers & edges.any(0)).any(1)
            nodes[0] = edges[0].any()
            inputs = (nodes[:, None] & readers).any(0)
            inputs[-1] = True
            kept = edges & nodes[:, None] & inputs
            if (kept == edges).all():
                return replace(self, in_graph=kept, nodes_in_graph=nodes)
            edges = kept

    def named(self) -> Iterator[tuple[str, float, bool]]:
        """Name, score and membership of every edge."""
        for s, d in np.argwhere(self.shape.edges):
            name = f"{self.shape.sources[s]}->{self.shape.destinations[d]}"
            yield name, float(self.scores[s, d]), bool(self.in_graph[s, d])

    @property
    def config(self) -> dict[str, Any]:
        return {theirs: getattr(self.shape, ours) for theirs, ours in _CONFIG.items()}

    def to_json(self, path: str | Path) -> None:
        """Write EAP-IG's JSON, whole or not at all. Raises UnwritableOutput."""
        nodes: dict[str, dict[str, Any]] = {}
        for i, name in enumerate(self.shape.sources):
            nodes[name] = {"in_graph": bool(self.nodes_in_graph[i])}
            if self.node_scores is not None:
                nodes[name]["score"] = float(self.node_scores[i])
            if self.neurons_in_graph is not None:
                nodes[name]["neurons"] = self.neurons_in_graph[i].tolist()
            if self.neuron_scores is not None:
                nodes[name]["neurons_scores"] = self.neuron_scores[i].tolist()
        nodes["logits"] = {"in_graph": True}
        edges = {name: {"score": score, "in_graph": member} for name, score, member in self.named()}
        text = json.dumps({"cfg": self.config, "nodes": nodes, "edges": edges})
        with staged(path) as file:
            file.write_text(text, encoding="utf-8")

    def to_pt(self, path: str | Path) -> None:
        """Write EAP-IG's `.pt`, whole or not at all: a dict of tensors, lists and numbers. Raises UnwritableOutput."""
        import torch

        content: dict[str, Any] = {
            "cfg": self.config,
            "src_nodes": self.shape.sources,
            "dst_nodes": self.shape.destinations,
            "edges_scores": torch.from_numpy(self.scores.astype(np.float32)),
            "edges_in_graph": torch.from_numpy(self.in_graph.copy()),
            "nodes_in_graph": torch.from_numpy(self.nodes_in_graph.copy()),
        }
        for theirs, ours in _OPTIONAL.items():
            if (array := getattr(self, ours)) is not None:
                content[theirs] = torch.from_numpy(array.copy())
        with staged(path) as file:
            torch.save(content, file)


def read_graph(path: str | Path) -> EdgeGraph:
    """Read a graph from EAP-IG's `.json` or `.pt` (with `weights_only`, so that a file can run nothing).

    Raises UnreadableFile.
    """
    path = Path(path)
    try:
        return _from_json(json.loads(path.read_text(encoding="utf-8"))) if path.suffix == ".json" else _from_pt(path)
    except Exception as error:
        raise UnreadableFile(f"{path} does not hold an edge graph: {error}") from error


def _shape(config: Mapping[str, Any]) -> GraphShape:
    if missing := [name for name in _CONFIG if name not in config and name != "parallel_attn_mlp"]:
        raise ValueError(f"its cfg lacks {', '.join(missing)}")
    return GraphShape(
        int(config["n_layers"]), int(config["n_heads"]), int(config["d_model"]), bool(config.get("parallel_attn_mlp"))
    )


def _from_pt(path: Path) -> EdgeGraph:
    import torch

    # Not a format of ours: what other tools wrote is read, and only as numbers, lists and tensors.
    content = torch.load(path, weights_only=True, map_location="cpu")  # noqa: TID251
    shape = _shape(content["cfg"])
    for key, names in (("src_nodes", shape.sources), ("dst_nodes", shape.destinations)):
        if list(content[key]) != names:
            raise ValueError(f"its {key} are not those of {shape}, in their order")
    optional = {ours: content[theirs].numpy() for theirs, ours in _OPTIONAL.items() if theirs in content}
    return EdgeGraph(
        shape,
        content["edges_scores"].float().numpy(),
        content["edges_in_graph"].bool().numpy(),
        content["nodes_in_graph"].bool().numpy(),
        **optional,
    )


def _from_json(content: Mapping[str, Any]) -> EdgeGraph:
    shape = _shape(content["cfg"])
    sources, destinations = ({name: i for i, name in enumerate(names)} for names in (shape.sources, shape.destinations))
    scores, in_graph = np.zeros(shape.edges.shape), np.zeros(shape.edges.shape, dtype=bool)
    for name, edge in content["edges"].items():
        source, _, destination = name.partition("->")
        place = sources.get(source, -1), destinations.get(destination, -1)
        if min(place) < 0 or not shape.edges[place]:
            raise ValueError(f"{name!r} is no edge of {shape}")
        scores[place], in_graph[place] = edge["score"], edge["in_graph"]
    nodes = [content["nodes"][name] for name in shape.sources]

    def column(key: str) -> np.ndarray | None:
        return np.array([node[key] for node in nodes]) if all(key in node for node in nodes) else None

    return EdgeGraph(
        shape,
        scores,
        in_graph,
        np.array([bool(node["in_graph"]) for node in nodes]),
        column("score"),
        column("neurons"),
        column("neurons_scores"),
    )
