# SPDX-License-Identifier: Apache-2.0
from plait.kernel.linux.foreign import dropping_chains, foreign_drops
from plait.kernel.linux.nft import NftError

LISTING = """table inet plait {
	chain forward {
		type filter hook forward priority filter; policy drop;
	}
}
table ip filter {
	chain FORWARD {
		type filter hook forward priority filter; policy drop;
	}
	chain DOCKER-USER {
	}
}
table inet ufw {
	chain input {
		type filter hook input priority filter; policy drop;
	}
	chain fwd {
		type filter hook forward priority filter + 5; policy drop;
	}
	chain open {
		type filter hook forward priority filter; policy accept;
	}
}
"""


class Canned:
    def __init__(self, texts: dict[str, str]) -> None:
        self.texts = texts

    def run(self, script: str, handles: bool = False) -> str:
        if script not in self.texts:
            raise NftError("no such chain")
        return self.texts[script]


def test_foreign_forward_chains_with_policy_drop_are_found() -> None:
    assert dropping_chains(LISTING) == ["ip filter FORWARD", "inet ufw fwd"]


def test_a_chain_with_dockers_hook_or_a_rule_for_our_links_is_no_trouble() -> None:
    texts = {"list chains\n": LISTING, "list chain ip filter FORWARD\n": "counter jump DOCKER-USER", "list chain inet ufw fwd\n": ""}
    assert list(foreign_drops(Canned(texts))) == ["inet ufw fwd"]
    assert foreign_drops(Canned({**texts, "list chain inet ufw fwd\n": 'oifname "pl-*" accept'})) == {}


def test_what_cannot_be_read_is_not_guessed() -> None:
    assert foreign_drops(Canned({})) == {}
