"""State machines made of a function, and what stores take and refuse."""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from zlayer_consensus.errors import ConfigError, ConversionError, StorageFull
from zlayer_consensus.raft import LogId, Membership, SnapshotPoint
from zlayer_consensus.storage import (
    ApplyContext,
    FileStateMachine,
    FunctionStateMachine,
    IExecutor,
    InlineExecutor,
    IStateMachine,
    IStateSink,
    MemStateMachine,
)
from zlayer_consensus.testing import SimulatedFileSystem

POINT = SnapshotPoint(LogId(1, 5), Membership())


@dataclasses.dataclass
class Job:
    name: str
    tries: int = 0


@dataclasses.dataclass
class Board:
    jobs: dict[int, Job] = dataclasses.field(default_factory=dict)
    order: list[int] = dataclasses.field(default_factory=list)
    owner: str | None = None


def put(state: dict[str, Any], command: dict[str, Any]) -> int:
    state.update(command)
    return len(state)


def ignore(state: Any, command: Any) -> None:
    pass


def around(machine: FunctionStateMachine) -> FunctionStateMachine:
    """Return a new machine with a machine's snapshot in it."""
    other = FunctionStateMachine([], ignore)
    return restored(other, machine.snapshot())


def restored(machine: FunctionStateMachine, chunks: Iterator[bytes]) -> FunctionStateMachine:
    sink = machine.restore()
    for chunk in chunks:
        sink.write(chunk)
    sink.finish()
    return machine


hashable = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"]))
    | st.binary(),
    lambda inner: st.lists(inner, max_size=3).map(tuple) | st.frozensets(inner, max_size=3),
    max_leaves=5,
)
states = st.recursive(
    hashable,
    lambda inner: st.lists(inner) | st.dictionaries(hashable, inner) | st.sets(hashable) | st.lists(inner).map(tuple),
    max_leaves=15,
)


