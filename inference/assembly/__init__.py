"""Assembly: a config goes in, a router (network, sources, prior, guide, model) comes out.

What a config may name is asked of the registry; to add a kind of thing, see :mod:`pyro_smat.registry.kinds`.
"""

from pyro_smat.inference.assembly.config import RunConfig, build_config, load_config
from pyro_smat.inference.assembly.router import Router, build_router, choose_device, open_library

__all__ = ["Router", "RunConfig", "build_config", "build_router", "choose_device", "load_config", "open_library"]
