"""Verdicts: one line for each question, "ok", "look" or "cannot tell", with the numbers and what the check cannot see.

"ok" needs power: a test that has not rejected says nothing if it could not have. Every rule is a function from a result
of this room to a :class:`Verdict`; nothing is computed here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from pyro_smat.inference.diagnostics.calibration import PosteriorCalibration
from pyro_smat.inference.diagnostics.concentration import Concentration
from pyro_smat.inference.diagnostics.information import NegativeControl, RoutingInformation
from pyro_smat.inference.diagnostics.pareto import CatalogDiscrepancy
from pyro_smat.inference.diagnostics.power_scaling import SENSITIVE, PowerScaling
from pyro_smat.inference.diagnostics.predictive import PredictiveComparison
from pyro_smat.inference.diagnostics.prior_swap import PriorComparison
from pyro_smat.metrics.arrays import FloatArray

Answer = Literal["ok", "look", "cannot tell"]
ENOUGH_POWER = 0.5
DISAGREE = 1.05


@dataclass(frozen=True)
class Verdict:
    """The answer to one question.

    Attributes:
        question: in words.
        answer: "ok", "look", or "cannot tell".
        because: the numbers.
        cannot_see: what would pass unnoticed.
    """

    question: str
    answer: Answer
    because: str
    cannot_see: str

    def __str__(self) -> str:
        return f"{self.answer:<12}{self.question} {self.because}"


def of_calibration(question: str, found: PosteriorCalibration, cannot_see: str) -> Verdict:
    """Rejected: look. Not rejected: ok where this many episodes would have shown a posterior p^1.3."""
    sharp = found.sharpness
    numbers = (
        f"p = {found.p_value:.2g}, {sharp.kind} {sharp} (1 is calibrated, above too sharp), power {found.power:.2f} at "
        f"N = {found.num_episodes}"
    )
    if found.p_value < 0.05:
        return Verdict(question, "look", f"{numbers}; rejected by {', '.join(found.rejected)}", cannot_see)
    if not found.power >= ENOUGH_POWER:
        return Verdict(question, "cannot tell", f"N too small: {numbers}", cannot_see)
    return Verdict(question, "ok", numbers, cannot_see)


def of_information(found: RoutingInformation) -> Verdict:
    """Collapsed: look."""
    numbers = (
        f"mutual information {found.mutual_information:.2f} of at most {found.prior_entropy:.2f} nats, KL of the "
        f"aggregate to the prior {found.aggregate_kl:.2f}, {found.effective_routings:.1f} routings in use"
    )
    question = "Has the posterior collapsed?"
    blind = "whether what it says is right"
    if found.collapse != "none":
        return Verdict(question, "look", f"to {found.collapse}: {numbers}", blind)
    return Verdict(question, "ok", numbers, blind)


def of_negative_control(found: NegativeControl) -> Verdict:
    """As sure of permuted labels: look."""
    return Verdict(
        "Does it stay unsure where labels are permuted?",
        "ok" if found.passed else "look",
        f"mean entropy {found.entropy:.2f} nats, with permuted labels {found.control_entropy:.2f}",
        "routings that images give away without labels are a right reason to be sure",
    )


def of_concentration(found: Concentration) -> Verdict:
    """Wrong more often than it says at any number of shots, or more doubt at the most shots than at fewer: look."""
    question, blind = "Does it close in on the routing with more shots?", "shots beyond those that were tried"
    contraction = found.contraction.mean(1)
    text = f"contraction {contraction[0]:.2f} at {found.shots[0]} shots, {contraction[-1]:.2f} at {found.shots[-1]}"
    if found.exponent is None or found.error is None or found.admitted is None:
        return Verdict(question, "ok" if contraction[-1] > contraction[0] else "look", text, blind)
    episodes = found.contraction.shape[1]
    slack = 2 * np.sqrt(np.clip(found.error * (1 - found.error), 1 / episodes, None) / episodes)
    text += (
        f"; exponent {found.exponent} nats per shot; wrong {found.error[-1]:.3f} and says {found.admitted[-1]:.3f} at "
        f"{found.shots[-1]}"
    )
    too_soon = bool((found.error > found.admitted + slack).any())
    grows = found.doubt is not None and _grows_again(found.doubt)
    if grows:
        text += "; doubt grows again after fewer shots"
    return Verdict(question, "look" if too_soon or grows or found.exponent.high <= 0 else "ok", text, blind)


def _grows_again(doubt: FloatArray) -> bool:
    """Whether the mean doubt ``(S, B)`` at the most shots is above that at fewer by three paired standard errors."""
    change = doubt[-1] - doubt[:-1]
    change = change[:, np.isfinite(change).all(0)]
    if change.shape[1] < 2:
        return False
    return bool((change.mean(1) > 3 * change.std(1, ddof=1) / np.sqrt(change.shape[1])).any())


def of_khat(khat: FloatArray, threshold: float) -> Verdict:
    """Over a tenth of the episodes above the threshold: look."""
    share = float((khat > threshold).mean())
    return Verdict(
        "Do the guide's draws cover the model's posterior?",
        "look" if share > 0.1 else "ok",
        f"k-hat above {threshold:.2f} in {100 * share:.0f}% of {len(khat)} episodes, median {np.median(khat):.2f}",
        "guides that are a little too narrow; and the model's posterior has seen the queries, which the guide has not",
    )


def of_discrepancy(found: CatalogDiscrepancy, episodes: str, cannot_judge: str) -> Verdict:
    """Over a tenth of the mass elsewhere on average: look."""
    distance = float(found.total_variation.mean())
    return Verdict(
        f"Is it near the {found.reference} posterior on {episodes}?",
        "look" if distance > 0.1 else "ok",
        f"mean total variation {distance:.3f}, median KL {np.median(found.reverse_kl):.3f} nats",
        cannot_judge,
    )


def of_power_scaling(found: PowerScaling) -> Verdict:
    """For information: how many episodes lean on their prior."""
    values = found.sensitivity if found.sensitivity.ndim == 1 else np.nanmax(found.sensitivity, axis=1, initial=0.0)
    share = float((values[~found.refused] > SENSITIVE).mean()) if (~found.refused).any() else float("nan")
    refused = int(found.refused.sum())
    return Verdict(
        "How many episodes lean on the prior?",
        "cannot tell" if refused > len(values) / 2 else ("look" if share > 0.5 else "ok"),
        f"{100 * share:.0f}% of {len(values)} episodes (sensitivity above {SENSITIVE:g})"
        + (f", {refused} refused" if refused else ""),
        "a prior that everything else agrees with; leaning on it is no fault where supports are small",
    )


def of_prior_comparison(found: PriorComparison) -> Verdict:
    """Clearly more lost under the other prior: look."""
    question, blind = f"What would the prior {found.name} change?", "what training under that prior would have learned"
    if found.refused > 0.5:
        text = f"importance weights do not reach it in {100 * found.refused:.0f}% of the episodes; retrain"
        return Verdict(question, "cannot tell", text, blind)
    text = (
        f"loss {found.loss:.4f} to {found.new_loss:.4f} nats per query, {found.difference:+.4f} +- "
        f"{found.difference_se:.4f}; mean weights move by {0.5 * np.abs(found.weights - found.new_weights).sum():.3f}"
    ) + (f"; {100 * found.refused:.0f}% of episodes refused" if found.refused else "")
    return Verdict(question, "look" if found.difference > 2 * found.difference_se else "ok", text, blind)


def of_comparison(name: str, found: PredictiveComparison) -> Verdict:
    """Another program clearly better on these episodes: look."""
    best = str(found.table.index[0])
    if best == name or name not in found.table.index:
        return Verdict("Does another run predict better?", "ok", f"{best} is best on {found.episodes} episodes", "")
    row = found.table.loc[name]
    difference, error = abs(float(row["elpd_diff"])), float(row["dse"])
    return Verdict(
        "Does another run predict better?",
        "look" if difference > 2 * error else "cannot tell",
        f"{best} by {difference:.1f} +- {error:.1f} nats over {found.episodes} episodes",
        "episodes of another kind; a run may be better on average and worse in the tail",
    )


def of_rhat(largest: float, share: float, seeds: int) -> Verdict:
    """Over a tenth of the weights disagree between training seeds: look."""
    return Verdict(
        "Do guides of other training seeds agree?",
        "look" if share > 0.1 else "ok",
        f"R-hat above {DISAGREE:g} in {100 * share:.0f}% of weights over {seeds} seeds, largest {largest:.2f}",
        "what all seeds get wrong alike",
    )
