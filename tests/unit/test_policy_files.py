# SPDX-License-Identifier: Apache-2.0
"""Policy files: what is read, and where a wrong one is refused, by line, field and reason."""

from __future__ import annotations

from ipaddress import IPv4Network
from typing import Any

import pytest
import yaml

from plait.model.errors import ConfigError
from plait.model.policy import Group, Namespace, Policy, PolicyRule, Ports, Range, Requirement, Selector
from plait.policy.document import MAX_DEPTH, MAX_SIZE
from plait.policy.kubernetes import read_policies
from plait.store.codec import decode, encode

N = IPv4Network
NETWORK = """\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db, namespace: shop, annotations: {any: thing}}
spec:
  podSelector:
    matchLabels: {app: db}
    matchExpressions: [{key: old, operator: DoesNotExist}]
  policyTypes: [Ingress, Egress]
  ingress:
  - from:
    - podSelector: {matchLabels: {app: web}}
    - namespaceSelector: {matchExpressions: [{key: team, operator: In, values: [a, b]}]}
      podSelector: {}
    - ipBlock: {cidr: 192.0.2.0/24, except: [192.0.2.7/32]}
    ports: [{port: 3306}, {protocol: UDP, port: dns}, {protocol: SCTP}, {port: 8000, endPort: 8100}]
  - {}
"""
CLUSTER = """\
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: guard}
spec:
  tier: Admin
  priority: 7
  subject: {namespaces: {matchLabels: {team: a}}}
  ingress:
  - name: friends
    action: Pass
    from: [{namespaces: {}}, {pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: web}}}}]
    protocols:
    - {tcp: {destinationPort: {number: 80}}}
    - {udp: {}}
    - {sctp: {destinationPort: {range: {start: 5, end: 9}}}}
    - {destinationNamedPort: http}
  egress: [{action: Deny, to: [{networks: [192.0.2.0/24, "2001:db8::/32"]}]}]
"""


def label(key: str, value: str) -> Requirement:
    return Requirement(key, "In", (value,))


def test_a_network_policy() -> None:
    (policy,) = read_policies(NETWORK).policies
    web, team = Selector((label("app", "web"),)), Selector((Requirement("team", "In", ("a", "b")),))
    ports = (Ports("tcp", 3306, 3306), Ports("udp", name="dns"), Ports("sctp"), Ports("tcp", 8000, 8100))
    peers = (Group(web, namespace="shop"), Group(namespaces=team))
    rule = PolicyRule("Accept", "ingress[0]", peers, (Range(N("192.0.2.0/24"), (N("192.0.2.7/32"),)),), ports=ports)
    subject = Group(Selector((label("app", "db"), Requirement("old", "DoesNotExist"))), namespace="shop")
    wanted = Policy(
        "db", "shop", "NetworkPolicy", subject, (rule, PolicyRule("Accept", "ingress[1]", anybody=True)), (), 0, policy.document
    )
    assert policy == wanted and policy.ident == ("shop", "db")


def test_a_cluster_network_policy() -> None:
    (policy,) = read_policies(CLUSTER).policies
    assert (policy.tier, policy.priority, policy.ident) == ("Admin", 7, ("_cluster", "guard"))
    assert policy.subject == Group(namespaces=Selector((label("team", "a"),)))
    assert policy.ingress is not None and policy.egress is not None
    (rule,) = policy.ingress
    assert (rule.action, rule.where) == ("Pass", "ingress[0] 'friends'")
    assert rule.groups == (Group(), Group(Selector((label("app", "web"),))))
    assert rule.ports == (Ports("tcp", 80, 80), Ports("udp"), Ports("sctp", 5, 9), Ports(name="http"))
    assert [str(one.network) for one in policy.egress[0].ranges] == ["192.0.2.0/24", "2001:db8::/32"]


