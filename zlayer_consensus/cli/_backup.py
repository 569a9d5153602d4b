"""``zconsensus backup`` and ``restore``: the state of a running cluster in a file, and a new cluster out of it."""

from __future__ import annotations

import fcntl
import http.client
import json
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import BinaryIO
from urllib.parse import SplitResult, urlsplit

import click

from ..daemon._config import text_rule
from ..node import InitialMember, encode_members
from ..storage import RealFileSystem
from ..storage.backup import BackupDamage, BackupFile, NewMember, restore_backup
from ._exit import CannotOpen, ExitCode
from ._files import sync_directory_of
from ._output import Output, amount, at_time, printable
from ._payload import describe_membership, plain_membership

__all__ = ["check", "restore", "take"]

_PIECE = 1 << 20
_TICK = 1.0
"""Seconds between two steps of a bar that shows time."""
_LONGEST_ERROR = 64 << 10


# Taking one


def take(url: str, path: str, out: Output, timeout: float) -> ExitCode:
    """Save the state of the cluster that a node belongs to.

    The file gets its name when it is whole, verified and durable.

    :param url: of the node's client interface.
    :param timeout: seconds without a sign of the node after which it is given up.
    :raises CannotOpen: if the node does not answer, or refuses, or what it sent is not whole.
    """
    parts = _checked(url)
    temporary = f"{path}.tmp"
    with _made(temporary) as file:
        if os.path.exists(path):
            raise CannotOpen(f"{path} exists already")
        _download(url, parts, file, out, timeout)
        file.flush()
        os.fsync(file.fileno())
        file.seek(0)
        backup = _verified(file, url, out)
        os.rename(temporary, path)
    sync_directory_of(path)
    _show(backup, path, out)
    return ExitCode.CLEAN


@contextmanager
def _made(temporary: str) -> Iterator[BinaryIO]:
    """Make a file, empty if there was one, that nobody else makes meanwhile; remove it if the block fails.

    :raises CannotOpen: if another backup is writing to it.
    """
    fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    with os.fdopen(fd, "r+b") as file:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever had the lock before may have given the file its name since it was opened here.
            mine = os.path.exists(temporary) and os.path.samestat(os.stat(temporary), os.fstat(fd))
        except BlockingIOError:
            mine = False
        if not mine:
            raise CannotOpen(f"another backup is writing to {temporary}")
        try:
            file.truncate()
            yield file
        except BaseException:
            os.remove(temporary)
            raise


def _download(url: str, parts: SplitResult, file: BinaryIO, out: Output, timeout: float) -> None:
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=timeout)
    try:
        connection.request("GET", f"{parts.path.rstrip('/')}/v1/backup", headers={"Accept-Encoding": "identity"})
        with _waiting(out, timeout):
            response = connection.getresponse()
        if response.status != 200:
            raise CannotOpen(f"{url} answers {_error_in(response)}")
        length = int(response.headers.get("content-length") or 0)
        got = 0
        with out.progress(length, "saving") as advance:
            while data := response.read(_PIECE):
                file.write(data)
                got += len(data)
                advance(len(data))
        if got != length:
            raise CannotOpen(f"{url} broke off after {got:,} of {length:,} bytes; its log says why")
    except (OSError, ValueError, http.client.HTTPException) as error:
        # A ValueError: what was answered is no HTTP, or the host's name can be none.
        raise CannotOpen(f"{url}: {str(error) or type(error).__name__}") from error
    finally:
        connection.close()


