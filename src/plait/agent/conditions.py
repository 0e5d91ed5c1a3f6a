# SPDX-License-Identifier: Apache-2.0
"""Everything that can be wrong: one registry for `plait status` and `docs/health-codes.md` (generated)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning"]


@dataclass(frozen=True, slots=True)
class Condition:
    code: str
    severity: Severity
    title: str
    todo: str


REGISTRY: dict[str, Condition] = {
    c.code: c
    for c in (
        Condition(
            "store-unreachable",
            "error",
            "The shared store cannot be reached; running containers are not affected",
            "Check that the node that holds the store is up and that TCP port 7470 is open between it and this host, both ways; nothing "
            "is lost meanwhile. If both got other addresses: set node.store in /etc/plait/plait.toml to its new one, restart this agent.",
        ),
        Condition(
            "node-lost",
            "warning",
            "A node gives no sign of life",
            "Look at that host and its agent (`systemctl status plait`); if it is gone for good: `plait node rm NAME`.",
        ),
        Condition(
            "address-lost",
            "error",
            "This host has no address that others could send tunnel packets to",
            "Give a link of this host the address that is named, or correct node.address in /etc/plait/plait.toml and restart the agent.",
        ),
        Condition(
            "identity-in-use",
            "error",
            "Another host says that it is the same node, or carries the same store",
            "Find which one is the copy (`ip address` on both); there: `plait down --purge`, then `plait join`. The other keeps all.",
        ),
        Condition(
            "joining-undecided",
            "error",
            "This cluster was about to join another one, and it is not known whether that took it in; the store takes no writes meanwhile",
            "Let this host reach the other cluster's store (TCP 7470), which is asked all the time; containers are not affected.",
        ),
        Condition(
            "kernel-refused",
            "error",
            "The kernel refused an object that the plan needs",
            "See the error; `plait plan --diff` shows what is still to be done. It is tried again at every pass.",
        ),
        Condition(
            "kernel-lacks",
            "error",
            "The kernel lacks a feature that a network of the cluster needs",
            "Load the module or use a kernel that has it; docs/guide.md lists what each feature needs.",
        ),
        Condition(
            "limit-void",
            "warning",
            "A container's labels ask for a limit where nothing can hold it to one",
            "Start it on a network of plait's (`docker run --network`), or limit it by what its engine has; docs/limits.md says where "
            "limits hold.",
        ),
        Condition(
            "priority-unkept",
            "warning",
            "Priorities of containers are marked on this host and not kept",
            "Say uplink.rate in the configuration, or remove the other queueing discipline (`tc qdisc show`); docs/limits.md says more.",
        ),
        Condition(
            "network-unknown",
            "error",
            "A network of the cluster is of a kind that this version of plait does not know",
            "Bring this host to the version of the one that made the network; until then it has no containers of that network. Others are "
            "not affected.",
        ),
        Condition(
            "parent-missing",
            "error",
            "A network's containers are on a link that this host does not have",
            "Bring the link back under that name (`ip link`), or name another with `plait network set NAME -o parent=LINK`; the containers "
            "are put on it by themselves.",
        ),
        Condition(
            "lease-lost",
            "error",
            "A container has no address any more, because no DHCP server lets it have one",
            "Look at the server and its log, and at what passes on the link (`tcpdump -ni LINK port 67 or port 68`). It is asked again by "
            "itself; the container has an address again as soon as it gives one.",
        ),
        Condition(
            "lease-none",
            "error",
            "This host has no address of its own for a network that asks for one (`-o lease=LINK`)",
            "See what is said of the link and its DHCP server; until there is one, containers leave the host by its other address.",
        ),
        Condition(
            "lease-late",
            "warning",
            "No DHCP server prolongs the lease of a container's address",
            "Bring the server back, or another one of the link that knows its leases, before the time that is named.",
        ),
        Condition(
            "lease-moved",
            "warning",
            "A DHCP server gave a running container another address than its engine shows",
            "Restart the container, so that its engine knows; until then it works by the new address and by name.",
        ),
        Condition(
            "firewall-drops",
            "warning",
            "A firewall chain of another program drops forwarded packets",
            "Insert the two rules that are named there, in the place where that firewall keeps its own rules; plait does not touch it.",
        ),
        Condition(
            "ports-past-input",
            "warning",
            "Published ports are open to everybody, and a firewall of this host does not see that",
            "Say who may come: `ports.from` in /etc/plait/plait.toml, `plait publish --from`, the label plait.ports.from.",
        ),
        Condition(
            "spoofed-packets",
            "warning",
            "A container sends packets under addresses that are not its own; they are dropped",
            "See what runs there (`tcpdump -ni eth0` inside). A router, a VPN, or whoever takes over addresses of others is started with "
            "the label plait.spoofing=allow, or on a network with that option (`plait network set NAME -o spoofing=allow`). Where a link "
            "of the host is named, something on it uses the address of a container there with another MAC.",
        ),
        Condition(
            "policy-unenforced",
            "error",
            "A policy selects containers whose packets this host does not see",
            "On a bridge: `modprobe br_netfilter` and `sysctl net.bridge.bridge-nf-call-iptables=1` (bridge-nf-call-ip6tables for IPv6), "
            "kept in /etc/modules-load.d and /etc/sysctl.d. On a link of the host (macvlan, ipvlan, vlan): use a routed network instead.",
        ),
        Condition(
            "service-label-refused",
            "warning",
            "A container's label asks for a service that cannot be made",
            "Correct the labels plait.vip and plait.vip.ports of the container, or make the service by `plait service create`.",
        ),
        Condition(
            "engine-unreachable",
            "warning",
            "The container engine does not answer on its socket",
            "Start it (`systemctl start docker`), or set docker.enabled = false in /etc/plait/plait.toml if this host has none.",
        ),
        Condition(
            "engine-network",
            "warning",
            "A network could not be brought in line with the engine",
            "See the error; it is tried again whenever the networks or the engine change.",
        ),
        Condition(
            "cni-files",
            "warning",
            "The plug-in of CNI could not be installed",
            "See the error: make cni.bin_dir writable, or set another; or set cni.enabled = false in /etc/plait/plait.toml.",
        ),
        Condition(
            "cni-network",
            "warning",
            "A network could not be made known to the engines that use CNI",
            "See the error: rename the other configuration or the network, or make cni.config_dir writable.",
        ),
        Condition(
            "checks-late",
            "warning",
            "Health checks wait for their turn",
            "Many targets do not answer: see which are critical. Else raise checks.parallel, or run fewer checks or at longer intervals.",
        ),
        Condition(
            "catalog-conflict",
            "warning",
            "Somebody put a record of this node into the catalogue that its agent does not own",
            "If nobody needs it, PUT /v1/catalog/deregister takes it away; else register it with this agent. plait erases neither.",
        ),
        Condition(
            "service-refused",
            "warning",
            "A container names a service that cannot be registered",
            "Correct its labels or environment as the text says (docs/registration.md) and make it again.",
        ),
        Condition(
            "dns-bind",
            "error",
            "DNS cannot listen on an address",
            "Stop the program that holds the port, or move it; it is tried again by itself.",
        ),
        Condition(
            "dns-child",
            "error",
            "The DNS process ended and is being started again",
            "If it stays: see the agent's log.",
        ),
        Condition(
            "dns-forwards-refused",
            "warning",
            "DNS turns queries for other names away",
            "The resolvers in dns.upstreams are too slow (see `dig @RESOLVER`), or a program asks too much; else raise dns.upstream_limit.",
        ),
        Condition(
            "dns-client-limited",
            "warning",
            "DNS leaves queries of a client unanswered that asks too often",
            "See what runs there; let it keep answers (dns.service_ttl), or raise dns.client_rate.",
        ),
        Condition(
            "dns-late",
            "warning",
            "DNS drops queries that waited longer than clients do",
            "The host lacks CPU, or somebody asks too much (`plait.dns.…` of agent/metrics): dns.client_rate bounds each client.",
        ),
        Condition(
            "dns-unheeded",
            "warning",
            "Answers of DNS go out before policies by domain names know their addresses",
            "The host lacks CPU, or the agent was restarted; a client that is refused asks again. See docs/policy.md, Domain names.",
        ),
        Condition(
            "routing-refused",
            "error",
            "/etc/plait/routing.toml is wrong; the routing of before stays in force",
            "Correct what is named; the file is read again by itself.",
        ),
        Condition(
            "routing-daemon",
            "error",
            "BIRD, which speaks with routers for this host, does not run as it should",
            "See what it says, and /run/plait/bird.log. It is tried again every second; routes that were learned stay meanwhile.",
        ),
        Condition(
            "routing-down",
            "error",
            "A router that /etc/plait/routing.toml names exchanges no routes with this host",
            "Look at the router and the link to it; AS numbers, area, timers and password must be the same on both sides.",
        ),
        Condition(
            "routing-wrong",
            "warning",
            "A router announces what is not its own: addresses of plait or of this host, or a default route; it is refused",
            "Find who announces it (`plait routing --refused` shows the origin), and filter it there. A default route is taken if `import` "
            "names it.",
        ),
        Condition(
            "routing-network",
            "warning",
            "A network that /etc/plait/routing.toml names takes no part in routing",
            "Correct its name, or take it out of the file: internal and encrypted networks stay inside.",
        ),
        Condition(
            "egress-lost",
            "error",
            "Containers do not get out: no gateway of their egress rule is reached",
            "Bring one of the hosts that are named back, or name others with `plait egress set`. Nothing leaves by another way.",
        ),
        Condition(
            "egress-address",
            "error",
            "This host is a gateway under an address that it does not have",
            "Give one of its links that address, or name another with `plait egress set NAME --via NODE=ADDRESS`.",
        ),
        Condition(
            "pool-exhausted",
            "warning",
            "A pool has no block left for this node",
            "`plait ipam` shows who holds what; remove containers or make a larger network.",
        ),
        Condition(
            "block-lost",
            "warning",
            "Containers have addresses of a block that another node holds now",
            "Remove and start these containers again, for addresses of this node, which was taken for gone (`plait node rm`).",
        ),
        Condition(
            "path-detour",
            "warning",
            "A node is reached by another path than its networks want",
            "See `plait paths`; most often a firewall drops the tunnel's UDP port between the two hosts. It is taken back by itself.",
        ),
        Condition(
            "path-lost",
            "error",
            "Containers do not reach those of a living node",
            "See `plait paths`; let the tunnel's UDP port pass between the two hosts, or ICMP echo if only that is dropped.",
        ),
        Condition(
            "tunnel-silent",
            "error",
            "Nothing comes back through an encrypted tunnel; nothing passes in clear instead",
            "Let UDP 7472 pass both ways; see `plait status` on the node that is named too, and restart its agent: it sets its key anew.",
        ),
        Condition(
            "clear-traffic",
            "warning",
            "Packets of an encrypted network came from or would have gone to somewhere else than its tunnel, and were dropped",
            "`nft list chain inet plait raw` (`clear_out`) counts them, tcpdump shows who sends: somebody forges or misroutes.",
        ),
        Condition(
            "checksums-broken",
            "warning",
            "Checksums of what goes through a tunnel come out wrong",
            "They are computed in software now, which costs throughput. See to the card's driver; with another kernel it is tried anew.",
        ),
        Condition(
            "pool-overlaps",
            "warning",
            "A host uses addresses of a network for something else",
            "Remove the route or Docker network that is named, or make the network with another --subnet; until then some addresses lead "
            "elsewhere on that host.",
        ),
        Condition(
            "ranges-refused",
            "error",
            "/etc/plait/ranges.toml is wrong; the ranges of before stay in force",
            "Correct the line that is named; the file is read again by itself.",
        ),
        Condition(
            "ranges-differ",
            "warning",
            "Another host's ranges.toml says something else than this one's",
            "Put the same /etc/plait/ranges.toml on every host; until then each keeps to its own.",
        ),
        Condition(
            "ranges-misplaced",
            "warning",
            "A range of ranges.toml lies outside its network",
            "Correct the network or the addresses in /etc/plait/ranges.toml; nobody gets an address of that part.",
        ),
        Condition(
            "neighbours-full",
            "error",
            "The kernel's table of neighbours is full: new connections of containers and of the host fail at random",
            "`sysctl -w net.ipv4.neigh.default.gc_thresh3=8192 net.ipv4.neigh.default.gc_thresh2=4096` on the host (net.ipv6 for IPv6), "
            "and the same in /etc/sysctl.d. All namespaces of the machine share the table; `ip neigh` in each shows who fills it.",
        ),
        Condition(
            "neighbours-scarce",
            "warning",
            "The kernel's table of neighbours is nearly full",
            "Raise net.ipv4.neigh.default.gc_thresh3 (net.ipv6 for IPv6) on the host before connections fail.",
        ),
        Condition(
            "mtu-too-small",
            "warning",
            "The underlay's MTU leaves less than 1280 bytes inside",
            "Raise the MTU of the link that carries the node's address.",
        ),
    )
}
