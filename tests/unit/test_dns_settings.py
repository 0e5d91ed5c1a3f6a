# SPDX-License-Identifier: Apache-2.0
"""What people write about DNS, in plait.toml and in files made for Consul."""

import pytest

from plait.agent.config import parse_config
from plait.agent.consulconfig import settings_of
from plait.agent.dnssettings import resolver
from plait.dns.options import Options
from plait.model.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("192.0.2.1", ("192.0.2.1", 53)),
        ("192.0.2.1:5353", ("192.0.2.1", 5353)),
        ("::1", ("::1", 53)),
        ("[::1]", ("::1", 53)),
        ("[::1]:54", ("::1", 54)),
        ("2001:DB8:0::53", ("2001:db8::53", 53)),
    ],
)
def test_resolvers(text: str, place: tuple[str, int]) -> None:
    assert resolver(text) == place


@pytest.mark.parametrize(
    "text", ["", "example.org", "192.0.2.1:", "192.0.2.1:0", "192.0.2.1:70000", "[::1", "[::1]5", "[192.0.2.1]:53", "::1:x"]
)
def test_what_is_no_resolver(text: str) -> None:
    with pytest.raises(ValueError):
        resolver(text)
    with pytest.raises(ConfigError, match=r"dns\.upstreams"):
        parse_config({"dns": {"upstreams": [text]}}, "f")


def test_the_file_of_a_node() -> None:
    dns = parse_config(
        {
            "dns": {
                "upstreams": ["192.0.2.1", "[2001:db8::1]:5353", "192.0.2.1:53"],
                "upstream_strategy": "random",
                "upstream_timeout": "1.5s",
                "upstream_limit": 10,
                "alt_domain": "Corp.Example.",
                "node_ttl": 3,
                "service_ttl": {"*": "5s", "Web": "1m30s"},
                "soa": {"min_ttl": "7s"},
                "only_passing": True,
                "a_record_limit": 1,
                "udp_answer_limit": 3,
                "enable_truncate": False,
                "enable_additional_node_meta_txt": True,
                "client_rate": 500,
                "client_timeout": "1s",
            }
        },
        "f",
    ).dns
    assert dns.limits.parts() == (500, 1.0)
    assert dns.upstreams.parts() == ((("192.0.2.1", 53), ("2001:db8::1", 5353)), True, 1.5, 10)
    wanted = Options(3, {b"*": 5, b"web": 90}, (3600, 600, 86400, 7), b"corp.example", 1, 3, False, True)
    assert dns.options.parts() == wanted.parts() and dns.only_passing


def test_nothing_written_is_nothing_kept_and_nothing_hidden() -> None:
    dns = parse_config({}, "f").dns
    assert dns.options.parts() == Options().parts() and dns.upstreams.places == () and not dns.only_passing
    assert dns.limits.parts() == (0, 5.0), "any number of queries"


@pytest.mark.parametrize(
    ("key", "value"), [("client_rate", -1), ("client_rate", "many"), ("client_timeout", 0), ("client_timeout", "soon")]
)
def test_mistakes_about_limits_are_named(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"f: dns\.{key}"):
        parse_config({"dns": {key: value}}, "f")


def test_a_file_made_for_consul() -> None:
    raw = {
        "data_dir": "/x",
        "recursors": ["::1", "192.0.2.1"],
        "alt_domain": "alt",
        "dns_config": {
            "recursor_strategy": "random",
            "recursor_timeout": "100ms",
            "node_ttl": "1s",
            "service_ttl": {"*": "2s"},
            "soa": {"refresh": 1, "retry": 2, "expire": 3, "min_ttl": 4},
            "only_passing": True,
            "a_record_limit": 5,
            "udp_answer_limit": 6,
            "enable_truncate": True,
            "enable_additional_node_meta_txt": True,
            "allow_stale": True,
            "max_stale": "1h",
            "use_cache": True,
        },
    }
    settings, warnings = settings_of(raw, {}, "host")
    assert settings.dns.options.parts() == Options(1, {b"*": 2}, (1, 2, 3, 4), b"alt", 5, 6, node_meta_txt=True).parts()
    assert settings.dns.upstreams.parts() == ((("::1", 53), ("192.0.2.1", 53)), True, 0.1, 256)
    assert settings.dns.only_passing and warnings == []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("node_ttl", "soon"),
        ("node_ttl", -1),
        ("node_ttl", True),
        ("service_ttl", "5s"),
        ("service_ttl", {"*": "x"}),
        ("soa", {"min": 1}),
        ("only_passing", 1),
        ("a_record_limit", "1"),
        ("udp_answer_limit", -1),
    ],
)
def test_mistakes_are_named(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"f: dns\.{key}"):
        parse_config({"dns": {key: value}}, "f")
    with pytest.raises(ConfigError, match=rf"dns_config\.{key}"):
        settings_of({"data_dir": "/x", "dns_config": {key: value}}, {}, "host")
