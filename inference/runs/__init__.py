"""Runs: what the command line does with folders. A config goes in; checkpoints, a router and evaluations come out."""
