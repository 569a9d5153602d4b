"""``zconsensus log repair``: cutting off what is damaged, so that the node starts again and gets it from the others."""

from __future__ import annotations

import os
from typing import Any

from ..storage import IFileSystem
from ..storage.inspection import list_segments, list_snapshots
from ..storage.offline import RepairOutcome, RepairPlan, carry_out, finish_interrupted, interrupted, locked, plan_repair
from ._ask import confirmed
from ._directory import DataDirectory, RegularFiles
from ._exit import CannotOpen, ExitCode
from ._output import Output, printable
from ._verdict import judge, refusal, show_finding
from ._verify import verify

__all__ = ["repair"]

_SOLE_VOTER = "this node is the only voter, and nobody can give it back what it lost: its mark never clears. "
_RECOVER = "zconsensus recover makes a cluster of what it still has."
_NOTHING_LEFT = "Nothing would be left of which zconsensus recover could make a cluster: restore a backup instead."


def repair(
    directory: DataDirectory,
    out: Output,
    *,
    cluster_id: bytes = b"",
    dry_run: bool = False,
    yes: bool = False,
    files: IFileSystem | None = None,
) -> ExitCode:
    """Look, show what is to be done, ask, do it; return what the directory then is.

    :param cluster_id: the cluster, if nothing in the directory says it.
    :param dry_run: show it, and change nothing.
    :param yes: do not ask.
    :raises NoLog: if there is no log.
    :raises StorageLocked: if the node is running.
    :raises StorageError: if this cannot be repaired, or the disk fails.
    """
    directory.require()
    work = _Repair(directory, out, RegularFiles() if files is None else files, cluster_id)
    if directory.running:
        raise CannotOpen(f"{directory.path}: the node is running; stop it first")
    if dry_run:
        return work.show()
    with locked(work.files, directory.path, directory.snapshots):
        return work.run(yes)