class FunctionTests(SynchronousTestCase):
    def test_apply_changes_the_state_and_returns_the_result(self) -> None:
        machine = FunctionStateMachine({}, put)
        self.assertEqual(machine.apply({"a": 1}, ApplyContext(1, 0)), 1)
        self.assertEqual(machine.apply({"b": 2}, ApplyContext(2, 0)), 2)
        self.assertEqual(machine.state, {"a": 1, "b": 2})

    def test_apply_may_take_the_context(self) -> None:
        """Index and leader's time are all that apply may know (H-80)."""
        seen: list[Any] = []

        def apply(state: Any, command: Any, context: ApplyContext) -> None:
            seen.append((command, context))

        FunctionStateMachine([], apply).apply("x", ApplyContext(7, 99))
        self.assertEqual(seen, [("x", ApplyContext(7, 99))])

    def test_initial_state_is_not_shared(self) -> None:
        """Replicas in one process that were given the same object have a state each."""
        initial: dict[str, Any] = {"list": []}
        one, other = FunctionStateMachine(initial, put), FunctionStateMachine(initial, put)
        one.apply({"a": 1}, ApplyContext(1, 0))
        one.state["list"].append(1)
        self.assertEqual((initial, other.state), ({"list": []}, {"list": []}))

    @settings(max_examples=100, deadline=None)
    @given(states)
    def test_every_plain_state_comes_back(self, value: Any) -> None:
        """Types of containers and the order of dicts included (H-80)."""
        machine = FunctionStateMachine([], ignore)
        machine.state = [value]
        self.assertEqual(describe(around(machine).state), describe([value]))

    def test_state_of_classes_comes_back(self) -> None:
        machine = FunctionStateMachine(Board(), ignore)
        machine.state = Board({9: Job("b", 2), 1: Job("a")}, [1, 9], "me")
        again = restored(FunctionStateMachine(Board(), ignore), machine.snapshot())
        self.assertEqual(again.state, machine.state)
        self.assertEqual(list(again.state.jobs), [9, 1])

    def test_order_of_typed_text_keys_comes_back(self) -> None:
        machine = FunctionStateMachine({}, ignore, state_type=dict[str, Job])
        machine.state = {"z": Job("z"), "a": Job("a")}
        again = restored(FunctionStateMachine({}, ignore, state_type=dict[str, Job]), machine.snapshot())
        self.assertEqual(list(again.state.items()), [("z", Job("z")), ("a", Job("a"))])

    def test_large_state_comes_in_small_pieces(self) -> None:
        machine = FunctionStateMachine({"blob": b"x" * 3_000_000}, put)
        chunks = list(machine.snapshot())
        self.assertLessEqual(max(map(len, chunks)), 256 << 10)
        self.assertEqual(restored(FunctionStateMachine({}, put), iter(chunks)).state, machine.state)

    def test_state_that_does_not_come_back_is_refused(self) -> None:
        """A snapshot that nobody can load is lost data: it is not written, and the error names the place."""
        for value, place in (
            ({"jobs": [Job("x")]}, "state['jobs'][0]: a value of type Job"),
            ({"d": {1: defaultdict(int)}}, "state['d'][1]"),
            ({"t": (1, object())}, "state['t'][1]"),
        ):
            machine = FunctionStateMachine({}, put)
            machine.state = value
            error = self.assertRaises(ConversionError, machine.snapshot)
            self.assertIn(place, str(error))
        machine = FunctionStateMachine(Board(), ignore)
        machine.state.jobs["text"] = Job("x")
        error = self.assertRaises(ConversionError, machine.snapshot)
        self.assertIn("state.jobs", str(error))

    def test_state_in_itself_is_refused(self) -> None:
        machine = FunctionStateMachine([], ignore)
        machine.state.append(machine.state)
        self.assertIn("in itself", str(self.assertRaises(ConversionError, machine.snapshot)))

    def test_damaged_snapshot_leaves_the_old_state(self) -> None:
        """Never an empty or a half state (J-89)."""
        good = b"".join(FunctionStateMachine({"a": [1, 2, (3,)], 5: {6}}, put).snapshot())
        machine = FunctionStateMachine({"old": 1}, put)
        for damaged in [b"", good[:7], b"x" + good, *(good[:end] for end in range(8, len(good))), good + b"\x00"] + [
            good[:8] + bytes([byte]) for byte in (0xC1, 0xFF, 0x9F)
        ]:
            self.assertRaises(ConversionError, restored, machine, iter([damaged]))
            self.assertEqual(machine.state, {"old": 1})

    def test_sink_is_used_once(self) -> None:
        machine = FunctionStateMachine({"a": 1}, put)
        sink = machine.restore()
        for chunk in machine.snapshot():
            sink.write(chunk)
        sink.finish()
        self.assertRaises(RuntimeError, sink.finish)
        self.assertRaises(RuntimeError, sink.write, b"")

    def test_what_cannot_work_is_refused_at_once(self) -> None:
        async def coroutine(state: Any, command: Any) -> None:
            pass

        for initial, apply, text in (
            (5, put, "in place"),
            (None, put, "in place"),
            (("a",), put, "in place"),
            (dict, put, "instance"),
            ({}, "put", "not a function"),
            ({}, lambda state: None, "(state, command)"),
            ({}, lambda a, b, c, d: None, "(state, command)"),
            ({}, coroutine, "coroutine"),
        ):
            error = self.assertRaises(TypeError, FunctionStateMachine, initial, apply)
            self.assertIn(text, str(error))
        self.assertRaises(ConversionError, FunctionStateMachine, {"x": object()}, put)


def describe(value: Any) -> Any:
    """Return something that is equal only for values of equal types and order."""
    kind = type(value).__name__
    if isinstance(value, list | tuple):
        return kind, [describe(item) for item in value]
    if isinstance(value, set | frozenset):
        return kind, sorted(repr(describe(item)) for item in value)
    if isinstance(value, dict):
        return kind, [(describe(key), describe(item)) for key, item in value.items()]
    return kind, repr(value) if isinstance(value, float) and not math.isnan(value) else value


@implementer(IStateMachine)
class Counter:
    def __init__(self) -> None:
        self.value = 0

    def apply(self, command: Any, context: ApplyContext) -> Any:
        self.value += command
        return self.value

    def snapshot(self) -> Iterator[bytes]:
        return iter([b"%d" % self.value])

    def restore(self) -> IStateSink:
        raise NotImplementedError


class Undeclared:
    """Has no interface."""


@implementer(IStateMachine)
class Incomplete:  # type: ignore[misc]
    def apply(self, command: Any) -> Any:  # type: ignore[override]
        return None


def file_store(*application: Any, **named: Any) -> FileStateMachine:
    executor = named.pop("executor", None) or InlineExecutor()
    files = named.pop("file_system", None) or SimulatedFileSystem()
    return FileStateMachine("/data", *application, executor=executor, file_system=files, **named)


