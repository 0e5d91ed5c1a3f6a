# SPDX-License-Identifier: Apache-2.0
"""`plait consul kv …`: read and write the key-value store with the options and the output of Consul's program.

Data in: keys, values (text, `@file`, `-` for standard input). Data out: values, tables, JSON; exit status 1 where a condition did not hold.
"""

from __future__ import annotations

import json
import sys
from base64 import b64decode, b64encode
from pathlib import Path

import click

from plait.cli.consul_common import GoGroup, failed, show, with_client
from plait.client.sync import Client
from plait.client.types import Entry

_LEAD = click.option("-cas", "cas", is_flag=True, help="Only if the entry still has the index of -modify-index.")
_INDEX = click.option("-modify-index", "modify_index", default=0, type=int, help="The index for -cas; 0: only if there is no entry.")


@click.group(cls=GoGroup)
def kv() -> None:
    """Read and write the key-value store."""


@kv.command("get")
@click.option("-recurse", "recurse", is_flag=True, help="All keys that begin with KEY.")
@click.option("-keys", "only_keys", is_flag=True, help="The keys that begin with KEY, without values.")
@click.option("-separator", "separator", default="/", help="With -keys: list up to the next one after KEY.")
@click.option("-detailed", "detailed", is_flag=True, help="With flags, indexes and lock.")
@click.option("-base64", "as_base64", is_flag=True, help="Print values in Base64.")
@click.argument("key", default="")
@with_client
def get(client: Client, key: str, recurse: bool, only_keys: bool, separator: str, detailed: bool, as_base64: bool) -> int:
    """Print the value of KEY."""
    key = key.removeprefix("/")
    if only_keys:
        show(client.kv.keys(key, separator=separator))
        return 0
    if recurse:
        found = client.kv.list(key)
        show(_details(found, as_base64) if detailed else [f"{entry.key}:{_value(entry, as_base64)}" for entry in found])
        return 0
    if not key:
        return failed("Error! Missing KEY argument")
    entry = client.kv.get(key)
    if entry is None:
        return failed(f"Error! No key exists at: {key}")
    show(_details((entry,), as_base64) if detailed else [_value(entry, as_base64)])
    return 0


@kv.command("put")
@_LEAD
@_INDEX
@click.option("-flags", "flags", default=0, type=click.IntRange(0), help="A number kept with the value.")
@click.option("-acquire", "acquire", is_flag=True, help="Take the key's lock for -session.")
@click.option("-release", "release", is_flag=True, help="Give the key's lock back for -session.")
@click.option("-session", "session", default="", help="The session for -acquire and -release.")
@click.option("-base64", "is_base64", is_flag=True, help="VALUE is Base64.")
@click.argument("key")
@click.argument("value", default="")
@with_client
def put(
    client: Client,
    key: str,
    value: str,
    cas: bool,
    modify_index: int,
    flags: int,
    acquire: bool,
    release: bool,
    session: str,
    is_base64: bool,
) -> int:
    """Write VALUE (or @FILE, or - for standard input) to KEY."""
    key = key.removeprefix("/")
    if (acquire or release) and not session:
        return failed("Error! Missing -session: it is needed with -acquire and -release")
    if cas + acquire + release > 1:
        return failed("Error! -cas, -acquire and -release exclude each other")
    data = _given(value)
    data = b64decode(data, validate=True) if is_base64 else data
    if acquire or release:
        done = (client.kv.acquire if acquire else client.kv.release)(key, data, session, flags=flags)
        word = "Lock acquired on" if acquire else "Lock released on"
        if not done:
            return failed(f"Error! Did not {'acquire' if acquire else 'release'} lock")
        click.echo(f"Success! {word}: {key}")
        return 0
    if not client.kv.put(key, data, flags=flags, cas=modify_index if cas else None):
        return failed(f"Error! Did not write to {key}: CAS failed")
    click.echo(f"Success! Data written to: {key}")
    return 0


@kv.command("delete")
@_LEAD
@_INDEX
@click.option("-recurse", "recurse", is_flag=True, help="All keys that begin with KEY.")
@click.argument("key")
@with_client
def delete(client: Client, key: str, cas: bool, modify_index: int, recurse: bool) -> int:
    """Delete KEY."""
    key = key.removeprefix("/")
    if recurse:
        if cas:
            return failed("Cannot specify both -cas and -recurse!")
        client.kv.delete_tree(key)
        click.echo(f"Success! Deleted keys with prefix: {key}")
        return 0
    if not client.kv.delete(key, cas=modify_index if cas else None):
        return failed(f"Error! Did not delete key {key}: CAS failed")
    click.echo(f"Success! Deleted key: {key}")
    return 0


@kv.command("export")
@click.argument("prefix", default="")
@with_client
def export(client: Client, prefix: str) -> None:
    """Print all keys that begin with PREFIX as JSON for `import`."""
    entries = client.kv.list(prefix.removeprefix("/"))
    rows = [{"key": entry.key, "flags": entry.flags, "value": b64encode(entry.value).decode()} for entry in entries]
    click.echo(json.dumps(rows, indent="\t", ensure_ascii=False))


@kv.command("import")
@click.option("-prefix", "prefix", default="", help="Put before each key.")
@click.argument("data", default="-")
@with_client
def import_(client: Client, prefix: str, data: str) -> int:
    """Write the keys of DATA (JSON of `export`, @FILE, or - for standard input). Nothing is written if DATA cannot be read."""
    try:
        rows = [(str(row["key"]), int(row.get("flags", 0)), b64decode(row["value"], validate=True)) for row in json.loads(_given(data))]
    except (ValueError, KeyError, TypeError) as error:
        return failed(f"Cannot unmarshal data: {error!r}")
    for key, flags, value in rows:
        client.kv.put(prefix + key, value, flags=flags)
        click.echo(f"Imported: {prefix}{key}")
    return 0


def _given(text: str) -> bytes:
    """The value that an argument stands for."""
    if text == "-":
        return sys.stdin.buffer.read()
    if text.startswith("@"):
        return Path(text[1:]).read_bytes()
    return text.encode(errors="surrogateescape")


def _value(entry: Entry, as_base64: bool) -> str:
    return b64encode(entry.value).decode() if as_base64 else entry.value.decode(errors="replace")


def _details(entries: tuple[Entry, ...], as_base64: bool) -> list[str]:
    lines: list[str] = []
    for entry in entries:
        rows = [
            ("CreateIndex", entry.create_index),
            ("Flags", entry.flags),
            ("Key", entry.key),
            ("LockIndex", entry.lock_index),
            ("ModifyIndex", entry.modify_index),
            ("Session", entry.session or "-"),
            ("Value", _value(entry, as_base64)),
        ]
        lines += [*([""] if lines else []), *(f"{name:<17}{value}" for name, value in rows)]
    return lines
