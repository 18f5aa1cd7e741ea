"""Deployment: a trained router and a labelled support set in; predictions, doubt and an explanation out.

``RoutedClassifier`` (classifier.py) is made, saved and loaded; it adapts to one task or to many at once (adapting.py).
Tasks of one shape are computed together (routed_tasks.py, task_networks.py) and answer together (answering.py); an
``AdaptedTask`` is one of them. A refinement is one file in ``refinement/``.
"""
