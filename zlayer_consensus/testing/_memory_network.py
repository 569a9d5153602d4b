"""A network inside one process: delays, losses, one-way partitions, all drawn from one random source."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from random import Random
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, fail, maybeDeferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from ..errors import ConsensusError, PeerUnreachable
from ..network import _codec, _errors
from ..network.interfaces import Envelope, INetwork, IRaftService, RpcReply, RpcRequest

__all__ = ["Link", "MemoryNetwork"]

_log = Logger()


@dataclass
class Link:
    """What happens to whatever goes from one address to another, requests and replies alike. May be changed any time.

    :param delay: shortest and longest time on the way, in seconds; drawn for each message, so messages overtake.
    :param loss: probability that a message is lost.
    :param duplicate: probability that a request is executed twice. The caller gets the first reply.
    :param reply_loss: probability that a request is executed and its reply lost.
    :param cut: nothing passes.
    :param straggle: probability that a message takes a multiple of the delay, up to ``straggle_delay``.
    :param clogged: what arrives is held until :meth:`MemoryNetwork.unclog`.
    """

    delay: tuple[float, float] = (0.0, 0.0)
    loss: float = 0.0
    duplicate: float = 0.0
    reply_loss: float = 0.0
    cut: bool = False
    straggle: float = 0.0
    straggle_delay: float = 0.0
    clogged: bool = False


Enter = Callable[..., object]
"""``enter(call, *args)`` lets something happen in the life of a process: now, later, or never."""


def _at_once(call: Callable[..., object], *args: Any) -> None:
    call(*args)


class MemoryNetwork:
    """Connects the nodes of a test. Everything happens in calls of ``clock``; ``random`` alone decides the order.

    Each node calls its peers through the :class:`~zlayer_consensus.network.INetwork` that :meth:`endpoint` returns
    for its address, and is called through the service that it attached there. A request to an address where nobody is
    attached is refused as a closed port refuses. A lost message is noticed by the caller's time-out only, and what
    timed out may still be executed.

    :param clock: drives all deliveries and time-outs.
    :param random: draws delays, losses and duplicates.
    :param through_codec: whether every message and every error passes through the wire codec, as over HTTP.
    """

    def __init__(self, clock: IReactorTime, random: Random, *, through_codec: bool = False) -> None:
        self.clock = clock
        self.through_codec = through_codec
        self.default = Link()
        """What holds for links that have no settings of their own."""
        self.watch: Callable[[str, str, str, Any], object] | None = None
        """Called with ``request``, ``execute``, ``reply`` or ``error``, the sender's and the target's address of the
        request, and the message: when a request or its outcome leaves, and when a request arrives."""
        self.latest = clock.seconds()
        """By then everything has arrived that was sent so far, and is neither lost nor held."""
        self.request: Any = None
        """The request whose outcome ``watch`` is told of."""
        self.troubles = 0
        """How many messages were lost, held, doubled or late, requests and replies."""
        self._random = random
        self._links: dict[tuple[str, str], Link] = {}
        self._cuts: set[tuple[str, str]] = set()
        self._held: dict[tuple[str, str], list[Callable[[], object]]] = {}
        self._services: dict[str, tuple[IRaftService, Enter]] = {}
        self._endpoints: dict[str, _Endpoint] = {}
        self._calls: dict[_Call, None] = {}

    def endpoint(self, address: str, clock: IReactorTime | None = None, enter: Enter = _at_once) -> INetwork:
        """Return the network as seen from ``address``; after its ``stop`` a new one.

        :param clock: the caller's own, for its time-outs; by default the network's.
        :param enter: how outcomes get into the caller's process.
        """
        endpoint = self._endpoints.get(address)
        if endpoint is None or endpoint.stopped:
            endpoint = self._endpoints[address] = _Endpoint(self, address, clock or self.clock, enter)
        return endpoint

    def attach(self, address: str, service: IRaftService, enter: Enter = _at_once) -> None:
        """Serve what is sent to ``address``. Replaces what was attached there.

        :param enter: how requests get into the service's process.
        """
        self.detach(address)
        self._services[address] = service, enter

    def serves(self, address: str) -> bool:
        """Say whether somebody is attached there."""
        return address in self._services

    def detach(self, address: str, *, silent: bool = False) -> None:
        """Close the port: calls that were under way there fail, and their replies are dropped, as when a node dies.

        :param silent: those calls do not fail, but run into their time-outs: nobody resets the connections of a
            machine that lost its power.
        """
        for call in self._close(address, silent):
            call.enter(call.fail, "the connection was lost")

    def _close(self, address: str, silent: bool) -> list[_Call]:
        if self._services.pop(address, None) is None or silent:
            return []
        return [each for each in self._calls if each.target == address and each.delivered]

    def kill(self, address: str, *, silent: bool = False) -> None:
        """Let the process at an address die: nobody hears of its own calls any more.

        May be called in the middle of what that process does: whom it affects is told in a later call of the clock.

        :param silent: see :meth:`detach`.
        """
        for call in self._close(address, silent):
            self.clock.callLater(0, call.enter, call.fail, "the connection was lost")
        endpoint = self._endpoints.pop(address, None)
        if endpoint is not None:
            endpoint.stopped = True
            for call in [each for each in self._calls if each.source == address]:
                call.forget()

    def link(self, source: str, target: str) -> Link:
        """Return the settings of one direction; the first call makes a copy of the defaults for it."""
        pair = (source, target)
        if pair not in self._links:
            self._links[pair] = Link(**vars(self.default))
        return self._links[pair]

    def cut(self, source: str, target: str) -> None:
        """Lose everything from ``source`` to ``target``; the other direction is left as it is."""
        self._cuts.add((source, target))

    def partition(self, *groups: Iterable[str]) -> None:
        """Lose everything between addresses of different groups, in both directions. Earlier cuts stay."""
        sets = [set(group) for group in groups]
        for one in sets:
            for other in sets:
                if one is not other:
                    self._cuts.update((a, b) for a in one for b in other)

    def heal(self, *addresses: str) -> None:
        """Undo cuts and partitions: those that touch one of ``addresses``, or all. Settings of links stay."""
        self._cuts = {pair for pair in self._cuts if addresses and not set(addresses) & set(pair)}

    def mend(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Undo single cuts, of ``(source, target)`` each."""
        self._cuts.difference_update(pairs)

    def usual(self, source: str, target: str) -> None:
        """Let one direction be as the others are, and let through what was held."""
        self._links.pop((source, target), None)
        self._release(source, target)

    def restore(self) -> None:
        """Undo every cut, and all settings of single links; what was held comes through."""
        self._cuts.clear()
        for source, target in list(self._links):
            self.usual(source, target)

    def clog(self, source: str, target: str) -> None:
        """Hold what arrives at ``target`` from ``source`` from now on."""
        self.link(source, target).clogged = True

    def unclog(self, source: str, target: str) -> None:
        """Let through what was held, in an order of its own, and what comes."""
        self.link(source, target).clogged = False
        self._release(source, target)

    def _release(self, source: str, target: str) -> None:
        for arrive in self._held.pop((source, target), []):
            self._deliver(source, target, arrive)

    def _travel(self, source: str, target: str, arrive: Callable[[], object]) -> None:
        """Let something arrive, unless it is lost."""

        def here() -> None:
            link = self._links.get((source, target), self.default)
            if link.clogged:
                self.troubles += 1
                self._held.setdefault((source, target), []).append(here)
            elif self._passes(source, target):
                arrive()

        self._deliver(source, target, here)

    def _deliver(self, source: str, target: str, arrive: Callable[[], object]) -> None:
        delay = self._delay(source, target)
        self.latest = max(self.latest, self.clock.seconds() + delay)
        self.clock.callLater(delay, arrive)

    def _passes(self, source: str, target: str) -> bool:
        """Decide the fate of one message at the time when it arrives: what is on its way when a link is cut is lost."""
        link = self._links.get((source, target), self.default)
        if link.cut or (source, target) in self._cuts:
            self.troubles += 1
            return False
        return not self._happens(link.loss)

    def _happens(self, probability: float) -> bool:
        happens = probability > 0 and self._random.random() < probability
        self.troubles += happens
        return happens

    def _delay(self, source: str, target: str) -> float:
        link = self._links.get((source, target), self.default)
        low, high = link.delay
        delay = low if low == high else self._random.uniform(low, high)
        if self._happens(link.straggle):
            delay += self._random.uniform(0.0, link.straggle_delay)
        return delay

    def _execute(self, source: str, target: str, frame: tuple[Envelope, Any], done: _Call) -> None:
        """A request arrives: hand it to the service, and send the outcome on its way back."""
        attached = self._services.get(target)
        if attached is None:
            # No answer but the refusal itself, and that is lost like everything else. It says nothing of another copy.
            refused = PeerUnreachable(target, "the connection was refused", sent=done.copies > 1)
            self._return(source, target, done, Failure(refused))
            return
        done.delivered = True
        attached[1](self._serve, source, target, frame, done, attached[0])

    def _serve(self, source: str, target: str, frame: tuple[Envelope, Any], done: _Call, service: IRaftService) -> None:
        envelope, request = frame
        if self.watch is not None:
            self.watch("execute", source, target, request)
        if self.through_codec:
            endpoint, body = _codec.encode_request(envelope, request, 0)
            decoded = _codec.decode_request(endpoint, body)
            envelope, request = decoded.envelope, decoded.message
        reply = maybeDeferred(service.handle, envelope, request)

        def answer(result: Any) -> None:
            if self._services.get(target, (None,))[0] is service:
                if self.watch is not None:
                    self.request = request
                    self.watch("error" if isinstance(result, Failure) else "reply", source, target, result)
                    if target not in self._services:  # whoever watched has ended this process
                        return
                self._return(source, target, done, self._recode(envelope, target, result))

        _ = reply.addBoth(answer)

    def _recode(self, envelope: Envelope, target: str, result: Any) -> Any:
        """Do to a reply or an error what the wire does to it."""
        if isinstance(result, Failure):
            if self.through_codec and isinstance(result.value, ConsensusError):
                status, body = _errors.encode_error(result.value)
                return Failure(_errors.decode_error(status, body, target, envelope))
            return result
        if self.through_codec:
            endpoint, body = _codec.encode_reply(envelope, result, 0)
            return _codec.decode_reply(endpoint, body).message
        return result

    def _return(self, source: str, target: str, done: _Call, result: Any) -> None:
        """Send an outcome from ``target`` back to ``source``."""
        if isinstance(result, Failure) and not result.check(ConsensusError):
            # A defect of the node under test: shown to the test as it is, however bad the network.
            if done in self._calls:
                done.finish(result)
            else:
                _log.failure("A call that nobody waits for any more failed", failure=result)
            return
        lost = self._happens(self._links.get((source, target), self.default).reply_loss)
        if not lost:
            self._travel(target, source, lambda: done.enter(done.finish, result))


