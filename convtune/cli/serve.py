"""`convtune serve`: lets tuners elsewhere verify and time kernels on this machine."""

from __future__ import annotations

import click

from convtune.cli import options
from convtune.cli.application import DONE


@click.command("serve")
@click.option("--tracker", required=True, metavar="HOST:PORT", help="TVM's RPC tracker, which tuners ask for servers.")
@click.option("--key", required=True, metavar="KEY", help="What kind of machine this is: tune's --rpc-key.")
@click.option(
    "--host", default="127.0.0.1", show_default=True, metavar="ADDRESS", help="Of this machine, to listen at."
)
@click.option(
    "--port",
    type=options.IntegerRange(1, 65535),
    metavar="PORT",
    help="To listen at; otherwise the first free one of 9200 to 9299.",
)
@click.option("--with-tracker", is_flag=True, help="Start the tracker too, at its address, which is on this machine.")
def command(*, tracker: str, key: str, host: str, port: int | None, with_tracker: bool) -> int:
    """Let tuners verify and time kernels on this machine, until Ctrl-C.

    The server is TVM's. It is started again when it ends, and ends with this program, with all processes of its
    sessions. The protocol asks nobody who they are: whoever reaches the server can run any program on this machine. So
    it listens at this machine alone, unless --host says otherwise.
    """
    from convtune import server
    from convtune.remote import Remote

    ports = server.PORTS if port is None else [port]
    server.serve(Remote.parse(tracker, key), host, ports, with_tracker, _say)
    return DONE


def _say(line: str) -> None:
    click.echo(f"convtune: {line}", err=True)
