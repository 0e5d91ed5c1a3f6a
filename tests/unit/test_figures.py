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
from plait.services.figures import FIGURES, Reading, Summary, consul_json, prometheus_name, prometheus_text


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


def test_consuls_json() -> None:
    assert consul_json(FOUND, "now") == {
        "Timestamp": "now",
        "Gauges": [{"Name": "consul.state.nodes", "Value": 4.0, "Labels": {}}],
        "Points": [],
        "Counters": [
            {"Name": "plait.http.answers", "Count": 3, "Sum": 3.0, "Min": 0.0, "Max": 3.0, "Mean": 3.0, "Labels": {"status": "2xx"}},
            {"Name": "plait.http.answers", "Count": 2, "Sum": 2.0, "Min": 0.0, "Max": 2.0, "Mean": 2.0, "Labels": {"status": "4xx"}},
        ],
        "Samples": [{"Name": "consul.kvs.apply", "Count": 2, "Sum": 4.0, "Min": 1.0, "Max": 3.0, "Mean": 2.0, "Labels": {}}],
    }
    json.dumps(consul_json([], ""))


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
    found = summary(-1.0, 5.0)
    assert (found.count, found.sum, found.least, found.greatest) == (2, 4.0, -1.0, 5.0)
    assert (Summary().count, Summary().least) == (0, 0.0)


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
