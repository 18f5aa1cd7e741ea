"""Episode losses: a distribution, labels and a mask go in, points come out; the objective sums or averages them.

To add one, write one class or function in one file here, registered by its name::

    @register("episode_loss", "focal")
    class FocalLoss:
        reduction = "mean"  # over the points of an episode; without it they are summed

        def __init__(self, *, gamma: float = 2.0) -> None: ...

        def __call__(self, distribution, labels, mask): ...  # points in the batch shape of the distribution

or outside this package and named ``"file.py:FocalLoss"``. ``names("episode_loss")`` lists those that are here.
"""

from pyro_smat.inference.objective.losses.brier import Brier
from pyro_smat.inference.objective.losses.clipped_nll import ClippedNLL
from pyro_smat.inference.objective.losses.episode_loss import EpisodeLoss, OfExpectation, as_episode_loss, points_of
from pyro_smat.inference.objective.losses.expected_error import ExpectedError
from pyro_smat.inference.objective.losses.mean_nll import MeanNLL
from pyro_smat.inference.objective.losses.nll import NLL
from pyro_smat.inference.objective.losses.predictive_nll import PredictiveNLL

__all__ = [
    "NLL",
    "Brier",
    "ClippedNLL",
    "EpisodeLoss",
    "ExpectedError",
    "MeanNLL",
    "OfExpectation",
    "PredictiveNLL",
    "as_episode_loss",
    "points_of",
]
