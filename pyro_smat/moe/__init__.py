"""Mixture-of-experts transformers: routers whose logits are latent.

In: any network with routers of experts. Out: the same network, attached, whose routing a function, a Pyro model or a
guide can say. ``surgery`` attaches, ``contracts`` says which routers are understood and how to add one.
"""

from pyro_smat.moe.contracts import UnknownRouter
from pyro_smat.moe.surgery import Attachment, Chosen, Router, RouterCall, attach, attachment_of, detach, find_routers

__all__ = [
    "Attachment",
    "Chosen",
    "Router",
    "RouterCall",
    "UnknownRouter",
    "attach",
    "attachment_of",
    "detach",
    "find_routers",
]
