"""Draws which room imports which, as docs/rooms.svg: ``make rooms && python docs/rooms.py``.

Arrows that follow from others are left out, so that an arrow means "stands directly on".
"""

from __future__ import annotations

import sys
from pathlib import Path

import graphviz
import grimp
import networkx

ROOT = Path(__file__).parents[1]
PACKAGE = "pyro_smat"


def room_of(module: str) -> str | None:
    """The room of a module: a folder of the package, or one of inference/."""
    parts = module.split(".")[1:]
    if not parts or parts[0].startswith("__"):
        return None
    return "/".join(parts[:2]) if parts[0] == "inference" and len(parts) > 1 else parts[0]


def main() -> None:
    sys.path.insert(0, str(ROOT / "build" / "rooms"))
    found = grimp.build_graph(PACKAGE, cache_dir=None)
    rooms = networkx.DiGraph()
    for module in found.modules:
        for other in found.find_modules_directly_imported_by(module):
            here, there = room_of(module), room_of(other)
            if here and there and here != there and "inference" not in (here, there):
                rooms.add_edge(here, there)
    order = networkx.condensation(rooms)  # rooms that import each other, lazily, share a box
    names = {number: "\n".join(sorted(data["members"])) for number, data in order.nodes(data=True)}
    picture = graphviz.Digraph(graph_attr={"rankdir": "TB"}, node_attr={"shape": "box", "fontname": "sans-serif"})
    for number, name in names.items():
        picture.node(str(number), name)
    for here, there in networkx.transitive_reduction(order).edges:
        picture.edge(str(here), str(there))
    (ROOT / "docs" / "rooms.svg").write_text(picture.pipe("svg", encoding="utf-8"))


if __name__ == "__main__":
    main()
