# SPDX-License-Identifier: Apache-2.0
"""Each row of the page for those who come from Consul is held by tests that are there."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "from-consul.md"
HELD_BY = {
    "an agent per host": "unit/test_store_replica.py::test_it_keeps_everything_while_the_store_is_away_and_tells_the_difference_after",
    "catalogue, health": "system/test_pyconsul.py::test_py_consul_finds_what_it_expects "
    "system/test_fuzz_http.py::test_every_operation_answers_as_it_is_described_and_keeps_nothing",
    "blocking queries wake": "unit/test_consul.py::test_an_unrelated_change_wakes_nobody "
    "unit/test_kv.py::test_a_reader_sleeps_through_what_is_not_its_own",
    "an index can go back": "system/test_catalog.py::test_no_index_goes_back_when_the_agent_is_killed_before_it_could_publish",
    "N+1 requests": "unit/test_consul_checks.py::test_all_healthy_services_in_one_answer",
    "instances by service name": "system/test_beyond.py::test_http_and_dns_find_the_same_instances_by_the_labels_of_real_containers",
    "one port per service": "system/test_beyond.py::test_named_ports_reach_another_host_over_http_and_dns",
    "a watch for each": "system/test_beyond.py::test_events_of_another_host_arrive_and_a_client_resumes_where_it_was",
    "transactions": "unit/test_txn.py::test_results_have_the_shapes_of_the_catalogue_and_one_index "
    "unit/test_txn.py::test_what_an_agent_registered_stays_and_the_other_is_kept_beside_it",
    "`consul_sd_configs`": "system/test_beyond.py::test_prometheus_discovers_and_scrapes_what_is_labelled",
    "keys live until": "unit/test_kv.py::test_a_key_with_a_time_to_live_goes_by_itself",
    "`deregister_critical": "unit/test_checkup.py::test_a_service_that_stays_critical_is_deregistered",
    "DNS truncates": "unit/test_dns_sizes.py::test_answers_hold_what_fits_and_say_what_does_not "
    "unit/test_dns_answer.py::test_weights_decide_how_often_an_srv_record_comes_first",
    "`dns_config`": "unit/test_solo.py::test_dns_follows_dns_config_and_prepared_queries "
    "unit/test_dns_settings.py::test_a_file_made_for_consul",
    "`NAME.query.consul`": "unit/test_solo.py::test_dns_follows_dns_config_and_prepared_queries",
    "prepared queries fail over": "unit/test_queries.py::test_a_service_without_instances_fails_over_to_what_is_here",
    "a service that was put": "system/test_catalog.py::test_what_another_host_puts_under_this_ones_name_is_never_erased_silently",
    "`EnableTagOverride`": "system/test_beyond.py::test_tags_that_another_host_writes_outlast_the_agent_that_allows_them "
    "unit/test_tag_override.py::test_other_tags_of_the_agent_win",
    "registrator beside it": "system/test_registration.py::test_it_follows_its_container_through_every_state "
    "unit/test_registrator.py::test_which_services_a_container_has",
    "`consul agent -dev`": "unit/test_solo.py::test_files_are_merged_in_their_order_and_options_win "
    "unit/test_solo.py::test_a_file_that_cannot_be_used_is_named",
    "`consul kv`": "unit/test_cli_consul.py::test_keys_are_written_read_and_deleted unit/test_cli_consul.py::test_the_catalogue_is_listed "
    "unit/test_cli_consul.py::test_a_child_is_run_at_each_change unit/test_cli_consul.py::test_a_snapshot_is_saved_and_restored",
    "network coordinates": "system/test_near.py::test_near_follows_what_was_measured",
    "datacentres joined": "unit/test_consul.py::test_what_is_wrong_is_said_in_consuls_words",
    "access control lists": "unit/test_consul_state.py::test_what_plait_has_not_is_said_honestly",
    "Connect, intentions": "unit/test_consul_state.py::test_what_plait_has_not_is_said_honestly",
    "web page": "unit/test_consul.py::test_options_and_head",
}
"""Beginning of a row -> its tests, blanks between."""


def rows() -> list[str]:
    """The table at the top of the page without its head."""
    table = PAGE.read_text().partition("|---|---|\n")[2].partition("\n\n")[0]
    return [line.removeprefix("| ") for line in table.splitlines()]


@cache
def functions_of(name: str) -> frozenset[str]:
    tree = ast.parse((ROOT / "tests" / name).read_text())
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def test_each_row_is_held_by_a_test() -> None:
    assert len(rows()) > 20
    for row in rows():
        assert sum(row.startswith(start) for start in HELD_BY) == 1, f"a row that no test holds: {row}"
    for start in HELD_BY:
        assert any(row.startswith(start) for row in rows()), f"there is no such row: {start}"


def test_the_tests_are_there() -> None:
    for test in " ".join(HELD_BY.values()).split():
        place, _, name = test.partition("::")
        assert name in functions_of(place), test
