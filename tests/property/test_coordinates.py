# SPDX-License-Identifier: Apache-2.0
"""Coordinates from round trips: nodes find where they are among each other, and nothing that is measured or said drives one away."""

from __future__ import annotations

import math
import random
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plait.model.kv import Coordinate
from plait.services.coordinates import Locator, distance, is_sound


def settled(rtt: list[list[float]], seed: int, rounds: int = 120, noise: float = 0.0) -> list[Locator]:
    """Nodes that measured each other: every one everybody once a round."""
    draw = random.Random(seed)
    nodes = [Locator(Coordinate(str(number)), lambda: draw.random() - 0.5) for number in range(len(rtt))]
    for _ in range(rounds):
        for one, locator in enumerate(nodes):
            for other in draw.sample(range(len(rtt)), len(rtt)):
                if one != other:
                    found = rtt[one][other] * (1 + noise * draw.random())
                    found += 1.0 if noise and draw.random() < 0.02 else 0.0
                    assert locator.observe(str(other), nodes[other].coordinate, found)
    return nodes


def errors(rtt: list[list[float]], nodes: list[Locator]) -> list[float]:
    pairs = [(a, b) for a in range(len(rtt)) for b in range(a)]
    return [abs(distance(nodes[a].coordinate, nodes[b].coordinate) - rtt[a][b]) / rtt[a][b] for a, b in pairs]


@pytest.mark.parametrize("seed", range(12))
def test_places_in_a_plane_are_found(seed: int) -> None:
    """Not always all of them: springs can come to rest wrongly."""
    draw = random.Random(seed)
    places = [(draw.uniform(0, 0.1), draw.uniform(0, 0.1)) for _ in range(8)]
    rtt = [[0.002 + math.dist(one, other) for other in places] for one in places]
    assert median(errors(rtt, settled(rtt, seed))) < 0.15


@pytest.mark.parametrize("seed", range(5))
def test_two_sites_far_apart_are_told_apart_in_spite_of_noise(seed: int) -> None:
    site = [0, 0, 0, 1, 1, 1]
    rtt = [[0.0003 if site[one] == site[other] else 0.030 for other in range(6)] for one in range(6)]
    nodes = settled(rtt, seed, noise=0.3)
    for one in range(6):
        order = sorted((other for other in range(6) if other != one), key=lambda o: distance(nodes[one].coordinate, nodes[o].coordinate))
        assert {site[other] for other in order[:2]} == {site[one]}


ANY = st.floats(allow_nan=True, allow_infinity=True)
SAID = st.builds(Coordinate, st.just("x"), st.just(""), st.lists(ANY, min_size=7, max_size=8).map(tuple), ANY, ANY, ANY)


@given(st.lists(st.tuples(st.sampled_from("abc"), SAID, ANY), max_size=30))
def test_nothing_that_is_said_or_measured_makes_it_unsound(observed: list[tuple[str, Coordinate, float]]) -> None:
    locator = Locator(Coordinate("own"), lambda: 0.25)
    for peer, said, rtt in observed:
        before = locator.coordinate
        taken = locator.observe(peer, said, rtt)
        assert taken or locator.coordinate == before
        assert is_sound(locator.coordinate) and locator.coordinate.node == "own"


def test_one_late_answer_hardly_moves_it() -> None:
    locator, peer = Locator(Coordinate("own"), lambda: 0.25), Coordinate("peer")
    for _ in range(50):
        locator.observe("peer", peer, 0.01)
    before = locator.coordinate
    locator.observe("peer", peer, 5.0)
    assert math.dist(before.vec, locator.coordinate.vec) < 0.001


def test_an_unsound_start_begins_at_the_origin() -> None:
    assert Locator(Coordinate("own", vec=(math.nan,) * 8), lambda: 0.0).coordinate == Coordinate("own")
    alone = Locator(Coordinate("own"), lambda: 0.0)
    assert alone.observe("peer", Coordinate("peer"), 0.01) and alone.coordinate.vec[0] != 0