class _Call:
    """One call under way: fires its Deferred once, whichever of reply, time-out, crash or stop comes first."""

    def __init__(self, network: MemoryNetwork, endpoint: _Endpoint, target: str, timeout: float) -> None:
        self.source = endpoint.address
        self.target = target
        self.enter = endpoint.enter
        self.delivered = False
        self.copies = 1
        """How many of the request are on their way."""
        self.result: Deferred[RpcReply] = Deferred(self._cancelled)
        self._calls = network._calls
        self._calls[self] = None
        self._timeout: IDelayedCall = endpoint.clock.callLater(timeout, self.fail, f"no reply within {timeout:g} s")

    def fail(self, reason: str) -> None:
        """Give up waiting."""
        self.finish(Failure(PeerUnreachable(self.target, reason, sent=True)))

    def finish(self, result: Any) -> None:
        """Fire with ``result``, unless something came first."""
        if self not in self._calls:
            return
        del self._calls[self]
        if self._timeout.active():
            self._timeout.cancel()
        self.result.callback(result)

    def forget(self) -> None:
        """Never fire: whoever waited is dead."""
        self._calls.pop(self, None)
        if self._timeout.active():
            self._timeout.cancel()

    def _cancelled(self, result: Deferred[RpcReply]) -> None:
        self.forget()
        result.errback(CancelledError())


