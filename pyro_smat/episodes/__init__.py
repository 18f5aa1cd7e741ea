"""Episodes: folders, tables, data sets and glyphs in; batches of supports and queries out.

Add a corruption by one file in ``corruptions/``, a reader by one in ``readers/``.
"""

from pyro_smat.episodes.batch import EpisodeBatch
from pyro_smat.episodes.episode import Episode
from pyro_smat.episodes.labelled import UNKNOWN, Labelled, check_images

__all__ = ["UNKNOWN", "Episode", "EpisodeBatch", "Labelled", "check_images"]
