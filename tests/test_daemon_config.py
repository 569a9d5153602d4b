"""The configuration file: what is accepted, and every refusal by file, key, value and rule (A-35)."""

from __future__ import annotations

import itertools
import json
import os
import tempfile
import tomllib
from pathlib import Path
from typing import Any

import attrs
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from zlayer_consensus.config import ConsensusConfig
from zlayer_consensus.daemon._config import ConfigFileError, NodeConfig, StorageConfig, load_config, parse_config
from zlayer_consensus.daemon._sample import sample

BOOTSTRAP = """
[node]
id = 1
data_dir = "data"
[listen]
peer = "tcp:7001:interface=127.0.0.1"
client = "tcp:8001:interface=127.0.0.1"
[cluster]
members = [
    { id = 1, peer = "a:7001", client = "a:8001" },
    { id = 2, peer = "b:7001", client = "b:8001" },
    { id = 3, peer = "c:7001", client = "c:8001" },
]
"""

JOIN = """
[node]
id = 4
data_dir = "/srv/data"
[listen]
peer = "tcp:7001"
client = "tcp:8001"
[advertise]
peer = "d:7001"
client = "d:8001"
[cluster]
join = ["a:7001", "b:7001"]
"""


def parse(text: str, **changes: Any) -> NodeConfig:
    """Parses a text after changes: ``table__key=value`` sets a value; None removes it."""
    document = tomllib.loads(text)
    for name, value in changes.items():
        table, _, key = name.partition("__")
        if not key:
            document[table] = value
        elif value is None:
            del document[table][key]
        else:
            document.setdefault(table, {})[key] = value
    return parse_config(document, "/etc/z/node.toml")


class AcceptedTests(SynchronousTestCase):
    def test_bootstrap(self) -> None:
        config = parse(BOOTSTRAP)
        self.assertEqual(config.node_id, 1)
        self.assertEqual(config.data_dir, "/etc/z/data")
        self.assertEqual(config.application, "kv")
        self.assertEqual((config.peer_address, config.client_address), ("a:7001", "a:8001"))
        self.assertEqual([member.node_id for member in config.members], [1, 2, 3])
        self.assertEqual(config.members[2].client_address, "c:8001")
        self.assertEqual(config.join, ())
        self.assertEqual(config.consensus, ConsensusConfig())
        self.assertEqual(config.log_level, "info")

    def test_join(self) -> None:
        config = parse(JOIN)
        self.assertEqual(config.data_dir, "/srv/data")
        self.assertEqual((config.peer_address, config.client_address), ("d:7001", "d:8001"))
        self.assertEqual((config.members, config.join), ((), ("a:7001", "b:7001")))

    def test_every_raft_field_has_its_own_name(self) -> None:
        """What is set in [raft] arrives, for each field of the configuration."""
        for field in attrs.fields(ConsensusConfig):
            if field.name == "cluster_name":
                continue
            changed = {"profile": "wan", "snapshot_policy": "never"}.get(field.name)
            value: Any = changed or (not field.default if isinstance(field.default, bool) else field.default)
            if field.name == "rpc_timeout":
                value = 7
            config = parse(BOOTSTRAP, **{f"raft__{field.name}": value})
            self.assertEqual(getattr(config.consensus, field.name), value)

    def test_cluster_name_stands_with_the_node(self) -> None:
        self.assertEqual(parse(BOOTSTRAP, node__cluster_name="orders").consensus.cluster_name, "orders")

    def test_advertised_addresses_may_repeat_the_members_entry(self) -> None:
        self.assertEqual(parse(BOOTSTRAP, advertise__peer="a:7001").peer_address, "a:7001")

    def test_addresses_of_all_kinds(self) -> None:
        for address in ("localhost:1", "10.0.0.1:65535", "[::1]:7001", "node-1.example.org:7001", "under_score:7001"):
            self.assertEqual(parse(JOIN, advertise__peer=address).peer_address, address)

    def test_endpoints_of_all_kinds(self) -> None:
        for endpoint in ("tcp:7001", "tcp6:7001:interface=\\:\\:1", "unix:/run/z/peer.sock", "haproxy:tcp:7001"):
            self.assertEqual(parse(BOOTSTRAP, listen__peer=endpoint).peer_endpoint, endpoint)

    def test_sample_is_valid_as_printed(self) -> None:
        config = parse(sample())
        self.assertEqual(config.consensus, ConsensusConfig())

    def test_sample_shows_the_defaults(self) -> None:
        """With every commented key enabled, the configuration is the same."""
        lines = sample().splitlines()
        begin = lines.index("[raft]")
        enabled = [line.removeprefix("# ") if " = " in line else line for line in lines[begin:]]
        self.assertEqual(parse("\n".join(lines[:begin] + enabled)), parse(sample()))


