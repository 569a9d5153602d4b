"""Every condition that a caller can act on, as a type with attributes.

An error's ``code`` is stable: it is what travels over the wire and what HTTP bodies show. Its text is one
sentence for a person. Errors that a peer or a client caused and errors of this node are different types.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

__all__ = [
    "ApplyFailed",
    "BootstrapMismatch",
    "ClusterMismatch",
    "ConfigError",
    "ConsensusError",
    "ConversionError",
    "DeadlineExceeded",
    "DomainError",
    "IncarnationMismatch",
    "InvalidMessage",
    "InvariantBroken",
    "LogCompacted",
    "MembershipRefused",
    "NodeRemoved",
    "NodeStopped",
    "NotLeader",
    "OutOfSpace",
    "OutcomeUnknown",
    "Overloaded",
    "PeerRefused",
    "PeerUnreachable",
    "ProposalTooLarge",
    "SessionExpired",
    "SessionSequenceReused",
    "SessionSequenceStale",
    "StateDiverged",
    "StorageCorrupt",
    "StorageError",
    "StorageFailed",
    "StorageFull",
    "StorageLocked",
    "TargetMismatch",
    "TransferFailed",
    "TransferInProgress",
    "WrongIdentity",
]


class ConsensusError(Exception):
    """Base of every error that this package raises on purpose."""

    code: ClassVar[str] = "error"

    def attributes(self) -> dict[str, Any]:
        """Return the error's attributes as plain values, for JSON and CBOR bodies."""
        return {k: v for k, v in vars(self).items() if not k.startswith("_")}


class ConfigError(ConsensusError):
    """A configuration field has a value that a rule forbids."""

    code = "config"

    def __init__(self, field: str, value: object, rule: str) -> None:
        super().__init__(f"{field} = {value!r}: {rule}")
        self.field = field
        self.value = value
        self.rule = rule


class ConversionError(ConsensusError, ValueError):
    """A request, a response or a state is not what the application declared, or cannot be encoded.

    :param what: ``request``, ``response`` or ``state``.
    :param type_name: the declared type.
    :param problem: where in the value something is wrong, and what.
    """

    code = "conversion"

    def __init__(self, what: str, type_name: str, problem: str) -> None:
        super().__init__(f"the {what} does not convert as {type_name}: {problem}")
        self.what = what
        self.type_name = type_name
        self.problem = problem


class NotLeader(ConsensusError):
    """Definite refusal: this node does not lead, and the operation did not happen."""

    code = "not_leader"

    def __init__(self, leader_id: int | None = None, leader_address: str = "", leader_client_address: str = "") -> None:
        where = "no leader is known" if leader_id is None else f"node {leader_id} at {leader_address} leads"
        super().__init__(f"this node is not the leader; {where}")
        self.leader_id = leader_id
        self.leader_address = leader_address
        self.leader_client_address = leader_client_address


class OutcomeUnknown(ConsensusError):
    """The operation may have happened, or may still happen. Retry only within a session."""

    code = "outcome_unknown"

    def __init__(self, reason: str) -> None:
        super().__init__(f"the outcome is unknown: {reason}")
        self.reason = reason


class DeadlineExceeded(ConsensusError):
    """Something without effect on the log (a read, a wait) did not end in its time."""

    code = "deadline_exceeded"

    def __init__(self, operation: str, seconds: float) -> None:
        super().__init__(f"{operation} did not end within {seconds:g} s")
        self.operation = operation
        self.seconds = seconds


class Overloaded(ConsensusError):
    """Definite refusal: a bounded queue is full. Try again later."""

    code = "overloaded"

    def __init__(self, queue: str, limit: int) -> None:
        super().__init__(f"the queue of {queue} is full (limit {limit})")
        self.queue = queue
        self.limit = limit


class OutOfSpace(ConsensusError):
    """Definite refusal: the disks of ``nodes`` are full, and only commands that free space are taken (S-10).

    Such a command is proposed with ``frees_space=True``. It ends by itself when there is space again.
    """

    code = "out_of_space"

    def __init__(self, nodes: Sequence[int]) -> None:
        super().__init__(
            f"no space left on the disks of nodes {', '.join(map(str, nodes))}; only what frees it is taken"
        )
        self.nodes = tuple(nodes)


class ProposalTooLarge(ConsensusError):
    """Definite refusal: the encoded request is larger than ``max_proposal_bytes``."""

    code = "proposal_too_large"

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(f"the proposal has {size} bytes, the limit is {limit}")
        self.size = size
        self.limit = limit


