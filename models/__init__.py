"""Models: a batch of episodes in; sample sites and labels out. Pyro programs that users read, edit and swap.

Add one by one file here: a :class:`RoutedModel`, or anything with its attributes, under ``@register("model", name)``.
Priors have a folder of their own.
"""

from pyro_smat.models.routed import RoutedModel

__all__ = ["RoutedModel"]
