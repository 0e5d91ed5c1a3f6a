# SPDX-License-Identifier: Apache-2.0
"""Consul's filter expressions: a text -> a predicate over the JSON-able values of the views.

Data in: an expression such as `Service.Port == 80 and "v1" in Service.Tags`. Data out: whether a value fits, or BadRequest that says
what is wrong. Source: the public grammar of go-bexpr. A list in the middle of a selector fits if one of its elements does. The expressions
of `matches` are RE2's, so their time is bounded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from plait.services.patterns import BadPattern, compile_pattern
from plait.services.requests import BadRequest

Predicate = Callable[[object], bool]
_FAILED = "Failed to create boolean expression evaluator"
_TOKEN = re.compile(
    r'\s*(?:(?P<quoted>"(?:[^"\\]|\\.)*"|`[^`]*`)|(?P<number>-?\d+(?:\.\d+)?(?![\w.]))|(?P<word>[A-Za-z_][\w/-]*)|(?P<sign>==|!=|[(){},.\[\]]))'
)
_MAX_LENGTH, _MAX_DEPTH, _MAX_EACH = 4096, 64, 2
"""`_MAX_EACH`: how many `any`/`all` may stand inside each other; each multiplies the work of one value."""
_OPERATORS = frozenset({"in", "not", "is", "contains", "matches"})
_MAPS = frozenset({"Meta", "NodeMeta", "ServiceMeta", "TaggedAddresses", "ServiceTaggedAddresses", "Header", "Definition"})
"""Objects with keys of their own choice: a key that is absent is no mistake there."""
_ABSENT = object()


class _Token(NamedTuple):
    kind: str
    text: str


_EACH = (_Token("word", "any"), _Token("word", "all"))


def compile_filter(text: str) -> Predicate:
    """The predicate of an expression. BadRequest if it is none; so does the predicate for selectors that its value does not have."""
    if len(text) > _MAX_LENGTH:
        raise BadRequest(f"{_FAILED}: the expression is longer than {_MAX_LENGTH} characters")
    parser = _Parser(list(_tokens(text)))
    predicate = parser.either(0)
    parser.end()
    return predicate


def filtered(value: object, predicate: Predicate) -> object:
    """A list without the elements that do not fit, or a map without such values."""
    if isinstance(value, Mapping):
        return {key: entry for key, entry in value.items() if predicate(entry)}
    return [entry for entry in value if predicate(entry)] if isinstance(value, list) else value


def _tokens(text: str) -> Iterator[_Token]:
    position, end = 0, len(text.rstrip())
    while position < end:
        match = _TOKEN.match(text, position)
        if match is None or match.lastgroup is None:
            raise BadRequest(f"{_FAILED}: unexpected {text[position:].strip()[:20]!r}")
        yield _Token(match.lastgroup, match.group(match.lastgroup))
        position = match.end()


class _Parser:
    def __init__(self, tokens: list[_Token]) -> None:
        self._tokens, self._at, self._each = tokens, 0, 0

    # --- or, and, not, parentheses

    def either(self, depth: int) -> Predicate:
        if depth > _MAX_DEPTH:
            raise BadRequest(f"{_FAILED}: more than {_MAX_DEPTH} levels")
        parts = [self._both(depth)]
        while self._take("word", "or"):
            parts.append(self._both(depth))
        return parts[0] if len(parts) == 1 else lambda value: any(part(value) for part in parts)

    def _both(self, depth: int) -> Predicate:
        parts = [self._single(depth)]
        while self._take("word", "and"):
            parts.append(self._single(depth))
        return parts[0] if len(parts) == 1 else lambda value: all(part(value) for part in parts)

    def _single(self, depth: int) -> Predicate:
        if depth > _MAX_DEPTH:
            raise BadRequest(f"{_FAILED}: more than {_MAX_DEPTH} levels")
        if self._take("word", "not"):
            inner = self._single(depth + 1)
            return lambda value: not inner(value)
        if self._take("sign", "("):
            inner = self.either(depth + 1)
            self._need(")")
            return inner
        ahead = self._tokens[self._at : self._at + 2]
        if len(ahead) == 2 and ahead[0] in _EACH and ahead[1].kind in ("word", "quoted") and ahead[1].text not in _OPERATORS:
            return self._quantified(depth)
        return self._match()

    def _quantified(self, depth: int) -> Predicate:
        """`any|all selector as name { … }`, or `as key, value { … }` with the number of a list's element as its key; `_` names nothing."""
        every = self._next().text == "all"
        selector = self._selector()
        if not self._take("word", "as"):
            raise BadRequest(f'{_FAILED}: expected "as" after any or all and its selector, got {self._peek().text!r}')
        names = [self._name()]
        if self._take("sign", ","):
            names.append(self._name())
        if self._each == _MAX_EACH:
            raise BadRequest(f"{_FAILED}: more than {_MAX_EACH} of any and all inside each other")
        self._each += 1
        self._need("{")
        inner = self.either(depth + 1)
        self._need("}")
        self._each -= 1
        return _quantifier(selector, tuple(names), inner, every)

    def _name(self) -> str:
        token = self._next()
        if token.kind != "word":
            raise BadRequest(f"{_FAILED}: {token.text!r} is no name")
        return token.text

    # --- one comparison

    def _match(self) -> Predicate:
        start = self._at
        first = self._next()
        if first.kind == "word" or first.text.startswith('"/'):
            self._at = start
            selector = self._selector()
            following = self._peek()
            if following.text not in ("in", "not") or len(selector) > 1 or not self._membership():
                return self._comparison(selector)
        self._at = start
        wanted = self._value()
        negated = self._take("word", "not")
        self._need("in")
        return _negated(_contains(self._selector(), wanted), negated)

    def _membership(self) -> bool:
        """Whether `in` or `not in` follows."""
        ahead = [token.text for token in self._tokens[self._at : self._at + 2]]
        return ahead[:1] == ["in"] or ahead == ["not", "in"]

    def _comparison(self, selector: tuple[str, ...]) -> Predicate:
        word = self._next().text
        if word in ("==", "!="):
            return _negated(_equals(selector, self._value()), word == "!=")
        if word == "is":
            negated = self._take("word", "not")
            what = self._next().text
            if what in ("empty", "nil"):
                return _negated(_empty(selector, nil=what == "nil"), negated)
            raise BadRequest(f'{_FAILED}: expected "empty" or "nil" after "is", got {what!r}')
        negated = word == "not"
        if negated:
            word = self._next().text
        if word == "contains":
            return _negated(_contains(selector, self._value()), negated)
        if word == "matches":
            return _negated(_matches(selector, self._value()), negated)
        raise BadRequest(f"{_FAILED}: {word!r} is no operator")

    def _selector(self) -> tuple[str, ...]:
        first = self._next()
        if first.kind == "quoted" and first.text.startswith('"/'):
            return tuple(part.replace("~1", "/").replace("~0", "~") for part in _unquoted(first.text)[1:].split("/"))
        if first.kind != "word":
            raise BadRequest(f"{_FAILED}: {first.text!r} is no selector")
        parts = [first.text]
        while True:
            if self._take("sign", "."):
                parts.append(self._next().text)
            elif self._take("sign", "["):
                parts.append(_unquoted(self._next().text))
                self._need("]")
            else:
                return tuple(parts)

    def _value(self) -> str:
        token = self._next()
        if token.kind == "sign":
            raise BadRequest(f"{_FAILED}: expected a value, got {token.text!r}")
        return _unquoted(token.text)

    # --- tokens

    def end(self) -> None:
        if self._at < len(self._tokens):
            raise BadRequest(f"{_FAILED}: unexpected {self._tokens[self._at].text!r}")

    def _peek(self) -> _Token:
        return self._tokens[self._at] if self._at < len(self._tokens) else _Token("end", "")

    def _next(self) -> _Token:
        token = self._peek()
        if token.kind == "end":
            raise BadRequest(f"{_FAILED}: the expression ends too early")
        self._at += 1
        return token

    def _take(self, kind: str, text: str) -> bool:
        found = self._peek() == (kind, text)
        self._at += found
        return found

    def _need(self, text: str) -> None:
        if (token := self._next()).text != text:
            raise BadRequest(f"{_FAILED}: expected {text!r}, got {token.text!r}")


