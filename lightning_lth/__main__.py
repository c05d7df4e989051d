"""``python -m lightning_lth``: the command line, for launchers such as ``torchrun``."""

from lightning_lth.cli import main

if __name__ == "__main__":
    main()