class MembershipRefused(ConsensusError):
    """Definite refusal of a membership change.

    ``reason`` is one of ``in_progress``, ``not_ready`` (no entry of this term is committed yet),
    ``unknown_member``, ``duplicate``, ``tombstoned``, ``not_caught_up``, ``empty``, ``quorum_at_risk``,
    ``invalid``.
    """

    code = "membership_refused"

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"membership change refused ({reason}): {detail}")
        self.reason = reason
        self.detail = detail


class TransferInProgress(ConsensusError):
    """Definite refusal: leadership is being transferred. Try again."""

    code = "transfer_in_progress"

    def __init__(self, target: int) -> None:
        super().__init__(f"leadership is being transferred to node {target}")
        self.target = target


class TransferFailed(ConsensusError):
    """Leadership did not pass to the target."""

    code = "transfer_failed"

    def __init__(self, target: int, reason: str) -> None:
        to = f" to node {target}" if target else ""
        super().__init__(f"leadership was not transferred{to}: {reason}")
        self.target = target
        self.reason = reason


class SessionExpired(ConsensusError):
    """Definite refusal: the session is unknown or has expired, so the command was not executed (H-83)."""

    code = "session_expired"

    def __init__(self, session: int) -> None:
        super().__init__(f"session {session} is unknown or has expired; the command was not executed")
        self.session = session


class SessionSequenceStale(ConsensusError):
    """The sequence is older than the session's window: its reply is no longer kept (H-84)."""

    code = "session_sequence_stale"

    def __init__(self, session: int, sequence: int, oldest: int) -> None:
        super().__init__(f"session {session}: sequence {sequence} is older than the window, which starts at {oldest}")
        self.session = session
        self.sequence = sequence
        self.oldest = oldest


class SessionSequenceReused(ConsensusError):
    """Definite refusal: the sequence was used for another payload (H-85)."""

    code = "session_sequence_reused"

    def __init__(self, session: int, sequence: int) -> None:
        super().__init__(f"session {session}: sequence {sequence} was used for another command")
        self.session = session
        self.sequence = sequence


class DomainError(ConsensusError):
    """An expected outcome of ``apply``: deterministic, replicated, returned to the proposer.

    Applications raise it, or a subclass, from ``apply``. Over the wire and in session replies it travels as
    (reason, message, details); ``details`` holds plain CBOR values.
    """

    code = "domain"

    def __init__(self, reason: str, message: str = "", details: dict[str, Any] | None = None) -> None:
        super().__init__(message or reason)
        self.reason = reason
        self.message = message
        self.details = dict(details or {})


class NodeStopped(ConsensusError):
    """The node has stopped. ``cause`` is the error that stopped it, or None after an orderly stop."""

    code = "node_stopped"

    def __init__(self, cause: BaseException | None = None) -> None:
        super().__init__("the node has stopped" + (f": {cause}" if cause else ""))
        self.cause = cause

    def attributes(self) -> dict[str, Any]:
        """Return the cause as text."""
        return {"cause": str(self.cause) if self.cause else None}


class NodeRemoved(ConsensusError):
    """This node's id is tombstoned in the committed configuration; it can never come back under this id."""

    code = "node_removed"

    def __init__(self, node_id: int) -> None:
        super().__init__(f"node {node_id} was removed from the cluster; come back under a new id")
        self.node_id = node_id


class InvariantBroken(ConsensusError):
    """Something that can never be true was seen. The node stops."""

    code = "invariant_broken"

    def __init__(self, what: str) -> None:
        super().__init__(f"broken invariant: {what}")
        self.what = what


class ApplyFailed(InvariantBroken):
    """The application could not carry out a committed entry, and not by a domain error (H-81).

    The applied index has not moved; a restart tries the same entry again.
    """

    code = "apply_failed"

    def __init__(self, index: int, term: int, problem: str) -> None:
        super().__init__(f"applying entry {index} of term {term} failed: {problem}")
        self.index = index
        self.term = term
        self.problem = problem


class StateDiverged(InvariantBroken):
    """A majority of the voters had another state after the same entry (J-92): this node's is wrong.

    :param index: of the entry.
    :param own, agreed: the digests of this node's state and of the majority's after it, in hexadecimal.
    """

    code = "state_diverged"

    def __init__(self, index: int, own: bytes, agreed: bytes) -> None:
        super().__init__(
            f"after entry {index} the state of this node has the digest {own.hex()}, and a majority agrees on "
            f"{agreed.hex()}"
        )
        self.index = index
        self.own = own.hex()
        self.agreed = agreed.hex()


