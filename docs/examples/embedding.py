"""A counter on the web that survives the loss of a machine. Start it three times, with the arguments 1, 2 and 3."""

import sys

from klein import Klein
from twisted.application.service import MultiService
from twisted.application.strports import service as listening_service
from twisted.web import resource, server

import zlayer_consensus as zc


def increment(state, step):
    state["count"] += step
    return state["count"]


def counter_page(node):
    app = Klein()

    @app.route("/", methods=["POST"])
    def add(request):
        return node.propose(1).addCallback(str)

    @app.route("/", methods=["GET"])
    def read(request):
        return node.read_state(lambda machine: machine.state["count"]).addCallback(str)

    @app.handle_errors(zc.ConsensusError)
    def refuse(request, failure):
        request.setResponseCode(503)
        return failure.getErrorMessage()

    return app.resource()


def make_service(reactor, me, ports, directory):
    members = [zc.InitialMember(node_id, f"127.0.0.1:{port}") for node_id, port in ports.items()]
    log = zc.FileLogStore(directory, me, reactor=reactor)
    state = zc.FileStateMachine(directory, {"count": 0}, increment, reactor=reactor)
    node = zc.ConsensusNode(node_id=me, address=f"127.0.0.1:{ports[me]}", log_store=log, state_machine=state,
                            network=zc.HttpNetwork(reactor), clock=reactor)  # fmt: skip
    root = resource.Resource()
    root.putChild(b"counter", counter_page(node))
    root.putChild(b"raft", zc.raft_service_resource(node))
    application = MultiService()
    node.setServiceParent(application)
    endpoint = f"tcp:{ports[me]}:interface=127.0.0.1"
    listening_service(endpoint, server.Site(root), reactor=reactor).setServiceParent(application)
    return application, node.start().addCallback(lambda _: node.bootstrap(members))


if __name__ == "__main__":
    from twisted.internet import reactor

    app, _ = make_service(reactor, int(sys.argv[1]), {1: 8001, 2: 8002, 3: 8003}, "counter" + sys.argv[1])
    app.startService()
    reactor.addSystemEventTrigger("before", "shutdown", app.stopService)
    reactor.run()
