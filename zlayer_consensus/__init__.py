"""A Raft consensus toolkit for Twisted."""
