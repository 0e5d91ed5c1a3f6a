# SPDX-License-Identifier: Apache-2.0
"""The client's operations over a clock of their own: watches, heartbeats, locks, semaphores, elections."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from tests.support.fake_consul import Timeline

from plait.client import discovery, event, kv, lock, session, txn
from plait.client.discovery import Check, Keeper, Service
from plait.client.errors import ApiError, BadAnswer
from plait.client.lock import LockHold, LockSpec, SemaphoreHold
from plait.client.steps import Answer, Request, Sleep, Steps, sleep
from plait.client.watch import PACE_S, POLL_S, Watch
from plait.model.errors import ConfigError


@pytest.fixture
def time() -> Timeline:
    return Timeline()


def collect(watch: Watch[Any], into: list[Any]) -> Steps[None]:
    while True:
        into.append((yield from watch.step()))


def requests(time: Timeline, method: str, start: str) -> int:
    return sum(1 for name, path in time.fake.log if name == method and path.startswith(start))


# watches


def test_a_watch_reports_the_present_value_and_then_each_change_once(time: Timeline) -> None:
    seen: list[Any] = []
    time.start("watch", collect(Watch(kv.entry("a"), 60.0), seen))
    time.run(1)
    time.do(kv.put_value("a", b"1"))
    time.do(kv.put_value("other", b"x"))
    time.run(1)
    time.do(kv.put_value("a", b"2"))
    time.run(200)
    time.do(kv.delete("a"))
    time.run(1)
    assert [entry and entry.value for entry in seen] == [None, b"1", b"2", None]


def test_a_watch_that_times_out_reports_nothing_and_asks_once_per_wait(time: Timeline) -> None:
    seen: list[Any] = []
    time.do(kv.put_value("a", b"1"))
    time.start("watch", collect(Watch(kv.entry("a"), 10.0), seen))
    time.run(100)
    assert len(seen) == 1
    assert 9 <= requests(time, "GET", "kv/a") <= 12


def test_a_watch_survives_the_agent_being_away_and_reports_only_what_differs(time: Timeline) -> None:
    seen: list[Any] = []
    time.do(kv.put_value("a", b"1"))
    watch = Watch(kv.entry("a"), 10.0)
    time.start("watch", collect(watch, seen))
    time.run(1)
    time.cut = {"watch"}
    time.run(60)
    assert watch.trouble is not None and "cut" in str(watch.trouble)
    time.cut = set()
    time.run(60)
    assert len(seen) == 1 and watch.trouble is None
    time.cut = {"watch"}
    time.run(30)
    time.do(kv.put_value("a", b"2"))
    time.cut = set()
    time.run(60)
    assert [entry.value for entry in seen] == [b"1", b"2"]


def test_a_watch_starts_over_when_the_index_goes_back(time: Timeline) -> None:
    seen: list[Any] = []
    time.fake.index = 5000
    time.do(discovery.register(Service("web", 80)))
    time.start("watch", collect(Watch(discovery.instances("web"), 300.0), seen))
    time.run(1)
    time.fake.forget()
    time.do(discovery.register(Service("web", 80)))
    time.run(301)
    assert len(seen) == 1, "the same content under another index is no change"
    time.do(discovery.register(Service("web", 81)))
    time.run(1)
    assert [found[0].port for found in seen] == [80, 81]


def test_errors_of_the_cluster_are_waited_out_and_errors_of_the_query_raised(time: Timeline) -> None:
    seen: list[Any] = []
    time.fake.failing = 500
    time.start("watch", collect(Watch(kv.entry("a")), seen))
    time.run(60)
    assert seen == [] and 4 <= len(time.fake.log) <= 20, "it neither gives up nor hammers"
    time.fake.failing = 0
    time.run(20)
    assert seen == [None]
    time.start("wrong", collect(Watch(discovery.instances("web", filter="x", near="y")), seen))
    time.fake.failing = 403
    with pytest.raises(ApiError, match="403"):
        time.finish("wrong")


def drive(steps: Steps[Any], answers: Iterator[Answer]) -> tuple[list[object], Any]:
    """(requests and sleeps, result) of an operation whose requests are answered one after the other, clock standing still."""
    done: list[object] = []
    try:
        effect = next(steps)
        while True:
            if isinstance(effect, Request):
                done.append(effect)
                effect = steps.send(next(answers))
            elif isinstance(effect, Sleep):
                done.append(effect.seconds)
                effect = steps.send(None)
            else:
                effect = steps.send(0.0)
    except StopIteration as stop:
        return done, stop.value


def test_an_agent_that_answers_at_once_for_ever_is_not_hammered() -> None:
    same, other = Answer(200, {"x-consul-index": "7"}, b"[]"), Answer(200, {"x-consul-index": "7"}, b'[{"Key":"a","ModifyIndex":7}]')
    watch = Watch(kv.entries("a"))
    drive(watch.step(), iter([same]))
    done, _ = drive(watch.step(), iter([same, same, other]))
    assert [item for item in done if isinstance(item, float)] == [PACE_S, PACE_S]


def test_after_an_index_that_went_back_the_watch_asks_without_one() -> None:
    answers = [Answer(200, {"x-consul-index": index}, b'[{"Key":"a","ModifyIndex":%s}]' % index.encode()) for index in ("7", "3", "4")]
    watch = Watch(kv.entries("a"))
    asked = [done for answer in answers for done in drive(watch.step(), iter([answer]))[0] if isinstance(done, Request)]
    assert [dict(request.params).get("index") for request in asked] == [None, "7", None]


def test_without_an_index_there_is_a_poll() -> None:
    watch = Watch(kv.entries("a"))
    drive(watch.step(), iter([Answer(200, {}, b"[]")]))
    done, _ = drive(watch.step(), iter([Answer(200, {}, b"[]"), Answer(200, {}, b'[{"Key":"a","ModifyIndex":7}]')]))
    assert [item for item in done if isinstance(item, float)] == [POLL_S]
    assert all(not dict(item.params).get("index") for item in done if isinstance(item, Request))


def test_a_wrong_wait_is_refused() -> None:
    with pytest.raises(ConfigError, match="wait_s"):
        Watch(kv.entry("a"), 601)


def test_an_answer_that_is_not_as_documented_is_named() -> None:
    for body in (b"<html>", b"{}", b"[1]", b'[{"Key": "a"}]', b'[{"Key":"a","ModifyIndex":1,"Value":"%%%"}]'):
        with pytest.raises(BadAnswer, match="kv/a"):
            drive(kv.get("a"), iter([Answer(200, {}, body)]))


def test_events_are_reported_once_and_only_new_ones(time: Timeline) -> None:
    seen: list[Any] = []
    time.do(event.fire("deploy", b"old"))
    time.start("watch", collect(event.EventWatch("deploy"), seen))
    time.start("replay", collect(event.EventWatch("deploy", replay=True), replayed := []))
    time.run(1)
    for payload in (b"1", b"2"):
        time.do(event.fire("deploy", payload))
        time.do(event.fire("other", payload))
    time.run(310)
    time.fake.forget()
    time.run(310)
    time.do(event.fire("deploy", b"3"))
    time.run(310)
    assert [one.payload for found in seen for one in found] == [b"1", b"2", b"3"]
    assert [one.payload for found in replayed for one in found] == [b"old", b"1", b"2", b"3"]


# registrations


def test_heartbeats_keep_a_service_alive_and_their_end_ends_it(time: Timeline) -> None:
    keeper = Keeper(Service("web", 80, ttl_s=10))
    time.do(keeper.start())
    time.start("keeper", keeper.run())
    for _ in range(20):
        time.run(5)
        assert len(time.do(discovery.resolve("web"))) == 1
    time.stop("keeper")
    time.run(10.1)
    assert time.do(discovery.resolve("web")) == ()
    assert [found.status for found in time.do(discovery.resolve("web", passing=False))] == ["critical"]
    time.run(101)
    assert time.do(discovery.resolve("web", passing=False)) == (), "removed ten TTLs after its death"


def test_a_registration_the_agent_forgot_is_made_again_with_its_status(time: Timeline) -> None:
    with_ttl, without = Keeper(Service("web", 80, ttl_s=9)), Keeper(Service("db", 5432, checks=(Check(tcp="192.0.2.1:5432"),)))
    for name, keeper in (("web", with_ttl), ("db", without)):
        time.do(keeper.start())
        time.start(name, keeper.run())
    time.do(with_ttl.say("warning", "disk almost full"))
    time.fake.forget()
    time.run(3.2)
    (web,) = time.do(discovery.resolve("web", passing=False))
    assert (web.status, web.weight) == ("warning", 1)
    time.run(31)
    assert len(time.do(discovery.resolve("db", passing=False))) == 1


def test_the_last_word_is_the_last_to_arrive() -> None:
    """A heartbeat is on its way with the old word when another thread says a new one."""
    keeper = Keeper(Service("web", 80, ttl_s=9))
    beat = keeper.beat()
    sent = [next(beat)]
    keeper.word = ("critical", "no database")
    sent.append(beat.send(Answer(200)))
    with pytest.raises(StopIteration):
        beat.send(Answer(200))
    assert [one.body for one in sent if isinstance(one, Request)] == [
        b'{"Status": "passing", "Output": ""}',
        b'{"Status": "critical", "Output": "no database"}',
    ]


def test_a_word_waits_for_the_heartbeat_that_is_on_its_way() -> None:
    """Else that could arrive after it, on another connection, and be believed until the next one."""
    keeper = Keeper(Service("web", 80, ttl_s=9))
    heart, word = keeper.run(), keeper.say("warning", "slow")
    next(heart)
    heart.send(None)
    assert isinstance(heart.send(0.0), Request)
    assert isinstance(next(word), Sleep)
    assert isinstance(word.send(None), Sleep)
    corrected = heart.send(Answer(200))
    assert isinstance(corrected, Request) and b"slow" in (corrected.body or b"")
    heart.send(Answer(200))
    said = word.send(None)
    assert isinstance(said, Request) and b"slow" in (said.body or b"")


def test_heartbeats_go_on_after_an_outage(time: Timeline) -> None:
    keeper = Keeper(Service("web", 80, ttl_s=10))
    time.do(keeper.start())
    time.start("keeper", keeper.run())
    time.cut = {"keeper"}
    time.run(40)
    assert keeper.trouble is not None
    time.cut = set()
    time.run(15)
    assert keeper.trouble is None and len(time.do(discovery.resolve("web"))) == 1


def test_maintenance_takes_an_instance_out_of_use(time: Timeline) -> None:
    time.do(discovery.register(Service("web", 80)))
    time.do(discovery.maintenance("web", True, "disk"))
    assert [found.status for found in time.do(discovery.resolve("web", passing=False))] == ["maintenance"]
    time.do(discovery.maintenance("web", False))
    assert len(time.do(discovery.resolve("web"))) == 1
    assert time.do(discovery.deregister("web")) and not time.do(discovery.deregister("web"))


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: Service("").body(), "service"),
        (lambda: Check().body(), "check"),
        (lambda: Check(http="http://h/", tcp="h:1").body(), "check"),
        (lambda: next(Keeper(Service("web")).say("passing")), "ttl_s"),
        (lambda: discovery.instances("a/b"), "service"),
        (lambda: kv.entry(""), "key"),
        (lambda: kv.entry("/a"), "key"),
        (lambda: next(kv.put_value("a", "text")), "value of a"),  # type: ignore[arg-type]
        (lambda: next(session.create(ttl_s=9)), "ttl_s"),
        (lambda: next(session.create(lock_delay_s=61)), "lock_delay_s"),
        (lambda: LockHold(LockSpec("")), "key"),
        (lambda: SemaphoreHold(LockSpec("a"), 0), "limit"),
    ],
)
def test_arguments_that_make_no_sense_are_refused_before_anything_is_sent(make: Any, word: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    assert caught.value.where == word


# locks


def holder(hold: lock.Hold, held: list[str], name: str, seconds: float) -> Steps[str]:
    """Take the lock, hold it, give it back."""
    assert (yield from hold.acquire())
    held.append(name)
    yield from sleep(seconds)
    held.remove(name)
    yield from hold.release()
    return name


def test_a_lock_has_one_holder_at_a_time_and_fences_grow(time: Timeline) -> None:
    held: list[str] = []
    holds = {name: LockHold(LockSpec("jobs/nightly", name.encode(), lock_delay_s=0)) for name in "abc"}
    for name, hold in holds.items():
        time.start(name, holder(hold, held, name, 20.0))
    order = []
    for _ in range(700):
        time.run(0.1)
        assert len(held) <= 1, "two holders"
        if held and held[0] not in order:
            order.append(held[0])
    assert sorted(order) == ["a", "b", "c"]
    fences = [holds[name].fence for name in order]
    assert fences == sorted(fences) and len(set(fences)) == 3
    assert time.fake.leases == {}, "sessions are ended with their locks"


def test_a_waiting_program_gets_a_released_lock_at_once(time: Timeline) -> None:
    first, second = (LockHold(LockSpec("a")) for _ in range(2))
    time.do(first.acquire())
    time.start("second", second.acquire())
    time.run(3)
    began = time.now
    time.do(first.release())
    time.finish("second")
    assert time.now - began < 1.0


def test_a_waiting_program_does_not_try_in_vain(time: Timeline) -> None:
    first, second = LockHold(LockSpec("a")), LockHold(LockSpec("a"))
    time.do(first.acquire())
    time.start("guard", first.guard())
    tried = requests(time, "PUT", "kv/a")
    time.start("second", second.acquire())
    time.run(60)
    assert requests(time, "PUT", "kv/a") == tried


def test_two_who_saw_the_same_free_place_do_not_both_get_it(time: Timeline) -> None:
    holds = [SemaphoreHold(LockSpec("sem"), 1) for _ in range(2)]
    for hold in holds:
        time.do(hold._keep())
    found = time.do(kv.list_entries("sem/"))
    assert [time.do(hold._take(found)) for hold in holds] == [True, False]


def test_acquire_gives_up_in_time_and_one_attempt_is_one(time: Timeline) -> None:
    first, second = LockHold(LockSpec("a")), LockHold(LockSpec("a"))
    time.do(first.acquire())
    time.start("guard", first.guard())
    began = time.now
    assert time.do(second.acquire(20.0)) is False
    assert 20 <= time.now - began < 22
    began = time.now
    assert time.do(second.acquire(0)) is False
    assert time.now - began < 1
    time.do(second.release())
    assert len(time.fake.leases) == 1


def test_a_holder_knows_of_its_loss_before_somebody_else_has_the_lock(time: Timeline) -> None:
    """The holder is cut off; a rival waits. By the timeline's clock the guard must end first, even without a lock delay."""
    first, second = LockHold(LockSpec("a", ttl_s=10, lock_delay_s=0)), LockHold(LockSpec("a", ttl_s=10, lock_delay_s=0))
    time.do(first.acquire())
    time.start("guard", first.guard())
    time.start("second", second.acquire())
    time.run(30)
    assert "guard" not in time.ended
    time.cut = {"guard"}
    time.finish("second")
    assert "not renewed" in time.results["guard"]
    assert time.ended["guard"] < time.ended["second"]


