"""Training: a model, a guide, an objective and a stream of episodes go in; trained ones and a history come out.

``MetaTrainer`` (trainer.py) follows ``TrainingSettings`` (settings.py): learning rates (schedule.py), the weight of the
KL (annealing.py), validation, and checkpoints from which a killed run goes on to the same result.
Before training a catalog is chosen (catalogs/: to add one, write one file there); after it, the temperature of the
posterior (temperature_scaling.py).
"""
