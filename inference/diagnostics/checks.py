"""Checks: the diagnostics of one set of draws, each with its verdict, or with the reason why it does not apply.

Draws of a router -> what the modules of this room compute -> verdicts, results and pictures by name, for
:func:`~pyro_smat.inference.diagnostics.diagnose.diagnose`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pyro_smat.episodes import EpisodeBatch
from pyro_smat.inference.diagnostics import figures, verdicts
from pyro_smat.inference.diagnostics.draws import RoutingDraws
from pyro_smat.inference.diagnostics.figures import Picture
from pyro_smat.inference.diagnostics.information import FEWEST_EPISODES, information
from pyro_smat.inference.diagnostics.label_checks import label_calibration
from pyro_smat.inference.diagnostics.pareto import FEWEST_DRAWS, catalog_discrepancy, khat_per_episode
from pyro_smat.inference.diagnostics.power_scaling import catalog_power_scaling, power_scaling
from pyro_smat.inference.diagnostics.predictive import predictive_comparison
from pyro_smat.inference.diagnostics.prior_swap import compare_prior, prior_path
from pyro_smat.inference.diagnostics.reference import MOST_ROUTINGS, enumerated_posterior
from pyro_smat.inference.diagnostics.route_calibration import route_calibration, routing_sets
from pyro_smat.inference.diagnostics.uniformity import FEWEST
from pyro_smat.inference.diagnostics.verdicts import Verdict
from pyro_smat.metrics.arrays import FloatArray
from pyro_smat.models.priors import RoutingPrior
from pyro_smat.models.routed import RoutedModel

if TYPE_CHECKING:
    import xarray as xr

COVERAGE = 0.9
ROUTE_BLIND = "whether the model's likelihood is right; and conditions that the episodes do not have"


class Checks:
    """Collects verdicts, results and pictures; one method a check, each says itself where it does not apply.

    Args:
        draws: of the router on held-out episodes.
        seed: of ties and resampling.

    Attributes:
        verdicts: one a question, in the order of the checks.
        results: name -> frozen result.
        pictures: name -> figure and caption.
        left_out: check -> why it did not apply.
    """

    def __init__(self, draws: RoutingDraws, seed: int) -> None:
        self.draws, self.seed = draws, seed
        self.verdicts: list[Verdict] = []
        self.results: dict[str, Any] = {}
        self.pictures: dict[str, Picture] = {}
        self.left_out: dict[str, str] = {}

    def add(self, name: str, result: Any, verdict: Verdict, picture: Picture | None = None) -> None:
        self.results[name] = result
        self.verdicts.append(verdict)
        if picture is not None:
            self.pictures[name] = picture

    @property
    def _few(self) -> str:
        """Why importance weights of the draws are out of the question; empty where they are not."""
        draws = self.draws
        few = draws.probabilities is None and draws.num_draws < FEWEST_DRAWS
        return f"{draws.num_draws} draws an episode; weights take {FEWEST_DRAWS}" if few else ""

    def routes(self, sources: FloatArray, truth: np.ndarray) -> None:
        question = "Is q(route) the frequency of true routes?"
        known = int((truth >= 0).sum())
        if known < FEWEST:
            reason = f"{known} episodes have a route that a source knows; it takes {FEWEST}"
            self.left_out["route_calibration"] = reason
            self.verdicts.append(Verdict(question, "cannot tell", f"N too small: {reason}", ROUTE_BLIND))
            return
        found = route_calibration(
            sources, truth, names=self.draws.sources, condition=self.draws.condition, seed=self.seed
        )
        verdict = verdicts.of_calibration(question, found.overall, ROUTE_BLIND)
        self.add("route_calibration", found, verdict, figures.pit_picture(found.overall))
        self.pictures["reliability"] = figures.reliability_picture(found.reliability)
        if found.given_known is not None:
            text = "... given a source that knows routes?"
            self.verdicts.append(verdicts.of_calibration(text, found.given_known, ROUTE_BLIND))
        for name, result in found.by_condition.items():
            self.verdicts.append(verdicts.of_calibration(f"... on {name} episodes?", result, ROUTE_BLIND))
        for name, size in found.too_few.items():
            text = f"N too small: {size} episodes, {FEWEST} are needed"
            self.verdicts.append(Verdict(f"... on {name} episodes?", "cannot tell", text, ROUTE_BLIND))
        sets = routing_sets(sources, truth, COVERAGE)
        self.results["routing_sets"] = sets
        sizes = sets.size(sources)
        self.pictures["routing_sets"] = figures.set_size_picture(sizes, COVERAGE, sources.shape[1])

    def information(self, sources: FloatArray, prior: FloatArray, truth: np.ndarray) -> None:
        if len(sources) < FEWEST_EPISODES:
            self.left_out["information"] = f"{len(sources)} episodes; the aggregate posterior takes {FEWEST_EPISODES}"
            return
        exact, of_prior = self.draws.probabilities, self.draws.prior_probabilities
        if exact is not None and of_prior is not None:
            routed = truth if exact.shape[1] == sources.shape[1] else None  # routings of one source each
            found = information(exact, of_prior, truth=routed)
        else:
            found = information(sources, prior / prior.sum(), truth=truth)
        self.add("information", found, verdicts.of_information(found))

    def fit(self, model: RoutedModel, batches: Sequence[EpisodeBatch]) -> None:
        """k-hat on the simplex, exact distance to the support posterior over a catalog."""
        draws = self.draws
        if draws.probabilities is None:
            if np.isnan(draws.log_q).any() or draws.num_draws < FEWEST_DRAWS:
                self.left_out["khat"] = f"k-hat needs a density and {FEWEST_DRAWS} draws"
                return
            found = khat_per_episode(draws.log_joint, draws.log_q, reference=draws.reference)
            verdict = verdicts.of_khat(found.khat, found.threshold)
            self.add("khat", found, verdict, figures.khat_picture(found.khat, found.threshold))
            return
        clean = (draws.condition == "clean") & (draws.shots >= 2)
        if not clean.any() or len(draws.routings) > MOST_ROUTINGS:
            self.left_out["support_posterior"] = "no clean episode with two shots a class, or too many routings"
            return
        references = [enumerated_posterior(model, batch, "support") for batch in batches]
        target = np.concatenate([each.weights for each in references])[clean]
        distance = catalog_discrepancy(target, draws.probabilities[clean], reference="support")
        text = f"{int(clean.sum())} clean episodes of at least two shots"
        judge = references[0].cannot_judge
        self.add("support_posterior", distance, verdicts.of_discrepancy(distance, text, judge))

    def labels(self) -> None:
        if self.draws.num_episodes < FEWEST or self.draws.num_draws < 20:
            self.left_out["label_calibration"] = f"it takes {FEWEST} episodes and 20 draws"
            return
        found = label_calibration(self.draws, seed=self.seed)
        blind = "a routing that is wrong and predicts as well"
        self.add("label_calibration", found, verdicts.of_calibration("Are query labels as foreseen?", found, blind))
        self.pictures["label_calibration"] = figures.pit_picture(found)

    def prior(self, costs: FloatArray | None, betas: Sequence[float]) -> None:
        draws, scaling = self.draws, None
        if draws.probabilities is not None and draws.prior_probabilities is not None:
            scaling = catalog_power_scaling(draws.probabilities, draws.prior_probabilities)
        elif np.isnan(draws.log_prior).any():
            self.left_out["power_scaling"] = "the prior has no density at the draws"
            return
        elif self._few:
            self.left_out["power_scaling"] = self._few
        else:
            flat = draws.coefficients.reshape(*draws.log_prior.shape, -1)
            scaling = power_scaling(flat, draws.log_prior)
        if scaling is not None:
            self.add("power_scaling", scaling, verdicts.of_power_scaling(scaling))
        if costs is None:
            self.left_out["prior_path"] = "no costs were given"
        elif np.isnan(draws.log_q).any():
            self.left_out["prior_path"] = "a point posterior cannot be reweighted"
        elif self._few:
            self.left_out["prior_path"] = self._few
        else:
            path = prior_path(draws, costs, betas)
            self.results["prior_path"] = path
            self.pictures["prior_path"] = figures.prior_path_picture(path)

    def swap(self, name: str, prior: RoutingPrior) -> None:
        if np.isnan(self.draws.log_q).any():
            self.left_out["prior_swap"] = "a point posterior cannot be reweighted"
            return
        if self._few:
            self.left_out["prior_swap"] = self._few
            return
        found = compare_prior(self.draws, prior, name)
        self.add("prior_swap", found, verdicts.of_prior_comparison(found))

    def comparison(self, others: Mapping[str, RoutingDraws]) -> None:
        if not others:
            self.left_out["comparison"] = "no other run was given"
            return
        each = {"this run": self.draws.log_likelihood} | {n: d.log_likelihood for n, d in others.items()}
        found = predictive_comparison(each)
        self.add("comparison", found, verdicts.of_comparison("this run", found))

    def seeds(self, tree: xr.DataTree, chains: int) -> None:
        if chains < 2:
            self.left_out["training_seeds"] = "a single training seed"
            return
        import arviz as az

        with np.errstate(invalid="ignore", divide="ignore"):  # a source that no seed ever opens has no variance
            weights = az.rhat(tree, var_names=["source_weight"])["source_weight"].values
        weights = weights[np.isfinite(weights)]
        largest = float(weights.max(initial=1.0))
        share = float((weights > verdicts.DISAGREE).mean()) if weights.size else 0.0
        self.results["training_seeds"] = {"rhat_largest": largest, "rhat_share": share, "seeds": chains}
        self.verdicts.append(verdicts.of_rhat(largest, share, chains))