def test_a_session_that_somebody_ends_is_noticed_at_once(time: Timeline) -> None:
    hold = LockHold(LockSpec("a"))
    time.do(hold.acquire())
    time.start("guard", hold.guard())
    time.run(20)
    began = time.now
    time.do(session.destroy(hold.session))
    time.finish("guard")
    assert time.now - began < 1


def test_a_lock_delay_is_waited_for(time: Timeline) -> None:
    first, second = LockHold(LockSpec("a", lock_delay_s=15)), LockHold(LockSpec("a"))
    time.do(first.acquire())
    time.do(session.destroy(first.session))
    began = time.now
    time.do(second.acquire())
    assert 15 <= time.now - began < 17


def test_a_waiting_programs_session_is_renewed_and_replaced(time: Timeline) -> None:
    first, second = LockHold(LockSpec("a")), LockHold(LockSpec("a"))
    time.do(first.acquire())
    time.start("guard", first.guard())
    time.start("second", second.acquire())
    time.run(100)
    kept = second.session
    assert kept in time.fake.leases, "it is renewed while waiting"
    time.do(session.destroy(kept))
    time.run(10)
    assert second.session != kept
    time.do(first.release())
    time.finish("second")


def test_a_key_in_use_for_something_else_is_not_locked(time: Timeline) -> None:
    time.do(kv.put_value("a", b"x", flags=7))
    with pytest.raises(ConfigError, match="something else"):
        time.do(LockHold(LockSpec("a")).acquire())
    time.do(kv.put_value("sem/.lock", b"x", flags=7))
    with pytest.raises(ConfigError, match="something else"):
        time.do(SemaphoreHold(LockSpec("sem"), 2).acquire())
    time.do(kv.put_value("bad/.lock", b"x", flags=lock.SEMAPHORE_FLAGS))
    with pytest.raises(BadAnswer, match="not readable"):
        time.do(SemaphoreHold(LockSpec("bad"), 2).acquire(0.0))


