# SPDX-License-Identifier: Apache-2.0
"""Filter expressions: what fits, what is refused, and that no text breaks the parser."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plait.services.bexpr import compile_filter, filtered
from plait.services.requests import BadRequest

ENTRY = {
    "Node": {"Node": "A", "Meta": {"rack": "r1", "a.b": "x"}},
    "Service": {"ID": "web-1", "Port": 80, "Tags": ["v1", "http"], "EnableTagOverride": False, "Meta": {}},
    "Checks": [{"Status": "passing"}, {"Status": "critical"}],
}


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        ("Node.Node == A", True),
        ('Node.Node != "A"', False),
        ("Service.Port == 80", True),
        ("Service.Port != 81", True),
        ("Service.EnableTagOverride == false", True),
        ("v1 in Service.Tags", True),
        ("`v2` not in Service.Tags", True),
        ('Service.Tags contains "http"', True),
        ("Service.Tags not contains http", False),
        ("rack in Node.Meta", True),
        ("Node.Meta.rack == r1", True),
        ('Node.Meta["a.b"] == x', True),
        ("Node.Meta.none == r1", False),
        ("Node.Meta.none != r1", True),
        ("Service.Meta is empty", True),
        ("Service.Tags is not empty", True),
        ("Service.Tags is nil", False),
        ("Service.Tags is not nil", True),
        ("Checks.Status == critical", True),
        ("Checks.Status == warning", False),
        ('"/Node/Meta/rack" == r1', True),
        ("Service.Port == 81 or Service.Port == 80 and Node.Node == A", True),
        ("(Service.Port == 80 or Service.Port == 81) and Node.Node == B", False),
        ("not Service.Port == 81 and not (Node.Node == B)", True),
        ('web in Service.ID and "in" not in Service.Tags', True),
        ("any Service.Tags as t { t == http }", True),
        ("all Service.Tags as t { t == http }", False),
        ("all Service.Tags as i, t { i != 0 or t == v1 }", True),
        ("any Node.Meta as k { k == rack }", True),
        ("any Node.Meta as k, v { k == rack and v == x }", False),
        ("any Node.Meta as _, v { v == x }", True),
        ("any Service.Meta as k { k == a }", False),
        ("all Service.Meta as k { k == a }", True),
        ("any Checks as c { c.Status == critical and Node.Node == A }", True),
        ("any Checks as c { any Service.Tags as t { t == http and c.Status == critical } }", True),
        ("any in Service.Tags", False),
        ("Node.Node matches `^A$`", True),
        ("Service.ID matches eb", True),
        ("Service.ID not matches `^eb`", True),
        ("Checks.Status matches `crit.*`", True),
        ("Node.Meta.none matches `.*`", False),
        ("any Service.Tags as t { t matches `^h..p$` }", True),
        (r"Service.ID matches `\d` and Service.ID matches `(?i)WEB-\pN`", True),
    ],
)
def test_an_expression_fits_or_does_not(text: str, fits: bool) -> None:
    assert compile_filter(text)(ENTRY) is fits


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Nothing == 1", 'Selector "Nothing" is not valid'),
        ("Node.Nothing == 1", 'Selector "Nothing" is not valid'),
        ("Service.Port == x", "is no number"),
        ("Service.Tags == v1", "do not apply to lists"),
        ("80 in Service.Port", "do not apply to numbers"),
        ("Node.Node matches `(A`", "bad regular expression '(A': missing )"),
        (r"Node.Node matches `(A)\1`", "invalid escape sequence"),
        ("Node.Node matches `(?=A)`", "invalid perl operator"),
        ("Node.Node matches " + "a" * 2000, "at most 1024 characters"),
        ("Service.Port matches 80", "applies to texts only"),
        ("Service.Tags matches v1", "applies to texts only"),
        ("Node.Node matches", "ends too early"),
        ("Node.Node", "ends too early"),
        ("Node.Node == A B", "unexpected 'B'"),
        ("(Node.Node == A", "ends too early"),
        ("Node.Node ~ A", "unexpected '~ A'"),
        ("Node.Node like A", "is no operator"),
        ("any Service.Tags { t == v1 }", 'expected "as"'),
        ("any Service.Tags as t { t == v1", "ends too early"),
        ("any Service.Tags as 1 { t == v1 }", "is no name"),
        ("any Service.Port as t { t == v1 }", "apply to lists and maps only"),
        ("any Service.Tags as t { x == v1 }", 'Selector "x" is not valid'),
        ("any Checks as a { any Checks as b { any Checks as c { c == 1 } } }", "inside each other"),
        ("Service.Tags is full", 'expected "empty" or "nil"'),
        ("not " * 100 + "a == b", "levels"),
        ("(" * 100 + "a == b", "levels"),
        ("a" * 5000, "longer than"),
    ],
)
def test_what_is_wrong_is_said(text: str, words: str) -> None:
    with pytest.raises(BadRequest, match=r"^Failed to create boolean expression evaluator") as caught:
        compile_filter(text)(ENTRY)
    assert words in str(caught.value)


WORDS = st.sampled_from(
    [
        "Node",
        ".",
        "Service",
        "==",
        "!=",
        "in",
        "not",
        "and",
        "or",
        "(",
        ")",
        "is",
        "empty",
        '"',
        "`",
        "[",
        "]",
        "1",
        "Port",
        "contains",
        "any",
        "as",
        "{",
        "}",
        ",",
    ]
)


@given(st.text(max_size=30) | st.lists(WORDS, max_size=12).map(" ".join))
def test_any_text_is_an_expression_or_refused(text: str) -> None:
    try:
        assert compile_filter(text)(ENTRY) in (True, False)
    except BadRequest as error:
        assert str(error)


def test_lists_and_maps_keep_what_fits() -> None:
    big = compile_filter("Port == 80")
    assert filtered([{"Port": 80}, {"Port": 81}], big) == [{"Port": 80}]
    assert filtered({"a": {"Port": 80}, "b": {"Port": 81}}, big) == {"a": {"Port": 80}}
    assert filtered(None, big) is None
