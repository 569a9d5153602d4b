"""The node and its cluster over HTTP: status, members, transfer, snapshots, sessions."""

from __future__ import annotations

import math
import re
from typing import Any, Final

from twisted.web.iweb import IRequest

from ..kv import FileKeyValueMachine, KeyValueMachine
from ._api_http import ApiError, Options, bad, read_json, reply_json
from ._api_txn import fields, integer, invalid
from ._collector import Collections
from ._config import address_rule

__all__ = ["AdminApi"]

_ID: Final = re.compile(r"[0-9]{1,19}", re.ASCII)
_OPTIONS: Final = ("forward", "timeout")


class AdminApi:
    """Serves one node's own matters.

    :param node: the :class:`~zlayer_consensus.node.ConsensusNode`.
    :param machine: its application; the digest of its content is shown if it has one.
    :param collections: what is known of the process's garbage collector.
    """

    def __init__(self, node: Any, machine: Any, collections: Collections | None = None) -> None:
        self._node = node
        self._machine = machine
        self._collections = collections

    # --- looking

    def health(self, request: IRequest) -> bytes:
        """Serve ``GET /health``: the process lives, and its node has not stopped."""
        Options(request, ())
        if self._node.metrics().stopped:
            raise ApiError(503, "node_stopped", "the node has stopped")
        return reply_json(request, {"status": "live"})

    def ready(self, request: IRequest) -> bytes:
        """Serve ``GET /ready``: there is a leader, and what was known at the start is applied."""
        Options(request, ())
        metrics = self._node.metrics()
        missing = [
            reason
            for reason, holds in (
                ("the node has stopped", metrics.stopped),
                ("no leader is known", metrics.leader_id is None),
                ("what the node knew when it started is not applied yet", not metrics.recovered),
            )
            if holds
        ]
        if missing:
            raise ApiError(503, "not_ready", "; ".join(missing), {b"retry-after": b"1"})
        return reply_json(request, {"status": "ready", "leader_id": metrics.leader_id})

    def status(self, request: IRequest) -> bytes:
        """Serve ``GET /v1/status``."""
        Options(request, ())
        # Both in one step: the digest is of exactly what is applied.
        metrics = self._node.metrics()
        # While it is replaced, there is no content.
        has_keys = isinstance(self._machine, KeyValueMachine | FileKeyValueMachine) and not metrics.replacing
        store = self._machine if has_keys else None
        digest = None if store is None else store.digest().hex()
        leader = None if metrics.leader_id is None else self._node.member(metrics.leader_id)
        value = {
            "id": metrics.node_id,
            "cluster_id": metrics.cluster_id.hex(),
            "incarnation": metrics.incarnation.hex(),
            "role": metrics.role,
            "term": metrics.term,
            "leader_id": metrics.leader_id,
            "leader_client_address": leader.client_address if leader else None,
            "commit": metrics.commit,
            "applied": metrics.applied,
            "durable": metrics.durable,
            "last": _log_id(metrics.last),
            "purged": _log_id(metrics.purged),
            "snapshot": _log_id(metrics.snapshot),
            "recovered": metrics.recovered,
            "stopped": metrics.stopped,
            "full": metrics.full,
            "free_bytes": metrics.free_bytes,
            "repair": metrics.repair.hex(),
            "pending_proposals": metrics.pending_proposals,
            "members": _members(metrics.membership),
            "joint": metrics.membership.joint,
            "replication": [_peer(peer, each) for peer, each in sorted(metrics.replication.items())],
            "digest": None if digest is None else {"index": metrics.applied, "value": digest},
            "agreement": _agreement(metrics.digest),
            "scrub": _scrub(metrics.scrub),
            "loop": _loop(metrics.loop),
            "collector": _collector(self._collections),
        }
        if store is not None:
            value["store"] = {
                "revision": store.revision,
                "compacted_revision": store.compacted_revision,
                "keys": len(store),
            }
        return reply_json(request, value)

    def members(self, request: IRequest) -> bytes:
        """Serve ``GET /v1/members``."""
        Options(request, ())
        return _show_members(request, self._node.metrics().membership)

    # --- changing

    async def add_member(self, request: IRequest) -> bytes:
        """Serve ``POST /v1/members``."""
        keywords = _keywords(request)
        body = fields(
            read_json(request), "", ("id", "peer_address"), ("client_address", "role", "auto_promote", "wait")
        )
        node_id = integer(body["id"], "id", 1)
        peer_address = _address(body["peer_address"], "peer_address")
        client_address = _address(body.get("client_address", ""), "client_address", may_be_empty=True)
        role = body.get("role", "learner")
        if role not in ("learner", "voter"):
            raise invalid("role", "must be learner or voter")
        flags = {name: _flag(body.get(name, False), name) for name in ("auto_promote", "wait")}
        if role == "voter":
            for name in ("auto_promote", "wait"):
                if name in body:
                    raise invalid(name, "is for learners: a voter is one when the answer comes")
            membership = await self._node.add_voter(node_id, peer_address, client_address, **keywords)
        else:
            membership = await self._node.add_learner(
                node_id,
                peer_address,
                client_address,
                blocking=flags["wait"],
                auto_promote=flags["auto_promote"],
                **keywords,
            )
        return _show_members(request, membership)

    async def promote(self, request: IRequest, node_id: str) -> bytes:
        """Serve ``POST /v1/members/{id}/promote``."""
        keywords = _keywords(request)
        fields(read_json(request, optional=True), "", ())
        number = _path_id(node_id)
        # Without its address: the leader knows best where it is, and whether it is a member.
        membership = await self._node.add_voter(number, **keywords)
        return _show_members(request, membership)

    async def remove_member(self, request: IRequest, node_id: str) -> bytes:
        """Serve ``DELETE /v1/members/{id}``."""
        options = Options(request, (*_OPTIONS, "retain", "force"))
        keywords = {"timeout": options.timeout, "forward": options.forward}
        flags = {name: options.choice(name, ("yes", "no")) == "yes" for name in ("retain", "force")}
        number = _path_id(node_id)
        if number in self._node.learner_ids:
            if flags["retain"]:
                raise bad("retain", f"node {number} has no vote: there is nothing to retain it from")
            membership = await self._node.remove_learner(number, **keywords)
        else:
            membership = await self._node.remove_voter(number, **flags, **keywords)
        return _show_members(request, membership)

    async def change_address(self, request: IRequest, node_id: str) -> bytes:
        """Serve ``PUT /v1/members/{id}/address``."""
        keywords = _keywords(request)
        body = fields(read_json(request), "", ("peer_address",), ("client_address",))
        number = _path_id(node_id)
        peer_address = _address(body["peer_address"], "peer_address")
        client_address = body.get("client_address")
        if client_address is not None:
            client_address = _address(client_address, "client_address", may_be_empty=True)
        membership = await self._node.change_address(number, peer_address, client_address, **keywords)
        return _show_members(request, membership)

    async def transfer(self, request: IRequest) -> bytes:
        """Serve ``POST /v1/transfer``."""
        keywords = _keywords(request)
        body = fields(read_json(request, optional=True), "", (), ("target",))
        target = body.get("target")
        if target is not None:
            target = integer(target, "target", 1)
        leader_id = await self._node.transfer_leadership(target, **keywords)
        return reply_json(request, {"leader_id": leader_id})

    async def snapshot(self, request: IRequest) -> bytes:
        """Serve ``POST /v1/snapshot``: this node takes one now."""
        Options(request, ())
        fields(read_json(request, optional=True), "", ())
        await self._node.trigger("snapshot")
        return reply_json(request, {"snapshot": _log_id(self._node.metrics().snapshot)})

    async def open_session(self, request: IRequest) -> bytes:
        """Serve ``POST /v1/sessions``."""
        keywords = _keywords(request)
        fields(read_json(request, optional=True), "", ())
        session = await self._node.register_session(**keywords)
        return reply_json(request, {"session": session})


