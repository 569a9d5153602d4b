"""``zconsensus log``: looking at the data directory of a node, running or not."""

from __future__ import annotations

import click

from ._diff import diff
from ._directory import DataDirectory
from ._dump import TYPES, Selection, dump
from ._newest import first_of_newest
from ._options import DIRECTORY, SNAPSHOTS, SNAPSHOTS_OF_EACH, common_options, output, with_snapshots
from ._payload import MODES, Payloads
from ._repair import repair
from ._stat import stat
from ._verify import verify

__all__ = ["log"]

_DIRECTORY = click.argument("directory", type=DIRECTORY)
_CLUSTER_ID_BYTES = 16
_PAYLOAD = click.option(
    "--payload",
    type=click.Choice(MODES),
    help="How what clients sent is shown: masked as a short digest, which is the default, or in one of these ways.",
)
_APPLICATION = click.option(
    "--application",
    metavar="NAME",
    help="Decode payloads by the types of this application, named as in the node's configuration: kv, or "
    "package.module:attribute. --payload decoded without it: as the key-value store's, where they are.",
)


def _cluster_id(_ctx: click.Context, _param: click.Parameter, value: str | None) -> bytes:
    if value is None:
        return b""
    try:
        found = bytes.fromhex(value)
    except ValueError:
        found = b""
    if len(found) != _CLUSTER_ID_BYTES:
        raise click.BadParameter(f"a cluster id has {2 * _CLUSTER_ID_BYTES} hexadecimal digits")
    return found


def _payloads(mode: str | None, application: str | None) -> Payloads:
    if application is not None and mode not in (None, "decoded"):
        raise click.UsageError("--application needs --payload decoded")
    return Payloads(mode, application)


@click.group()
def log() -> None:
    """Look at the log and the snapshots of one node.

    DIRECTORY is the node's data directory, or a copy of it. But for repair, nothing is locked and nothing is written,
    so the node may be running.
    """


@log.command("dump")
@_DIRECTORY
@click.option("--from", "first", type=click.IntRange(1), metavar="INDEX", help="First entry.")
@click.option("--to", "last", type=click.IntRange(1), metavar="INDEX", help="Last entry.")
@click.option("--last", "newest", type=click.IntRange(1), metavar="N", help="The N newest entries of the log.")
@click.option("--term", "terms", type=click.IntRange(0), multiple=True, metavar="TERM", help="Entries of this term.")
@click.option(
    "--type",
    "types",
    type=click.Choice(TYPES),
    multiple=True,
    help="Things of this type; may be given more than once.",
)
@_PAYLOAD
@_APPLICATION
@common_options
@click.pass_context
def dump_command(
    ctx: click.Context,
    directory: str,
    first: int | None,
    last: int | None,
    newest: int | None,
    terms: tuple[int, ...],
    types: tuple[str, ...],
    payload: str | None,
    application: str | None,
    as_json: bool,
    color: str,
) -> None:
    """Show every record and what is in it."""

    if newest is not None and (first is not None or last is not None):
        raise click.UsageError("--last cannot be combined with --from or --to")
    if first is not None and last is not None and last < first:
        raise click.UsageError(f"--to {last} lies before --from {first}")
    payloads = _payloads(payload, application)
    found = DataDirectory(directory)
    if newest is not None:
        first = first_of_newest(found, newest)
    selection = Selection(first, last, frozenset(terms), frozenset(types))
    ctx.exit(dump(found, output(as_json, color), payloads, selection))


@log.command("verify")
@_DIRECTORY
@SNAPSHOTS
@common_options
@click.pass_context
def verify_command(ctx: click.Context, directory: str, snapshots: str | None, as_json: bool, color: str) -> None:
    """Check every record and every snapshot, and say what a start of the node would decide."""

    ctx.exit(verify(DataDirectory(directory, snapshots), output(as_json, color)))


@log.command("stat")
@_DIRECTORY
@SNAPSHOTS
@click.option("--full", is_flag=True, help="Read all entries and snapshots, for totals by type and digests.")
@click.option("--to", "upto", type=click.IntRange(1), metavar="INDEX", help="With --full: entries up to this one.")
@common_options
@click.pass_context
def stat_command(
    ctx: click.Context,
    directory: str,
    snapshots: str | None,
    full: bool,
    upto: int | None,
    as_json: bool,
    color: str,
) -> None:
    """Show identity, term and vote, segments and snapshots."""

    if upto is not None and not full:
        raise click.UsageError("--to needs --full")
    ctx.exit(stat(DataDirectory(directory, snapshots), output(as_json, color), full, upto))


@log.command("repair")
@_DIRECTORY
@SNAPSHOTS
@click.option(
    "--cluster",
    callback=_cluster_id,
    metavar="ID",
    help="The cluster's id, if the identity is damaged and no segment has it: GET /v1/status of a member shows it.",
)
@click.option("--dry-run", is_flag=True, help="Show what would be done, and change nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@common_options
@click.pass_context
def repair_command(
    ctx: click.Context,
    directory: str,
    snapshots: str | None,
    cluster: bytes,
    dry_run: bool,
    yes: bool,
    as_json: bool,
    color: str,
) -> None:
    """Cut off what is damaged, so that the node can start and get it back from the others.

    The node must be stopped. Nothing is destroyed: what is cut goes to the quarantine. If the node may have
    acknowledged some of it, it is marked, and does not vote until it has everything again. Exit codes say what the
    directory is afterwards: 0 whole, 1 whole with a torn tail, which needs no repair, 2 damaged, 3 not repairable.
    """

    out = output(as_json, color)
    ctx.exit(repair(DataDirectory(directory, snapshots), out, cluster_id=cluster, dry_run=dry_run, yes=yes))


@log.command("diff")
@click.argument("first", metavar="A", type=DIRECTORY)
@click.argument("second", metavar="B", type=DIRECTORY)
@SNAPSHOTS_OF_EACH
@_PAYLOAD
@_APPLICATION
@common_options
@click.pass_context
def diff_command(
    ctx: click.Context,
    first: str,
    second: str,
    snapshots: tuple[str, ...],
    payload: str | None,
    application: str | None,
    as_json: bool,
    color: str,
) -> None:
    """Find the first index at which the logs of two nodes differ.

    A and B are the data directories. Exit codes: 0 equal as far as both reach, 1 they differ legally, in a tail that
    is not committed on both sides, 2 they diverge, 3 there is nothing to compare.
    """

    payloads = _payloads(payload, application)
    a, b = with_snapshots((first, second), snapshots)
    ctx.exit(diff(a, b, output(as_json, color), payloads))
