"""What the command line prints about sources: how far apart they are, and what compressing them saves.

Whether they fit is a table too: the text of a :class:`~pyro_smat.sources.compatibility.CompatibilityReport`.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

from pyro_smat.sources.comparison import compare
from pyro_smat.sources.compression import CompressionResult
from pyro_smat.sources.layout import columns, readable_bytes
from pyro_smat.sources.library import SourceLibrary


def comparison_table(library: SourceLibrary) -> str:
    """For every pair of sources their distance, the cosine of their task vectors and the share of weights that differ;
    over all weights, and block by block where there are several."""
    comparison = compare(library)
    blocks = [*comparison.block_names, "all"] if len(comparison.block_names) > 1 else ["all"]
    cosine = comparison.cosine
    rows = [("source", "source", "block", "distance", "cosine", "differ")]
    for a, b in combinations(range(len(library)), 2):
        for number, block in enumerate(blocks, start=-len(blocks)):
            angle = float(cosine[number, a, b])
            rows.append(
                (
                    library.names[a],
                    library.names[b],
                    block,
                    f"{comparison.distance[number, a, b]:.4g}",
                    "-" if angle != angle else f"{angle:+.3f}",
                    f"{100 * comparison.differing[number, a, b]:.1f}%",
                )
            )
    title = f"{len(library)} sources, d = {library.space.dim:,}; cosines are of task vectors, to {library.names[0]}"
    return title + "\n" + columns(rows, right=(3, 4, 5))


def compression_table(results: Mapping[str, CompressionResult]) -> str:
    """A line for every compressed source: bytes before and after, what is lost, and the codecs of its tensors."""
    rows = [("source", "codec", "before", "after", "smaller", "error", "largest error", "tensors")]
    for name, result in results.items():
        rows.append(
            (
                name,
                result.codec,
                readable_bytes(result.bytes_before),
                readable_bytes(result.bytes_after),
                f"{result.ratio:.2f} x",
                "lossless" if result.lossless else f"{100 * result.relative_error:.2g}%",
                "0" if result.lossless else f"{result.max_error:.2g}",
                ", ".join(f"{count} {codec}" for codec, count in sorted(result.codecs.items())),
            )
        )
    before = sum(result.bytes_before for result in results.values())
    after = sum(result.bytes_after for result in results.values())
    total = (
        f"{readable_bytes(before)} in {len(results)} sources became {readable_bytes(after)}; the base is not counted"
    )
    return columns(rows, right=(2, 3, 4, 5, 6)) + "\n" + total
