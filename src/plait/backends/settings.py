# SPDX-License-Identifier: Apache-2.0
"""The options that a network is made with -> what they mean. Pure.

Data in: texts, as people give them to `plait network create` or to an engine. Data out: checked values; a ConfigError names the option,
what is wrong with it and what is allowed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from plait.backends.base import MODELS, Backend
from plait.model.errors import ConfigError

OPTIONS = ("model", "backend")


def check_names(options: Mapping[str, str]) -> None:
    """ConfigError for an option that no network has."""
    for name in sorted(options.keys() - set(OPTIONS)):
        raise ConfigError("network option", name, "is not known", f"use one of {', '.join(OPTIONS)}")


def choose_backend(options: Mapping[str, str], backends: Iterable[Backend]) -> Backend:
    """The backend that `options` ask for: by its name, else the first of the model, else the first of all. `backends` in the order in which
    they are preferred. ConfigError for unknown names, and for a backend that does not keep what the model promises."""
    known = {backend.name: backend for backend in backends}
    model, name = options.get("model", ""), options.get("backend", "")
    if model and model not in MODELS:
        raise ConfigError("model", model, "is not known", f"use one of {', '.join(MODELS)}")
    if name and name not in known:
        raise ConfigError("backend", name, "is not known", f"use one of {', '.join(sorted(known))}")
    fitting = [backend for backend in known.values() if model in ("", backend.model)]
    if not name:
        return fitting[0]
    if known[name] not in fitting:
        promise = f"is of the model {known[name].model} and cannot promise what {model} does ({MODELS[model]})"
        raise ConfigError("backend", name, promise, f"use one of {', '.join(backend.name for backend in fitting)}, or leave the model out")
    return known[name]
