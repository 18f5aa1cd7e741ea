"""Inference: the objective, meta-training, decision rules, deployment."""

from pyro_smat.inference.cvar_elbo import CVaR_ELBO, ELBOTerms

__all__ = ["CVaR_ELBO", "ELBOTerms"]