class GivingAMachineTests(SynchronousTestCase):
    """Both stores take both forms."""

    makers: tuple[Callable[..., Any], ...] = (MemStateMachine, file_store)

    def test_both_forms(self) -> None:
        machine = Counter()
        for make in self.makers:
            self.assertIs(make(machine).machine, machine)
            self.assertIs(make(machine=machine).machine, machine)
            for store in (make({"a": 1}, put), make(initial_state={"a": 1}, apply=put), make({"a": 1}, apply=put)):
                self.assertEqual(store.machine.state, {"a": 1})
            typed = make({}, put, state_type=dict[str, Job])
            self.assertRaises(ConversionError, lambda store=typed: store.machine._codec.encode({"x": 1}))

    def test_what_is_no_machine_is_refused_by_name(self) -> None:
        for make in self.makers:
            for arguments, named, text in (
                ((Undeclared(),), {}, "Undeclared does not provide IStateMachine"),
                ((Counter,), {}, "an instance of Counter"),
                ((Incomplete(),), {}, "Incomplete does not keep IStateMachine"),
                ((Counter(), put), {}, "Counter is a state machine"),
                ((Counter(),), {"state_type": dict}, "state_type"),
                ((), {"initial_state": {}}, "apply"),
                ((Counter(),), {"initial_state": {}, "apply": put}, "not both"),
                ((), {}, "does not provide IStateMachine"),
                (({},), {}, "does not provide IStateMachine"),
            ):
                error = self.assertRaises(TypeError, make, *arguments, **named)
                self.assertIn(text, str(error))

    def test_settings_are_checked(self) -> None:
        self.assertRaises(ConfigError, MemStateMachine, Counter(), keep=0)
        self.assertRaises(ConfigError, file_store, Counter(), keep=0)
        self.assertRaises(ConfigError, file_store, Counter(), part_bytes=0)
        self.assertRaises(ConfigError, FileStateMachine, "/data", Counter())

    def test_reopening_in_memory(self) -> None:
        """The snapshots are there, the state is the initial one until a snapshot is loaded."""
        store = MemStateMachine({"a": 1}, put)
        self.successResultOf(store.open())
        store.machine.apply({"b": 2}, ApplyContext(1, 0))
        manifest = self.successResultOf(store.writer(POINT).publish())
        self.successResultOf(store.close())
        again = store.reopened()
        self.assertEqual(self.successResultOf(again.open()), manifest)
        assert isinstance(again.machine, FunctionStateMachine)
        self.assertEqual(again.machine.state, {"a": 1})
        self.assertRaises(TypeError, MemStateMachine(Counter()).reopened)
        machine = Counter()
        self.assertIs(MemStateMachine(Counter()).reopened(machine).machine, machine)


@implementer(IExecutor)
class ManualExecutor:
    """Runs a call when it is told to."""

    def __init__(self) -> None:
        self.calls: list[tuple[Deferred[Any], Callable[..., Any], tuple[Any, ...]]] = []

    def run(self, call: Callable[..., Any], *args: Any) -> Deferred[Any]:
        done: Deferred[Any] = Deferred()
        self.calls.append((done, call, args))
        return done

    def stop(self) -> Deferred[None]:
        return self.run(lambda: None)

    def go(self) -> None:
        while self.calls:
            done, call, args = self.calls.pop(0)
            try:
                result = call(*args)
            except Exception as error:
                done.errback(error)
            else:
                done.callback(result)


