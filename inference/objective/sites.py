"""Where sample sites stand: which belong to an episode, which are global, which are enumerated, which are refused.

The structural half of :class:`~pyro_smat.inference.CVaR_ELBO`: everything that is asked of a pair of traces before
anything is added up. Every error names the site.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from pyro.distributions.util import is_identically_zero
from pyro.poutine import Trace
from torch import Tensor

PARTICLES = "num_particles_vectorized"  # Pyro's own name for the plate of vectorised particles

Site = dict[str, Any]


def sample_sites(trace: Trace) -> Iterator[Site]:
    """All sample sites but those of pyro.deterministic, which Pyro records as observed."""
    sites = (site for site in trace.nodes.values() if site["type"] == "sample")
    return (site for site in sites if not site["infer"].get("_deterministic"))


def plates_of(site: Site) -> set[str]:
    """Names of the vectorised plates around a site."""
    return {frame.name for frame in site["cond_indep_stack"] if frame.vectorized}


def needs_score_function(site: Site) -> bool:
    """Whether the gradient of a guide site cannot flow through its value (and it is not enumerated)."""
    return "_enumerate_dim" not in site["infer"] and not is_identically_zero(site["score_parts"].score_function)


def refuse_missing_latents(model_trace: Trace, guide_trace: Trace) -> None:
    """Every latent of the model has to be in the guide.

    Raises:
        ValueError: naming the one that is not.
    """
    for site in sample_sites(model_trace):
        if not site["is_observed"] and site["name"] not in guide_trace.nodes:
            raise ValueError(
                f"latent site {site['name']!r} of the model is not in the guide (enumeration in the model is not "
                "supported); add it to the guide"
            )


def enumerated_sites(guide_trace: Trace) -> dict[str, Site]:
    """The guide's sites that were enumerated in parallel, by name.

    Raises:
        ValueError: for another kind of enumeration.
    """
    enumerated = {}
    for site in sample_sites(guide_trace):
        kind = site["infer"].get("enumerate")
        if kind is not None and kind != "parallel":
            raise ValueError(f'guide site {site["name"]!r} asks for {kind!r} enumeration; only "parallel" is supported')
        if kind is not None and site["infer"].get("num_samples") is not None:
            raise ValueError(
                f"guide site {site['name']!r} asks for num_samples inside its enumeration; only exact enumeration is "
                "supported: leave num_samples out, or use num_particles of the ELBO"
            )
        if site["infer"].get("_enumerate_dim") is not None:
            enumerated[site["name"]] = site
    return enumerated


def latent_order(trace: Trace, other: Trace, enumerated: dict[str, Site]) -> list[str]:
    """Latent sites of a trace that the other has too, in the order in which they were drawn."""
    names = [site["name"] for site in sample_sites(trace) if not site["is_observed"]]
    return [name for name in names if name in other.nodes and name not in enumerated]


@dataclass(frozen=True)
class Layout:
    """How terms of sites map to particles and episodes.

    Attributes:
        plate: name of the plate over episodes.
        dim: its dim, negative.
        size: B, the number of episodes (of the subsample).
    """

    plate: str
    dim: int
    size: int

    @classmethod
    def of(cls, plate: str, site: Site) -> Layout:
        """From an observed site.

        Raises:
            ValueError: when it is outside the plate, or the plate is sequential.
        """
        for frame in site["cond_indep_stack"]:
            if frame.name == plate:
                if not frame.vectorized:
                    raise ValueError(
                        f"plate {plate!r} around site {site['name']!r} is sequential; use it as a context "
                        "manager (vectorised), so that episode losses can be told apart"
                    )
                return cls(plate, frame.dim, frame.size)
        others = [frame.name for frame in site["cond_indep_stack"] if frame.name != PARTICLES]
        raise ValueError(
            f"observed site {site['name']!r} is not inside the plate {plate!r} (its plates: {others}); "
            "enclose it, or name the right plate in episode_plate="
        )

    def is_local(self, site: Site) -> bool:
        """Whether a site belongs to an episode; False when it is global.

        Raises:
            ValueError: when it is in another plate but not in the episodes'.
        """
        plates = [frame.name for frame in site["cond_indep_stack"] if frame.name != PARTICLES]
        if self.plate in plates:
            return True
        if plates:
            raise ValueError(
                f"site {site['name']!r} is inside plates {plates} but not inside {self.plate!r}; "
                f"enclose it in pyro.plate({self.plate!r}), or take it out of every plate to make it global"
            )
        return False

    def inner_dims(self, site: Site) -> tuple[int, ...]:
        """Dims of the plates at a site other than episodes and particles."""
        return tuple(f.dim for f in site["cond_indep_stack"] if f.vectorized and f.name not in (self.plate, PARTICLES))

    def per_episode(self, term: Tensor, site: Site) -> Tensor:
        """``(k, B)`` from a term in the shape of its plates: inner plates summed, k particles (1 where not vectorised).

        Raises:
            ValueError: when a dim is left that no plate declares.
        """
        inner = self.inner_dims(site)
        term = term.sum(inner, keepdim=True) if inner else term
        if term.dim() < -self.dim or term.shape[self.dim] != self.size:
            term = term.expand(torch.broadcast_shapes(term.shape, (self.size,) + (1,) * (-self.dim - 1)))
        particles = particle_count(term, site)
        if term.numel() != particles * self.size:
            raise ValueError(
                f"the term of site {site['name']!r} has shape {tuple(term.shape)} after its plates are summed; "
                f"expected {self.size} episodes at dim {self.dim} and nothing else: declare its other dims with "
                "pyro.plate or .to_event"
            )
        return term.reshape(particles, self.size)  # particles are left of the episodes


def per_particle(term: Tensor, site: Site) -> Tensor:
    """``(k,)`` from a term of a global site."""
    return term.reshape(particle_count(term, site))


def particle_dim(site: Site) -> int | None:
    """Dim of the plate of vectorised particles, None where there is none."""
    return next((f.dim for f in site["cond_indep_stack"] if f.name == PARTICLES and f.vectorized), None)


def particle_count(term: Tensor, site: Site) -> int:
    """Number of vectorised particles in a term, 1 where it does not depend on them."""
    dim = particle_dim(site)
    return term.shape[dim] if dim is not None and term.dim() >= -dim else 1


def expectation(term: Tensor, site: Site, enumerated: dict[str, Site]) -> Tensor:
    """Expectation of a term over the enumerated guide sites that it depends on, through their ancestors too.

    Raises:
        ValueError: when one of them is inside a plate that the site is not in.
    """
    if not enumerated:
        return term
    used: dict[str, Site] = {}
    waiting = [term]
    while waiting:
        tensor = waiting.pop()
        for name, guide_site in enumerated.items():
            if name not in used and depends_on(tensor, guide_site):
                used[name] = guide_site
                waiting.append(guide_site["unscaled_log_prob"])
    if not used:
        return term
    for name, guide_site in used.items():
        if not plates_of(guide_site) <= plates_of(site):
            raise ValueError(
                f"site {site['name']!r} depends on the enumerated guide site {name!r}, which is inside plates "
                f"{sorted(plates_of(guide_site) - plates_of(site))} that {site['name']!r} is not in; move one of "
                "them, or do not enumerate it"
            )
    posterior = reduce(torch.add, (guide_site["unscaled_log_prob"] for guide_site in used.values())).exp()
    dims = tuple(guide_site["infer"]["_enumerate_dim"] for guide_site in used.values())
    return (posterior * term.masked_fill(posterior == 0, 0.0)).sum(dims, keepdim=True)  # 0 log 0 is 0


def depends_on(tensor: Tensor, enumerated_site: Site) -> bool:
    """Whether a tensor has the dim of an enumerated site."""
    dim = enumerated_site["infer"]["_enumerate_dim"]
    return tensor.dim() >= -dim and tensor.shape[dim] > 1
