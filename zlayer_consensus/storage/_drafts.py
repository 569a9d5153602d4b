"""From writes to records: what goes into one record, and what a write that is too large for one is split into."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from ..raft import Entry, HardState, LogWrite
from ._log_index import LogIndex
from ._record import Batch, Operation, Purge, Reset, SetState, Truncate, encode_batch, encode_operation

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

    def add_batch(self, batch: Batch, pieces: list[bytes], length: int) -> None:
        """Add encoded entries."""
        if not self.entries:
            self.first = batch.first
        self.operations.append(batch)
        self.pieces += pieces
        self.length += length
        self.entries += batch.last - batch.first + 1
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

    A write that fits is never split. One that does not begins with its term and vote, so that no crash between its
    records leaves entries of a term that the hard state does not know.

    :raises ValueError: if entries contradict themselves.
    """
    draft = RecordDraft(index.last.index, index.state.commit)
    for item in items:
        if isinstance(item, Purge):
            draft.add(item)
            continue
        batch: Batch | None = None
        pieces: list[bytes] = []
        length = 0
        if item.entries:
            batch, pieces = encode_batch(item.entries)
            length = sum(map(len, pieces))
        if draft.length + length > limit and draft.operations:
            yield draft
            draft = draft.next()
        if length > limit and item.hard_state is not None:
            draft.add_state(item.hard_state._replace(commit=draft.commit))
        if item.reset is not None:
            draft.add(Reset(item.reset))
            draft.last = item.reset.index
        if item.truncate_after is not None:
            draft.add(Truncate(item.truncate_after))
            draft.last = min(draft.last, item.truncate_after)
        if length > limit:
            for chunk in _chunks(item.entries, limit):
                if draft.entries:
                    yield draft
                    draft = draft.next()
                batch, pieces = encode_batch(chunk)
                draft.add_batch(batch, pieces, sum(map(len, pieces)))
        elif batch is not None:
            draft.add_batch(batch, pieces, length)
        if item.hard_state is not None:
            draft.add_state(item.hard_state)
    if draft.operations:
        yield draft


def _chunks(entries: Sequence[Entry], limit: int) -> Iterator[Sequence[Entry]]:
    """Cut entries into runs of at most ``limit`` bytes; an entry that is larger is alone."""
    start = size = 0
    for at, entry in enumerate(entries):
        if size and size + len(entry.raw) > limit:
            yield entries[start:at]
            start, size = at, 0
        size += len(entry.raw)
    yield entries[start:]
