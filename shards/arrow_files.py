"""Arrow files whose bytes may be anybody's: no value is looked at before each is known to lie within the file."""

from __future__ import annotations

from typing import Any

import pyarrow as pa


def read_arrow(data: Any) -> pa.Table:
    """The table in the buffer `data` of an Arrow IPC file, without a copy.

    Raises `ValueError` if it is damaged: offsets that lead elsewhere, text that is not UTF-8, sizes beyond the file.
    That a number is another one than was written nothing here tells; a hash does.
    """
    try:
        table = pa.ipc.open_file(pa.py_buffer(data)).read_all()
        table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ValueError(f"is no sound Arrow file: {' '.join(str(error).split())}") from None
    return table


def refuse_other_columns(table: pa.Table | pa.RecordBatch, wanted: pa.Schema) -> None:
    """Raise `ValueError` unless the table has the columns `wanted`, of their types and without nulls where they are not
    nullable.
    """
    for field in wanted:
        found = table.schema.get_all_field_indices(field.name)
        kind = "missing" if not found else "there twice" if len(found) > 1 else table.schema.field(found[0]).type
        if kind != field.type:
            raise ValueError(f"has a column {field.name} that is {kind}, it should be {field.type}")
        if not field.nullable and table.column(found[0]).null_count:
            raise ValueError(f"has nulls in {field.name}")
