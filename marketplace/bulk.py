"""Much at once, as PostgreSQL takes it fastest: many new rows by COPY, which costs a third of the
same rows as INSERT, and long bytes as they are."""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from functools import partial
from itertools import islice
from operator import attrgetter
from typing import Any, Final
from uuid import UUID

import psycopg
from django.db import connection
from django.db.models import Field, ForeignKey, IntegerField, JSONField, Model, UUIDField
from django.db.models.expressions import RawSQL


def ids(keys: Iterable[UUID]) -> str:
    """Thousands of ids as one parameter, for `= ANY(%s::uuid[])` and `unnest(%s::uuid[])`: adapted
    one by one they cost more than the statement."""
    return "{" + ",".join([key.hex for key in keys]) + "}"


def among(keys: Iterable[UUID]) -> RawSQL:
    """These ids as a set that a query asks for: `pk__in=bulk.among(…)`."""
    return RawSQL("SELECT unnest(%s::uuid[])", [ids(keys)])


def numbers(values: Iterable[int]) -> str:
    """The same for numbers: `%s::bigint[]`."""
    return "{" + ",".join(map(str, values)) + "}"


def write(model: type[Model], each: Mapping[str, Sequence[Any]], alike: Mapping[str, Any]) -> None:
    """Writes new rows without making instances of them: `each` has a value for every row, `alike`
    one for all; by the columns' names (`job_id`). What neither has is the field's default.

    In the caller's transaction. Columns of a row are of the field's type or None; keys that the
    database counts up are left to it. Raises IntegrityError.
    """
    meta, quote = model._meta, connection.ops.quote_name
    fields = {
        field.attname: field
        for field in meta.concrete_fields
        if not (field.primary_key and field.attname not in each)
    }
    if unknown := (each.keys() | alike.keys()) - fields.keys():
        raise TypeError(f"{model.__name__} has no column {', '.join(sorted(unknown))}")
    rest = [name for name in fields if name not in each]
    shared = [_text(alike[n] if n in alike else fields[n].get_default(), fields[n]) for n in rest]
    suffix = "".join(f"\t{text}" for text in shared) + "\n"
    columns = [map(_writer(fields[name]), values) for name, values in each.items()]
    listed = ", ".join(quote(fields[name].column or name) for name in (*each, *rest))
    with (
        connection.wrap_database_errors,
        connection.cursor() as cursor,
        cursor.copy(f"COPY {quote(meta.db_table)} ({listed}) FROM STDIN") as copy,
    ):
        for some in _batches(zip(*columns, strict=True)):
            copy.write("".join(["\t".join(row) + suffix for row in some]))


def write_bytes(row: Model, name: str, body: bytes) -> None:
    """Sets a binary column of a row that is there, in the caller's transaction.

    Django's own cursor spells bytes out as text: of megabytes that takes four times as long.
    """
    quote = connection.ops.quote_name
    columns = {field.attname: quote(field.column or field.attname)
               for field in row._meta.concrete_fields}  # fmt: skip
    key = next(field.attname for field in row._meta.concrete_fields if field.primary_key)
    told = f"UPDATE {quote(row._meta.db_table)} SET {columns[name]} = %b WHERE {columns[key]} = %b"  # noqa: S608
    with connection.wrap_database_errors, psycopg.Cursor(connection.connection) as cursor:
        cursor.execute(told, [body, row.pk])
    setattr(row, name, body)


def _batches(rows: Iterable[tuple[str, ...]]) -> Iterable[Sequence[tuple[str, ...]]]:
    """So many at a time that PostgreSQL takes in the first while we write the next."""
    iterator = iter(rows)
    while some := list(islice(iterator, _AT_ONCE)):
        yield some


def _writer(field: "Field[Any, Any]") -> Callable[[Any], str]:
    """How a value of the field stands in COPY's text format."""
    kind = field.target_field if isinstance(field, ForeignKey) else field
    if isinstance(kind, UUIDField) and not field.null:
        return _HEX
    if isinstance(kind, IntegerField) and not field.null:
        return str
    return partial(_text, field=field)


def _text(value: Any, field: "Field[Any, Any]") -> str:
    if value is None:
        return "\\N"
    if isinstance(field, JSONField):
        value = json.dumps(value, cls=field.encoder)
    if isinstance(value, bytes):
        return f"\\\\x{value.hex()}"
    if isinstance(value, datetime):
        return value.isoformat()
    text = str(value)
    return text.translate(_ESCAPED) if _SPECIAL.search(text) else text


_HEX: Final = attrgetter("hex")
_AT_ONCE: Final = 500
_SPECIAL: Final = re.compile(r"[\\\t\n\r]")
_ESCAPED: Final = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})
