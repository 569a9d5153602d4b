"""The command line of ``zconsensus recover``."""

from __future__ import annotations

import click

from ._directory import DataDirectory
from ._exit import ExitCode
from ._files import write_new_file
from ._options import DIRECTORY, NEW_FILE, SNAPSHOTS, SNAPSHOTS_OF_EACH, common_options, output, with_snapshots
from ._recover import apply_plan, look, make_plan, read_plan, read_survey, recover

__all__ = ["recover_group"]


class _Recover(click.Group):
    """Takes directories where a command is expected: then it does everything at once."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put the command in that was left out."""
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = ["all", *args]
        return super().parse_args(ctx, args)


def _ids(_ctx: click.Context, _param: click.Parameter, value: str) -> frozenset[int]:
    if value == "none":
        return frozenset()
    parts = [each.strip() for each in value.split(",")]
    if not all(each.isascii() and each.isdigit() and int(each) for each in parts):
        raise click.BadParameter(f"{value!r} is not a list of node ids, such as 3,4,5")
    return frozenset(map(int, parts))


_LOST = click.option(
    "--lost", callback=_ids, required=True, metavar="IDS", help="Every member that is lost: 3,4,5; or none."
)
_REPAIRED = click.option(
    "--allow-repaired", is_flag=True, help="Take survivors whose log was repaired and may lack something, too."
)
_YES = click.option("--yes", is_flag=True, help="Do not ask.")
_DIRECTORY = click.argument("directory", type=DIRECTORY)


@click.group("recover", cls=_Recover, invoke_without_command=False, subcommand_metavar="[COMMAND] [ARGS]...")
def recover_group() -> None:
    """Make a new cluster of the survivors, when a majority is lost for good.

    Stop every survivor first. With the data directories of all survivors on this machine:

        zconsensus recover DIRECTORY... --lost IDS

    On several machines: survey on each survivor's, plan with what that printed, apply on each survivor's. See
    docs/disaster.rst first: what only the lost members had is lost, and they can never come back.
    """


@recover_group.command("all")
@click.argument("directories", nargs=-1, required=True, type=DIRECTORY)
@SNAPSHOTS_OF_EACH
@_LOST
@_REPAIRED
@click.option(
    "--plan",
    "plan_path",
    type=NEW_FILE,
    metavar="FILE",
    help="Where the plan goes; by default recovery-….json, here.",
)
@_YES
@common_options
@click.pass_context
def all_command(
    ctx: click.Context,
    directories: tuple[str, ...],
    snapshots: tuple[str, ...],
    lost: frozenset[int],
    allow_repaired: bool,
    plan_path: str | None,
    yes: bool,
    as_json: bool,
    color: str,
) -> None:
    """Do everything, with the survivors' directories on this machine. The word "all" may be left out."""

    out, found = output(as_json, color), with_snapshots(directories, snapshots)
    ctx.exit(recover(found, lost, out, plan_path=plan_path, repaired=allow_repaired, yes=yes))


@recover_group.command("survey")
@_DIRECTORY
@SNAPSHOTS
@click.pass_context
def survey_command(ctx: click.Context, directory: str, snapshots: str | None) -> None:
    """Print what a survivor has, as JSON. Everything is read and checked; nothing is changed."""

    out = output(True, "never")
    click.echo(look(DataDirectory(directory, snapshots), out).to_json())
    ctx.exit(ExitCode.CLEAN)


@recover_group.command("plan")
@click.argument("surveys", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False))
@_LOST
@_REPAIRED
@click.option("--out", "path", required=True, type=NEW_FILE, metavar="FILE", help="Where the plan goes.")
@_YES
@common_options
@click.pass_context
def plan_command(
    ctx: click.Context,
    surveys: tuple[str, ...],
    lost: frozenset[int],
    allow_repaired: bool,
    path: str,
    yes: bool,
    as_json: bool,
    color: str,
) -> None:
    """Decide, from every survivor's survey. Shows what each has and what will be lost, and asks."""

    out = output(as_json, color)
    plan = make_plan([read_survey(each) for each in surveys], lost, out, repaired=allow_repaired, yes=yes)
    if plan is None:
        out.note("no plan was written")
        ctx.exit(ExitCode.CANNOT_OPEN)
    write_new_file(path, plan.to_json().encode())
    out.note(f"apply it on each survivor, on node {plan.base} first: zconsensus recover apply {path} DIRECTORY")


@recover_group.command("apply")
@click.argument("plan_path", metavar="PLAN", type=click.Path(exists=True, dir_okay=False))
@_DIRECTORY
@SNAPSHOTS
@_YES
@common_options
@click.pass_context
def apply_command(
    ctx: click.Context, plan_path: str, directory: str, snapshots: str | None, yes: bool, as_json: bool, color: str
) -> None:
    """Make a survivor's directory part of the new cluster. Done again, it changes nothing."""

    out = output(as_json, color)
    ctx.exit(apply_plan(read_plan(plan_path), DataDirectory(directory, snapshots), out, yes=yes))
