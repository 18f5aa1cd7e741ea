"""Features that are NaN or infinite: one source that has them would make every answer of a task meaningless."""

from __future__ import annotations

import torch

from pyro_smat.episodes import EpisodeBatch
from pyro_smat.sources import SourceLibrary


def refuse_broken_features(batch: EpisodeBatch, library: SourceLibrary) -> None:
    """Check the features ``(B, R, S, f)`` of the supports, padding aside.

    Args:
        batch: with features attached.
        library: of the R sources.

    Raises:
        ValueError: naming the sources whose features are not finite, and the negative variances among their weights,
            which sums of differences have (task arithmetic).
    """
    support = batch.support
    assert support.features is not None
    broken = (~torch.isfinite(support.features).all(-1) & support.mask.unsqueeze(1)).any(-1).any(0).tolist()
    if not any(broken):
        return
    variances = [entry for entry in library.space.entries if entry.name.endswith("running_var")]
    found = []
    for row, name in enumerate(library.names):
        if broken[row]:
            low = {e.name: float(library.basis[row, e.offset : e.offset + e.numel].min()) for e in variances}
            negative = [f"{tensor} goes down to {value:.3g}" for tensor, value in low.items() if value < 0]
            found.append(f"{name!r}" + (f" ({', '.join(negative[:3])}: variances are >= 0)" if negative else ""))
    raise ValueError(
        f"features of the support are NaN or infinite under source {', '.join(found)}; expected finite ones: estimate "
        "statistics of merged weights again (recompute_statistics), look for extreme weights and images, set precision "
        "to float32, or leave the source out (library.without)"
    )
