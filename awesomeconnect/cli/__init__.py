"""The command line: a thin layer over `server` and `client`, on click.

``app`` is the group, ``exits`` the exit codes and what every error says; one file per group of commands. What
is expensive to import (trio, cryptography, rich) is imported inside the commands, so that ``--help`` is quick.
"""

from awesomeconnect.cli.app import main

__all__ = ["main"]