@pytest.mark.parametrize("text", [NETWORK, CLUSTER], ids=["NetworkPolicy", "ClusterNetworkPolicy"])
def test_what_is_shown_may_be_applied_again_and_the_store_keeps_all(text: str) -> None:
    (policy,) = read_policies(text).policies
    assert read_policies(policy.document).policies == (policy,)
    assert decode(Policy, encode(policy), "k") == policy


@pytest.mark.parametrize(
    ("types", "ingress", "egress", "isolated"),
    [
        ("", "", "", (True, False)),
        ("", "egress: [{}]", "", (True, True)),
        ("policyTypes: [Egress]", "ingress: [{}]", "", (False, True)),
        ("policyTypes: [Ingress]", "egress: [{}]", "", (True, False)),
    ],
)
def test_the_directions_that_it_isolates(types: str, ingress: str, egress: str, isolated: tuple[bool, bool]) -> None:
    spec = ", ".join(filter(None, ("podSelector: {}", types, ingress, egress)))
    (policy,) = read_policies(f"apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: p}}\nspec: {{{spec}}}\n").policies
    assert (policy.ingress is not None, policy.egress is not None) == isolated


def test_several_documents_lists_json_and_namespaces() -> None:
    namespace = '{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "labels": {"team": "a"}}}'
    found = read_policies(f"---\n{NETWORK}---\n{namespace}\n---\n")
    assert [policy.name for policy in found.policies] == ["db"] and found.namespaces == (Namespace("shop", {"team": "a"}),)
    listed = yaml.safe_dump({"apiVersion": "v1", "kind": "List", "items": [yaml.safe_load(NETWORK), yaml.safe_load(CLUSTER)]})
    assert [policy.name for policy in read_policies(listed).policies] == ["db", "guard"]


def test_an_alias_repeats_what_has_its_anchor() -> None:
    text = NETWORK.replace("{app: db}", "&l {app: db}").replace("{app: web}", "*l")
    (policy,) = read_policies(text).policies
    assert policy.ingress is not None and policy.ingress[0].groups[0].pods == Selector((label("app", "db"),))