def _keywords(request: IRequest) -> dict[str, Any]:
    options = Options(request, _OPTIONS)
    return {"timeout": options.timeout, "forward": options.forward}


def _path_id(text: str) -> int:
    if not _ID.fullmatch(text) or not 0 < int(text) < 1 << 63:
        raise ApiError(400, "invalid_path", "a member's id is a number from 1 to 2^63 - 1", field="id")
    return int(text)


def _address(value: Any, where: str, may_be_empty: bool = False) -> str:
    if not isinstance(value, str):
        raise invalid(where, "must be an address as text, host:port")
    rule = None if may_be_empty and not value else address_rule(value)
    if rule is not None:
        raise invalid(where, rule)
    return value


def _flag(value: Any, where: str) -> bool:
    if not isinstance(value, bool):
        raise invalid(where, "must be true or false")
    return value


def _show_members(request: IRequest, membership: Any) -> bytes:
    return reply_json(request, {"members": _members(membership), "joint": membership.joint})


def _members(membership: Any) -> list[dict[str, Any]]:
    return [
        {
            "id": node_id,
            "role": "voter" if node_id in membership.all_voters else "learner",
            "auto_promote": node_id in membership.auto_promote,
            "peer_address": member.peer_address,
            "client_address": member.client_address,
            "incarnation": member.incarnation.hex(),
        }
        for node_id, member in sorted(membership.members.items())
    ]


def _log_id(position: Any) -> dict[str, int] | int | None:
    """Positions that are known with their term are shown with it."""
    if position is None or isinstance(position, int):
        return position
    return {"term": position.term, "index": position.index}


def _peer(peer: int, metrics: Any) -> dict[str, Any]:
    contact = metrics.last_contact
    return {
        "id": peer,
        "match": metrics.match,
        "next": metrics.next,
        "state": metrics.state,
        "lag": metrics.lag,
        "alarmed": metrics.alarmed,
        "full": metrics.full,
        "repair": metrics.repair.hex(),
        "last_contact": round(contact, 3) if contact is not None and math.isfinite(contact) else None,
    }


def _agreement(digest: Any) -> dict[str, Any] | None:
    if digest is None:
        return None
    return {
        "kind": digest.kind,
        "index": digest.index,
        "agreed": digest.agreed,
        "alarm": digest.alarm or None,
        "alarms": digest.alarms,
        "contradicted": list(digest.contradicted),
    }


def _scrub(scrub: Any) -> dict[str, Any] | None:
    if scrub is None:
        return None
    return {
        "passes": scrub.passes,
        "bytes": scrub.bytes,
        "path": scrub.path or None,
        "finished_ms": scrub.finished_ms or None,
        "damaged": list(scrub.damaged),
    }


def _loop(loop: Any) -> dict[str, float] | None:
    if loop is None:
        return None
    return {
        "interval_ms": _ms(loop.interval),
        "longest_ms": _ms(loop.longest),
        "longest_recent_ms": _ms(loop.longest_recent),
        "longest_work_ms": _ms(loop.longest_work),
        "stalls": loop.stalls,
    }


def _collector(collections: Collections | None) -> dict[str, float] | None:
    if collections is None:
        return None
    return {
        "full": collections.full,
        "longest_full_ms": _ms(collections.longest_full),
        "longest_young_ms": _ms(collections.longest_young),
    }


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 1)
