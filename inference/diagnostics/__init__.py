"""Posterior diagnostics: does the routing posterior concentrate, is it calibrated, what would another prior say.

In: a trained model and guide with held-out batches (thin samplers: ``draws``, ``shots``, ``reference``), any Pyro pair
with a plate (``svi``), or plain arrays (everything else). Out: frozen results, a DataTree for ArviZ, pictures,
verdicts. To add a check: a module of arrays in and a frozen result out, a rule in ``verdicts`` and a line in
``diagnose``.

========================  ====================================================================================
question                  where
========================  ====================================================================================
everything at once        :func:`diagnose`, :func:`diagnose_router` (and ``pyro-smat diagnose RUN``)
is it calibrated          :func:`route_calibration` (known routes), :func:`simulation_based_calibration` (a model
                          that generates supports), :func:`label_calibration` (query labels)
does it concentrate       :func:`concentration`, :func:`information`, :func:`negative_control`
does it cover its target  :func:`khat_per_episode`, :func:`catalog_discrepancy`, the references of ``reference``
another prior             :func:`swap_prior`, :func:`compare_prior`, :func:`prior_path`, :func:`power_scaling`
another program           :func:`predictive_comparison`
is this task a stranger   :class:`SupportNovelty`
ArviZ                     :func:`to_datatree`, :func:`svi_to_datatree`
========================  ====================================================================================
"""

from pyro_smat.inference.diagnostics.calibration import PosteriorCalibration, catalog_calibration, draws_calibration
from pyro_smat.inference.diagnostics.concentration import (
    Concentration,
    concentration,
    concentration_of_draws,
    route_exponents,
)
from pyro_smat.inference.diagnostics.datatree import to_datatree
from pyro_smat.inference.diagnostics.diagnose import Diagnosis, diagnose
from pyro_smat.inference.diagnostics.draws import RoutingDraws
from pyro_smat.inference.diagnostics.information import (
    PosteriorInformation,
    information,
    negative_control,
    posterior_information,
)
from pyro_smat.inference.diagnostics.label_checks import flatten_queries, label_calibration
from pyro_smat.inference.diagnostics.misspecification import SupportNovelty, support_summaries
from pyro_smat.inference.diagnostics.pareto import ParetoDiagnostic, catalog_discrepancy, khat_per_episode
from pyro_smat.inference.diagnostics.power_scaling import catalog_power_scaling, power_scaling
from pyro_smat.inference.diagnostics.predictive import predictive_comparison
from pyro_smat.inference.diagnostics.prior_swap import compare_prior, prior_path, swap_catalog_prior, swap_prior
from pyro_smat.inference.diagnostics.reference import (
    ReferencePosterior,
    enumerated_posterior,
    importance_posterior,
    nuts_posterior,
)
from pyro_smat.inference.diagnostics.reliability import reliability_fit
from pyro_smat.inference.diagnostics.route_calibration import route_calibration, routing_sets
from pyro_smat.inference.diagnostics.run import diagnose_router
from pyro_smat.inference.diagnostics.sharpness import Sharpness, temperature_estimate
from pyro_smat.inference.diagnostics.shots import concentration_over_shots
from pyro_smat.inference.diagnostics.simulation import simulation_based_calibration
from pyro_smat.inference.diagnostics.svi import EpisodeDraws, episode_draws, svi_to_datatree
from pyro_smat.inference.diagnostics.svi_calibration import svi_simulation_based_calibration
from pyro_smat.inference.diagnostics.verdicts import Verdict

__all__ = [
    "Concentration",
    "Diagnosis",
    "EpisodeDraws",
    "ParetoDiagnostic",
    "PosteriorCalibration",
    "PosteriorInformation",
    "ReferencePosterior",
    "RoutingDraws",
    "Sharpness",
    "SupportNovelty",
    "Verdict",
    "catalog_calibration",
    "catalog_discrepancy",
    "catalog_power_scaling",
    "compare_prior",
    "concentration",
    "concentration_of_draws",
    "concentration_over_shots",
    "diagnose",
    "diagnose_router",
    "draws_calibration",
    "enumerated_posterior",
    "episode_draws",
    "flatten_queries",
    "importance_posterior",
    "information",
    "khat_per_episode",
    "label_calibration",
    "negative_control",
    "nuts_posterior",
    "posterior_information",
    "power_scaling",
    "predictive_comparison",
    "prior_path",
    "reliability_fit",
    "route_calibration",
    "route_exponents",
    "routing_sets",
    "simulation_based_calibration",
    "support_summaries",
    "svi_simulation_based_calibration",
    "svi_to_datatree",
    "swap_catalog_prior",
    "swap_prior",
    "temperature_estimate",
    "to_datatree",
]