class CancellingTests(SynchronousTestCase):
    """Cancelling gives up waiting, and nothing else."""

    def setUp(self) -> None:
        self.executor = ManualExecutor()
        self.files = SimulatedFileSystem()
        self.store = file_store({}, put, executor=self.executor, file_system=self.files)
        opened = self.store.open()
        self.executor.go()
        self.assertIsNone(self.successResultOf(opened))

    def test_publishing_goes_on(self) -> None:
        writer = self.store.writer(POINT)
        self.successResultOf(writer.write(b"state"))
        published = writer.publish()
        published.cancel()
        self.failureResultOf(published, CancelledError)
        self.executor.go()
        newest = self.store.newest()
        assert newest is not None
        self.assertEqual(newest.point, POINT)
        self.store.writer(SnapshotPoint(LogId(1, 6), Membership()))

    def test_writing_and_aborting_go_on(self) -> None:
        writer = self.store.writer(POINT)
        for waiting in (writer.write(b"x" * (1 << 20)), writer.abort()):
            waiting.cancel()
            self.failureResultOf(waiting, CancelledError)
        self.executor.go()
        self.assertEqual(self.files.list("/data/snap"), ["LOCK"])
        self.store.writer(POINT)

    def test_writer_lets_the_caller_wait_for_the_disk(self) -> None:
        """What waits in memory is bounded: a writer that ran ahead of the disk would hold the whole state."""
        writer = self.store.writer(POINT)
        waiting = writer.write(b"x" * (1 << 20))
        self.assertNoResult(waiting)
        self.executor.go()
        self.successResultOf(waiting)

    def test_close_ends_what_is_under_way(self) -> None:
        writer = self.store.writer(POINT)
        writing = writer.write(b"x" * (1 << 20))
        closed = self.store.close()
        self.assertNoResult(closed)
        self.executor.go()
        self.successResultOf(writing)
        self.successResultOf(closed)
        self.assertEqual(self.files.list("/data/snap"), ["LOCK"])
        self.failureResultOf(writer.publish(), RuntimeError)

    def test_close_while_opening(self) -> None:
        store = file_store({}, put, executor=self.executor, file_system=SimulatedFileSystem())
        opened, closed = store.open(), store.close()
        self.executor.go()
        self.assertIsNone(self.successResultOf(opened))
        self.successResultOf(closed)
        self.assertRaises(RuntimeError, store.writer, POINT)

    def test_receiver_takes_one_write_at_a_time(self) -> None:
        """A retry that meets its own first attempt is refused, and does not write twice."""
        source = MemStateMachine({}, put)
        self.successResultOf(source.open())
        writer = source.writer(POINT)
        self.successResultOf(writer.write(b"state"))
        manifest = self.successResultOf(writer.publish())
        data = self.successResultOf(source.reader().read(0, 0, 100))
        receiver = self.store.receiver(manifest)
        first = receiver.write(0, 0, data)
        self.failureResultOf(receiver.write(0, 0, data), ValueError)
        self.executor.go()
        self.successResultOf(first)
        self.assertTrue(receiver.complete)


class FullDiskTests(SynchronousTestCase):
    """S-11: no space costs the new snapshot, and nothing else."""

    def setUp(self) -> None:
        self.files = SimulatedFileSystem()
        self.store = file_store({}, put, file_system=self.files)
        self.successResultOf(self.store.open())
        writer = self.store.writer(POINT)
        self.successResultOf(writer.write(b"state"))
        self.successResultOf(writer.publish())
        self.before = self.files.list("/data/snap")
        self.files.capacity = self.files.used() + 1000

    def assert_untouched(self) -> None:
        self.assertEqual(self.files.list("/data/snap"), self.before)
        newest = self.store.newest()
        assert newest is not None
        self.assertEqual(newest.point, POINT)
        self.assertEqual(self.successResultOf(self.store.reader().next_chunk()), b"state")

    def test_writer(self) -> None:
        for size in (990, 2000, 1 << 20):
            writer = self.store.writer(SnapshotPoint(LogId(1, 6), Membership()))
            written = writer.write(b"x" * size)
            if size < 1 << 18:
                self.successResultOf(written)
            else:
                self.failureResultOf(written, StorageFull)
                self.failureResultOf(writer.write(b"x"), StorageFull)
            self.failureResultOf(writer.publish(), StorageFull)
            self.successResultOf(writer.abort())
            self.assert_untouched()
        self.files.capacity = None
        writer = self.store.writer(SnapshotPoint(LogId(1, 6), Membership()))
        self.successResultOf(writer.publish())

    def test_receiver(self) -> None:
        source = MemStateMachine({}, put)
        self.successResultOf(source.open())
        writer = source.writer(SnapshotPoint(LogId(1, 6), Membership()))
        self.successResultOf(writer.write(b"x" * 5000))
        manifest = self.successResultOf(writer.publish())
        data = self.successResultOf(source.reader().read(0, 0, 10_000))
        receiver = self.store.receiver(manifest)
        self.successResultOf(receiver.write(0, 0, data[:500]))
        self.failureResultOf(receiver.write(0, 500, data[500:]), StorageFull)
        self.failureResultOf(receiver.write(0, 500, data[500:]), ValueError)
        self.successResultOf(receiver.abort())
        self.assert_untouched()
        self.files.capacity = None
        receiver = self.store.receiver(manifest)
        self.assertEqual(receiver.position, (0, 0))
        self.successResultOf(receiver.write(0, 0, data))
        self.assertTrue(self.successResultOf(receiver.publish()).installed)
