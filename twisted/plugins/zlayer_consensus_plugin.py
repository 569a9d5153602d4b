"""
Makes ``twistd zconsensus`` known to Twisted.

Every run of ``twistd``, of any project, imports this file. So it holds one ``ServiceMaker`` and nothing
else: the helper imports the named module only when the subcommand is used. An import of the package here
would load Klein, which installs the default reactor and breaks ``twistd --reactor=...``.
"""

from twisted.application.service import ServiceMaker

zconsensus = ServiceMaker(
    "zlayer-consensus node",
    "zlayer_consensus.daemon.service",
    "Run one node of a Raft cluster (zlayer-consensus).",
    "zconsensus",
)
