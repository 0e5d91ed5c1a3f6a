# SPDX-License-Identifier: Apache-2.0
"""The figures of `agent/metrics`: which there are, how they are written, who gives them. `test_solo.py` asks a real agent."""

from __future__ import annotations

import asyncio
import json

from plait.agent.figures import Figures, of_health, of_kernel
from plait.agent.health import Health
from plait.agent.kernelwork import KernelWork
from plait.kernel.fake import FakeKernel
from plait.model.objects import Plan
from plait.services.figures import FIGURES, Reading, Summary, consul_json, interval, prometheus_name, prometheus_text


def summary(*values: float) -> Summary:
    made = Summary()
    for value in values:
        made.add(value)
    return made


FOUND = [
    Reading("plait.http.answers", 2.0, (("status", "4xx"),)),
    Reading("plait.http.answers", 3.0, (("status", "2xx"),)),
    Reading("consul.kvs.apply", summary(1.0, 3.0)),
    Reading("consul.state.nodes", 4.0),
]


def test_consuls_json_is_of_the_interval() -> None:
    before = {("plait.http.answers", (("status", "2xx"),)): 1.0, ("plait.http.answers", (("status", "4xx"),)): 2.0}
    assert consul_json(interval(1700000007.5, 10.0, before, FOUND)) == {
        "Timestamp": "2023-11-14 22:13:27 +0000 UTC",
        "Gauges": [{"Name": "consul.state.nodes", "Value": 4.0, "Labels": {}}],
        "Points": [],
        "Counters": [
            {
                "Name": "plait.http.answers",
                "Count": 2,
                "Rate": 0.2,
                "Sum": 2.0,
                "Min": 1.0,
                "Max": 1.0,
                "Mean": 1.0,
                "Stddev": 0.0,
                "Labels": {"status": "2xx"},
            },
        ],
        "Samples": [
            {
                "Name": "consul.kvs.apply",
                "Count": 2,
                "Rate": 0.4,
                "Sum": 4.0,
                "Min": 1.0,
                "Max": 3.0,
                "Mean": 2.0,
                "Stddev": 2.0**0.5,
                "Labels": {},
            }
        ],
    }
    json.dumps(consul_json(interval(0.0, 10.0, {}, [])))


def test_a_counter_that_began_anew_counts_from_its_beginning() -> None:
    """The DNS process counts from 0 again when it is replaced."""
    found = interval(0.0, 10.0, {("plait.dns.udp_queries", ()): 100.0}, [Reading("plait.dns.udp_queries", 3.0)])
    assert found.counters == {("plait.dns.udp_queries", ()): 3.0}


async def test_intervals_follow_one_another() -> None:
    now, count, took = [100.0], [0.0], Summary()
    figures = Figures(lambda: now[0])
    figures.add(lambda: [Reading("plait.roundtrips", count[0]), Reading("consul.kvs.apply", took)])
    key = ("plait.roundtrips", ())

    count[0], now[0] = 2.0, 104.0
    took.add(7.0)
    assert (figures.latest().counters[key], figures.latest().seconds) == (2.0, 4.0), "what there is of the first"
    told = figures.intervals()
    first = asyncio.ensure_future(anext(told))
    await asyncio.sleep(0)
    now[0] = 110.0
    await figures.finish()
    count[0], now[0] = 7.0, 112.0
    assert figures.latest().counters[key] == 2.0, "the last that ended"
    one = await first
    assert (one.start, one.counters[key], one.spreads["consul.kvs.apply", ()].greatest) == (100.0, 2.0, 7.0)
    second, now[0] = asyncio.ensure_future(anext(told)), 120.0
    await asyncio.sleep(0)
    await figures.finish()
    two = await second
    assert (two.start, two.counters[key], dict(two.spreads)) == (110.0, 5.0, {})
    assert {reading.name: reading.value for reading in figures.read()}["plait.roundtrips"] == 7.0, "Prometheus wants all of them"
    await figures.finish()
    assert key not in figures.latest().counters, "what did not happen is left out"


def test_prometheus_text() -> None:
    assert prometheus_text(FOUND).splitlines() == [
        "# HELP consul_kvs_apply milliseconds from a write of keys to its durable answer",
        "# TYPE consul_kvs_apply summary",
        "consul_kvs_apply_sum 4.0",
        "consul_kvs_apply_count 2",
        "# HELP consul_state_nodes nodes in the catalogue",
        "# TYPE consul_state_nodes gauge",
        "consul_state_nodes 4.0",
        "# HELP plait_http_answers_total answers of the discovery API, by class of `status` (2xx)",
        "# TYPE plait_http_answers_total counter",
        'plait_http_answers_total{status="2xx"} 3.0',
        'plait_http_answers_total{status="4xx"} 2.0',
    ]


def test_a_label_cannot_break_its_line() -> None:
    text = prometheus_text([Reading("plait.http.answers", 1.0, (("status", 'a"b\\c\nd'),))])
    assert text.splitlines()[-1] == r'plait_http_answers_total{status="a\"b\\c\nd"} 1.0'


def test_summaries() -> None:
    found = summary(-1.0, -5.0)
    assert (found.count, found.sum, found.recent.least, found.recent.greatest) == (2, -6.0, -5.0, -1.0)
    assert (Summary().count, Summary().recent.least) == (0, 0.0)


def test_counters_are_named_as_prometheus_wants_them_and_every_figure_says_what_it_is() -> None:
    for name, figure in FIGURES.items():
        assert prometheus_name(name).endswith("_total") == (figure.kind == "counter")
        assert figure.about and not figure.about.endswith(".")


def test_conditions_are_counted_by_severity() -> None:
    health = Health(lambda: 0.0)
    health.set("dns-child", "dns", "it ended")
    assert {reading.labels: reading.value for reading in of_health(health)} == {
        (("severity", "error"),): 1.0,
        (("severity", "warning"),): 0.0,
    }


async def test_passes_and_all_that_is_read_have_a_name() -> None:
    work = KernelWork(FakeKernel())
    await work.converge(lambda: Plan({}), True)
    figures = Figures()
    figures.add(lambda: of_kernel(work))
    found = {reading.name: reading.value for reading in figures.read()}
    assert found["plait.kernel.writes"] == 0.0 and found["consul.runtime.num_goroutines"] == float(len(asyncio.all_tasks()))
    took = found["plait.kernel.pass_seconds"]
    assert isinstance(took, Summary) and took.count == 1
    assert set(found) <= set(FIGURES)
    work.close()
