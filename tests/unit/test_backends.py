# SPDX-License-Identifier: Apache-2.0
"""What the options of a network mean, and what is refused with which words."""

from __future__ import annotations

import pytest

from plait.backends import BACKENDS, MODELS, check_names, choose_backend
from plait.model.errors import ConfigError


@pytest.mark.parametrize(
    ("options", "chosen"),
    [
        ({}, "vxlan"),
        ({"model": "overlay"}, "vxlan"),
        ({"model": "sandbox"}, "none"),
        ({"model": "hybrid"}, "hybrid"),
        ({"model": "hybrid", "backend": "direct"}, "direct"),
        ({"backend": "none"}, "none"),
        ({"model": "overlay", "backend": "vxlan"}, "vxlan"),
    ],
)
def test_a_model_has_a_backend_and_a_backend_a_model(options: dict[str, str], chosen: str) -> None:
    assert choose_backend(options, BACKENDS.values()).name == chosen


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"model": "mesh"}, "'mesh' is not known; use one of sandbox, overlay, hybrid"),
        ({"backend": "ipsec"}, "backend: 'ipsec' is not known; use one of .*none, vxlan"),
        ({"model": "overlay", "backend": "none"}, r"is of the model sandbox and cannot promise what overlay does .*use one of vxlan"),
        ({"model": "sandbox", "backend": "vxlan"}, r"of the model overlay and cannot promise what sandbox does .isolated containers"),
    ],
)
def test_wrong_pairs_are_refused_with_words(options: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        choose_backend(options, BACKENDS.values())


def test_an_option_that_no_network_has_is_refused() -> None:
    check_names({"model": "overlay", "backend": "vxlan"})
    with pytest.raises(ConfigError, match="'bakend' is not known; use one of model, backend"):
        check_names({"bakend": "vxlan"})


def test_every_backend_keeps_one_of_the_models() -> None:
    assert {backend.model for backend in BACKENDS.values()} <= MODELS.keys()
