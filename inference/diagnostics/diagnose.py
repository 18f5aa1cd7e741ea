"""diagnose: every diagnostic that applies to a trained router, as verdicts, a DataTree, numbers and pictures.

model, guide, held-out batches -> :class:`Diagnosis` -> ``diagnostics.nc``, ``diagnostics.json`` and figures in a
folder.
What each check means is said in its own module; this one only calls them and leaves out those that do not apply.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pyro_smat.episodes import EpisodeBatch
from pyro_smat.files import replacing, write_json
from pyro_smat.guides import RoutingGuide
from pyro_smat.inference.diagnostics import figures, verdicts
from pyro_smat.inference.diagnostics.checks import Checks
from pyro_smat.inference.diagnostics.datatree import to_datatree
from pyro_smat.inference.diagnostics.draws import RoutingDraws
from pyro_smat.inference.diagnostics.figures import Picture
from pyro_smat.inference.diagnostics.information import FEWEST_EPISODES, negative_control
from pyro_smat.inference.diagnostics.shots import concentration_over_shots, control_probabilities, usable_shots
from pyro_smat.inference.diagnostics.verdicts import Verdict
from pyro_smat.metrics.arrays import FloatArray
from pyro_smat.models.priors import RoutingPrior
from pyro_smat.models.routed import RoutedModel

if TYPE_CHECKING:
    import xarray as xr

SHOTS = (1, 2, 3, 5, 8)
BETAS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)


@dataclass(frozen=True)
class Diagnosis:
    """What was found of a router.

    Attributes:
        verdicts: one a question, in reading order.
        results: name -> frozen result of the check.
        pictures: name -> figure and caption.
        tree: for ArviZ.
        episodes: how many.
        left_out: check -> why it did not apply.
    """

    verdicts: tuple[Verdict, ...]
    results: Mapping[str, Any]
    pictures: Mapping[str, Picture]
    tree: xr.DataTree
    episodes: int
    left_out: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Verdicts and numbers as plain data for JSON; long arrays become their shape and mean."""
        return {
            "episodes": self.episodes,
            "verdicts": [asdict(verdict) for verdict in self.verdicts],
            "left_out": dict(self.left_out),
            "captions": {name: picture.caption for name, picture in self.pictures.items()},
            "results": {name: _plain(result) for name, result in self.results.items()},
        }

    def write(self, folder: Path | str) -> Path:
        """Write ``diagnostics.nc`` (HDF5), ``diagnostics.json`` and one SVG a figure; returns the folder."""
        folder = Path(folder)
        with replacing(folder / "diagnostics.nc") as temporary:
            self.tree.to_netcdf(temporary, engine="h5netcdf")
        write_json(folder / "diagnostics.json", self.to_dict())
        for name, picture in self.pictures.items():
            with replacing(folder / f"{name}.svg") as temporary:
                picture.figure.savefig(temporary, format="svg")
        return folder

    def __str__(self) -> str:
        return "\n".join(str(verdict) for verdict in self.verdicts)