WRONG: dict[str, tuple[str, str, str]] = {
    "an unknown field": ("  policyTypes", "  policyType", "line 8, spec.policyType: '[…]' is a field that this has not"),
    "a word": ("[Ingress, Egress]", "[Ingress, Outgress]", "line 8, spec.policyTypes[1]: 'Outgress' is none of Ingress, Egress"),
    "a label that is a number": ("{app: db}", "{app: 1}", "line 6, spec.podSelector.matchLabels.app: 1 is a number, not a text; quote it"),
    "a label that is a boolean": ("{app: db}", "{app: yes}", "line 6, spec.podSelector.matchLabels.app: True is true or false"),
    "a label without a value": ("{app: db}", "{app: }", "line 6, spec.podSelector.matchLabels: '{…}' has a label without a value"),
    "an operator": ("DoesNotExist", "Not", "line 7, spec.podSelector.matchExpressions[0].operator: 'Not' is none of In"),
    "values that are missing": ("values: [a, b]", "values: []", "line 12, spec.ingress[0].from[1].namespaceSelector.matchExpressions[0]"),
    "values too many": ("operator: DoesNotExist", "operator: Exists, values: [x]", "cannot be there with Exists"),
    "a network": ("192.0.2.0/24", "192.0.2.0/33", "line 14, spec.ingress[0].from[2].ipBlock.cidr: '192.0.2.0/33' is not a network"),
    "a network without a prefix": ("192.0.2.0/24", "192.0.2.9", "is not a network: write 192.0.2.9/32"),
    "host bits": ("192.0.2.0/24", "192.0.2.1/24", "has host bits set"),
    "an exception outside": (
        "192.0.2.7/32",
        "192.0.3.0/28",
        "line 14, spec.ingress[0].from[2].ipBlock.except[0]: '192.0.3.0/28' does not lie in",
    ),
    "an exception of the other family": ("192.0.2.7/32", '"2001:db8::/64"', "does not lie in 192.0.2.0/24"),
    "a port": ("port: 3306", "port: 70000", "line 15, spec.ingress[0].ports[0].port: 70000 is not from 1 to 65535"),
    "a port in quotes": (
        "port: 3306",
        'port: "3306"',
        "line 15, spec.ingress[0].ports[0].port: '3306' is no name of a port; a number stands without",
    ),
    "an end before the beginning": ("endPort: 8100", "endPort: 7999", "line 15, spec.ingress[0].ports[3].endPort: 7999 is not from 8000"),
    "an end of a named port": ("port: dns", "port: dns, endPort: 9", "needs a port that is a number"),
    "a protocol": ("protocol: UDP", "protocol: udp", "line 15, spec.ingress[0].ports[1].protocol: 'udp' is none of TCP, UDP, SCTP"),
    "nobody": ("- podSelector: {matchLabels: {app: web}}", "- {}", "line 11, spec.ingress[0].from[0]: '{…}' names nobody"),
    "both": (
        "- ipBlock: {",
        "- podSelector: {}\n      ipBlock: {",
        "line 14, spec.ingress[0].from[2]: '{…}' has an ipBlock and a selector",
    ),
    "a name": ("name: db", "name: Db", "line 3, metadata.name: 'Db' is no name"),
    "a namespace": ("namespace: shop", "namespace: sh.op", "line 3, metadata.namespace: 'sh.op' is no name of a namespace"),
    "a list": ("  - {}\n", "  - []\n", "line 16, spec.ingress[1]: '[…]' is a list, not a mapping"),
    "a version": (
        "networking.k8s.io/v1",
        "networking.k8s.io/v1beta1",
        "line 2, kind: 'NetworkPolicy' of networking.k8s.io/v1beta1 is nothing",
    ),
    "a kind": ("kind: NetworkPolicy", "kind: Pod", "line 2, kind: 'Pod' of networking.k8s.io/v1 is nothing that plait knows"),
    "no kind": ("kind: NetworkPolicy\n", "", "line 1, the document: '{…}' has no field kind"),
    "no name": ("name: db, ", "", "line 3, metadata: '{…}' has no field name"),
    "twice the same field": ("  ingress:", "  podSelector: {}\n  ingress:", "line 9: 'podSelector' stands here twice"),
    "a tag": ("{app: db}", "!!python/name:os.system {app: db}", "is a tag, which no policy has"),
    "an anchor of nothing": ("{app: db}", "*nothing", "line 6: '*nothing' repeats what is not there"),
    "itself": ("{app: db}", "&me {app: *me}", "line 6: '*me' repeats what is not there, or not yet whole"),
    "no YAML": ("{app: db}", "{app: db", "is no YAML"),
    "a field that is no text": ("{app: db}", "{1: db}", "line 6: 1 is the name of a field and no text; quote it"),
    "a control character": ("{app: db}", "{app: \x07}", "is no YAML"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_network_policy_is_refused_by_line_field_and_reason(case: str) -> None:
    old, new, why = WRONG[case]
    assert NETWORK.count(old) == 1 or case in ("a kind", "a version")
    with pytest.raises(ConfigError) as refused:
        read_policies(NETWORK.replace(old, new, 1))
    assert why in str(refused.value)


WRONG_CLUSTER: dict[str, tuple[str, str, str]] = {
    "a namespace": ("{name: guard}", "{name: guard, namespace: shop}", "line 3, metadata.namespace: 'shop' cannot be there"),
    "a tier": ("tier: Admin", "tier: admin", "line 5, spec.tier: 'admin' is none of Admin, Baseline"),
    "no tier": ("  tier: Admin\n", "", "has no field tier"),
    "a priority": ("priority: 7", "priority: 1001", "line 6, spec.priority: 1001 is not from 0 to 1000"),
    "a priority of truth": ("priority: 7", "priority: true", "line 6, spec.priority: True is true or false, not a number"),
    "no subject": (
        "subject: {namespaces: {matchLabels: {team: a}}}",
        "subject: {}",
        "line 7, spec.subject: '{…}' has to have one of namespaces, pods",
    ),
    "an action": ("action: Pass", "action: Allow", "line 10, spec.ingress[0].action: 'Allow' is none of Accept, Deny, Pass"),
    "nobody": ('to: [{networks: [192.0.2.0/24, "2001:db8::/32"]}]', "to: []", "line 17, spec.egress[0].to: '[…]' is empty"),
    "names that are denied": (
        'networks: [192.0.2.0/24, "2001:db8::/32"]',
        "domainNames: [x.example]",
        "line 17, spec.egress[0].to[0].domainNames: '[…]' stands in a rule with the action Deny, and names can only be accepted",
    ),
    "names that are passed": (
        '[{action: Deny, to: [{networks: [192.0.2.0/24, "2001:db8::/32"]}]}]',
        "[{action: Pass, to: [{domainNames: [x.example]}]}]",
        "line 17, spec.egress[0].to[0].domainNames: '[…]' stands in a rule with the action Pass",
    ),
    "names that come in": ("from: [{namespaces: {}}", "from: [{domainNames: [x.example]}", "line 11, spec.ingress[0].from[0].domainNames"),
    "names and networks in one": (
        'networks: [192.0.2.0/24, "2001:db8::/32"]',
        "networks: [192.0.2.0/24], domainNames: [x.example]",
        "line 17, spec.egress[0].to[0]: '{…}' has to have one of namespaces, pods, networks, nodes, domainNames, and not 2",
    ),
    "networks that come in": ("from: [{namespaces: {}}", "from: [{networks: [192.0.2.0/24]}", "line 11, spec.ingress[0].from[0].networks"),
    "two protocols in one": ("{udp: {}}", "{udp: {}, tcp: {}}", "line 14, spec.ingress[0].protocols[1]: '{…}' has to have one of"),
    "a range": (
        "{start: 5, end: 9}",
        "{start: 5, end: 4}",
        "line 15, spec.ingress[0].protocols[2].sctp.destinationPort.range.end: 4 is not from 5",
    ),
}


@pytest.mark.parametrize("case", WRONG_CLUSTER)
def test_a_wrong_cluster_policy_is_refused_by_line_field_and_reason(case: str) -> None:
    old, new, why = WRONG_CLUSTER[case]
    assert CLUSTER.count(old) == 1
    with pytest.raises(ConfigError) as refused:
        read_policies(CLUSTER.replace(old, new))
    assert why in str(refused.value)


NAMED = CLUSTER.replace(
    '[{action: Deny, to: [{networks: [192.0.2.0/24, "2001:db8::/32"]}]}]', "[{action: Accept, to: [{domainNames: [%s]}]}]"
)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("api.example.com", "api.example.com"),
        ('"*.Example.ORG."', "*.example.org"),
        ("a_b-c.x1", "a_b-c.x1"),
    ],
)
def test_names_are_read_in_lower_case_and_without_a_final_dot(written: str, meant: str) -> None:
    (policy,) = read_policies(NAMED % f"{written}, other.example").policies
    assert policy.egress is not None and policy.egress[0].domains == (meant, "other.example")
    assert read_policies(policy.document).policies == (policy,) and decode(Policy, encode(policy), "k") == policy


