"""Generative programs: Pyro models that users read, edit and swap."""

from pyro_smat.models.routed import RoutedModel

__all__ = ["RoutedModel"]
