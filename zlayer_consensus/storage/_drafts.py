"""From writes to records: what goes into one record, and what a write that is too large for one is split into."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

from ..raft import Entry, HardState, LogWrite
from ._log_index import LogIndex
from ._record import Operation, Purge, Reset, SetState, Truncate, encode_batch, encode_operation

__all__ = ["RecordDraft", "drafts"]


class RecordDraft:
    """A record that is being put together.

    ``points``, ``terms`` and ``configs`` bound by how much it lets the seal of its segment grow.

    :param last: the log's last index before it.
    :param commit: the commit index that was last written before it.
    """

    def __init__(self, last: int, commit: int) -> None:
        self.operations: list[Operation] = []
        self.pieces: list[bytes] = []
        self.length = 0
        self.entries = 0
        self.first = 0
        self.last = last
        self.commit = commit
        self.points = 1
        self.terms = 0
        self.configs = 0

    def add(self, operation: Reset | Truncate | SetState | Purge) -> None:
        """Add any operation but a batch."""
        if isinstance(operation, (Reset, Truncate)):
            self.points += 1
        piece = encode_operation(operation)
        self.operations.append(operation)
        self.pieces.append(piece)
        self.length += len(piece)

    def add_batch(self, entries: Sequence[Entry]) -> None:
        """Add entries.

        :raises ValueError: if they contradict themselves.
        """
        batch, pieces = encode_batch(entries)
        if not self.entries:
            self.first = batch.first
        self.operations.append(batch)
        self.pieces += pieces
        self.length += sum(map(len, pieces))
        self.entries += len(entries)
        self.last = batch.last
        self.terms += len(batch.terms)
        self.configs += len(batch.configs)

    def add_state(self, state: HardState) -> None:
        """Add term, vote and commit; the commit never goes beyond what this very record makes durable."""
        if state.commit > self.last:
            state = state._replace(commit=self.last)
        self.commit = state.commit
        self.add(SetState(state))

    def next(self) -> RecordDraft:
        """Return an empty draft for the record after this one."""
        return RecordDraft(self.last, self.commit)


def drafts(items: Iterable[LogWrite | Purge], index: LogIndex, limit: int) -> Iterator[RecordDraft]:
    """Put writes into as few records as ``limit`` payload bytes allow, in order.

    What needs several records begins with its term and vote, so that no crash between them leaves entries of a term
    that the hard state does not know.

    :raises ValueError: if entries contradict themselves.
    """
    draft = RecordDraft(index.last.index, index.state.commit)
    for item, size in _merged(items, limit):
        if isinstance(item, Purge):
            draft.add(item)
            continue
        if draft.length + size > limit and draft.operations:
            yield draft
            draft = draft.next()
        if size > limit and item.hard_state is not None:
            draft.add_state(item.hard_state._replace(commit=draft.commit))
        if item.reset is not None:
            draft.add(Reset(item.reset))
            draft.last = item.reset.index
        if item.truncate_after is not None:
            draft.add(Truncate(item.truncate_after))
            draft.last = min(draft.last, item.truncate_after)
        for chunk in _chunks(item.entries, limit) if size > limit else [item.entries]:
            if size > limit and draft.entries:
                yield draft
                draft = draft.next()
            if chunk:
                draft.add_batch(chunk)
        if item.hard_state is not None:
            draft.add_state(item.hard_state)
    if draft.operations:
        yield draft


def _merged(items: Iterable[LogWrite | Purge], limit: int) -> Iterator[tuple[LogWrite | Purge, int]]:
    """Make one write of those that only append to the one before, which costs a quarter of writing each by itself.

    Never one that is too large for a record: it would begin with a term and vote that came after its entries.

    :return: each write, and the bytes of its entries.
    """
    run: list[LogWrite] = []
    total = 0
    for item in items:
        if isinstance(item, Purge):
            if run:
                yield _joined(run), total
                run, total = [], 0
            yield item, 0
            continue
        # A little more than an entry's length is its own length field.
        size = sum([len(entry.raw) + 4 for entry in item.entries])
        apart = item.reset is not None or item.truncate_after is not None or total + size > limit
        if run and (apart or run[-1].hard_state is not None):
            yield _joined(run), total
            run, total = [], 0
        run.append(item)
        total += size
    if run:
        yield _joined(run), total


def _joined(run: list[LogWrite]) -> LogWrite:
    if len(run) == 1:
        return run[0]
    entries = tuple(chain.from_iterable([write.entries for write in run]))
    return LogWrite(run[0].reset, run[0].truncate_after, entries, run[-1].hard_state)


def _chunks(entries: Sequence[Entry], limit: int) -> Iterator[Sequence[Entry]]:
    """Cut entries into runs of at most ``limit`` bytes; an entry that is larger is alone."""
    start = size = 0
    for at, entry in enumerate(entries):
        if size and size + len(entry.raw) > limit:
            yield entries[start:at]
            start, size = at, 0
        size += len(entry.raw)
    yield entries[start:]
