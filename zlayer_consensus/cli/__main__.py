"""``python -m zlayer_consensus.cli`` is ``zconsensus``."""

from ._program import program

if __name__ == "__main__":
    program(prog_name="zconsensus")
