"""The command lines of ``zconsensus backup`` and ``zconsensus restore``."""

from __future__ import annotations

import re
from typing import Any

import click

from ..daemon._config import address_rule, text_rule
from ..node import InitialMember
from ._backup import check, restore, take
from ._options import DIRECTORY, NEW_FILE, common_options, output

__all__ = ["backup_command", "restore_command"]

_LONGEST_TIMEOUT = 86400.0
_MEMBER = re.compile(r"([1-9][0-9]{0,18})=([^,=]+),([^,=]+)")


def _timeout(_ctx: click.Context, _param: click.Parameter, value: float) -> float:
    if not 1 <= value <= _LONGEST_TIMEOUT:
        raise click.BadParameter(f"{value} is not from 1 to {_LONGEST_TIMEOUT:.0f}")
    return value


@click.command("backup")
@click.argument("path", metavar="FILE", type=NEW_FILE)
@click.option("--url", metavar="URL", help="A node's client interface: http://127.0.0.1:8001.")
@click.option("--verify", is_flag=True, help="Take none; read FILE to its end, and say what it is.")
@click.option(
    "--timeout",
    type=float,
    callback=_timeout,
    default=300.0,
    show_default=True,
    metavar="SECONDS",
    help="Give up after so long without a sign of the node, which first takes a snapshot.",
)
@common_options
@click.pass_context
def backup_command(
    ctx: click.Context, path: str, url: str | None, verify: bool, timeout: float, as_json: bool, color: str
) -> None:
    """Save the state of a running cluster in FILE.

    It has everything that was acknowledged before the command began. Any node will do; the cluster goes on working.
    Exit codes: 0 whole, 2 FILE is damaged, 3 it could not be taken or read.
    """

    out = output(as_json, color)
    if verify == (url is not None):
        raise click.UsageError("either --url, to take a backup, or --verify")
    ctx.exit(check(path, out) if url is None else take(url, path, out, timeout))


def _members(_ctx: click.Context, _param: click.Parameter, values: tuple[str, ...]) -> list[InitialMember]:
    members: list[InitialMember] = []
    taken: set[Any] = set()
    for value in values:
        found = _MEMBER.fullmatch(value)
        if found is None or int(found[1]) >= 1 << 63:
            raise click.BadParameter(f"{value!r} is not ID=PEER,CLIENT, such as 1=10.0.0.1:7001,10.0.0.1:8001")
        for address in found.groups()[1:]:
            rule = address_rule(address)
            if rule is not None:
                raise click.BadParameter(f"{address!r} {rule}")
        member = InitialMember(int(found[1]), found[2], found[3])
        for each in (member.node_id, member.peer_address.lower(), member.client_address.lower()):
            if each in taken:
                raise click.BadParameter(f"{each} is given twice")
            taken.add(each)
        members.append(member)
    return members


def _name(_ctx: click.Context, _param: click.Parameter, value: str | None) -> str | None:
    rule = None if value is None else text_rule(value)
    if rule is not None:
        raise click.BadParameter(f"{value!r} {rule}")
    return value


@click.command("restore")
@click.argument("path", metavar="FILE", type=click.Path(exists=True, dir_okay=False))
@click.option(
    "--out", "directory", required=True, type=DIRECTORY, metavar="DIRECTORY", help="Where the data directories go."
)
@click.option(
    "--member",
    "members",
    multiple=True,
    required=True,
    callback=_members,
    metavar="ID=PEER,CLIENT",
    help="A member with its addresses, host:port each; once for every member.",
)
@click.option(
    "--cluster-name", callback=_name, metavar="NAME", help="The new cluster's name; by default the old one's."
)
@common_options
@click.pass_context
def restore_command(
    ctx: click.Context,
    path: str,
    directory: str,
    members: list[InitialMember],
    cluster_name: str | None,
    as_json: bool,
    color: str,
) -> None:
    """Make a new cluster out of a backup.

    For each member there is a data directory node-ID in DIRECTORY then; bring it to its machine, and start the nodes.
    State, revisions and sessions are as they were. It is another cluster: nodes of the old one cannot talk to it.
    """

    ctx.exit(restore(path, directory.rstrip("/") or "/", members, cluster_name, output(as_json, color)))
