# SPDX-License-Identifier: Apache-2.0
"""Who reaches whom: an ICMP echo from every sandbox of every host to every address, of either family."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from plait.lab.lab import Lab

# In: names of sandboxes of this host, and addresses. Out: of each name the addresses that did not answer within five tries.
_ASK = r"""
import ctypes, json, os, select, socket, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
names, targets = json.load(sys.stdin)
def checksum(data):
    total = sum(struct.unpack(f'!{len(data) // 2}H', data))
    total = (total >> 16) + (total & 0xffff)
    return ~(total + (total >> 16)) & 0xffff
def ask(name):
    fd = os.open(os.path.join('/run/plait/netns', name), os.O_RDONLY)
    if libc.setns(fd, 0x40000000): raise OSError(ctypes.get_errno(), name)
    four, six = [t for t in targets if ':' not in t], [t for t in targets if ':' in t]
    return asked(four, socket.AF_INET, socket.IPPROTO_ICMP, 8) + asked(six, socket.AF_INET6, socket.IPPROTO_ICMPV6, 128)
def asked(targets, family, protocol, request):
    if not targets: return []
    sock = socket.socket(family, socket.SOCK_RAW, protocol)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    ident, missing = os.getpid() & 0xffff, set(targets)
    for attempt in range(5):
        for target in sorted(missing):
            body = struct.pack('!BBHHH', request, 0, 0, ident, attempt) + b'plait matrix'
            try: sock.sendto(body[:2] + struct.pack('!H', checksum(body)) + body[4:], (target, 0))
            except OSError: pass
            take(sock, ident, missing, 0)
        while missing and take(sock, ident, missing, 1): pass
        if not missing: break
    return sorted(missing)
def take(sock, ident, missing, wait_s):
    found = False
    while select.select([sock], [], [], 0 if found else wait_s)[0]:
        data, source = sock.recvfrom(2048)
        at, found = (data[0] & 15) * 4 if sock.family == socket.AF_INET else 0, True
        if data[at] in (0, 129) and struct.unpack('!H', data[at + 4:at + 6])[0] == ident: missing.discard(source[0])
    return found
def begin(name):
    back, out = os.pipe()
    pid = os.fork()
    if not pid:
        try: os.write(out, json.dumps(ask(name)).encode())
        finally: os._exit(0)
    os.close(out)
    return name, pid, back
result = {}
for at in range(0, len(names), 10):
    for name, pid, back in [begin(name) for name in names[at:at + 10]]:
        with open(back) as told: text = told.read()
        os.waitpid(pid, 0)
        result[name] = json.loads(text) if text else ['no answer of the child']
print(json.dumps(result))
"""


def unreached(lab: Lab, sandboxes: Mapping[str, Sequence[str]], addresses: Sequence[str]) -> list[str]:
    """Pairs without an answer, as "host/sandbox -> address". `sandboxes` by host: names, or paths of namespaces. Empty is all well. Ten
    sandboxes of a host ask at once: one that gets no answer takes ten seconds."""

    def of(host: str) -> list[str]:
        given = json.dumps([list(sandboxes[host]), list(addresses)])
        told = json.loads(lab.run(host, sys.executable, "-c", _ASK, text=given, timeout_s=300).stdout)
        return [f"{host}/{name} -> {address}" for name, missing in told.items() for address in missing]

    with ThreadPoolExecutor(2) as pool:
        return [pair for pairs in pool.map(of, sandboxes) for pair in pairs]
