"""The command group: global options, logging, and the one place where errors become exit codes."""

from __future__ import annotations

import logging
import traceback
from typing import Any

import click

from awesomeconnect.cli.bench import bench
from awesomeconnect.cli.bounds import bounds
from awesomeconnect.cli.demo import demo
from awesomeconnect.cli.exits import EXIT_CODE_TABLE, explain
from awesomeconnect.cli.key import key
from awesomeconnect.cli.logs import log_to_stderr
from awesomeconnect.cli.publish import pub, send
from awesomeconnect.cli.receive import recv, sub
from awesomeconnect.cli.serve import serve
from awesomeconnect.cli.who import ping, who

_EPILOG = (
    """\b
Three terminals:
  $ awesomeconnect serve                     prints the relay's address, ac://KEY@127.0.0.1:7420
  $ export AWESOMECONNECT_RELAY=ac://KEY@127.0.0.1:7420;  awesomeconnect sub hello --lines
  $ export AWESOMECONNECT_RELAY=ac://KEY@127.0.0.1:7420;  echo hi there | awesomeconnect pub hello --lines

"""
    + EXIT_CODE_TABLE
)


class App(click.Group):
    """The group; errors of its commands end in one line and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except BaseException as error:
            ending = explain(error)
            if ending is None:
                raise
            if ctx.params["verbose"] and isinstance(ending, click.ClickException):
                traceback.print_exception(error)
            raise ending from None


@click.group(
    cls=App,
    epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(package_name="awesomeconnect", prog_name="awesomeconnect")
@click.option("-v", "--verbose", is_flag=True, help="Log more, and show tracebacks of errors.")
@click.pass_context
def main(ctx: click.Context, verbose: bool) -> None:
    """A lightweight, encrypted relay through which the nodes of an application talk.

    Nodes join rooms, and send to a room, to one peer by its public key, or to any one member of a room.
    Commands write payloads and results to stdout, and everything else to stderr.
    """
    ctx.obj = verbose
    log_to_stderr(logging.DEBUG if verbose else logging.WARNING)


for _command in (serve, key, pub, sub, send, recv, who, ping, demo, bench, bounds):
    main.add_command(_command)
