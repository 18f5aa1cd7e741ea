"""Deployment: a trained router and a labelled support set in; predictions, doubt and an explanation out.

``RoutedClassifier`` (classifier.py) saves, loads and adapts; ``AdaptedTask`` predicts. A refinement is one file in
``refinement/``.
"""