class RefusedTests(SynchronousTestCase):
    """Each refusal names the file, the key, the value and the rule, on one line."""

    def refused(self, key: str, value: str | None, rule: str, text: str = BOOTSTRAP, **changes: Any) -> None:
        error = self.assertRaises(ConfigFileError, parse, text, **changes)
        shown = f" = {value}" if value is not None else ""
        line = str(error)
        self.assertTrue(line.startswith(f"/etc/z/node.toml: {key}{shown}: "), line)
        self.assertIn(rule, line)
        self.assertNotIn("\n", line)

    def test_unknown_key(self) -> None:
        self.refused("node.idd", "1", 'unknown key; did you mean "id"?', node__idd=1)
        self.refused("raft.zzz", "1", "unknown key; known are profile, ", raft__zzz=1)
        self.refused("log.file", '"x"', "unknown key", log__file="x")
        self.refused("storage.fsync", "false", "unknown key", storage__fsync=False)
        self.refused("cluster.seeds", "[]", "unknown key", cluster__seeds=[])

    def test_unknown_key_of_a_member(self) -> None:
        row = {"id": 1, "peer": "a:1", "client": "a:2", "weight": 3}
        self.refused("cluster.members[1].weight", "3", "unknown key", cluster__members=[row])

    def test_a_fraction_where_an_integer_belongs(self) -> None:
        """Also when something in the process has resolved the annotations, which changes the class for good."""
        attrs.resolve_types(ConsensusConfig)
        self.refused("raft.heartbeat_interval_ms", "1.5", "must be an integer", raft__heartbeat_interval_ms=1.5)
        self.assertEqual(parse(BOOTSTRAP, raft__rpc_timeout=7.5).consensus.rpc_timeout, 7.5)

    def test_unknown_table(self) -> None:
        self.refused("tsl", "{}", "unknown table", tsl={})

    def test_key_outside_of_every_table(self) -> None:
        self.refused("id", "1", "unknown key", id=1)

    def test_table_that_is_none(self) -> None:
        self.refused("node", "3", "must be a table", node=3)

    def test_missing(self) -> None:
        self.refused("node.id", None, "is missing", node__id=None)
        self.refused("node.data_dir", None, "is missing", node__data_dir=None)
        self.refused("listen.peer", None, "is missing", listen__peer=None)
        self.refused("listen.client", None, "is missing", listen__client=None)
        self.refused("cluster.members", None, "is missing", cluster__members=None)
        self.refused("advertise.peer", None, "is missing", text=JOIN, advertise__peer=None)
        self.refused("advertise.client", None, "is missing", text=JOIN, advertise__client=None)

    def test_wrong_type(self) -> None:
        self.refused("node.id", '"1"', "must be an integer", node__id="1")
        self.refused("node.id", "true", "must be an integer", node__id=True)
        self.refused("node.data_dir", "1", "must be text", node__data_dir=1)
        self.refused("listen.peer", "7001", "must be text", listen__peer=7001)
        self.refused("raft.enable_prevote", "1", "must be a bool", raft__enable_prevote=1)
        self.refused("raft.heartbeat_interval_ms", "1.5", "must be an integer", raft__heartbeat_interval_ms=1.5)
        self.refused("raft.rpc_timeout", '"5s"', "must be a number", raft__rpc_timeout="5s")
        self.refused("cluster.members", "{}", "must be a list", cluster__members={})
        self.refused("cluster.members[1]", "1", "must be {id", cluster__members=[1])
        self.refused("cluster.join", '"a:1"', "must be a list", text=JOIN, cluster__join="a:1")
        self.refused("log.level", "3", "must be text", log__level=3)

    def test_impossible_value(self) -> None:
        self.refused("node.id", "0", "must be between 1 and", node__id=0)
        self.refused("node.id", str(1 << 63), "must be between 1 and", node__id=1 << 63)
        self.refused("node.data_dir", '""', "not empty", node__data_dir="")
        self.refused("log.level", '"loud"', "must be one of debug, info", log__level="loud")
        self.refused("storage.segment_bytes", "1", "must be between", storage__segment_bytes=1)
        self.refused("storage.values", '"tape"', 'must be "memory" or "disk"', storage__values="tape")
        self.refused("raft.profile", '"moon"', "must be one of lan, wan", raft__profile="moon")
        self.refused("raft.rpc_timeout", "NaN", "must be between", raft__rpc_timeout=float("nan"))

    def test_impossible_combination(self) -> None:
        self.refused("raft.heartbeat_interval_ms", "900", "at most half", raft__heartbeat_interval_ms=900)
        self.refused("raft.election_timeout_max_ms", "1500", "greater than", raft__election_timeout_max_ms=1500)

    def test_values_of_another_application(self) -> None:
        """Where it keeps its values is its own matter."""
        own = {"node__application": "tests.daemon_application:Counter"}
        self.refused("storage.values", '"disk"', 'for application = "kv" alone', storage__values="disk", **own)

    def test_cluster_name_in_the_wrong_table(self) -> None:
        self.refused("raft.cluster_name", '"x"', "stands in [node]", raft__cluster_name="x")

    def test_application_that_is_no_path(self) -> None:
        for value in ("KV", "package.module", "a b:c", "module:"):
            self.refused("node.application", f'"{value}"', "package.module:attribute", node__application=value)

    def test_members_and_join(self) -> None:
        self.refused("cluster.join", '["d:1"]', "beside cluster.members", cluster__join=["d:1"])

    def test_own_id_not_among_the_members(self) -> None:
        self.refused("cluster.members", "[1, 2, 3]", "lacks this node itself (id 9)", node__id=9)

    def test_empty_lists(self) -> None:
        self.refused("cluster.members", "[]", "must be a list of", cluster__members=[])
        self.refused("cluster.join", "[]", "must be a list of", text=JOIN, cluster__join=[])

    def test_duplicate_member_id(self) -> None:
        rows = [{"id": 1, "peer": "a:1", "client": "a:2"}, {"id": 1, "peer": "b:1", "client": "b:2"}]
        self.refused("cluster.members[2].id", "1", "another member", cluster__members=rows)

    def test_duplicate_addresses(self) -> None:
        """Peer and client addresses are one set: no two of them can be the same listener."""
        rows = [{"id": 1, "peer": "a:1", "client": "a:2"}, {"id": 2, "peer": "A:1", "client": "b:2"}]
        self.refused("cluster.members[2].peer", '"A:1"', "members[1].peer", cluster__members=rows)
        rows[1].update(peer="b:1", client="a:1")
        self.refused("cluster.members[2].client", '"a:1"', "members[1].peer", cluster__members=rows)
        self.refused("cluster.join[2]", '"a:7001"', "join[1]", text=JOIN, cluster__join=["a:7001", "a:7001"])
        self.refused(
            "listen.client", '"tcp:7001:interface=127.0.0.1"', "differ", listen__client=parse(BOOTSTRAP).peer_endpoint
        )
        self.refused("advertise.client", '"d:7001"', "differ", text=JOIN, advertise__client="d:7001")

    def test_join_by_oneself(self) -> None:
        self.refused("cluster.join", '["d:7001"]', "names this node itself", text=JOIN, cluster__join=["d:7001"])

    def test_advertised_address_against_the_members(self) -> None:
        self.refused("advertise.peer", '"x:1"', "differs from this node's entry", advertise__peer="x:1")

    def test_addresses_that_are_none(self) -> None:
        for address in ("a", "a:0", "a:65536", "http://a:1", "a:1/", ":1", "::1:7001", "a:port", "a b:1", "-a:1", ""):
            self.refused("advertise.peer", f'"{address}"', "host:port", text=JOIN, advertise__peer=address)
        self.refused("advertise.peer", "7001", "host:port", text=JOIN, advertise__peer=7001)

    def test_wildcard_is_no_address(self) -> None:
        self.refused("advertise.peer", '"0.0.0.0:1"', "can connect to", text=JOIN, advertise__peer="0.0.0.0:1")
        self.refused("advertise.peer", '"[::]:1"', "can connect to", text=JOIN, advertise__peer="[::]:1")

    def test_endpoints_that_are_none(self) -> None:
        for endpoint in ("7001", "tcp", "tcp:abc", "tcp:7001:colour=red", "systemd:domain=INET:name=none", "bogus:1"):
            self.refused("listen.peer", f'"{endpoint}"', "must be a Twisted endpoint", listen__peer=endpoint)
        for endpoint in ("tcp:0", "tcp:65536", "tcp6:99999", "tcp:-1"):
            self.refused("listen.peer", f'"{endpoint}"', "between 1 and 65535", listen__peer=endpoint)

    def test_long_value_is_shortened(self) -> None:
        error = self.assertRaises(ConfigFileError, parse, BOOTSTRAP, log__level="x" * 10_000)
        self.assertLess(len(str(error)), 250)


