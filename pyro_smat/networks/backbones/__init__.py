"""Backbones: one registered network a file; images ``(n, C, H, W)`` in [0, 1] in, features out.

To add one, write a function or class that returns a ``torch.nn.Module`` and register it under "network" in a file here;
its keyword arguments are its options in a config. Attach a :class:`~pyro_smat.networks.preprocessing.Preprocessing` to
what it does to pixels first, drop its head, and keep the parameter names of the checkpoints that people have.
"""
