"""The configuration file: TOML in, a checked :class:`NodeConfig` out.

Every refusal is one line that names file, key, value and rule (A-35). Loading looks at nothing but the file itself
and what its values name; it creates nothing.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import tomllib
from collections.abc import Mapping
from typing import Any, NoReturn

import attrs

from ..config import ConsensusConfig
from ..errors import ConfigError

__all__ = [
    "ConfigFileError",
    "ConfiguredMember",
    "NodeConfig",
    "StorageConfig",
    "address_rule",
    "load_config",
    "parse_config",
]

SECTOR = 512
VALUES = ("memory", "disk")
LOG_LEVELS = ("debug", "info", "warn", "error", "critical")
_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_]([A-Za-z0-9._-]*[A-Za-z0-9_])?):([0-9]{1,5})")
_WILDCARDS = frozenset({"0.0.0.0", "[::]", "[0:0:0:0:0:0:0:0]"})
_PORT_OF_ENDPOINT = re.compile(r"(?:tcp6?|ssl):(?:port=)?(-?[0-9]+)(?::|$)")
_DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_MISSING: Any = object()


class ConfigFileError(ConfigError):
    """A key of the configuration file breaks a rule. Its text is one line: file, key, value, rule."""

    def __init__(self, path: str, key: str, value: object, rule: str) -> None:
        shown = "" if value is _MISSING else f" = {_shown(value)}"
        super().__init__(key, None if value is _MISSING else value, rule)
        # A quoted key can hold anything; the line stays one line.
        printable = json.dumps(key, ensure_ascii=False)[1:-1]
        self.args = (f"{path}: {printable}{shown}: {rule}" if key else f"{path}: {rule}",)
        self.path = path


@attrs.frozen
class ConfiguredMember:
    """One initial member as the file names it."""

    node_id: int
    peer_address: str
    client_address: str


@attrs.frozen(kw_only=True)
class StorageConfig:
    """The settings of the file stores.

    :param segment_bytes: size of one file of the log; space comes back in such steps.
    :param reserve_bytes: size of the file that the log is written to when the disk is full.
    :param values: where the key-value store keeps its values: ``memory`` or ``disk``.
    """

    segment_bytes: int = 16 << 20
    reserve_bytes: int = 4 << 20
    values: str = "memory"


@attrs.frozen(kw_only=True)
class NodeConfig:
    """What one node's configuration file says, every rule checked.

    :param path: the file, as it was named.
    :param node_id: this node's id.
    :param data_dir: absolute path of the data directory.
    :param application: ``kv`` or ``package.module:attribute``.
    :param peer_endpoint, client_endpoint: Twisted endpoint descriptions to listen on.
    :param peer_address, client_address: ``host:port`` under which others reach this node.
    :param members: the initial members; empty if the node joins.
    :param join: peer addresses of running members; empty if the node bootstraps.
    :param consensus: the settings of the Raft member.
    :param storage: the settings of the stores.
    :param log_level: least level that is logged.
    """

    path: str
    node_id: int
    data_dir: str
    application: str
    peer_endpoint: str
    client_endpoint: str
    peer_address: str
    client_address: str
    members: tuple[ConfiguredMember, ...]
    join: tuple[str, ...]
    consensus: ConsensusConfig
    storage: StorageConfig
    log_level: str


def load_config(path: str) -> NodeConfig:
    """Read and check a configuration file.

    :raises ConfigFileError: if it cannot be read, or something in it breaks a rule.
    """
    try:
        with open(path, "rb") as file:
            document = tomllib.load(file)
    except OSError as error:
        raise ConfigFileError(path, "", _MISSING, f"cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise ConfigFileError(path, "", _MISSING, f"is not UTF-8 (byte {error.start})") from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ConfigFileError(path, "", _MISSING, f"is not valid TOML: {reason}") from None
    return parse_config(document, path)


def parse_config(document: Mapping[str, Any], path: str) -> NodeConfig:
    """Check a decoded document; ``path`` is where it came from, and what ``data_dir`` is relative to.

    :raises ConfigFileError: if something in it breaks a rule.
    """
    top = _Table(path, "", document)
    node, listen, advertise = top.table("node"), top.table("listen"), top.table("advertise")
    cluster, raft, storage, log = top.table("cluster"), top.table("raft"), top.table("storage"), top.table("log")
    top.finish()

    node_id = node.integer("id", 1, (1 << 63) - 1, missing="a positive integer that no other member has or ever had")
    data_dir = _data_dir(node)
    application = node.text("application", "kv")
    if application != "kv" and not _DOTTED.fullmatch(application):
        node.refuse("application", application, 'must be "kv" or "package.module:attribute"')
    cluster_name = node.text("cluster_name", ConsensusConfig().cluster_name)
    node.finish()

    endpoints = {name: _endpoint(listen, name) for name in ("peer", "client")}
    if endpoints["peer"] == endpoints["client"]:
        listen.refuse("client", endpoints["client"], "must differ from listen.peer")
    listen.finish()

    members, join = _cluster(cluster, node_id)
    peer, client = _advertised(advertise, node_id, members)
    if peer.lower() in {address.lower() for address in join}:
        cluster.refuse("join", list(join), f"names this node itself ({peer}); it must name running members")
    return NodeConfig(
        path=path,
        node_id=node_id,
        data_dir=data_dir,
        application=application,
        peer_endpoint=endpoints["peer"],
        client_endpoint=endpoints["client"],
        peer_address=peer,
        client_address=client,
        members=members,
        join=join,
        consensus=_consensus(raft, cluster_name),
        storage=_storage(storage, application),
        log_level=_log_level(log),
    )


class _Table:
    """One table of the document: hands out checked values, and knows which keys nobody asked for."""

    def __init__(self, path: str, name: str, values: Mapping[str, Any]) -> None:
        self._path = path
        self._name = name
        self._values = values
        self._known: list[str] = []

    def refuse(self, key: str, value: object, rule: str) -> NoReturn:
        """Raise the error for one key of this table."""
        raise ConfigFileError(self._path, f"{self._name}.{key}" if self._name else key, value, rule)

    def missing(self, key: str, rule: str) -> NoReturn:
        """Raise the error for a key that is not there."""
        self.refuse(key, _MISSING, rule)

    def get(self, key: str) -> Any:
        """Return a value as it stands, ``_MISSING`` if it is not there."""
        self._known.append(key)
        return self._values.get(key, _MISSING)

    def table(self, key: str) -> _Table:
        """Return a table; an absent one is empty."""
        value = self.get(key)
        if value is _MISSING:
            value = {}
        if not isinstance(value, dict):
            self.refuse(key, value, f"must be a table, [{key}]")
        return _Table(self._path, key, value)

    def text(self, key: str, default: str | None = None, *, missing: str = "") -> str:
        """Return a text that is not empty."""
        value = self.get(key)
        if value is _MISSING:
            if default is None:
                self.missing(key, f"is missing; it must be {missing}")
            return default
        if not isinstance(value, str):
            self.refuse(key, value, "must be text, in quotes")
        rule = text_rule(value)
        if rule is not None:
            self.refuse(key, value, rule)
        return value

    def integer(self, key: str, low: int, high: int, default: int | None = None, *, missing: str = "") -> int:
        """Return an integer within bounds."""
        value = self.get(key)
        if value is _MISSING:
            if default is None:
                self.missing(key, f"is missing; it must be {missing}")
            return default
        if not isinstance(value, int) or isinstance(value, bool):
            self.refuse(key, value, "must be an integer")
        if not low <= value <= high:
            self.refuse(key, value, f"must be between {low} and {high}")
        return value

    def finish(self) -> None:
        """Refuse the first key that nobody asked for."""
        for key, value in self._values.items():
            if key not in self._known:
                close = difflib.get_close_matches(key, self._known, 1)
                hint = f'did you mean "{close[0]}"?' if close else "known are " + ", ".join(self._known)
                kind = "table" if isinstance(value, dict) and not self._name else "key"
                self.refuse(key, value, f"unknown {kind}; {hint}")


def _data_dir(node: _Table) -> str:
    value = node.text("data_dir", missing="a directory, relative to this file or absolute")
    base = os.path.dirname(os.path.abspath(node._path))
    absolute = os.path.normpath(os.path.join(base, os.path.expanduser(value)))
    if os.path.exists(absolute) and not os.path.isdir(absolute):
        node.refuse("data_dir", value, "exists and is not a directory")
    return absolute


def _endpoint(listen: _Table, name: str) -> str:
    value = listen.text(name, missing='a Twisted endpoint, such as "tcp:7001:interface=127.0.0.1"')
    port = _PORT_OF_ENDPOINT.match(value)
    if port and not 0 < int(port[1]) < 65536:
        listen.refuse(name, value, "the port must be between 1 and 65535")
    # It does not import the reactor; only listening needs one.
    from twisted.internet.endpoints import serverFromString

    try:
        serverFromString(None, value)
    except Exception as error:
        # Parsers of endpoints, also those of third parties, raise whatever their arguments provoke.
        reason = f"{error.strerror}: {error.filename}" if isinstance(error, OSError) else str(error)
        listen.refuse(name, value, f'must be a Twisted endpoint, such as "tcp:7001:interface=127.0.0.1" ({reason})')
    return value


def text_rule(value: str) -> str | None:
    """Return the rule that a name breaks, or None if it is fine."""
    if not value or any(ord(each) < 32 or ord(each) == 127 or 0xD800 <= ord(each) < 0xE000 for each in value):
        return "must be text that is not empty and has no control characters"
    return None


def address_rule(value: str) -> str | None:
    """Return the rule that an address to connect to breaks, or None if it is fine."""
    match = _ADDRESS.fullmatch(value)
    if match is None or not 0 < int(match[3]) < 65536 or len(value) > 255:
        return 'must be "host:port" without a scheme; an IPv6 address stands in brackets'
    if match[1] in _WILDCARDS:
        return "is where one listens; others need an address that they can connect to"
    return None


def _address(table: _Table, key: str, value: object) -> str:
    if not isinstance(value, str):
        table.refuse(key, value, 'must be text, "host:port"')
    rule = address_rule(value)
    if rule is not None:
        table.refuse(key, value, rule)
    return value


def _advertised(advertise: _Table, node_id: int, members: tuple[ConfiguredMember, ...]) -> tuple[str, str]:
    own = next((member for member in members if member.node_id == node_id), None)
    found = []
    for name in ("peer", "client"):
        listed = getattr(own, f"{name}_address") if own else None
        value = advertise.get(name)
        if value is not _MISSING:
            address = _address(advertise, name, value)
            if listed is not None and address != listed:
                advertise.refuse(name, value, f"differs from this node's entry in cluster.members ({listed})")
        elif listed is not None:
            address = listed
        else:
            advertise.missing(name, 'is missing; it must be the "host:port" under which others reach this node')
        found.append(address)
    advertise.finish()
    if found[0].lower() == found[1].lower():
        advertise.refuse("client", found[1], "must differ from the peer address")
    return found[0], found[1]


def _cluster(cluster: _Table, node_id: int) -> tuple[tuple[ConfiguredMember, ...], tuple[str, ...]]:
    members, join = cluster.get("members"), cluster.get("join")
    cluster.finish()
    if members is not _MISSING and join is not _MISSING:
        cluster.refuse("join", join, "stands beside cluster.members; a node either bootstraps or joins")
    if members is not _MISSING:
        return _members(cluster, members, node_id), ()
    if join is _MISSING:
        cluster.missing("members", "is missing; name the initial members here, or running ones in cluster.join")
    if not isinstance(join, list) or not join:
        cluster.refuse("join", join, 'must be a list of peer addresses, ["host:port", …]')
    addresses = tuple(_address(cluster, f"join[{at}]", value) for at, value in enumerate(join, 1))
    _no_duplicates(cluster, [(f"join[{at}]", address) for at, address in enumerate(addresses, 1)])
    return (), addresses


def _members(cluster: _Table, value: object, node_id: int) -> tuple[ConfiguredMember, ...]:
    if not isinstance(value, list) or not value:
        cluster.refuse("members", value, 'must be a list of {id = 1, peer = "host:port", client = "host:port"}')
    members: list[ConfiguredMember] = []
    addresses: list[tuple[str, str]] = []
    for at, row in enumerate(value, 1):
        key = f"members[{at}]"
        if not isinstance(row, dict):
            cluster.refuse(key, row, 'must be {id = 1, peer = "host:port", client = "host:port"}')
        table = _Table(cluster._path, f"{cluster._name}.{key}", row)
        member_id = table.integer("id", 1, (1 << 63) - 1, missing="a positive integer")
        peer, client = (_address(table, name, table.text(name, missing='"host:port"')) for name in ("peer", "client"))
        table.finish()
        if any(member.node_id == member_id for member in members):
            table.refuse("id", member_id, "is the id of another member, too")
        members.append(ConfiguredMember(member_id, peer, client))
        addresses += [(f"{key}.peer", peer), (f"{key}.client", client)]
    _no_duplicates(cluster, addresses)
    if all(member.node_id != node_id for member in members):
        cluster.refuse("members", [member.node_id for member in members], f"lacks this node itself (id {node_id})")
    return tuple(members)


def _no_duplicates(table: _Table, addresses: list[tuple[str, str]]) -> None:
    seen: dict[str, str] = {}
    for key, address in addresses:
        if address.lower() in seen:
            table.refuse(key, address, f"is the address of {seen[address.lower()]}, too")
        seen[address.lower()] = key


def _consensus(raft: _Table, cluster_name: str) -> ConsensusConfig:
    values = {}
    for field in attrs.fields(ConsensusConfig):
        if field.name == "cluster_name":
            continue
        value = raft.get(field.name)
        if value is not _MISSING:
            values[field.name] = value
    if "cluster_name" in raft._values:
        raft.refuse("cluster_name", raft._values["cluster_name"], "unknown key; it stands in [node]")
    raft.finish()
    try:
        return ConsensusConfig(cluster_name=cluster_name, **values)
    except ConfigError as error:
        raft.refuse(error.field, error.value, error.rule)


def _storage(storage: _Table, application: str) -> StorageConfig:
    segment_bytes = storage.integer("segment_bytes", 1 << 20, 1 << 30, StorageConfig().segment_bytes)
    reserve_bytes = storage.integer("reserve_bytes", 64 << 10, 1 << 30, StorageConfig().reserve_bytes)
    if reserve_bytes % SECTOR:
        storage.refuse("reserve_bytes", reserve_bytes, f"must be a multiple of {SECTOR}")
    values = storage.text("values", StorageConfig().values)
    if values not in VALUES:
        storage.refuse("values", values, "must be " + " or ".join(f'"{each}"' for each in VALUES))
    if values != StorageConfig().values and application != "kv":
        storage.refuse("values", values, f'is for application = "kv" alone, not for "{application}"')
    storage.finish()
    return StorageConfig(segment_bytes=segment_bytes, reserve_bytes=reserve_bytes, values=values)


def _log_level(log: _Table) -> str:
    level = log.text("level", "info")
    if level not in LOG_LEVELS:
        log.refuse("level", level, "must be one of " + ", ".join(LOG_LEVELS))
    log.finish()
    return level


def _shown(value: object) -> str:
    """Return a value as TOML spells it, on one line, shortened."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else text[:77] + "..."
