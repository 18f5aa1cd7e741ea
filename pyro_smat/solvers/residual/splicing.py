r"""Splicing: greedy starts, then swaps of one block at a time until none helps. The default, best in the benchmark.

As in abess (Zhu et al., PNAS 2020), but a swap is judged with the weights and the rest readjusted: for a block of the
support (the one that holds least first) the others are refitted, the gains of all blocks are computed (gains.py), and
the few most promising replacements are refitted in earnest. Four kinds of start: greedy; subspace pursuit, which is
seldom wrong where greedy is; twice as many blocks as the budget, taken away again one by one, which undoes what looked
good alone; and half of the best support at random with a block from outside, completed greedily, which pays where
examples are few.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator

import numpy as np

from pyro_smat.solvers.problem import Problem
from pyro_smat.solvers.refit import Fit, refit
from pyro_smat.solvers.residual.gains import addition_gains, removal_costs
from pyro_smat.solvers.residual.greedy import grow
from pyro_smat.solvers.residual.subspace_pursuit import subspace_pursuit

_RESTARTS = 5
_TRIED = 3  # refitted replacements for each block that is taken out
_RELATIVE = 1e-12  # a swap must lower the value by more than this part of the problem's scale


def splicing(problem: Problem, start: Fit, seed: int = 0) -> Iterator[Fit]:
    """Grow the start to the budget, then swap, from several starts in turn.

    Args:
        problem: the task.
        start: a refit, usually of the empty support.
        seed: of the random restarts.

    Yields:
        The refit after every addition of the first growth, after every start and after every swap.
    """
    grown = start
    for grown in grow(problem, start, problem.budget):
        yield grown
    best = grown
    for best in _swaps(problem, grown):
        yield best
    if not 0 < len(best.support) < len(problem.blocks):
        return
    if problem.ridge:  # without one, a pursuit may meet a singular refit
        best = yield from _contest(problem, best, _pursued(problem, start))
    best = yield from _contest(problem, best, _shrunk(problem, best))
    rng = np.random.default_rng(seed)
    for _ in range(_RESTARTS):
        best = yield from _contest(problem, best, _shuffled(problem, best, rng))


def _contest(problem: Problem, best: Fit, start: Fit) -> Generator[Fit, None, Fit]:
    """Swaps from a start; returns the better one of their end and the best so far."""
    fit = start
    yield fit
    for fit in _swaps(problem, start):
        yield fit
    return min(best, fit, key=lambda contestant: contestant.value)


def _swaps(problem: Problem, fit: Fit) -> Iterator[Fit]:
    """Improving swaps until there is none."""
    while (swapped := _swap(problem, fit)) is not None:
        fit = swapped
        yield fit


def _swap(problem: Problem, fit: Fit) -> Fit | None:
    """The first swap that lowers the value."""
    enough = fit.value - _RELATIVE * problem.scale
    for place in removal_costs(problem, fit).argsort():
        rest = refit(problem, np.delete(fit.support, place), fit)
        gains = addition_gains(problem, rest)
        for block in gains.argsort()[::-1][:_TRIED]:
            if not rest.value - gains[block] < enough:
                break
            swapped = refit(problem, np.append(rest.support, block), rest)
            if swapped.value < enough:
                return swapped
    return None


def _pursued(problem: Problem, start: Fit) -> Fit:
    """Where subspace pursuit ends."""
    fit = start
    for pursued in subspace_pursuit(problem, start):
        fit = pursued
    return fit


def _shrunk(problem: Problem, best: Fit) -> Fit:
    """Greedily twice as many blocks, then without the one that holds least until the budget is met."""
    fit = best
    for wide in grow(problem, best, min(2 * problem.budget, len(problem.blocks))):
        fit = wide
    while len(fit.support) > problem.budget:
        fit = refit(problem, np.delete(fit.support, removal_costs(problem, fit).argmin()), fit)
    return fit


def _shuffled(problem: Problem, best: Fit, rng: np.random.Generator) -> Fit:
    """Half of the best support and one block from outside, at random, completed greedily."""
    kept = rng.permutation(best.support)[: len(best.support) // 2]
    fit = refit(problem, kept, best)
    outside = addition_gains(problem, fit) > -np.inf  # what the rest spans may not join
    outside[best.support] = False
    if outside.any():
        fit = refit(problem, np.append(kept, rng.choice(outside.nonzero()[0])), fit)
    for grown in grow(problem, fit, problem.budget):
        fit = grown
    return fit
