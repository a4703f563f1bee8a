"""External ids: whole numbers where they are written as such, text everywhere else, so that two spellings never meet."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from userec.errors import UserError

_INT64 = np.iinfo(np.int64)
_EXACT = 2.0**53
"""From here on a float stands for several whole numbers."""


def parse(texts: pa.ChunkedArray) -> pa.ChunkedArray:
    """int64 where every text is what its number is written as (`7`, not `007`, `+7` or `1e3`), else the texts unchanged."""
    try:
        texts.slice(0, 1000).cast(pa.int64())  # a cast that fails goes through every row: let it fail on few
        numbers = texts.cast(pa.int64())
    except pa.ArrowInvalid:
        return texts
    # what the cast takes and would not write itself: 007, 0x1f, -0
    odd = pc.or_(pc.starts_with(texts, "-0"), pc.and_(pc.starts_with(texts, "0"), pc.greater(pc.binary_length(texts), 1)))
    return texts if pc.any(odd).as_py() else numbers


def external(column: pd.Series) -> np.ndarray:
    """The external ids of a column without missing values: int64, or object holding str.

    Raises UserError where floats are too large to tell one id from the next."""
    if column.dtype.kind in "iu" and (not len(column) or int(column.max()) <= _INT64.max):
        return column.to_numpy(np.int64)
    if column.dtype.kind == "f" and (column % 1 == 0).all():  # whole numbers that a missing neighbour made floats
        large = column[column.abs() >= _EXACT]
        if len(large):
            raise UserError(
                f"column {str(column.name)!r} holds {large.iloc[0]} as a float, which may stand for several ids; "
                "save it as whole numbers or text"
            )
        return column.to_numpy(np.float64).astype(np.int64)
    values = column.to_numpy(dtype=object)
    kind = pd.api.types.infer_dtype(values, skipna=False)
    if kind == "integer" and _INT64.min <= values.min() and values.max() <= _INT64.max:
        return values.astype(np.int64)
    return values if kind == "string" else column.astype(str).to_numpy(dtype=object)