def _unquoted(text: str) -> str:
    if text.startswith("`"):
        return text[1:-1]
    return re.sub(r"\\(.)", r"\1", text[1:-1]) if text.startswith('"') else text


def _negated(predicate: Predicate, negated: bool) -> Predicate:
    return (lambda value: not predicate(value)) if negated else predicate


def _found(value: object, selector: tuple[str, ...]) -> Iterator[object]:
    """What the selector leads to: one value, or one for each element of a list on its way; `_ABSENT` for a key that a map does not have."""
    if not selector:
        yield value
    elif isinstance(value, list):
        for entry in value:
            yield from _found(entry, selector)
    elif isinstance(value, Mapping) and selector[0] in value:
        inner, rest = value[selector[0]], selector[1:]
        if rest and selector[0] in _MAPS and isinstance(inner, Mapping) and rest[0] not in inner:
            yield _ABSENT
        else:
            yield from _found(inner, rest)
    else:
        raise BadRequest(f'{_FAILED}: Selector "{selector[0]}" is not valid')


def _quantifier(selector: tuple[str, ...], names: tuple[str, ...], inner: Predicate, every: bool) -> Predicate:
    def fits(value: object) -> bool:
        outer = value if isinstance(value, Mapping) else {}
        results = (
            inner({**outer, **{name: part for name, part in zip(names, bound, strict=False) if name != "_"}})
            for found in _found(value, selector)
            for bound in _bindings(found, len(names))
        )
        return all(results) if every else any(results)

    return fits


