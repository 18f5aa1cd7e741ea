"""Corruptions: what goes wrong with an episode while it is drawn, in training and in evaluation alike.

In: names, tables or objects for ``EpisodeSampler(corruptions=...)``. Out: episodes, and a record of what was done to
each (``corruptions``, ``corrupted_labels``, ``confounded_with``). Queries stay honest unless a corruption says
otherwise.

To add one, write one frozen dataclass in one file of this room, derived from the class whose hook it needs::

    @register("corruption", "inverted")
    @dataclass(frozen=True)
    class Inverted(PixelCorruption):
        \"\"\"Negatives of the support images.\"\"\"

        def change(self, images, labels, way, rng, *, query):
            return 1 - images

============================ ============================================================================
base class                   hook, and what it can do
============================ ============================================================================
:class:`CountCorruption`     ``counts``: how many supports and queries each class has
:class:`ChoiceCorruption`    ``choose``: which classes, and which of their images may be supports
:class:`RowCorruption`       ``change``: replace, remove or relabel images of the pool
:class:`PixelCorruption`     ``change``: alter the pixels of supports, or of queries too
============================ ============================================================================

The hooks run in this order, and corruptions with the same hook in the order in which they are given.
"""

from pyro_smat.episodes.corruptions.corruption import (
    ChoiceCorruption,
    Corruption,
    CorruptionLike,
    CountCorruption,
    PixelCorruption,
    RowCorruption,
    at_severity,
    make_corruptions,
)

__all__ = [
    "ChoiceCorruption",
    "Corruption",
    "CorruptionLike",
    "CountCorruption",
    "PixelCorruption",
    "RowCorruption",
    "at_severity",
    "make_corruptions",
]
