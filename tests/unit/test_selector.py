# SPDX-License-Identifier: Apache-2.0
"""Label selectors: what each form fits, what is refused, whose labels count."""

import pytest

from plait.model.cluster import Container, Instance, labels_of
from plait.services.requests import BadRequest
from plait.services.selector import parse_selector, select

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


def test_labels_are_those_of_the_container_and_the_metadata_which_wins() -> None:
    containers = {("A", "c"): Container("c", "web", "A", "docker", labels={"app": "image", "team": "x"})}
    bound = Instance("i", "web", "A", container="c", meta={"app": "web"})
    assert labels_of(bound, containers) == {"app": "web", "team": "x"}
    other = Instance("j", "web", "B", container="c", meta={"app": "web"})
    assert labels_of(other, containers) == {"app": "web"}, "a container of the same id on another node is another one"
    assert select(parse_selector("app=web,team"), [bound, other], containers) == [bound]
