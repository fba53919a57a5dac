"""Conditions on columns: `COLUMN OP VALUE`, such as `similarity >= 0.3` or `NSFW == UNLIKELY`."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from shards.errors import UserError

_FORM = re.compile(r"\s*(?P<column>[^=!<>]*[^=!<>\s])\s*(?P<op>==|!=|<=|>=|<|>)\s*(?P<value>.*?)\s*", re.DOTALL)
_COMPARE = {
    "==": pc.equal,
    "!=": pc.not_equal,
    "<": pc.less,
    "<=": pc.less_equal,
    ">": pc.greater,
    ">=": pc.greater_equal,
}
_NUMBER = r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?"


@dataclass(frozen=True)
class Condition:
    """`value` is compared as a number if it is one and not quoted, else as text or what the column's type makes of it.

    Null, NaN, and text that is no number where the value is one, never meet a condition.
    """

    text: str
    column: str
    op: str
    value: str
    quoted: bool

    @classmethod
    def parse(cls, text: str) -> Condition:
        """Raises `UserError` for anything that has not the form of a condition."""
        match = _FORM.fullmatch(text)
        value = match["value"] if match else ""
        if match is None or not value:
            raise UserError(
                f"condition {text!r} is not understood",
                do="Write COLUMN OP VALUE with one of == != < <= > >=, such as 'similarity >= 0.3'",
            )
        quoted = len(value) >= 2 and value[0] == value[-1] and value[0] in "'\""
        return cls(text, match["column"], match["op"], value[1:-1] if quoted else value, quoted)

    def met_by(self, values: pa.ChunkedArray) -> pa.ChunkedArray:
        """Whether each value meets the condition, never null. Raises `UserError` if the two cannot be compared."""
        try:
            met = _COMPARE[self.op](*self._alike(values))
        except (pa.ArrowException, KeyError) as error:
            raise UserError(
                f"condition {self.text!r} cannot be put to a column of type {values.type} ({error})",
                do="Compare it with a value of its type",
            ) from None
        assert len(met) == len(values)
        return pc.fill_null(met, False)

    def _alike(self, values: pa.ChunkedArray) -> tuple[pa.ChunkedArray, pa.Scalar]:
        kind = values.type
        if pa.types.is_dictionary(kind):
            values, kind = values.cast(kind.value_type), kind.value_type
        is_number = not self.quoted and re.fullmatch(_NUMBER, self.value) is not None
        if is_number and _is_text(kind):
            trimmed = pc.utf8_trim_whitespace(values)
            numeric = pc.match_substring_regex(trimmed, f"^{_NUMBER}$")
            return pc.if_else(numeric, trimmed, pa.scalar(None, kind)).cast(pa.float64()), self._number()
        if pa.types.is_floating(kind):
            known = pc.if_else(pc.is_nan(values), pa.scalar(None, kind), values)
            return known.cast(pa.float64()), pa.scalar(self.value).cast(pa.float64())
        if is_number and pa.types.is_integer(kind):
            number = self._number()
            return values if pa.types.is_integer(number.type) else values.cast(pa.float64(), safe=False), number
        if pa.types.is_boolean(kind) or pa.types.is_null(kind):
            return values.cast(pa.string()), pa.scalar(self.value)
        return values, pa.scalar(self.value).cast(kind)

    def _number(self) -> pa.Scalar:
        try:
            return pa.scalar(int(self.value), pa.int64())
        except (ValueError, OverflowError):
            return pa.scalar(float(self.value))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))
