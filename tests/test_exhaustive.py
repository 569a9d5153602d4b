"""Every order of events within small bounds: elections and membership changes, over the core as it is shipped.

``python -m tests.exhaustive --wide`` explores the same scenarios within wider bounds.
"""

from __future__ import annotations

import dataclasses
import random
import unittest
from unittest import mock

from tests.exhaustive import MUTANTS, SCENARIOS, Result, explore, mutated
from tests.exhaustive._choices import actions
from tests.exhaustive._history import is_quorum
from tests.exhaustive._member import Member
from tests.exhaustive._model import Action, State
from tests.exhaustive._world import World
from zlayer_consensus.raft import Membership


class ExplorationTests(unittest.TestCase):
    """Nothing breaks in any state, every state was looked at, and what the scenario is about did happen."""

    def explore(self, name: str) -> Result:
        scenario = SCENARIOS[name]
        result = explore(scenario)
        self.assertEqual(result.violation, "", "\n".join(result.path))
        self.assertTrue(result.finished, str(result))
        self.assertEqual([what for what in scenario.wanted if not result.seen[what]], [], "these never happened")
        self.assertGreater(result.states, 400)
        return result

    def test_two_candidates_and_a_crash(self) -> None:
        """H-02, J-05: nobody votes twice in a term, whatever a crash leaves of term and vote."""
        self.explore("votes")

    def test_repeated_requests(self) -> None:
        """H-02: a vote request that arrives twice is one vote."""
        self.explore("repeats")

    def test_prevote(self) -> None:
        """H-09, J-05: with pre-vote, too, a term has one leader."""
        self.explore("prevote")

    def test_two_terms(self) -> None:
        """J-05: leaders of two terms, their messages in every order."""
        self.explore("election")

    def test_retries(self) -> None:
        """J-05, H-23: an append that is sent again may arrive twice, in any order."""
        self.explore("retries")

    def test_writes_and_a_crash(self) -> None:
        """J-05: what is committed survives any crash at any write."""
        self.explore("durability")

    def test_figure_8(self) -> None:
        """H-20: an entry of an old term is not committed by counting."""
        self.explore("figure8")

    def test_forgotten_votes(self) -> None:
        """J-98: a repaired log has forgotten a vote that is still counted; the next one elects no second leader."""
        self.explore("repair")

    def test_forgotten_terms(self) -> None:
        """J-98: a repaired log goes back to a leader that was deposed; nothing that was committed since is lost."""
        self.explore("repair-term")

    def test_crossed_removals(self) -> None:
        """H-40, remove/remove: two leaders remove a voter each, from four."""
        self.explore("remove-remove")

    def test_crossed_addition_and_removal(self) -> None:
        """H-40, add/remove: one leader adds a voter, the other removes the first."""
        self.explore("add-remove")

    def test_crossed_additions(self) -> None:
        """H-40, add/add: two leaders add a voter each."""
        self.explore("add-add")

    def test_election_while_voters_are_added(self) -> None:
        """J-70: three voters become five, and no two leaders of a term come of it."""
        self.explore("grow")

    def test_next_change_too_early(self) -> None:
        """J-60: a leader that is cut off cannot pile up changes."""
        self.explore("queue")

    def test_leader_dies_in_a_joint_configuration(self) -> None:
        """H-43, J-67: the next leader leaves the joint configuration when that is committed, or it is rolled back."""
        self.explore("replace")


_SINGLE = "single-server changes"
_UNSAFE = "single-server changes without a commit of the own term"
_CROSSED = ("remove-remove", "add-remove", "add-add")
_FOUND_BY = {
    "a second vote in a term": ("votes", "voted for"),
    "a vote that leaves before it is durable": ("votes", "voted for"),
    "a vote that is not written": ("votes", "voted for"),
    "a vote for an older log": ("election", "leader completeness"),
    "an acknowledgement that leaves before the entries are durable": ("durability", "leader completeness"),
    "entries that count at the leader before they are durable": ("durability", "leader completeness"),
    "commit of an old term by counting": ("figure8", "leader completeness"),
    "a vote of a member whose log was repaired": ("repair", "election safety"),
    "a member that counts although its log was repaired": ("repair", "leader completeness"),
    "a repaired log that is taken for complete at once": ("repair-term", "leader completeness"),
    "a repaired log that is taken for complete with what was there before": ("repair-term", "leader completeness"),
    "several changes at once": ("queue", "leader completeness"),
    "a majority of the new voters only": ("replace", "leader completeness"),
    "a joint configuration left before it is committed": ("replace", "leader completeness"),
    "a configuration that takes effect when it is applied": ("grow", "election safety"),
    "a configuration that outlives its entry": ("remove-remove", "leader completeness"),
}
_FOUND_DIRECTLY = {"a configuration that takes effect at commit": ("grow", "durable on")}


