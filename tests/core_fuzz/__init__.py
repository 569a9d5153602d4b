"""A random simulation of the core alone: cores, disks, a network and time, all from one seed.

``python -m tests.core_fuzz --seeds 1..1000`` runs many seeds; a seed that fails is shown with ``--verbose``.
"""

from ._checks import Violation
from ._world import World

__all__ = ["Violation", "World", "run"]


def run(seed: int, *, verbose: bool = False) -> int:
    """Run one seed and return how many events there were.

    :raises Violation: if an invariant broke, or the cluster did not come to rest.
    """
    world = World(seed, verbose=verbose)
    world.run()
    return world.steps