class DirectoryCase(SynchronousTestCase):
    def setUp(self) -> None:
        """Under pytest, mktemp would litter the working directory."""
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.directory = temporary.name

    def write(self, content: bytes) -> str:
        path = os.path.join(self.directory, "node.toml")
        with open(path, "wb") as file:
            file.write(content)
        return path


class FileTests(DirectoryCase):
    def refused(self, path: str, rule: str) -> None:
        error = self.assertRaises(ConfigFileError, load_config, path)
        self.assertTrue(str(error).startswith(f"{path}: "), str(error))
        self.assertIn(rule, str(error))
        self.assertNotIn("\n", str(error))

    def test_relative_to_the_file(self) -> None:
        """The data directory does not depend on the working directory, which twistd changes."""
        path = self.write(BOOTSTRAP.encode())
        self.addCleanup(os.chdir, os.getcwd())
        os.chdir(self.directory)
        for name in (path, "node.toml", "./node.toml"):
            self.assertEqual(load_config(name).data_dir, os.path.join(os.path.realpath(self.directory), "data"))
        self.assertEqual(os.listdir(self.directory), ["node.toml"])

    def test_absent(self) -> None:
        self.refused(os.path.join(self.directory, "absent.toml"), "No such file")

    def test_directory(self) -> None:
        self.refused(self.directory, "Is a directory")

    def test_not_toml(self) -> None:
        self.refused(self.write(b"[node\n"), "not valid TOML")

    def test_not_text(self) -> None:
        self.refused(self.write(b"\xff\xfe"), "not UTF-8")

    def test_nested_without_end(self) -> None:
        self.refused(self.write(b"a = " + b"[" * 100_000), "nested too deeply")

    def test_data_dir_that_is_a_file(self) -> None:
        path = self.write(BOOTSTRAP.replace('"data"', '"plain"').encode())
        with open(os.path.join(self.directory, "plain"), "wb"):
            pass
        self.refused(path, "is not a directory")

    def test_names_the_line_of_a_syntax_error(self) -> None:
        self.refused(self.write(b"[node]\nid = \n"), "line 2")


_SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


class FuzzTests(DirectoryCase):
    """Whatever stands in the file, the only exception is the one with the clear line (A-37)."""

    @settings(max_examples=150, deadline=None, database=None)
    @given(
        st.sampled_from(["node", "listen", "advertise", "cluster", "raft", "storage", "log"]),
        st.sampled_from(
            ["id", "data_dir", "application", "peer", "client", "members", "join", "level", "profile", "x"]
        ),
        _VALUES,
    )
    def test_values(self, table: str, key: str, value: Any) -> None:
        document = tomllib.loads(BOOTSTRAP)
        document.setdefault(table, {})[key] = value
        try:
            parse_config(document, "node.toml")
        except ConfigFileError as error:
            self.assertNotIn("\n", str(error))

    @settings(max_examples=150, deadline=None, database=None)
    @given(st.integers(0, len(BOOTSTRAP) - 1), st.binary(max_size=3))
    def test_bytes(self, at: int, replacement: bytes) -> None:
        text = BOOTSTRAP.encode()
        try:
            load_config(self.write(text[:at] + replacement + text[at + 1 :]))
        except ConfigFileError as error:
            self.assertNotIn("\n", str(error))


class DocumentationTests(SynchronousTestCase):
    """docs/running.rst is the reference: no key is missing there, and no default is wrong."""

    def test_every_raft_key_with_its_default(self) -> None:
        text = (Path(__file__).parent.parent / "docs" / "running.rst").read_text(encoding="utf-8")
        for field in attrs.fields(ConsensusConfig):
            if field.name != "cluster_name":
                row = f"   * - ``{field.name}``\n     - ``{json.dumps(field.default)}``\n"
                self.assertIn(row, text, f"{field.name} or its default is not as in the code")

    def test_every_other_key(self) -> None:
        text = (Path(__file__).parent.parent / "docs" / "running.rst").read_text(encoding="utf-8")
        keys = ["id", "data_dir", "cluster_name", "application", "peer", "client", "members", "join", "level"]
        keys += [field.name for field in attrs.fields(StorageConfig)]
        for key in keys:
            self.assertIn(f"   * - ``{key}``\n", text)

    def test_example_of_the_quickstart(self) -> None:
        text = (Path(__file__).parent.parent / "docs" / "quickstart.rst").read_text(encoding="utf-8")
        _, _, block = text.partition(".. code-block:: toml\n")
        lines = itertools.takewhile(lambda line: not line or line.startswith("    "), block.splitlines())
        config = parse("\n".join(line[4:] for line in lines))
        self.assertEqual([member.node_id for member in config.members], [1, 2, 3])