@implementer(INetwork)
class _Endpoint:
    """The network as one node sees it."""

    def __init__(self, network: MemoryNetwork, address: str, clock: IReactorTime, enter: Enter) -> None:
        self.stopped = False
        self.address = address
        self.clock = clock
        self.enter = enter
        self._network = network

    def call(self, address: str, envelope: Envelope, request: RpcRequest, timeout: float) -> Deferred[RpcReply]:
        """Send one RPC."""
        network, source = self._network, self.address
        if self.stopped:
            return fail(PeerUnreachable(address, "this network was stopped", sent=False))
        if network.watch is not None:
            network.watch("request", source, address, request)
            if self.stopped:  # whoever watched has ended this process
                return fail(PeerUnreachable(address, "this network was stopped", sent=False))
        done = _Call(network, self, address, timeout)
        link = network._links.get((source, address), network.default)
        if network._happens(link.duplicate):
            done.copies = 2
        for _ in range(done.copies):
            network._travel(source, address, lambda: network._execute(source, address, (envelope, request), done))
        return done.result

    def stop(self) -> Deferred[None]:
        """Fail the calls under way."""
        if not self.stopped:
            self.stopped = True
            for call in [each for each in self._network._calls if each.source == self.address]:
                call.fail("this network was stopped")
        return succeed(None)
