"""The command line: what ``pyro-smat`` runs, one file for each group of commands."""

from pyro_smat.cli.app import main

__all__ = ["main"]
