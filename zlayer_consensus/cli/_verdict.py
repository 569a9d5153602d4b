"""What an opening of a directory would decide, in words."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ..errors import StorageCorrupt, StorageError, WrongIdentity
from ..storage import Identity
from ..storage.inspection import Findings, Segment, Tail
from ._directory import DataDirectory
from ._exit import ExitCode
from ._output import Output, printable

__all__ = ["Verdict", "judge", "refusal", "show_finding", "show_verdict"]

_ROT_ADVICE = (
    "While a majority of the others is well, zconsensus log repair cuts off what is damaged, and the node gets it back "
    "from them. Or remove the member from the cluster and let it come back under a new id with an empty directory. "
    "zconsensus log repair --dry-run shows what would go."
)
_FOREIGN_ADVICE = (
    "A file of another directory was copied here, or the directory was mixed up with another. Put this node's own "
    "files back; do not start it on a mixture."
)
_NEWER_ADVICE = "Use the version of this software that wrote it, or a later one."
_TORN_ADVICE = (
    "Nothing needs to be done: the next start sets these bytes aside in quarantine and goes on. No entry in them was "
    "acknowledged by this node."
)
_FAILED_ADVICE = "Look at permissions and at the disk; this says nothing about the log itself."
_TORN_RULE = "the last record was never finished: a sector of it is unwritten, and no valid record follows"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is the matter with a directory.

    :param verdict: ``clean``, ``torn``, ``rot`` or ``unreadable``.
    :param opening: what a start of the node would do: ``opens``, ``cuts the torn tail`` or ``refuses``.
    :param rule: which rule decided.
    :param file, offset: where it fired.
    :param first_index, last_index: the entries at risk; a ``last_index`` of None is the log's end.
    :param advice: what to do.
    """

    verdict: str
    opening: str
    rule: str = ""
    file: str = ""
    offset: int | None = None
    first_index: int | None = None
    last_index: int | None = None
    advice: str = ""

    @property
    def exit_code(self) -> ExitCode:
        """The code that the verdict ends a command with."""
        return {"clean": ExitCode.CLEAN, "torn": ExitCode.TORN, "rot": ExitCode.ROT}.get(
            self.verdict, ExitCode.CANNOT_OPEN
        )


def judge(directory: DataDirectory) -> tuple[Identity | None, Findings | None, Verdict]:
    """Return what an opening finds, and the verdict; if it would refuse, the verdict alone.

    :raises NoLog: if there is none.
    """
    try:
        identity, found = directory.examine()
    except StorageError as error:
        return None, None, refusal(directory, error)
    torn: tuple[Segment, Tail] | None = None
    if found.tail.torn_end:
        torn = found.index.active, found.tail
    elif found.unsealed is not None and found.unsealed[1].torn_end:
        torn = found.unsealed
    if torn is None:
        return identity, found, Verdict("clean", "opens")
    segment, tail = torn
    last = segment.last if segment is not found.index.active else found.index.last.index
    rule = f"{_TORN_RULE} ({tail.torn_end - segment.end} bytes, after entry {last})"
    verdict = Verdict("torn", "cuts the torn tail", rule, directory.name(segment.path), segment.end, last + 1, None)
    return identity, found, _with_advice(verdict, _TORN_ADVICE)


def refusal(directory: DataDirectory, error: StorageError) -> Verdict:
    """Return the verdict for an error that a store was, or would be, opened with."""
    if isinstance(error, StorageCorrupt):
        verdict = Verdict(
            "rot", "refuses", error.reason, directory.name(error.path), error.offset, error.first_index,
            error.last_index or None,
        )  # fmt: skip
        return _with_advice(verdict, _ROT_ADVICE)
    if isinstance(error, WrongIdentity):
        newer = error.field == "format version"
        rule = f"{error.field} {error.found}, where {error.expected} belongs"
        verdict = Verdict("unreadable" if newer else "rot", "refuses", rule, directory.name(error.path), 0)
        return _with_advice(verdict, _NEWER_ADVICE if newer else _FOREIGN_ADVICE)
    return Verdict("unreadable", "refuses", str(error), advice=_FAILED_ADVICE)


def _with_advice(verdict: Verdict, advice: str) -> Verdict:
    return Verdict(**{**asdict(verdict), "advice": advice})


def show_finding(out: Output, verdict: Verdict) -> None:
    """Print one thing that is wrong."""
    fields = {
        "verdict": verdict.verdict,
        "file": verdict.file,
        "offset": verdict.offset,
        "rule": verdict.rule,
        "first_index": verdict.first_index,
        "last_index": verdict.last_index,
    }
    where = f"{printable(verdict.file)}  at offset {verdict.offset}: " if verdict.file else ""
    mark = out.warning("TORN") if verdict.exit_code is ExitCode.TORN else out.bad("BAD")
    out.put("finding", fields, f"{mark} {where}{printable(verdict.rule)}")


def show_verdict(out: Output, verdict: Verdict, **more: Any) -> None:
    """Print a verdict as the last thing that a command says."""
    out.put("verdict", {**asdict(verdict), "exit_code": int(verdict.exit_code), **more})
    if out.as_json:
        return
    style = {"clean": out.good, "torn": out.warning}.get(verdict.verdict, out.bad)
    out.text(f"{out.heading('verdict')}  {style(verdict.verdict)}; a start of the node {_start(verdict)}")
    if verdict.rule:
        out.text(f"  rule    {printable(verdict.rule)}")
    if verdict.file:
        out.text(f"  where   {printable(verdict.file)} at offset {verdict.offset}")
    if verdict.first_index is not None:
        beyond = verdict.last_index is not None and verdict.last_index < verdict.first_index
        until = "the end" if verdict.last_index is None else str(verdict.last_index)
        out.text("  at risk " + ("no entries" if beyond else f"entries {verdict.first_index} to {until}"))
    if verdict.advice:
        out.text(f"  advice  {verdict.advice}")


def _start(verdict: Verdict) -> str:
    if verdict.opening == "refuses":
        return "is refused"
    return "succeeds" if verdict.opening == "opens" else f"succeeds and {verdict.opening}"
