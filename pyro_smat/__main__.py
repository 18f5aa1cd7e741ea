"""``python -m pyro_smat``: the command line."""

from pyro_smat.cli.app import main

if __name__ == "__main__":
    main()
