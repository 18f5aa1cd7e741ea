"""What sources have seen: which classes of a pool some source was trained on, and what that means for sampling.

On classes that it was trained on a source looks better than it is on new ones. A router that is meta-trained on such
classes learns to trust that source too much, so they are left out of its episodes.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Iterable, Mapping, Sequence

from pyro_smat.episodes.pool import ImagePool

_NAMED = 5

Seen = Mapping[str, Sequence[str]]


class SeenClassWarning(UserWarning):
    """Episodes of classes that a source was trained on."""


def check_sources(seen: Iterable[str], sources: Sequence[str]) -> None:
    """Refuse names that no source has.

    Example:
        >>> check_sources(["emojy"], ["imagenet", "emoji"])
        Traceback (most recent call last):
        ValueError: data.seen names the source 'emojy', which is not there; did you mean 'emoji'?
    """
    for name in seen:
        if name not in sources:
            raise ValueError(f"data.seen names the source {name!r}, which is not there; {_near(name, sources)}")


def check_classes(seen: Seen, known: Sequence[str]) -> None:
    """Refuse classes that no pool of the run has.

    Args:
        seen: source -> classes.
        known: names of the classes of all splits.

    Example:
        >>> check_classes({"emoji": ["drinks"]}, ["drink", "food"])
        Traceback (most recent call last):
        ValueError: data.seen.emoji names the class 'drinks', which no split has; did you mean 'drink'?
    """
    for source, names in seen.items():
        for name in names:
            if name not in known:
                raise ValueError(
                    f"data.seen.{source} names the class {name!r}, which no split has; {_near(name, known)}"
                )


def seen_in(seen: Seen, pool: ImagePool) -> dict[str, tuple[str, ...]]:
    """Source -> classes of a pool, under any of its attributes, that it was trained on; only sources that have some.

    Example:
        >>> from pyro_smat.episodes import glyph_pool
        >>> seen_in({"a": ("latin:letter-q", "black"), "b": ("cat",)}, glyph_pool("validation"))
        {'a': ('black',)}
    """
    there = {name for names in pool.class_names for name in names}
    found = {source: tuple(name for name in names if name in there) for source, names in seen.items()}
    return {source: names for source, names in found.items() if names}


def classes_left_out(
    seen: Seen, pool: ImagePool, attributes: Sequence[str] | None = None, *, keep: bool = False
) -> dict[str, list[str]] | None:
    """What a sampler for the router excludes (``exclude_classes``): classes that any source has seen.

    Args:
        seen: source -> classes.
        pool: what is sampled from.
        attributes: those that may be the label, as in a config: names that the pool lacks do not count; None for all.
        keep: leave nothing out, and warn instead.

    Returns:
        Attribute -> names; None where nothing is left out.

    Raises:
        ValueError: when fewer than two classes of an attribute would be left.

    Warns:
        SeenClassWarning: with ``keep``, of the sources and how many classes each has seen.
    """
    found = seen_in(seen, pool)
    if not found:
        return None
    if keep:
        warnings.warn(
            f"the router meets classes that sources were trained on: {described(found)}. It will trust these sources "
            "more than they deserve on new classes; leave data.keep_seen out to sample without such classes",
            SeenClassWarning,
            stacklevel=3,
        )
        return None
    every = {name for names in found.values() for name in names}
    left_out = {}
    chosen = [a for a in attributes or () if a in pool.attributes] or pool.attributes
    for attribute, names in zip(pool.attributes, pool.class_names, strict=True):
        if attribute not in chosen:
            continue
        gone = [name for name in names if name in every]
        if len(names) - len(gone) < 2:
            raise ValueError(
                f"sources have seen {len(gone)} of the {len(names)} classes of attribute {attribute!r} "
                f"({described(found)}), so that no episode is left for the router; train it on other "
                "classes, or set data.keep_seen = true"
            )
        if gone:
            left_out[attribute] = gone
    return left_out or None


def described(found: Seen) -> str:
    """For messages: ``"emoji 12 (drink, event, ...)"``."""
    return ", ".join(
        f"{source} {len(names)} ({', '.join(names[:_NAMED])}{', ...' if len(names) > _NAMED else ''})"
        for source, names in found.items()
    )


def _near(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3)
    if near:
        return f"did you mean {' or '.join(map(repr, near))}?"
    more = f" and {len(known) - 8} more" if len(known) > 8 else ""
    return f"expected some of {', '.join(map(repr, known[:8]))}{more}"