def test_an_outage_while_waiting_is_survived(time: Timeline) -> None:
    first, second = LockHold(LockSpec("a")), LockHold(LockSpec("a"))
    time.do(first.acquire())
    time.start("guard", first.guard())
    time.start("second", second.acquire())
    time.run(5)
    time.cut = {"second"}
    time.run(60)
    time.cut = set()
    time.run(5)
    time.do(first.release())
    assert time.finish("second") is True


def test_a_semaphore_has_as_many_holders_as_places(time: Timeline) -> None:
    held: list[str] = []
    for name in "abcde":
        time.start(name, holder(SemaphoreHold(LockSpec("sem", lock_delay_s=0), 2), held, name, 20.0))
    most = 0
    for _ in range(1000):
        time.run(0.1)
        most = max(most, len(held))
    assert most == 2 and sorted(time.results) == list("abcde")
    assert [key for key in time.fake.kv if key != "sem/.lock"] == [] and time.fake.leases == {}


def test_a_dead_holders_place_is_free_again_and_a_live_one_notices_a_loss(time: Timeline) -> None:
    holds = [SemaphoreHold(LockSpec("sem", ttl_s=10, lock_delay_s=0), 1) for _ in range(2)]
    time.do(holds[0].acquire())
    time.start("guard", holds[0].guard())
    time.start("second", holds[1].acquire())
    time.run(30)
    assert "second" not in time.results
    time.cut = {"guard"}
    assert time.finish("second") is True
    assert time.ended["guard"] < time.ended["second"]
    time.start("third", holds[1].guard())
    time.do(kv.delete("sem/.lock"))
    assert "released, taken or deleted" in time.finish("third")


