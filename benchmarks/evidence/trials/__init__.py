"""Trials: the experiments of docs/evidence.md beside the main table, one a file.

A file has ``TITLE``; ``keys(options)``, the cells of one seed; ``run(bench, cells, folder)``, which makes those that
are missing; and ``show(found)``, lines of Markdown. To add one, write such a file and name it in ``TRIALS``.
"""

from types import ModuleType

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

TRIALS: dict[str, ModuleType] = {
    module.__name__.rpartition(".")[2]: module
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
