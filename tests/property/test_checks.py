# SPDX-License-Identifier: Apache-2.0
"""Health checks' state machine and timer wheel against naive models of the same promises."""

from __future__ import annotations

from itertools import takewhile

from hypothesis import given, settings
from hypothesis import strategies as st

from plait.checks.wheel import Wheel
from plait.model.discovery import CheckDefinition, Status
from plait.services.health import RUN_KINDS, Result, Standing, advanced, clipped_note, clipped_tail, worst

STATUSES: list[Status] = ["passing", "warning", "critical"]
statuses = st.sampled_from(STATUSES)
histories = st.lists(statuses, min_size=1, max_size=30)


@st.composite
def definitions(draw: st.DrawFn) -> CheckDefinition:
    critical = draw(st.integers(0, 5))
    return CheckDefinition(
        kind=draw(st.sampled_from(sorted(RUN_KINDS))),
        success_before_passing=draw(st.integers(0, 5)),
        failures_before_warning=draw(st.integers(0, critical)),
        failures_before_critical=critical,
    )


def trailing(history: list[Status], passing: bool) -> int:
    """How many results at the end are of that sort."""
    return len(list(takewhile(lambda s: (s == "passing") is passing, reversed(history))))


def stands(definition: CheckDefinition, first: Status, history: list[Status]) -> Standing:
    standing = Standing(first)
    for number, status in enumerate(history):
        standing = advanced(definition, standing, Result(status, str(number)))
    return standing


@settings(deadline=None)
@given(definitions(), statuses, histories)
def test_a_status_changes_only_with_as_many_results_as_asked_for(definition: CheckDefinition, first: Status, history: list[Status]) -> None:
    before, after = stands(definition, first, history[:-1]).status, stands(definition, first, history).status
    successes, failures = trailing(history, True), trailing(history, False)
    critical = definition.failures_before_critical
    warning = definition.failures_before_warning or critical
    if successes >= max(1, definition.success_before_passing):
        assert after == "passing"
    elif failures >= max(1, critical):
        assert after == history[-1]
    elif failures >= max(1, warning):
        assert after == ("warning" if history[-1] == "warning" else worst((before, "warning")))
    else:
        assert after == before


@settings(deadline=None)
@given(definitions(), statuses, histories)
def test_counters_are_the_results_at_the_end_and_the_output_is_the_last(
    definition: CheckDefinition, first: Status, history: list[Status]
) -> None:
    standing = stands(definition, first, history)
    assert (standing.successes, standing.failures) == (trailing(history, True), trailing(history, False))
    assert standing.output == str(len(history) - 1)


@settings(deadline=None)
@given(st.sampled_from(["ttl", "alias", ""]), definitions(), statuses, histories)
def test_what_a_client_or_a_target_says_holds_at_once(kind: str, definition: CheckDefinition, first: Status, history: list[Status]) -> None:
    assert kind in ("ttl", "alias", "")
    said = CheckDefinition(
        kind=kind,  # type: ignore[arg-type]
        success_before_passing=definition.success_before_passing,
        failures_before_critical=definition.failures_before_critical,
    )
    assert stands(said, first, history).status == history[-1]


@settings(deadline=None)
@given(st.text(max_size=60), st.integers(1, 40))
def test_a_clipped_text_says_how_much_it_is_of(text: str, limit: int) -> None:
    raw = text.encode()
    note, tail = clipped_note(text, limit), clipped_tail(raw[-limit:], len(raw), limit)
    if len(raw) <= limit:
        assert (note, tail) == (text, text)
    else:
        assert note.endswith(f" ... (captured {limit} of {len(raw)} bytes)") and note.startswith(raw[:limit].decode("utf-8", "ignore")[:-1])
        assert tail == f"Captured {limit} of {len(raw)} bytes\n...\n{raw[-limit:].decode('utf-8', 'replace')}"


moves = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.integers(0, 8), st.integers(-10, 300).map(lambda tenths: tenths / 10)),
        st.tuples(st.just("drop"), st.integers(0, 8), st.just(0.0)),
        st.tuples(st.just("wait"), st.just(0), st.integers(0, 60).map(lambda tenths: tenths / 10)),
        st.tuples(st.just("wait"), st.just(0), st.floats(0, 25)),
    ),
    max_size=40,
)


@settings(deadline=None)
@given(moves, st.floats(0, 1e6))
def test_the_wheel_gives_each_key_once_never_early_and_at_most_a_tick_late(steps: list[tuple[str, int, float]], start: float) -> None:
    tick = 0.25
    now, wheel, due = start, Wheel[int](start, tick, slots=16), dict[int, float]()
    for what, key, seconds in steps:
        match what:
            case "put":
                wheel.put(key, now + seconds)
                due[key] = max(now, now + seconds)
            case "drop":
                wheel.drop(key)
                due.pop(key, None)
            case _:
                now += seconds
                came = wheel.take(now)
                assert len(came) == len(set(came))
                assert all(due.pop(key) <= now + 1e-6 for key in came), "early"
                assert all(moment > now - 2 * tick for moment in due.values()), "late"
        assert len(wheel) == len(due) and all(key in wheel for key in due)
        upcoming = wheel.next()
        assert (upcoming is None) is (not due)
        if upcoming is not None:
            assert upcoming > now - tick and upcoming <= max(min(due.values()) + 2 * tick, now + 2 * tick)


def test_a_deadline_between_two_ticks_comes_with_the_later_one() -> None:
    wheel = Wheel[str](0.0, 0.25)
    wheel.put("a", 0.4)
    assert (wheel.take(0.3), wheel.take(0.49), wheel.take(0.5)) == ([], [], ["a"])


def test_the_wheel_gives_what_is_due_in_its_order() -> None:
    wheel = Wheel[str](100.0, 0.5, slots=8)
    for key, when in (("c", 103.0), ("a", 101.0), ("far", 190.0), ("b", 102.0)):
        wheel.put(key, when)
    assert wheel.take(103.0) == ["a", "b", "c"]
    assert wheel.take(189.0) == [] and wheel.take(1000.0) == ["far"]
