"""The cap on active sources: which of them a composition may use.

The best subset of sources is as hard to find as the best support, and the two depend on each other. From the weights
without a residual and again from the uncapped solution, sources are chosen for the support at hand and a support is
searched with these sources, in turn, as long as that helps. A choice is the better one of the sources of largest weight
in the uncapped refit and those that a fully corrective Frank-Wolfe run adds one by one to the best single source,
improved by exchanges. What the cap costs is visible in the Frank-Wolfe gap among all sources.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from pyro_smat.solvers.problem import Indices, Problem
from pyro_smat.solvers.refit import Fit, refit

_TRIED = 3  # sources of steepest descent that are tried in place of each chosen one
_RELATIVE = 1e-12  # a change must lower the value by more than this part of the problem's scale


def search_few_sources(
    problem: Problem, start: Fit, count: int, search: Callable[[Problem, Fit], Fit], spent: Callable[[], bool]
) -> Fit:
    """The best composition found with at most ``count`` sources.

    Args:
        problem: the task with all its sources.
        start: a refit with all sources.
        count: largest number of sources with weight.
        search: from a problem and a start to a fit that is no worse.
        spent: whether a budget has ended the search.
    """
    found = []
    for first in (start, search(problem, start)):
        best = choose_sources(problem, first, count)
        while not spent():
            kept = best.point.weights.nonzero()[0]
            part = replace(best, point=replace(best.point, weights=best.point.weights[kept]))
            best = _among_all(problem, search(problem.with_sources(kept), part), kept)
            chosen = choose_sources(problem, best, count)
            if not chosen.value < best.value - _RELATIVE * problem.scale:
                break
            best = chosen
        found.append(best)
    return min(found, key=lambda fit: fit.value)


def choose_sources(problem: Problem, fit: Fit, count: int) -> Fit:
    """A refit on the support of a fit with at most ``count`` of the sources."""

    def fitted(kept: Indices) -> Fit:
        uniform = replace(fit.point, weights=np.full(len(kept), 1 / len(kept)))
        return _among_all(problem, refit(problem.with_sources(kept), fit.support, replace(fit, point=uniform)), kept)

    def exchanged(chosen: Fit) -> Fit | None:
        kept = chosen.point.weights.nonzero()[0]
        steepest = problem.gradient(chosen.point).weights.argsort()
        for joining in steepest[~np.isin(steepest, kept)][:_TRIED]:
            for place in chosen.point.weights[kept].argsort():
                candidate = fitted(np.append(np.delete(kept, place), joining))
                if candidate.value < chosen.value - _RELATIVE * problem.scale:
                    return candidate
        return None

    weights = refit(problem, fit.support, fit).point.weights
    heaviest = fitted(np.argsort(-weights, kind="stable")[:count])
    grown = min((fitted(np.array([source])) for source in range(problem.sources)), key=lambda single: single.value)
    while True:
        kept = grown.point.weights.nonzero()[0]
        joining = int(problem.gradient(grown.point).weights.argmin())
        if len(kept) == count or joining in kept:
            break
        wider = fitted(np.append(kept, joining))
        if not wider.value < grown.value:
            break
        grown = wider
    chosen = min(heaviest, grown, key=lambda candidate: candidate.value)
    while (better := exchanged(chosen)) is not None:
        chosen = better
    return chosen


def _among_all(problem: Problem, fit: Fit, kept: Indices) -> Fit:
    weights = np.zeros(problem.sources)
    weights[kept] = fit.point.weights
    return replace(fit, point=replace(fit.point, weights=weights))
