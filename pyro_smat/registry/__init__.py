"""Registry: where names in a config meet classes.

In: a kind ("prior"), a name and options, as a config has them: ``{kind = "cost_aware", beta = 2.0}``. Out: the object.
To add one, write one class or function in one file of its kind's room and register it there::

    @register("prior", "cost_aware")
    class CostAwarePrior(RoutingPrior):
        def __init__(self, catalog: Catalog, *, beta: float = 1.0) -> None: ...

Its options in a config are the keyword arguments of its constructor, with their types and defaults; the arguments that
the program supplies (here the catalog) are listed in :data:`~pyro_smat.registry.kinds.KINDS`. ``"file.py:Name"`` in the
place of a name is one of the user's own, with the same rights.
"""

from pyro_smat.registry.choice import Choice, Of, build, choose, parse, takes
from pyro_smat.registry.entries import find, names, register
from pyro_smat.registry.kinds import KINDS, Kind
from pyro_smat.registry.options import Supply, accepts, options_of
from pyro_smat.registry.remembered import Remembered, describe

__all__ = [
    "KINDS",
    "Choice",
    "Kind",
    "Of",
    "Remembered",
    "Supply",
    "accepts",
    "build",
    "choose",
    "describe",
    "find",
    "names",
    "options_of",
    "parse",
    "register",
    "takes",
]
