# SPDX-License-Identifier: Apache-2.0
"""Label selectors: what each form fits, what is refused, whose labels count."""

from dataclasses import replace

import pytest

from plait.model.cluster import Container, Instance
from plait.model.labels import Labels
from plait.services.requests import BadRequest
from plait.services.selector import parse_selector

WEB = {"app": "web", "tier": "prod", "com.example/rev": "1.2", "empty": ""}


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        ("", True),
        ("  ", True),
        ("app=web", True),
        ("app==web", True),
        ("app = web", True),
        ("app=we", False),
        ("app=WEB", False),
        ("app!=web", False),
        ("app!=db", True),
        ("nix!=web", True),
        ("nix=web", False),
        ("empty=", True),
        ("app=", False),
        ("app", True),
        ("nix", False),
        ("!nix", True),
        ("! app", False),
        ("app in (db,web)", True),
        ("app in ( db , web )", True),
        ("app in(db)", False),
        ("nix in (db)", False),
        ("nix in ()", False),
        ("empty in ()", True),
        ("app notin (db,sql)", True),
        ("app notin (web)", False),
        ("nix notin (web)", True),
        ("app=web,tier!=test", True),
        ("app=web,tier=test", False),
        ("app in (a,web),!nix , tier", True),
        ("com.example/rev=1.2", True),
        ("in=in", False),
    ],
)
def test_what_a_selector_fits(text: str, fits: bool) -> None:
    assert parse_selector(text).matches(WEB) is fits


@pytest.mark.parametrize(
    "text",
    [
        *("=web", "!", "app=web,", ",", "app=web,,tier", "app in", "app in a,b", "app in (a", "app (a)", "a b", "app=a b"),
        *("app in (a b)", "a=b=c", "!a=b", "app in (a=b)", "x" * 5000),
    ],
)
def test_what_is_no_selector_is_refused(text: str) -> None:
    with pytest.raises(BadRequest, match="Invalid selector"):
        parse_selector(text)


def test_labels_are_those_of_the_container_of_that_name_and_the_metadata_which_wins() -> None:
    box = Container("3f0", "web", "A", "docker", labels={"app": "image", "team": "x"})
    labels = Labels({("A", "3f0"): box})
    bound = Instance("i", "shop", "A", container="web", meta={"app": "web"})
    assert labels.of(bound) == {"app": "web", "team": "x"}
    assert labels.of(replace(bound, node="B")) == {"app": "web"}, "a container of that name on another node is another one"
    assert labels.of(replace(bound, container="")) == {"app": "web"}


def test_of_containers_of_one_name_the_running_one_counts_and_each_change_is_followed() -> None:
    bound = Instance("i", "web", "A", container="web")
    old, new = (Container(number, "web", "A", "docker", labels={"n": number}) for number in "12")
    labels = Labels({("A", "1"): old})
    assert labels.note(("A", "2"), new) == {("A", "web")}
    assert labels.of(bound) == {"n": "1"}
    labels.note(("A", "1"), replace(old, state="exited"))
    assert labels.of(bound) == {"n": "2"}
    assert labels.note(("A", "2"), replace(new, name="other")) == {("A", "web"), ("A", "other")}
    assert labels.of(bound) == {"n": "1"}
    assert labels.note(("A", "1"), None) == {("A", "web")}
    assert labels.of(bound) == {}
