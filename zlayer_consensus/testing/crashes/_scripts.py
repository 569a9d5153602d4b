"""Scripts of writes that a correct node could make, for stories of a log store."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Self

from ...raft import NO_LOG, Entry, EntryKind, HardState, LogId, LogWrite, Member, Membership
from ...storage import Identity
from .._simnodes import SECTOR
from ._logs import LogStep

__all__ = ["SCRIPTS", "Script", "random_script"]

_MEMBERSHIP = Membership.initial(Member(each, bytes([each]) * 16, f"host-{each}:7001") for each in (1, 2, 3))
_TIME_MS = 1_700_000_000_000
_KINDS = (EntryKind.COMMAND, EntryKind.COMMAND, EntryKind.COMMAND, EntryKind.CONFIG, EntryKind.NOOP, EntryKind.SESSION)


class Script:
    """Puts steps together, and keeps count of where the log is. Everything is decided by the seed.

    :param steps: what was put together.
    """

    def __init__(self, seed: object) -> None:
        self.steps: list[LogStep] = []
        self.rng = random.Random(f"script {seed}")
        self.term = 1
        self.vote = 0
        self.commit = 0
        self.last = self.purged = NO_LOG
        self.terms = {0: 0}

    @property
    def state(self) -> HardState:
        """Term, vote and commit."""
        return HardState(self.term, self.vote, self.commit)

    def entries(self, count: int, size: int) -> tuple[Entry, ...]:
        """Make the next entries, of various kinds and contents, zeros and single bits among zeros too."""
        made = []
        for _ in range(count):
            index = self.last.index + 1
            self.last = LogId(self.term, index)
            self.terms[index] = self.term
            kind = self.rng.choice(_KINDS)
            content = self.rng.choice((self.rng.randbytes, bytes, self._sparse))(size)
            payload = _MEMBERSHIP.encode() if kind == EntryKind.CONFIG else content
            made.append(Entry.make(index, self.term, kind, payload, _TIME_MS + index))
        return tuple(made)

    def _sparse(self, size: int) -> bytes:
        """Zeros, and a single bit in each sector."""
        return (b"\x01" + bytes(SECTOR - 1)) * (size // SECTOR + 1) if size >= SECTOR else b"\x01" * size

    def append(self, count: int = 1, size: int = 40, *, with_state: bool = False) -> Self:
        """Append entries, perhaps with a commit of what was there before."""
        if with_state:
            self.commit = self.last.index
        self.steps.append(LogWrite(entries=self.entries(count, size), hard_state=self.state if with_state else None))
        return self

    def conflict(self, removed: int, count: int = 1, size: int = 40) -> Self:
        """Meet the leader of the next term, whose log has other entries in the place of the newest ones."""
        self.term += 1
        self.vote = 0
        after = max(self.commit, self.last.index - removed)
        self.last = LogId(self.terms[after], after)
        state = self.state
        self.steps.append(LogWrite(truncate_after=after, entries=self.entries(count, size), hard_state=state))
        return self

    def follow(self, count: int = 1, size: int = 40) -> Self:
        """Take the first entries of the next term, and with them that term."""
        self.term += 1
        self.vote = 0
        self.steps.append(LogWrite(entries=self.entries(count, size), hard_state=self.state))
        return self

    def cut(self, removed: int) -> Self:
        """Truncate, and nothing else."""
        after = max(self.commit, self.last.index - removed)
        self.last = LogId(self.terms[after], after)
        self.steps.append(LogWrite(truncate_after=after))
        return self

    def elect(self) -> Self:
        """Vote for somebody in the next term."""
        self.term += 1
        self.vote = self.rng.randint(1, 3)
        self.steps.append(LogWrite(hard_state=self.state))
        return self

    def purge(self, kept: int) -> Self:
        """Commit everything, and purge all but the newest entries."""
        self.commit = self.last.index
        self.steps.append(LogWrite(hard_state=self.state))
        upto = self.last.index - kept
        if upto > self.purged.index:
            self.purged = LogId(self.terms[upto], upto)
            self.steps.append(self.purged)
        return self

    def reset(self, ahead: int, count: int = 0) -> Self:
        """Begin anew behind a snapshot that reaches further than the log."""
        self.term += 1
        self.vote = 0
        index = self.last.index + ahead
        self.last = self.purged = LogId(self.term, index)
        self.terms[index] = self.term
        self.commit = index
        state = self.state
        self.steps.append(LogWrite(reset=self.last, entries=self.entries(count, 40), hard_state=state))
        return self

    def together(self, *builds: Callable[[Script], object]) -> Self:
        """Have the writes of several steps under way at the same time."""
        before, self.steps = self.steps, []
        for build in builds:
            build(self)
        writes = tuple(step for step in self.steps if isinstance(step, LogWrite))
        assert len(writes) == len(self.steps)
        self.steps = [*before, writes]
        return self

    def adopt(self) -> Self:
        """Join a cluster."""
        self.steps.append(Identity(0, b"", b"c" * 16, b"these members"))
        return self

    def reopen(self) -> Self:
        """Stop in order, and start again."""
        self.steps.append("reopen")
        return self


def _append() -> Script:
    script = Script("append")
    for count, size in ((1, 0), (3, 40), (2, 700), (1, 1500), (5, 200)):
        script.append(count, size)
        script.append(1, 30, with_state=True)
    return script


def _conflict() -> Script:
    script = Script("conflict").append(6, 100).append(2, 100, with_state=True).append(8, 150)
    script.conflict(5, 3, 600).append(2, 40).conflict(3, 1, 2000).cut(1).append(2, 40)
    return script.conflict(4, 6, 300).elect().conflict(2, 1, 10)


def _rotate() -> Script:
    """Fill several segments of the smallest size, truncate across their border, and vote in between."""
    script = Script("rotate")
    for turn in range(9):
        script.append(6, 500, with_state=turn % 2 == 0)
        if turn % 3 == 1:
            script.conflict(9, 4, 300)
        elif turn % 3 == 2:
            script.elect()
    return script


def _purge() -> Script:
    script = Script("purge")
    for turn in range(8):
        script.append(12, 400)
        script.purge((5, 0, 30, 2)[turn % 4])
        script.append(1, 40)
    return script


def _reset() -> Script:
    script = Script("reset").append(10, 400).reset(5).append(3, 100).append(20, 600).reset(1, 2)
    return script.append(2, 50, with_state=True).elect().reset(100).reset(7).append(30, 500).purge(3)


def _large() -> Script:
    """Records of many sectors, and writes that need several records."""
    script = Script("large").append(1, 3600)
    script.append(7, 900, with_state=True).append(1, 9000).conflict(1, 12, 1000).append(1, 30_000)
    return script.append(4, 3000, with_state=True).conflict(3, 9, 800)


def _groups() -> Script:
    """Writes that arrive while another one is being synced, and share the next record."""
    script = Script("groups")
    script.together(lambda s: s.append(1), lambda s: s.append(2, 300), lambda s: s.append(1, 900, with_state=True))
    script.together(lambda s: s.append(3, 200), lambda s: s.conflict(2, 2, 100), lambda s: s.append(2, 700))
    script.together(lambda s: s.append(2, 1500), lambda s: s.append(3, 1500), lambda s: s.follow(2, 1200))
    script.together(lambda s: s.elect(), lambda s: s.cut(1), lambda s: s.append(1, 50), lambda s: s.elect())
    return script.together(lambda s: s.append(1), lambda s: s.reset(3, 1), lambda s: s.append(1, 600))


def _identity() -> Script:
    return Script("identity").reopen().adopt().append(2, 100, with_state=True).reopen().append(1, 100)


def _stops() -> Script:
    """Clean stops at every stage: MARK records, pages, and openings of logs that are closed."""
    script = Script("stops").reopen().elect().reopen().append(3, 300).reopen().reopen()
    script.append(1, 3000).reopen().conflict(2, 2, 100).reopen()
    for _ in range(4):
        script.append(9, 500).reopen()
    return script.purge(4).reopen().append(1)


SCRIPTS: dict[str, Callable[[], Script]] = {
    "append": _append,
    "conflict": _conflict,
    "rotate": _rotate,
    "purge": _purge,
    "reset": _reset,
    "large": _large,
    "groups": _groups,
    "identity": _identity,
    "stops": _stops,
}
"""By name, scripts that each bring about one thing, in a log of small segments (16 KiB) several times."""


def random_script(seed: object, length: int) -> Script:
    """Return a script in which anything follows anything."""
    script = Script(seed)
    rng = script.rng
    choices: Sequence[Callable[[], object]] = (
        lambda: script.append(rng.randint(1, 4), rng.choice((0, 20, 300, 700, 5000))),
        lambda: script.append(rng.randint(1, 4), rng.choice((20, 300)), with_state=True),
        lambda: script.append(1, rng.choice((9000, 20_000))),
        lambda: script.conflict(rng.randint(0, 5), rng.randint(1, 3), rng.choice((20, 900))),
        lambda: script.cut(rng.randint(0, 4)),
        script.elect,
        lambda: script.purge(rng.randint(0, 10)),
        lambda: script.reset(rng.randint(1, 30), rng.randint(0, 2)),
        script.reopen,
        lambda: script.together(lambda s: s.append(1, 300), lambda s: s.append(2, 700, with_state=True)),
    )
    weights = (6, 5, 1, 4, 1, 2, 2, 1, 1, 3)
    for _ in range(length):
        rng.choices(choices, weights)[0]()
    return script