@pytest.mark.parametrize(
    ("written", "why"),
    [
        ('"*"', "'*' has a * that is not the whole first label"),
        ('"api.*.com"', "has a * that is not the whole first label; *.example.com is every name below example.com"),
        ('"*api.example.com"', "has a * that is not"),
        ('"*.*.example.com"', "has a * that is not"),
        ('"*.com"', "has to have two labels or more, behind a *. too"),
        ("localhost", "has to have two labels or more"),
        ("192.0.2.1", "is an address and no name; name addresses as networks"),
        ('"2001:db8::1"', "is an address and no name"),
        ("a..example", "is no name of a host"),
        ("-a.example", "is no name of a host"),
        (f"{'a' * 64}.example", "is no name of a host; labels have at most 63"),
        (".".join(["a" * 60] * 5), "is no name of a host"),
        ("münchen.example", "is no name of a host"),
        ("7", "7 is a number, not a text; quote it"),
        ("", "'[…]' is empty"),
    ],
)
def test_what_is_no_name_is_refused_by_line_field_and_reason(written: str, why: str) -> None:
    with pytest.raises(ConfigError) as refused:
        read_policies(NAMED % written)
    assert why in str(refused.value)
    assert str(refused.value).startswith(f"line 17, spec.egress[0].to[0].domainNames{'[0]' if written else ''}: ")


