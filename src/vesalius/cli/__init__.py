"""The command line."""

from vesalius.cli.main import main

__all__ = ["main"]
