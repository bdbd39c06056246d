"""What the command prints: tables for people, JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

import click
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp


def emit_json(value: object) -> None:
    click.echo(json.dumps(value, indent=2))


def as_dict(message: Message) -> dict[str, object]:
    """Fields by their proto names, bytes in hexadecimal."""
    value = MessageToDict(message, preserving_proto_field_name=True)
    for descriptor, content in message.ListFields():
        if descriptor.type == descriptor.TYPE_BYTES and isinstance(content, bytes):
            value[descriptor.name] = content.hex()
    return value


def emit_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Columns as wide as their content."""
    table = [list(headings), *(list(row) for row in rows)]
    widths = [max(len(row[column]) for row in table) for column in range(len(headings))]
    for row in table:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def emit_fields(fields: Sequence[tuple[str, str]]) -> None:
    """One ``name  value`` line each; empty values are left out."""
    width = max(len(name) for name, _ in fields)
    for name, value in fields:
        if value:
            click.echo(f"{name.ljust(width)}  {value}")


def time(stamp: Timestamp) -> str:
    """UTC, to the second; empty where the time is not set."""
    return stamp.ToDatetime().strftime("%Y-%m-%d %H:%M:%SZ") if stamp.seconds else ""


def clock(stamp: Timestamp) -> str:
    """The time of day, to the millisecond."""
    return stamp.ToDatetime().strftime("%H:%M:%S.%f")[:-3] if stamp.seconds else ""
