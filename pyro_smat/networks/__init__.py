"""Networks in parameter space: coefficients and a basis of sources and experts in, features of images out.

Add a network by one file in ``backbones/``.
"""

from pyro_smat.networks.backbones.conv4 import Conv4
from pyro_smat.networks.build import build_network, describe_network, feature_dim
from pyro_smat.networks.composition import TaskNetwork, compose
from pyro_smat.networks.experts import ExpertBank
from pyro_smat.networks.parameters import ParameterSpace
from pyro_smat.networks.preprocessing import Preprocessing

__all__ = [
    "Conv4",
    "ExpertBank",
    "ParameterSpace",
    "Preprocessing",
    "TaskNetwork",
    "build_network",
    "compose",
    "describe_network",
    "feature_dim",
]
