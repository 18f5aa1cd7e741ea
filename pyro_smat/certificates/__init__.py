"""Certificates: losses of held-out episodes in; upper bounds for new ones out, failing at most as often as said.

Also thresholds of abstention with a guarantee, label sets, and a test for drift. A bound is one file here.
"""

from pyro_smat.certificates.certificate import Certificate
from pyro_smat.certificates.conformal import (
    LabelSetThreshold,
    RiskControlledThreshold,
    label_set_threshold,
    risk_controlled_threshold,
)
from pyro_smat.certificates.cvar import CVAR_METHODS, CVaRMethod, cvar_upper_bound
from pyro_smat.certificates.mean import MEAN_METHODS, MeanMethod, mean_p_value, mean_upper_bound
from pyro_smat.certificates.selective import CertifiedThreshold, select_abstention_threshold

__all__ = [
    "CVAR_METHODS",
    "MEAN_METHODS",
    "CVaRMethod",
    "Certificate",
    "CertifiedThreshold",
    "LabelSetThreshold",
    "MeanMethod",
    "RiskControlledThreshold",
    "cvar_upper_bound",
    "label_set_threshold",
    "mean_p_value",
    "mean_upper_bound",
    "risk_controlled_threshold",
    "select_abstention_threshold",
]
