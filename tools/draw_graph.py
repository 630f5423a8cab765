"""Draw one attribution graph as a still SVG picture: tokens along the bottom, layers upward, logits on top.

    python tools/draw_graph.py graph.json picture.svg [--nodes 60]

Only the most influential nodes are drawn, with the links between them; a link's width is its share of its target's
incoming weight, blue for positive and orange for negative (a pair that colour-blind readers can tell apart).
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from html import escape
from pathlib import Path
from typing import Any

Node = dict[str, Any]
COLUMN, ROW, MARGIN_X, MARGIN_Y, RADIUS = 92, 74, 96, 60, 5
POSITIVE, NEGATIVE, INK = "#2166ac", "#e08214", "#222222"
FILL = {
    "cross layer transcoder": "#4d4d4d",
    "embedding": "#7fbf7b",
    "logit": "#762a83",
    "mlp reconstruction error": "#bdbdbd",
}


def draw(graph: dict[str, Any], count: int) -> str:
    """The SVG text of a graph document, with its `count` most influential nodes."""
    nodes = choose(graph["nodes"], count)
    tokens = graph["metadata"]["prompt_tokens"]
    levels = level_of(nodes)
    places = place(nodes, levels)
    width = MARGIN_X * 2 + COLUMN * (len(tokens) - 1)
    height = MARGIN_Y * 2 + ROW * max(levels.values())
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'font-family="ui-sans-serif, system-ui, sans-serif" font-size="12" fill="{INK}">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    parts += links(graph["links"], places, height)
    parts += [mark(node, *places[node["node_id"]], height) for node in nodes]
    parts += axis(tokens, levels, width, height)
    return "\n".join([*parts, "</svg>"])


def choose(nodes: list[Node], count: int) -> list[Node]:
    """Tokens and logits always, then features and errors in the order of their influence (lower is more important)."""
    fixed = [node for node in nodes if node["feature_type"] in ("embedding", "logit")]
    rest = [node for node in nodes if node not in fixed and node.get("influence") is not None]
    return fixed + sorted(rest, key=lambda node: node["influence"])[: max(0, count - len(fixed))]


def level_of(nodes: list[Node]) -> dict[str, int]:
    """Row of each layer label, from the tokens upward."""
    layers = sorted({int(node["layer"]) for node in nodes if str(node["layer"]).lstrip("-").isdigit()})
    return {"E": 0} | {str(layer): row for row, layer in enumerate(layers, start=1)}


def place(nodes: list[Node], levels: dict[str, int]) -> dict[str, tuple[float, float]]:
    """Centre of each node: column by position, row by layer; nodes of one cell stand side by side."""
    cells: dict[tuple[int, int], list[str]] = defaultdict(list)
    for node in nodes:
        cells[node["ctx_idx"], levels[str(node["layer"])]].append(node["node_id"])
    places = {}
    for (column, row), ids in cells.items():
        gap = min(2.4 * RADIUS, (COLUMN - 8) / len(ids))
        for i, node_id in enumerate(ids):
            places[node_id] = (MARGIN_X + column * COLUMN + (i - (len(ids) - 1) / 2) * gap, MARGIN_Y + row * ROW)
    return places


def links(all_links: list[dict[str, Any]], places: dict[str, tuple[float, float]], height: int) -> list[str]:
    incoming: dict[str, float] = defaultdict(float)
    for link in all_links:
        incoming[link["target"]] += abs(link["weight"])
    lines = []
    for link in all_links:
        share = abs(link["weight"]) / max(incoming[link["target"]], 1e-12)
        if link["source"] not in places or link["target"] not in places or share < 0.02:
            continue
        (x0, y0), (x1, y1) = places[link["source"]], places[link["target"]]
        y0, y1, colour = height - y0, height - y1, POSITIVE if link["weight"] > 0 else NEGATIVE
        bend = (y0 - y1) / 2
        lines.append(
            f'<path d="M{x0:.1f} {y0:.1f} C{x0:.1f} {y0 - bend:.1f} {x1:.1f} {y1 + bend:.1f} {x1:.1f} {y1:.1f}" '
            f'fill="none" stroke="{colour}" stroke-width="{0.4 + 5 * share:.2f}" stroke-opacity="{0.18 + share:.2f}"/>'
        )
    return lines


def mark(node: Node, x: float, y: float, height: int) -> str:
    size = RADIUS if node["feature_type"] != "mlp reconstruction error" else RADIUS * 0.7
    fill = FILL.get(node["feature_type"], "#4d4d4d")
    title = escape(f"{node['node_id']} {node['clerp']}")
    centre = f'cx="{x:.1f}" cy="{height - y:.1f}" r="{size}"'
    circle = f'<circle {centre} fill="{fill}" stroke="white"><title>{title}</title></circle>'
    if node["feature_type"] != "logit" or not node["is_target_logit"]:
        return circle
    return circle + f'<text x="{x + 4:.1f}" y="{height - y - 14:.1f}" text-anchor="end">{title.split(" ", 1)[1]}</text>'


def axis(tokens: list[str], levels: dict[str, int], width: int, height: int) -> list[str]:
    lines = []
    for column, token in enumerate(tokens):
        shown = escape(token.replace("\n", "⏎").replace(" ", "·")) or "∅"
        lines.append(
            f'<text x="{MARGIN_X + column * COLUMN}" y="{height - MARGIN_Y + 28}" text-anchor="middle" '
            f'font-family="ui-monospace, monospace">{shown}</text>'
        )
    top = max(levels.values())
    for label, row in levels.items():
        name = "tokens" if label == "E" else "logits" if row == top else f"layer {label}"
        lines.append(f'<text x="12" y="{height - MARGIN_Y - row * ROW + 4}" fill="#666666">{name}</text>')
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("graph", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--nodes", type=int, default=60)
    arguments = parser.parse_args()
    graph = json.loads(arguments.graph.read_text("utf-8"))
    arguments.picture.write_text(draw(graph, arguments.nodes), "utf-8")


if __name__ == "__main__":
    main()
