"""Trials: the experiments of docs/evidence.md beside the main table, one a file.

Each has ``TITLE``; ``keys(options)``, the cells of one seed; ``run(bench, cells, folder)``, which makes those that
are missing; and ``show(found)``, lines of Markdown: a module of this folder, or its ``TRIAL`` where it varies the
config. To add one, write such a file and name it in ``TRIALS``.
"""

from typing import Any

from trials import (
    ablations,
    abstention,
    catalogs,
    corruptions,
    experts,
    groups,
    libraries,
    mixing,
    others,
    rules,
    shots,
    tails,
)

TRIALS: dict[str, Any] = {
    module.__name__.rpartition(".")[2]: getattr(module, "TRIAL", module)
    for module in (
        shots,
        tails,
        rules,
        abstention,
        corruptions,
        groups,
        ablations,
        experts,
        libraries,
        catalogs,
        mixing,
        others,
    )
}
