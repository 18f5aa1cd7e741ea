"""Routing millions of tasks: a folder, an index or tar shards of tasks in; Parquet parts and their summary out.

``tasks.py`` says what a task is; ``folder.py``, ``table.py`` and ``shards.py`` list tasks, ``plan.py`` cuts them into
parts, ``answers.py`` routes them in batches, ``parts.py`` keeps what came of it, ``route.py`` runs all of it and
``summary.py`` reads it back. Another form of tasks is one file with a :class:`~pyro_smat.inference.runs.routing.tasks.
TaskSource`, named in ``plan.py``.
"""

from pyro_smat.inference.runs.routing.route import route_tasks
from pyro_smat.inference.runs.routing.summary import RoutingSummary, summarize_parts

__all__ = ["RoutingSummary", "route_tasks", "summarize_parts"]
