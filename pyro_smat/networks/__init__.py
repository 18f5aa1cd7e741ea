"""Networks in parameter space: coefficients and a basis of sources and experts in, features of images out.

Add a network by one file in ``backbones/``.
"""

from pyro_smat.networks.backbones import NETWORKS, Conv4, build_network, feature_dim
from pyro_smat.networks.composition import TaskNetwork, compose
from pyro_smat.networks.experts import ExpertBank
from pyro_smat.networks.parameters import ParameterSpace

__all__ = [
    "NETWORKS",
    "Conv4",
    "ExpertBank",
    "ParameterSpace",
    "TaskNetwork",
    "build_network",
    "compose",
    "feature_dim",
]
