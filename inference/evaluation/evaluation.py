"""Evaluation: what happened when a router and its baselines answered episodes that they had not seen.

One row an episode, from :func:`~pyro_smat.inference.evaluation.evaluate`; the numbers that reports print.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from pyro_smat.metrics import brier_score, expected_calibration_error, negative_log_likelihood
from pyro_smat.metrics.arrays import FloatArray
from pyro_smat.metrics.intervals import episode_interval, episode_quantile
from pyro_smat.metrics.risk import cvar

EpisodeMeasure = Literal["error", "brier", "nll"]
Role = Literal["rule", "baseline", "reference", "detail"]
NLL_CLIP = math.log(1e3)  # nats


@dataclass(frozen=True)
class Method:
    """How reports show a method.

    Attributes:
        title: its row.
        role: "rule", a decision rule of the router; "baseline", what else could be done; "reference", what sees what
            nobody can know; "detail", a row for metrics.json alone.
    """

    title: str
    role: Role = "baseline"


@dataclass(frozen=True)
class Evaluation:
    """What happened on N episodes.

    Attributes:
        probabilities: method -> ``(n, W)`` class probabilities of all n queries of all episodes.
        labels: ``(n,)``.
        episode: ``(n,)``, the episode of every query, 0..N-1.
        scores: uncertainty score -> ``(N,)``.
        weights: ``(N, R)`` posterior mean of the source weights.
        support_loss: ``(N, R)`` leave-one-out support loss of the sources, in nats.
        source_loss: ``(N, R)`` query loss of the sources, in nats per query.
        route: ``(N,)`` true route, -1 unknown; source_of_route: the source that knows a route, -1 for none.
        corrupted_labels, confounded_with, way, shots: ``(N,)``.
        shown: method -> how reports show it; a method that is not there is a baseline called by its key.
        score_titles: uncertainty score -> what reports call it, where that is not its key.
        seen: source -> classes of the pool that it was trained on, so that its numbers here flatter it.
        seconds: baseline -> wall time of an episode of a batch, features of the sources being known: what is fitted,
            and networks that are no source by itself.
    """

    probabilities: Mapping[str, FloatArray]
    labels: npt.NDArray[np.int64]
    episode: npt.NDArray[np.int64]
    scores: Mapping[str, FloatArray]
    weights: FloatArray
    support_loss: FloatArray
    source_loss: FloatArray
    route: npt.NDArray[np.int64]
    source_of_route: Sequence[int]
    corrupted_labels: npt.NDArray[np.int64]
    confounded_with: npt.NDArray[np.int64]
    way: npt.NDArray[np.int64]
    shots: npt.NDArray[np.int64]
    source_names: tuple[str, ...] = ()
    shown: Mapping[str, Method] = field(default_factory=dict)
    score_titles: Mapping[str, str] = field(default_factory=dict)
    seen: Mapping[str, Sequence[str]] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.route)

    @property
    def methods(self) -> tuple[str, ...]:
        return tuple(self.probabilities)

    def method(self, name: str) -> Method:
        """How reports show a method."""
        return self.shown.get(name, Method(name))

    def accuracy(self, method: str) -> FloatArray:
        """``(N,)`` share of queries that are right."""
        return self._per_episode((self.probabilities[method].argmax(1) == self.labels).astype(np.float64))

    def loss(self, method: str) -> FloatArray:
        """``(N,)`` mean negative log-likelihood of the queries, in nats (probabilities clipped at 1e-12)."""
        chosen = self.probabilities[method][np.arange(len(self.labels)), self.labels]
        return self._per_episode(-np.log(np.clip(chosen, 1e-12, None)))

    def regret(self, method: str) -> FloatArray:
        """``(N,)`` loss minus that of the best single source in hindsight, in nats per query."""
        return self.loss(method) - self.source_loss.min(1)

    @cached_property
    def known_source(self) -> npt.NDArray[np.int64]:
        """``(N,)`` the source that knows the true route, -1 where there is none."""
        if not self.source_of_route:
            return np.full(len(self), -1)
        table = np.array([*self.source_of_route, -1])  # route -1 picks the last
        return table[self.route]

    def misrouting_rate(self) -> float:
        """Share of episodes whose largest mean weight is not on the source that knows the route; NaN where unknown."""
        known = self.known_source >= 0
        return float((self.weights.argmax(1) != self.known_source)[known].mean()) if known.any() else float("nan")

    def bounded_loss(self, method: str, measure: EpisodeMeasure = "error", clip: float = NLL_CLIP) -> FloatArray:
        """``(N,)`` a loss in [0, 1], as certificates need it.

        Args:
            method: one of :attr:`methods`.
            measure: "error", the share of queries that are wrong; "brier", half of the multiclass Brier score; "nll",
                the mean of min(negative log-likelihood, clip) / clip.
            clip: in nats; to be fixed before the losses are seen.

        Raises:
            ValueError: for another measure, or a clip that is not > 0.
        """
        p, rows = self.probabilities[method], np.arange(len(self.labels))
        if measure == "error":
            values = (p.argmax(1) != self.labels).astype(np.float64)
        elif measure == "brier":
            values = 0.5 * np.square(p - np.eye(p.shape[1])[self.labels]).sum(1)
        elif measure == "nll":
            if not 0 < clip < math.inf:
                raise ValueError(f"clip is {clip!r}; expected a number of nats > 0")
            values = np.minimum(-np.log(np.clip(p[rows, self.labels], 1e-300, None)), clip) / clip
        else:
            raise ValueError(f"loss is {measure!r}; expected 'error', 'brier' or 'nll'")
        return np.clip(self._per_episode(values), 0.0, 1.0)  # a sum of probabilities may round above 1

    def summary(self, method: str) -> dict[str, float]:
        """Accuracy with its 95% interval, tail and quantiles of the episode loss, NLL, Brier, ECE, regret."""
        accuracy, loss, regret = self.accuracy(method), self.loss(method), self.regret(method)
        interval = episode_interval(accuracy)
        tails = {f"cvar_{rho}": cvar(torch.from_numpy(loss), rho).item() for rho in (0.05, 0.1, 0.2)}
        return {
            "accuracy": interval.value,
            "accuracy_low": interval.low,
            "accuracy_high": interval.high,
            "nll": negative_log_likelihood(self.probabilities[method], self.labels),
            "brier": brier_score(self.probabilities[method], self.labels),
            "ece": expected_calibration_error(self.probabilities[method], self.labels),
            **tails,
            "loss_q90": episode_quantile(loss, 0.90),
            "loss_q95": episode_quantile(loss, 0.95),
            "regret": float(regret.mean()),
            "regret_cvar_0.1": cvar(torch.from_numpy(regret), 0.1).item(),
        }

    def table(self) -> pd.DataFrame:
        """One row an episode: losses and accuracies of every method, scores, routes, weights."""
        columns: dict[str, npt.ArrayLike] = {
            "episode": np.arange(len(self)),
            "way": self.way,
            "shots": self.shots,
            "route": self.route,
            "known_source": self.known_source,
            "corrupted_labels": self.corrupted_labels,
            "confounded_with": self.confounded_with,
        }
        for method in self.methods:
            columns[f"accuracy/{method}"] = self.accuracy(method)
            columns[f"loss/{method}"] = self.loss(method)
        columns |= {f"score/{name}": values for name, values in self.scores.items()}
        for index, name in enumerate(self.source_names):
            columns[f"weight/{name}"] = self.weights[:, index]
        return pd.DataFrame(columns)

    def _per_episode(self, values: FloatArray) -> FloatArray:
        total = np.bincount(self.episode, weights=values, minlength=len(self))
        return total / np.bincount(self.episode, minlength=len(self))
