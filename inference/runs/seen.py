"""What a config says of the classes that sources were trained on, with splits looked up and names checked."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from pyro_smat.episodes.pool import ImagePool
from pyro_smat.inference.assembly.config import RunConfig
from pyro_smat.inference.assembly.seen import check_classes, check_sources
from pyro_smat.inference.runs.pools import build_pool


def seen_classes(config: RunConfig, sources: Sequence[str], pools: Sequence[ImagePool]) -> dict[str, tuple[str, ...]]:
    """Source -> names of the classes that it was trained on; where the config names a split, those of that split.

    Args:
        config: its ``data.seen``.
        sources: names of the sources.
        pools: of the splits that are read already, to look names up in; the test split is read only for a name that
            they lack.

    Raises:
        ValueError: for a source, a class or a split that is not there; near matches are named.
    """
    said = config.data.seen
    check_sources(said, sources)
    found, known = dict[str, tuple[str, ...]](), dict.fromkeys(_names(*pools))
    for source, names in said.items():
        if isinstance(names, str):
            try:
                found[source] = _names(build_pool(config, names))
            except ValueError as error:
                raise ValueError(
                    f"data.seen.{source} is the split {names!r}, which cannot be read ({error}); expected the name of "
                    "a split, or a list of classes"
                ) from error
            known |= dict.fromkeys(found[source])
        else:
            found[source] = tuple(names)
    if any(name not in known for names in found.values() for name in names) and config.data.test:
        with suppress(ValueError):  # there is no test split
            known |= dict.fromkeys(_names(build_pool(config, "test")))
    check_classes(found, tuple(known))
    return found


def _names(*pools: ImagePool) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for pool in pools for names in pool.class_names for name in names))
