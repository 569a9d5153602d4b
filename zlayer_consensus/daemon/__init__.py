"""The daemon: what ``twistd zconsensus`` runs. Nothing here is imported by an application that embeds a node."""