class MutantTests(unittest.TestCase):
    """The exploration finds what is wrong, by what it leads to, on a shortest path."""

    def find(self, mutant: str, scenario: str, what: str, *, direct: bool = False) -> Result:
        with mutated(mutant):
            result = explore(dataclasses.replace(SCENARIOS[scenario], direct=direct))
        self.assertIn(what, result.violation, f"{mutant}: {result}")
        self.assertEqual(len(result.path), result.depth)
        self.assertGreater(result.depth, 1, "the first action broke it, so nothing was explored")
        return result

    def test_every_mutant_has_a_test(self) -> None:
        self.assertEqual(set(MUTANTS), {*_FOUND_BY, *_FOUND_DIRECTLY, _SINGLE, _UNSAFE})

    def test_wrong_rules(self) -> None:
        """H-01, H-02, H-20, H-41, J-60, J-64, J-67, J-70: each rule that is left out loses or doubles something."""
        for mutant, (scenario, what) in _FOUND_BY.items():
            with self.subTest(mutant):
                self.find(mutant, scenario, what)

    def test_wrong_quorum_is_seen_at_once(self) -> None:
        """H-53: a commit without the quorum of the configuration in the log is found where it happens."""
        for mutant, (scenario, what) in _FOUND_DIRECTLY.items():
            with self.subTest(mutant):
                self.find(mutant, scenario, what, direct=True)

    def test_single_server_bug(self) -> None:
        """H-40: changes without joint configurations lose entries in all three variants, without the own-term rule."""
        for scenario in _CROSSED:
            with self.subTest(scenario):
                result = self.find(_UNSAFE, scenario, "leader completeness")
                self.assertIn("change", result.path[0])

    def test_single_server_rule(self) -> None:
        """H-40: with the rule they are safe, so the exploration tells the two apart."""
        for scenario in _CROSSED:
            with self.subTest(scenario), mutated(_SINGLE):
                result = explore(SCENARIOS[scenario])
                self.assertEqual(result.violation, "", "\n".join(result.path))
                self.assertTrue(result.finished)
                self.assertGreater(result.seen["final configuration committed"], 0)


class ExplorerTests(unittest.TestCase):
    """The exploration itself: copies, equal states, limits, and the definition of a quorum."""

    def walk(self, world: World, choice: random.Random | list[Action], steps: int) -> list[tuple[Action, object]]:
        """Take random actions, or given ones; return each with what it led to."""
        state = world.start()
        taken = []
        for step in range(steps):
            if isinstance(choice, list):
                if step == len(choice):
                    break
                action = choice[step]
            else:
                possible = list(actions(world, state))
                if not possible:
                    break
                action = choice.choice(possible)
            before = state
            state, _ = world.apply(state, action)
            if state == before:
                continue
            taken.append((action, self.look(world, state)))
        return taken

    def look(self, world: World, state: State) -> object:
        members = [world.member(number).key() for number in state.members]
        return members, sorted(str(world.envelopes[number]) for number in state.net)

    def test_equal_states_behave_alike(self) -> None:
        """Copied cores, of which one stands for all equal ones, do what cores do that were never copied."""
        for name in ("votes", "durability", "figure8", "add-remove", "replace"):
            for seed in range(4):
                with self.subTest(scenario=name, seed=seed):
                    world = World(dataclasses.replace(SCENARIOS[name], links={}))
                    for warm in range(3):  # so that members are met that another path led to
                        self.walk(world, random.Random(f"{seed} {warm}"), 40)
                    walked = self.walk(world, random.Random(seed), 40)
                    plain = _Plain(dataclasses.replace(SCENARIOS[name], links={}))
                    plain.envelopes, plain._envelope_numbers = world.envelopes, world._envelope_numbers
                    with mock.patch.object(Member, "forked", _not_forked):
                        again = self.walk(plain, [action for action, _ in walked], 40)
                    self.assertEqual(walked, again)

    def test_limits(self) -> None:
        """An exploration that a limit cuts short does not count as finished."""
        by_depth = explore(SCENARIOS["grow"], depth=3)
        by_states = explore(SCENARIOS["grow"], limit_states=100)
        self.assertEqual((by_depth.finished, by_depth.depth), (False, 3))
        self.assertEqual((by_states.finished, by_states.states), (False, 100))

    def test_quorum(self) -> None:
        """J-64: by its definition, a quorum leaves no equally large rest, in either half."""
        config = Membership(voters=frozenset({1, 2, 3}), outgoing=frozenset({3, 4}))
        self.assertTrue(is_quorum(config, {1, 3, 4}))
        self.assertFalse(is_quorum(config, {1, 2, 3}))
        self.assertFalse(is_quorum(config, {3, 4}))
        self.assertFalse(is_quorum(Membership(), {1}))


def _not_forked(member: Member) -> Member:
    member.sent, member.commits, member.seen = [], [], []
    return member


class _Plain(World):
    """A world in which every core is the one that it has been from the start."""

    def _outcome(self, number: int, name: str, *args: object) -> object:  # type: ignore[override]
        self._outcomes.clear()
        return super()._outcome(number, name, *args)


if __name__ == "__main__":
    unittest.main()