@contextmanager
def _waiting(out: Output, timeout: float) -> Iterator[None]:
    """Show how much of the time has gone that is given to the node, which takes a snapshot before it answers."""
    answered = threading.Event()

    def watch(advance: Callable[[int], None]) -> None:
        while not answered.wait(_TICK):
            advance(1)

    with out.progress(round(timeout / _TICK), "waiting for the snapshot, at most") as advance:
        thread = threading.Thread(target=watch, args=(advance,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            answered.set()
            thread.join()


def _checked(url: str) -> SplitResult:
    """Take a URL apart.

    :raises click.UsageError: if a node's client interface cannot have it.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise click.UsageError(f"{url!r} is no URL: {error}") from None
    odd = not url.isascii() or not url.isprintable() or " " in url
    if odd or parts.scheme not in ("http", "https") or not host or parts.query or parts.fragment:
        raise click.UsageError(f"{url!r} is no URL of a node's client interface, such as http://127.0.0.1:8001")
    if "@" in parts.netloc:
        # They would be shown with every error.
        raise click.UsageError("a node's client interface takes no user name or password in its URL")
    return parts


def _error_in(response: http.client.HTTPResponse) -> str:
    body = response.read(_LONGEST_ERROR)
    try:
        error = json.loads(body)
        return f"{response.status} {error['code']}: {error['message']}"
    except (ValueError, KeyError, TypeError, RecursionError):
        return f"{response.status} {response.reason}"


# Looking at one


def check(path: str, out: Output) -> ExitCode:
    """Read a backup to its end, and show what it is.

    :raises CannotOpen: if it cannot be read.
    """
    with open(path, "rb") as file:
        try:
            backup = _verified(file, path, out)
        except CannotOpen as error:
            out.put("backup", {"file": path, "verdict": "rot", "problem": str(error)}, out.bad(str(error)))
            return ExitCode.ROT
    _show(backup, path, out)
    return ExitCode.CLEAN


def _verified(file: BinaryIO, source: str, out: Output) -> BackupFile:
    try:
        backup = BackupFile(file)
        with out.progress(backup.header.manifest.size, "verifying") as advance:
            backup.verify(advance)
    except BackupDamage as error:
        raise CannotOpen(f"{source}: {error}") from error
    return backup


def _show(backup: BackupFile, path: str, out: Output) -> None:
    header = backup.header
    manifest, point = header.manifest, header.manifest.point
    fields = {
        "file": path,
        "verdict": "clean",
        "bytes": backup.size,
        "parts": len(manifest.parts),
        "cluster_id": header.cluster_id.hex(),
        "cluster_name": header.cluster_name,
        "application": header.application,
        "index": point.last.index,
        "term": point.last.term,
        "time_ms": point.time_ms,
        "membership": plain_membership(point.membership),
    }
    lines = [
        f"{out.heading('backup')}  {path}: {backup.size:,} bytes, {out.good('whole')}",
        f"  cluster      {header.cluster_id.hex()}, {header.cluster_name!r}",
        f"  application  {printable(header.application)}",
        f"  state        as of entry {point.last.index} (term {point.last.term}), {at_time(point.time_ms)}",
        f"  members      {describe_membership(point.membership)}",
    ]
    out.put("backup", fields, "\n".join(lines))


# Making a cluster of one


def restore(
    path: str, directory: str, members: Sequence[InitialMember], cluster_name: str | None, out: Output
) -> ExitCode:
    """Make the data directories of a new cluster.

    :param members: of the new cluster; all of them vote.
    :param cluster_name: its name; by default that of the old one.
    :raises CannotOpen: if the backup is damaged, or a directory exists.
    """
    files = RealFileSystem()
    with open(path, "rb") as file:
        backup = _verified(file, path, out)
        name = backup.header.cluster_name if cluster_name is None else cluster_name
        if text_rule(name) is not None:
            raise CannotOpen(f"the old cluster's name, {name!r}, cannot stand in a configuration; give --cluster-name")
        places = [
            NewMember(each.node_id, each.peer_address, each.client_address, f"{directory}/node-{each.node_id}")
            for each in members
        ]
        os.makedirs(directory, mode=0o700, exist_ok=True)
        sync_directory_of(directory)
        with out.progress(backup.header.manifest.size * len(places), "restoring") as advance:
            cluster_id = restore_backup(files, backup, places, encode_members(name, members), os.urandom, advance)
    for place in places:
        fields = {
            "directory": place.directory,
            "node_id": place.node_id,
            "cluster_id": cluster_id.hex(),
            "cluster_name": name,
        }
        out.put("restored", fields, f"{place.directory} {out.good('is node')} {place.node_id}")
    _explain(members, name, cluster_id, out)
    return ExitCode.CLEAN


def _explain(members: Sequence[InitialMember], name: str, cluster_id: bytes, out: Output) -> None:
    rows = [
        f'    {{ id = {each.node_id}, peer = "{each.peer_address}", client = "{each.client_address}" }},'
        for each in sorted(members)
    ]
    text = [
        f"cluster {cluster_id.hex()} of {amount(len(members), 'member')}. In each one's configuration:",
        "[node]",
        f"cluster_name = {json.dumps(name, ensure_ascii=False)}",
        "[cluster]",
        "members = [",
        *rows,
        "]",
    ]
    out.text("\n".join(text))
