"""A counter on the web that survives the loss of a machine. Start it with 1, 2 and 3 as its argument."""

import sys

from twisted.application.service import MultiService
from twisted.application.strports import service as listening_service
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Site

import zlayer_consensus as zc


def increment(state, step):
    state["count"] += step
    return state["count"]


class CounterPage(Resource):
    def render_POST(self, request):
        return answer(request, self.node.propose(1))

    def render_GET(self, request):
        return answer(request, self.node.read_state(lambda machine: machine.state["count"]))


def answer(request, outcome):
    request.notifyFinish().addErrback(lambda _: outcome.cancel())  # gives up waiting, not the increment
    outcome.addCallback(lambda count: request.write(b"%d\n" % count))
    outcome.addErrback(lambda why: (request.setResponseCode(503), request.write(f"{why.value}\n".encode())))
    outcome.addCallback(lambda _: request.finish() if request.channel else None)
    return NOT_DONE_YET


def make_service(reactor, node_id, addresses, directory):
    node = zc.ConsensusNode(
        node_id=node_id,
        address=addresses[node_id],
        log_store=zc.FileLogStore(directory, node_id, reactor=reactor),
        state_machine=zc.FileStateMachine(directory, {"count": 0}, increment, reactor=reactor),
        network=zc.HttpNetwork(reactor),
        clock=reactor,
    )
    root, page, service = Resource(), CounterPage(), MultiService()
    page.node = node
    root.putChild(b"", page)
    root.putChild(b"raft", zc.raft_service_resource(node))
    node.setServiceParent(service)
    endpoint = "tcp:{1}:interface={0}".format(*addresses[node_id].split(":"))
    listening_service(endpoint, Site(root), reactor=reactor).setServiceParent(service)
    members = [zc.InitialMember(other, address) for other, address in addresses.items()]
    return service, node.start().addCallback(lambda _: node.bootstrap(members))


if __name__ == "__main__":
    from twisted.internet import reactor

    me = int(sys.argv[1])
    app, _ = make_service(reactor, me, {i: f"127.0.0.1:{8000 + i}" for i in (1, 2, 3)}, f"counter{me}")
    app.startService()
    reactor.addSystemEventTrigger("before", "shutdown", app.stopService)
    reactor.run()
