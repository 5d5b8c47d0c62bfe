"""The command line interface."""

from vesalius.cli.main import main

__all__ = ["main"]
