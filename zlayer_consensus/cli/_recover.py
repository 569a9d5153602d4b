"""``zconsensus recover``: a new cluster of the survivors, when a majority is lost for good."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from ..errors import StorageCorrupt
from ..storage.inspection import list_segments, list_snapshots
from ..storage.offline import (
    Holdings,
    RecoveryPlan,
    interrupted,
    join_new_cluster,
    plan_recovery,
    survey,
)
from ._ask import confirmed, typed
from ._directory import DataDirectory, RegularFiles
from ._exit import CannotOpen, ExitCode
from ._files import write_new_file
from ._output import Output, amount

__all__ = ["apply_plan", "look", "make_plan", "read_plan", "read_survey", "recover"]

_CLUSTER_ID_BYTES = 16
_DECLINED = "nothing was changed"


# Looking at survivors


def look(directory: DataDirectory, out: Output) -> Holdings:
    """Read and check all that a survivor has.

    :raises CannotOpen: if the node is running, or its data is damaged.
    :raises NoLog: if there is no log.
    """
    directory.require()
    if directory.running:
        raise CannotOpen(f"{directory.path}: the node is running; stop it first")
    if interrupted(directory.files, directory.path):
        raise CannotOpen(f"{directory.path}: a repair was interrupted here; zconsensus log repair brings it to an end")
    total = sum(each.size for each in list_segments(directory.files, directory.path))
    total += sum(
        each.manifest.size for each in list_snapshots(directory.files, directory.snapshots)[0] if each.manifest
    )
    try:
        with out.progress(total, f"reading {directory.path}") as advance:
            return survey(directory.files, directory.path, directory.snapshots, advance)
    except StorageCorrupt as error:
        raise CannotOpen(f"{error}; zconsensus log repair first, or leave this node out") from error


def read_survey(path: str) -> Holdings:
    """Read what a survey printed.

    :raises CannotOpen: if it is something else, or was changed.
    """
    try:
        with open(path, encoding="utf-8") as file:
            return Holdings.from_json(file.read())
    except ValueError as error:
        raise CannotOpen(f"{path} is not what zconsensus recover survey prints: {error}") from error


def read_plan(path: str) -> RecoveryPlan:
    """Read a plan.

    :raises CannotOpen: if it is none, or was changed.
    """
    try:
        with open(path, encoding="utf-8") as file:
            return RecoveryPlan.from_json(file.read())
    except ValueError as error:
        raise CannotOpen(f"{path}: {error}") from error


# Deciding


def make_plan(
    survivors: Sequence[Holdings], lost: frozenset[int], out: Output, *, repaired: bool, yes: bool
) -> RecoveryPlan | None:
    """Decide, show it and ask; None if the answer is no.

    :raises CannotRecover: if it must not be done.
    """
    for each in sorted(survivors, key=lambda each: each.node_id):
        if out.as_json:
            out.put("survivor", _survivor_fields(each))
    plan = plan_recovery(
        survivors,
        lost,
        new_cluster=os.urandom(_CLUSTER_ID_BYTES),
        time_ms=int(time.time() * 1000),
        tool=f"zconsensus {version('zlayer-consensus')}",
        repaired=repaired,
    )
    _show(plan, out)
    members = ",".join(str(each.node_id) for each in plan.survivors)
    question = f"Type the ids of the new cluster's members ({members}) to go on"
    return plan if typed(question, members, yes) else None


def _survivor_fields(each: Holdings) -> dict[str, Any]:
    return {
        "node_id": each.node_id,
        "cluster_id": each.identity.cluster_id.hex(),
        "last": {"term": each.last.term, "index": each.last.index},
        "term": each.state.term,
        "committed": each.committed,
        "snapshot": each.snapshot or None,
        "repair_id": each.identity.repair.hex() or None,
    }


def _show(plan: RecoveryPlan, out: Output) -> None:
    replaced = {each.node_id: plan.replaced(each.node_id) for each in plan.survivors if each.node_id != plan.base}
    committed = max(each.committed for each in plan.survivors)
    base = plan.of_base
    if out.as_json:
        fields = {
            "old_cluster": plan.old_cluster.hex(),
            "new_cluster": plan.new_cluster.hex(),
            "base": plan.base,
            "term": plan.term,
            "committed": committed,
            "last": {"term": base.last.term, "index": base.last.index},
            "survivors": [each.node_id for each in plan.survivors],
            "lost": list(plan.lost),
            "replaced": [{"node_id": one, "first": at[0], "last": at[1]} for one, at in replaced.items() if at],
        }
        out.put("recovery_plan", fields)
        return
    out.text(f"{out.heading('cluster')}  {plan.old_cluster.hex()}, as far as it is here")
    out.text(f"  {'node':>10} {'log ends':>16} {'in term':>8} {'committed':>12} {'snapshot':>12} {'term':>8}")
    for each in plan.survivors:
        marks = [out.good("base")] if each.node_id == plan.base else []
        marks += [out.warning("repaired: it may lack what it had acknowledged")] if each.identity.repair else []
        row = f"  {each.node_id:>10} {each.last.index:>16} {each.last.term:>8} {each.committed:>12}"
        out.text(f"{row} {each.snapshot or '-':>12} {each.state.term:>8}  {', '.join(marks)}".rstrip())
    for name, text in _consequences(plan, replaced, committed, out):
        out.text(f"{out.heading(name)}{' ' * (10 - len(name))}{text}")


def _consequences(
    plan: RecoveryPlan, replaced: dict[int, tuple[int, int] | None], committed: int, out: Output
) -> list[tuple[str, str]]:
    base = plan.of_base
    lines = [("kept", f"all that a survivor knows as committed: entries up to {committed}")]
    if base.last.index > committed:
        unknown = f"entries {committed + 1} to {base.last.index} of node {base.node_id}"
        lines.append(("", f"{unknown}, of which that is not known: they are committed from now on"))
    for node_id, entries in replaced.items():
        if entries is not None:
            first, last = entries
            lines.append(("replaced", f"entries {first} to {last} of node {node_id}, by those of node {base.node_id}"))
    lost = ", ".join(map(str, plan.lost)) or "none"
    what = f"what only node {lost} had: nobody here can know whether writes after entry {base.last.index} were"
    lines.append(("lost", out.warning(f"{what} acknowledged")))
    lines.append(
        ("", out.warning("If they still run somewhere, cut off from here, stop them: clients could use them."))
    )
    lines.append(("for ever", f"the ids {lost} can never be used again; their data can never come back"))
    members = amount(len(plan.survivors), "voter")
    lines.append(("new", f"cluster {plan.new_cluster.hex()} of {members}, which begins in term {plan.term}"))
    return lines


# Doing


def apply_plan(plan: RecoveryPlan, directory: DataDirectory, out: Output, *, yes: bool, ask: bool = True) -> ExitCode:
    """Make one directory part of the new cluster.

    :param ask: whether to ask at all.
    :raises CannotRecover: if the directory is not what the plan says.
    :raises StorageLocked: if the node is running.
    """
    directory.require()
    if ask and not confirmed(f"Make {directory.path} part of cluster {plan.new_cluster.hex()}?", yes):
        out.note(_DECLINED)
        return ExitCode.CANNOT_OPEN
    changed = join_new_cluster(RegularFiles(), directory.path, directory.snapshots, plan, os.urandom)
    fields = {"directory": directory.path, "cluster_id": plan.new_cluster.hex(), "changed": changed}
    done = out.good("is part of the new cluster") if changed else "was part of the new cluster already"
    out.put("recovered", fields, f"{directory.path} {done}")
    return ExitCode.CLEAN


def recover(
    directories: Sequence[DataDirectory],
    lost: frozenset[int],
    out: Output,
    *,
    plan_path: str | None,
    repaired: bool,
    yes: bool,
) -> ExitCode:
    """Do all of it with the survivors' directories on this machine.

    The plan is written to a file first: if this is interrupted, it is brought to an end with that.

    :raises CannotRecover: if it must not be done.
    """
    survivors = [look(directory, out) for directory in directories]
    plan = make_plan(survivors, lost, out, repaired=repaired, yes=yes)
    if plan is None:
        out.note(_DECLINED)
        return ExitCode.CANNOT_OPEN
    path = plan_path or f"recovery-{plan.new_cluster.hex()[:8]}.json"
    write_new_file(path, plan.to_json().encode())
    elsewhere = " --snapshots DIRECTORY" if any(each.snapshots != each.path for each in directories) else ""
    command = f"zconsensus recover apply {path} DIRECTORY{elsewhere}"
    out.note(f"the plan is in {path}; if this is interrupted, go on with: {command}")
    by_id = {each.node_id: directory for each, directory in zip(survivors, directories, strict=True)}
    for node_id in [plan.base, *(each for each in by_id if each != plan.base)]:
        apply_plan(plan, by_id[node_id], out, yes=True, ask=False)
    return ExitCode.CLEAN