class BootstrapMismatch(ConsensusError):
    """Bootstrap was asked for on a store or among members that do not agree with it."""

    code = "bootstrap_mismatch"

    def __init__(self, detail: str) -> None:
        super().__init__(f"bootstrap refused: {detail}")
        self.detail = detail


class StorageError(ConsensusError):
    """Base of the storage errors."""

    code = "storage"


class StorageCorrupt(StorageError):
    """Durable data is damaged. Nothing was changed on disk."""

    code = "storage_corrupt"

    def __init__(
        self,
        path: str,
        offset: int,
        reason: str,
        first_index: int | None = None,
        last_index: int | None = None,
    ) -> None:
        nothing = first_index is None or (last_index is not None and last_index < first_index)
        entries = "" if nothing else f"; entries {first_index} to {last_index or 'the end'} are at risk"
        super().__init__(f"{path} is damaged at offset {offset}: {reason}{entries}")
        self.path = path
        self.offset = offset
        self.reason = reason
        self.first_index = first_index
        self.last_index = last_index


class StorageFailed(StorageError):
    """The disk or the file system failed an operation. Fatal: nothing is retried."""

    code = "storage_failed"

    def __init__(self, operation: str, path: str, cause: str) -> None:
        super().__init__(f"{operation} of {path} failed: {cause}")
        self.operation = operation
        self.path = path
        self.cause = cause


class StorageFull(StorageFailed):
    """There is no space left on the device."""

    code = "storage_full"


class StorageLocked(StorageError):
    """Another process uses the data directory."""

    code = "storage_locked"

    def __init__(self, path: str, holder: str) -> None:
        super().__init__(f"{path} is locked by {holder}")
        self.path = path
        self.holder = holder


class WrongIdentity(StorageError):
    """The data directory belongs to another node or cluster."""

    code = "wrong_identity"

    def __init__(self, path: str, field: str, expected: str, found: str) -> None:
        super().__init__(f"{path} belongs to another {field}: expected {expected}, found {found}")
        self.path = path
        self.field = field
        self.expected = expected
        self.found = found


class LogCompacted(StorageError):
    """The entries asked for were purged; ``first_index`` is the first one that is left."""

    code = "log_compacted"

    def __init__(self, first_index: int) -> None:
        super().__init__(f"the log was purged; its first entry is {first_index}")
        self.first_index = first_index


class PeerUnreachable(ConsensusError):
    """An RPC got no usable reply. With ``sent`` False it was certainly never executed by the peer."""

    code = "peer_unreachable"

    def __init__(self, address: str, reason: str, sent: bool) -> None:
        super().__init__(f"no reply from {address}: {reason}")
        self.address = address
        self.reason = reason
        self.sent = sent


class PeerRefused(ConsensusError):
    """A peer refused an RPC before it reached its Raft core: nothing there has changed."""

    code = "peer_refused"

    def __init__(self, detail: str, code: str = "peer_refused") -> None:
        super().__init__(f"refused: {detail}")
        self.detail = detail
        self.refusal = code


class ClusterMismatch(PeerRefused):
    """The RPC is of another cluster (H-30)."""

    code = "cluster_mismatch"

    def __init__(self, expected: str, found: str) -> None:
        super().__init__(f"cluster id {found} is not ours ({expected})", self.code)
        self.expected = expected
        self.found = found


class TargetMismatch(PeerRefused):
    """The RPC is for another node id (H-31, J-12)."""

    code = "target_mismatch"

    def __init__(self, expected: int, found: int) -> None:
        super().__init__(f"this is node {expected}, the message is for node {found}", self.code)
        self.expected = expected
        self.found = found


class IncarnationMismatch(PeerRefused):
    """The data directory of a node is not the one that the cluster knows (H-29, J-11)."""

    code = "incarnation_mismatch"

    def __init__(self, node_id: int, expected: str, found: str) -> None:
        super().__init__(
            f"node {node_id} is known with incarnation {expected}, not {found}: its data directory was wiped or "
            "replaced; remove it from the cluster and come back under a new id",
            self.code,
        )
        self.node_id = node_id
        self.expected = expected
        self.found = found


class InvalidMessage(PeerRefused):
    """A message breaks the schema or a rule that every correct sender keeps."""

    code = "invalid_message"

    def __init__(self, detail: str) -> None:
        super().__init__(detail, self.code)