def diagnose(
    model: RoutedModel,
    guide: RoutingGuide,
    batches: Sequence[EpisodeBatch],
    *,
    source_of_route: Sequence[int] = (),
    other_guides: Sequence[RoutingGuide] = (),
    against: Mapping[str, RoutingDraws] | None = None,
    nested: Sequence[EpisodeBatch] | None = None,
    new_prior: tuple[str, RoutingPrior] | None = None,
    costs: FloatArray | None = None,
    betas: Sequence[float] = BETAS,
    shots: Sequence[int] = SHOTS,
    num_samples: int = 200,
    config: Mapping[str, str] | None = None,
    seed: int = 0,
) -> Diagnosis:
    """Run every check that applies to a router.

    Args:
        model, guide: as deployed; a temperature that was fitted stays.
        batches: held-out episodes with support features, at least 100 for the tests to say anything.
        source_of_route: the source that knows route a, -1 where none does; without it nothing is judged by routes.
        other_guides: of other training seeds, chains of the DataTree.
        against: name -> draws of other runs on the same episodes.
        nested: the same episodes with more shots, for the look at concentration; default: ``batches``.
        new_prior: name and prior that the posterior is set against, without retraining.
        costs: ``(J,)`` of the routings of a catalog, or ``(C,)`` a unit of weight on the simplex: adds the prior path.
        betas: of the path.
        shots: numbers of shots to look at, as far as the supports go.
        num_samples: K draws an episode.
        config: strings to keep in the DataTree.
        seed: of all draws and ties.

    Raises:
        ValueError: for no batches, or guides with other sites than the prior's.

    Example:
        >>> from pyro_smat import EpisodeSampler, glyph_pool
        >>> from pyro_smat.inference.assembly.config import RunConfig
        >>> from pyro_smat.inference.assembly.router import build_router
        >>> router = build_router(RunConfig(experts={"count": 0}))  # over the glyph sources of the package, not trained
        >>> sampler = EpisodeSampler(glyph_pool("validation"), 3, 2, 1)
        >>> batches = [router.features().attach(sampler.sample(4)) for _ in range(2)]
        >>> found = diagnose(router.model, router.guide, batches, shots=(), num_samples=50)
        >>> found.episodes, {verdict.answer for verdict in found.verdicts} <= {"ok", "look", "cannot tell"}
        (8, True)
    """
    draws = RoutingDraws.collect(model, guide, batches, num_samples=num_samples, seed=seed, config=config)
    check = Checks(draws, seed)
    sources, truth = draws.source_probabilities, _known_sources(draws, source_of_route)
    prior = draws.prior_source_probabilities
    check.routes(sources, truth)
    check.information(sources, prior, truth)
    if draws.num_episodes >= FEWEST_EPISODES:
        control = negative_control(sources, control_probabilities(guide, batches, seed=seed), prior)
        check.add("negative_control", control, verdicts.of_negative_control(control))
    nested = batches if nested is None else nested
    levels = usable_shots(nested, shots)
    if len(levels) >= 3:
        found = concentration_over_shots(
            model.prior,
            guide,
            nested,
            levels,
            prior_probabilities=prior,
            truth=truth,
            num_samples=num_samples,
            seed=seed,
        )
        check.add("concentration", found, verdicts.of_concentration(found), figures.concentration_picture(found))
    else:
        check.left_out["concentration"] = f"supports have shots {levels} of {tuple(shots)}; it takes at least three"
    check.fit(model, batches)
    check.labels()
    check.prior(costs, betas)
    if new_prior is None:
        check.left_out["prior_swap"] = "no other prior was given"
    else:
        check.swap(*new_prior)
    chains = [draws]
    for number, other in enumerate(other_guides, start=1):
        chains.append(RoutingDraws.collect(model, other, batches, num_samples=num_samples, seed=seed + number))
    check.comparison(against or {})
    route = check.results.get("route_calibration")
    tree = to_datatree(chains, pits=None if route is None else route.overall.pits)
    check.seeds(tree, len(chains))
    if draws.probabilities is None:
        weights = draws.coefficients[..., : len(draws.sources)]
        weights = weights.mean(2) if draws.blocks else weights
        check.pictures["weights"] = figures.weights_picture(weights, draws.sources)
    else:
        check.pictures["weights"] = figures.probabilities_picture(sources, draws.sources)
    return Diagnosis(tuple(check.verdicts), check.results, check.pictures, tree, draws.num_episodes, check.left_out)


def _known_sources(draws: RoutingDraws, source_of_route: Sequence[int]) -> np.ndarray:
    """The source that knows the true route of every episode, -1 where there is none."""
    table = np.array([*source_of_route, -1])
    route = np.where(draws.route < len(source_of_route), draws.route, -1)
    return table[route]


def _plain(value: Any) -> Any:
    """JSON of a result: numbers, strings and short arrays; long arrays become their length and mean."""
    if is_dataclass(value) and not isinstance(value, type):
        return {name: _plain(getattr(value, name)) for name in value.__dataclass_fields__}
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, np.ndarray):
        if value.size <= 32:
            return _plain(value.tolist())
        kept = value[np.isfinite(value)] if value.dtype.kind == "f" else value
        return {"shape": list(value.shape), "mean": _plain(float(kept.mean())) if kept.size else None}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return str(value)