def test_names_have_no_ports_with_names() -> None:
    with pytest.raises(ConfigError, match=r"domainNames: .* stands in a rule with a destinationNamedPort.*give its number"):
        read_policies((NAMED % "x.example").replace("x.example]}]}", "x.example]}], protocols: [{destinationNamedPort: http}]}"))


_TIMES_TEN = [f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True)]
MULTIPLIED = "\n".join(["a: &a [x, x, x, x, x, x, x, x, x, x]", *_TIMES_TEN])


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "the file: '' has no policy in it"),
        ("# nothing\n---\n", "has no policy in it"),
        ("just words", "line 1, the document: 'just words' is a text, not a mapping"),
        (f"{NETWORK}---\n{NETWORK}", "line 18, the document: '{…}' is the second of the name 'db' in this file"),
        ("[" * (MAX_DEPTH + 1), f"lies deeper than {MAX_DEPTH} levels"),
        (MULTIPLIED, f"has more than {MAX_SIZE} values"),
    ],
    ids=["nothing", "comments", "words", "twice", "deep", "multiplied"],
)  # fmt: skip
def test_a_file_that_is_no_policy_is_refused(text: str, why: str) -> None:
    with pytest.raises(ConfigError) as refused:
        read_policies(text)
    assert why in str(refused.value)


@pytest.mark.parametrize("text", ["yes", "y", "No", "on", "OFF", "true", "null", "~", "1", "-7", "1.5", "1e3", "0x1f", ".inf", "1_000"])
def test_what_yaml_takes_for_no_text_is_none_unless_quoted(text: str) -> None:
    with pytest.raises(ConfigError):
        read_policies(NETWORK.replace("{app: db}", f"{{app: {text}}}"))
    for quoted in (f'"{text}"', f"'{text}'"):
        (policy,) = read_policies(NETWORK.replace("{app: db}", f"{{app: {quoted}}}")).policies
        assert policy.subject.pods.requirements[0].values == (text,)
        assert read_policies(policy.document).policies == (policy,), "and it is shown in quotes"


def plain(text: str) -> Any:
    return yaml.safe_load(text)


@pytest.mark.parametrize("text", [NETWORK, CLUSTER])
def test_what_is_shown_says_what_was_given(text: str) -> None:
    (policy,) = read_policies(text).policies
    assert plain(policy.document)["spec"] == plain(text)["spec"]


@pytest.mark.parametrize("text", [NETWORK, CLUSTER], ids=["network", "cluster"])
def test_one_to_audit_says_so_and_is_read_again_as_such(text: str) -> None:
    def read(word: str) -> Policy:
        return read_policies(
            yaml.safe_dump(yaml.safe_load(text) | {"metadata": {"name": "p", "annotations": {"plait.audit": word}}})
        ).policies[0]

    assert read("true").audit and not read("false").audit and not read_policies(text).policies[0].audit
    assert read_policies(read("true").document).policies[0] == read("true")
    assert decode(Policy, encode(read("true")), "k") == read("true")
    with pytest.raises(ConfigError, match=r"metadata.annotations.plait.audit: .*is none of true, false"):
        read("yes please")


def test_what_an_agent_of_before_wrote_is_in_force() -> None:
    record = encode(read_policies(NETWORK).policies[0]).replace(b',"audit":false', b"")
    assert b"audit" not in record and not decode(Policy, record, "k").audit
