"""Objective: a model, a guide and a batch of episodes go in; the loss to minimise and its terms come out.

``CVaR_ELBO`` (cvar_elbo.py) takes pairs of traces apart into terms (particle.py, sites.py), takes the tail of the
episode losses (threshold.py) and gives draws without a gradient theirs (score_function.py). ``build_elbo`` (build.py)
makes it from ``ObjectiveSettings`` (settings.py). What routings predict and lose is in outcome.py and candidates.py.

To add an episode loss, write one file in losses/. A penalty is any object like those of distillation.py.
"""