class _Repair:
    def __init__(self, directory: DataDirectory, out: Output, files: IFileSystem, cluster_id: bytes) -> None:
        self.files = files
        self._directory = directory
        self._out = out
        self._cluster_id = cluster_id

    def show(self) -> ExitCode:
        """Show what would be done."""
        if interrupted(self.files, self._directory.path):
            self._out.note("a repair was interrupted here; the next one brings it to an end")
            return ExitCode.ROT
        plan = self._plan()
        if not plan.needed:
            return self._nothing()
        self._show(plan)
        return ExitCode.ROT

    def run(self, yes: bool) -> ExitCode:
        """Repair."""
        if interrupted(self.files, self._directory.path):
            finish_interrupted(self.files, self._directory.path)
            self._out.note("brought an interrupted repair to an end")
        plan = self._plan()
        if not plan.needed:
            return self._nothing()
        self._show(plan)
        if not confirmed("Repair it?", yes):
            self._out.note("nothing was changed")
            return ExitCode.ROT
        outcome = carry_out(self.files, self._directory.path, self._directory.snapshots, plan, os.urandom)
        self._done(plan, outcome)
        code = verify(self._directory, Output.silent())
        if code is not ExitCode.CLEAN:
            raise CannotOpen(f"{self._directory.path} is not whole after the repair; zconsensus log verify says more")
        return code

    def _plan(self) -> RepairPlan:
        directory = self._directory
        total = sum(each.size for each in list_segments(directory.files, directory.path))
        snapshots, _ = list_snapshots(directory.files, directory.snapshots)
        total += sum(each.manifest.size for each in snapshots if each.manifest is not None)
        with self._out.progress(total, "reading") as advance:
            return plan_repair(directory.files, directory.path, directory.snapshots, self._cluster_id, advance)

    def _nothing(self) -> ExitCode:
        """Say that there is nothing to repair, unless there is something that a repair does not know."""
        code = verify(self._directory, Output.silent())
        if code is ExitCode.ROT:
            raise CannotOpen("what is wrong here cannot be cut off; zconsensus log verify says more")
        identity, _, verdict = judge(self._directory)
        mark = identity.repair.hex() if identity is not None else ""
        told = "a torn tail, which the next start sets aside by itself" if verdict.verdict == "torn" else "no damage"
        marked = f"; it was repaired before, with the repair id {mark}" if mark else ""
        fields = {"needed": False, "verdict": verdict.verdict, "repair_id": mark}
        self._out.put("repair", fields, f"{self._out.heading('repair')}  nothing to do: {told}{marked}")
        return verdict.exit_code

    # What is to be done

    def _show(self, plan: RepairPlan) -> None:
        for damage in plan.damage:
            show_finding(self._out, refusal(self._directory, damage))
        out, fields = self._out, self._fields(plan)
        if out.as_json:
            out.put("repair_plan", fields)
            return
        identity = plan.identity
        out.text(f"{out.heading('repair')}  node {identity.node_id}, cluster {identity.cluster_id.hex() or 'none'}")
        for name, text in self._lines(plan, fields):
            out.text(f"  {name:<10} {text}")

    def _fields(self, plan: RepairPlan) -> dict[str, Any]:
        name, traces = self._directory.name, plan.traces
        first = plan.last.index + 1
        if plan.run is not None:
            index = plan.run.index
            start = max(index.purged.index, index.needed, plan.purge.index if plan.purge else 0) + 1
        else:
            start = first
        goes = traces.last if traces.last >= first else None
        state = plan.state
        return {
            "node_id": plan.identity.node_id,
            "cluster_id": plan.identity.cluster_id.hex(),
            "identity": "rebuilt" if plan.identity_damaged else "ok",
            "first": start if start < first else None,
            "last": {"term": plan.last.term, "index": plan.last.index},
            "snapshot": None if plan.point is None else plan.point.last.index,
            "goes_first": first if goes else None,
            "goes_last": goes,
            "goes_committed": min(traces.commit, goes) if goes and traces.commit >= first else None,
            "rewritten": plan.rewrites_log,
            "term": state.term,
            "vote": state.voted_for,
            "commit": state.commit,
            "cut_file": name(plan.cut) if plan.cut else None,
            "cut_offset": plan.run.index.active.end if plan.cut and plan.run is not None else None,
            "dropped": [name(path) for path in plan.dropped],
            "snapshots": [name(each.path) for each in plan.snapshots],
            "marks": plan.marks,
            "sole_voter": plan.sole_voter,
        }

    def _lines(self, plan: RepairPlan, fields: dict[str, Any]) -> list[tuple[str, str]]:
        out = self._out
        lines = []
        if plan.identity_damaged:
            lines.append(("identity", "is written anew, from what the segments say"))
        kept = f"entries {fields['first']} to {plan.last.index}" if fields["first"] else "no entries"
        snapshot = f" behind the snapshot at {fields['snapshot']}" if fields["snapshot"] else ""
        lines.append(("kept", f"{kept}{snapshot}; the log ends at {plan.last.index} (term {plan.last.term})"))
        lines.append(("goes", self._what_goes(plan, fields)))
        if plan.rewrites_log:
            state = plan.state
            lines.append(("state", f"term {state.term}, vote {state.voted_for or 'none'}, commit {state.commit}"))
        aside = [f"{fields['cut_file']} from offset {fields['cut_offset']} on"] if fields["cut_file"] else []
        aside += [*fields["dropped"], *fields["snapshots"]]
        lines.append(("set aside", printable(", ".join(aside)) or "nothing but the old identity"))
        if plan.marks:
            lines.append(("mark", out.warning("it does not vote, and is not counted, until it has all of it again")))
            if plan.sole_voter:
                what_then = _RECOVER if plan.last.index else _NOTHING_LEFT
                lines.append(("", out.bad(f"WARNING: {_SOLE_VOTER}{what_then}")))
        else:
            lines.append(("mark", "none: nothing is lost that the node has acknowledged"))
        return lines

    def _what_goes(self, plan: RepairPlan, fields: dict[str, Any]) -> str:
        if not plan.marks:
            return "nothing that is not in the snapshot"
        if fields["goes_last"] is None:
            return "what was behind the damage, if there was anything" if plan.rewrites_log else "nothing"
        committed = fields["goes_committed"]
        known = f"those up to {committed} are known as committed" if committed else "none is known as committed"
        return f"entries {fields['goes_first']} to {fields['goes_last']}; {known}"

    def _done(self, plan: RepairPlan, outcome: RepairOutcome) -> None:
        mark = outcome.identity.repair.hex()
        aside = self._directory.name(outcome.quarantine)
        fields = {"needed": True, "verdict": "clean", "repair_id": mark, "quarantine": aside}
        marked = f"; repair id {mark}" if plan.marks else ""
        text = f"{self._out.good('done')}{marked}; what was cut is in {aside}"
        self._out.put("repair", fields, f"{self._out.heading('repaired')}  {text}")