def test_all_users_of_a_semaphore_must_agree_on_the_limit(time: Timeline) -> None:
    time.do(SemaphoreHold(LockSpec("sem"), 2).acquire())
    with pytest.raises(ConfigError, match="limit"):
        time.do(SemaphoreHold(LockSpec("sem"), 3).acquire())


def test_the_leader_is_known_by_what_it_wrote(time: Timeline) -> None:
    seen: list[Any] = []
    time.start("watch", collect(Watch(lock.leader("leader")), seen))
    time.run(1)
    hold = LockHold(LockSpec("leader", b"host-a"))
    time.do(hold.acquire())
    time.run(1)
    time.do(hold.release())
    time.run(1)
    assert seen == [None, b"host-a", None]


# keys


def test_keys_and_values(time: Timeline) -> None:
    do = time.do
    assert do(kv.get("a/b")) is None
    assert do(kv.put_value("a/b", b"\x00\xff", flags=3)) and do(kv.put_value("a/c d", b"")) and do(kv.put_value("a/x/ü%", b"1"))
    entry = do(kv.get("a/b"))
    assert (entry.value, entry.flags, entry.session) == (b"\x00\xff", 3, "")
    assert [one.key for one in do(kv.list_entries("a/"))] == ["a/b", "a/c d", "a/x/ü%"]
    assert do(kv.keys("a/", separator="/")) == ("a/b", "a/c d", "a/x/")
    assert do(kv.keys("none/")) == () and do(kv.list_entries("none/")) == ()
    assert do(kv.put_value("a/b", b"2", cas=entry.modify_index)) and not do(kv.put_value("a/b", b"3", cas=entry.modify_index))
    assert not do(kv.put_value("a/b", b"3", cas=0)) and do(kv.put_value("new", b"3", cas=0))
    assert not do(kv.delete("a/b", cas=1)) and do(kv.delete("a/b", cas=do(kv.get("a/b")).modify_index))
    assert do(kv.delete("a/b")) and do(kv.delete_tree("a/")) and do(kv.keys("")) == ("new",)


def test_a_transaction_is_done_whole_or_not_at_all(time: Timeline) -> None:
    do, op = time.do, txn.Op
    found = do(kv.txn(op("set", "a", b"1"), op("set", "b", b"2"), op("get", "a")))
    assert [(one.key, one.value) for one in found] == [("a", b""), ("b", b""), ("a", b"1")]
    with pytest.raises(txn.TxnFailed) as caught:
        do(kv.txn(op("set", "a", b"9"), op("check-not-exists", "b"), op("get", "nope")))
    assert [place for place, _ in caught.value.errors] == [1, 2]
    assert do(kv.get("a")).value == b"1"


def test_sessions(time: Timeline) -> None:
    do = time.do
    key = do(session.create(name="mine", ttl_s=10, lock_delay_s=1.5))
    assert (do(session.info(key)).name, do(session.info(key)).lock_delay_s) == ("mine", 1.5)
    assert [one.id for one in do(session.list_sessions())] == [key] == [one.id for one in do(session.list_sessions("node-a"))]
    assert do(session.renew(key)).id == key
    do(session.destroy(key))
    do(session.destroy(key))
    assert do(session.renew(key)) is None and do(session.info(key)) is None