def _bindings(found: object, count: int) -> list[tuple[object, ...]]:
    """What the names stand for, one tuple an element: one name is a list's element or a map's key, two are key and value."""
    if found is None or found is _ABSENT:
        return []
    if isinstance(found, list):
        return [(element,) if count == 1 else (number, element) for number, element in enumerate(found)]
    if isinstance(found, Mapping):
        return list(found.items())
    raise BadRequest(f"{_FAILED}: any and all apply to lists and maps only")


def _equals(selector: tuple[str, ...], wanted: str) -> Predicate:
    return lambda value: any(_same(found, wanted) for found in _found(value, selector))


def _same(found: object, wanted: str) -> bool:
    if isinstance(found, bool):
        return wanted.lower() in (("1", "t", "true") if found else ("0", "f", "false"))
    if isinstance(found, int | float):
        try:
            return float(wanted) == found
        except ValueError:
            raise BadRequest(f"{_FAILED}: {wanted!r} is no number") from None
    if isinstance(found, list | Mapping):
        raise BadRequest(f"{_FAILED}: == and != do not apply to lists and maps; use in, contains or is empty")
    return found == wanted


def _contains(selector: tuple[str, ...], wanted: str) -> Predicate:
    def fits(value: object) -> bool:
        for found in _found(value, selector):
            if isinstance(found, bool | int | float):
                raise BadRequest(f"{_FAILED}: in and contains do not apply to numbers")
            if isinstance(found, str | list | Mapping) and wanted in found:
                return True
        return False

    return fits


def _matches(selector: tuple[str, ...], wanted: str) -> Predicate:
    try:
        pattern = compile_pattern(wanted)
    except BadPattern as error:
        raise BadRequest(f"{_FAILED}: bad regular expression {wanted!r}: {error}") from error

    def fits(value: object) -> bool:
        for found in _found(value, selector):
            if found is not None and found is not _ABSENT and not isinstance(found, str):
                raise BadRequest(f"{_FAILED}: matches applies to texts only")
            if isinstance(found, str) and pattern.matches(found):
                return True
        return False

    return fits


def _empty(selector: tuple[str, ...], nil: bool) -> Predicate:
    def fits(value: object) -> bool:
        return all(found is None or found is _ABSENT or (not nil and found in ("", [], {})) for found in _found(value, selector))

    return fits
