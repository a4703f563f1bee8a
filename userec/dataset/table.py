"""A user's own file as a data set: csv, tsv, parquet, or one sequence a line, any of them gzipped."""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from userec.config import Config
from userec.dataset import ids
from userec.dataset.contract import Dataset
from userec.errors import UserError, did_you_mean, unknown
from userec.schema import EVENT_FIELDS

Layout = Literal["csv", "tsv", "parquet", "lines", "user_lines"]

_EXTENSIONS: Mapping[str, Layout] = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".txt": "lines",
}
_UNREADABLE = (OSError, EOFError, ValueError, zlib.error, csv.Error, pa.ArrowException)
"""What a missing right, a cut archive or a file of another kind raises."""
LATEST = 10**11
"""Seconds in the year 5138; milliseconds since 1973 are above it."""


def parse_columns(text: str) -> dict[str, str]:
    """`user=user_id,item=item_id` -> {"user": "user_id", "item": "item_id"}."""
    columns: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, sign, column = (piece.strip() for piece in part.partition("="))
        if not (name and sign and column):
            raise UserError(f"--columns: {part!r} is not NAME=COLUMN, as in user=user_id,item=item_id,time=time")
        if name in columns:
            raise UserError(f"--columns: {name!r} is named twice")
        if "." in name:
            raise UserError(
                f"--columns: {name!r} is no field of an event; fields are {', '.join(EVENT_FIELDS)} or a name of your own"
            )
        columns[name] = column
    return columns


class TableDataset(Dataset):
    """One file of events; its name is the file's, without extensions.

    Without `columns` the file's own `user`, `item`, `time`, `session`, `action`, `rating` and `split` are read. `test` is a
    second file: its rows are the published test part; of `lines`, each is a new user's prefix and target."""

    name = "table"
    summary = "a file of your own: csv, tsv, parquet, or one sequence a line"

    class Config(Config):
        """Where the events lie and what their columns mean."""

        path: str
        columns: dict[str, str] = {}
        layout: Literal["auto", "csv", "tsv", "parquet", "lines", "user_lines"] = "auto"
        test: str | None = None

    config: TableDataset.Config

    def __init__(self, config: Config, home: Path = Path()) -> None:
        super().__init__(config, home)
        self.name = Path(self.config.path).name.split(".")[0]  # type: ignore[misc]

    def sources(self) -> list[Path]:
        """The file, and the test file where there is one."""
        return [Path(path) for path in (self.config.path, self.config.test) if path is not None]

    def events(self) -> pd.DataFrame:
        """The rows of both files. Raises UserError for every way in which they cannot be understood."""
        first, *second = self.sources()
        table = self._read(first, 0)
        if not second:
            return table
        test = self._read(second[0], len(table["user"].unique()))
        train = table if "split" in table else table.assign(split="train")
        return pd.concat([train, test.assign(split="test")], ignore_index=True)

    def _read(self, path: Path, users: int) -> pd.DataFrame:
        if not path.is_file():
            folder = f"{path} is a folder: name the file in it, or a data set that lies there and --data-dir"
            raise UserError(folder if path.is_dir() else f"no such file: {path}")
        layout = _layout(path) if self.config.layout == "auto" else self.config.layout
        if layout in ("lines", "user_lines") and self.config.columns:
            raise UserError(
                f"{path}: in layout {layout!r} a line holds one sequence, so --columns cannot name columns; "
                "where the file has a header, set dataset.layout=tsv"
            )
        try:
            if layout in ("lines", "user_lines"):
                return _sequences(_content(path).decode("utf-8-sig"), layout == "user_lines", users, path)
            table = self._columns(_content(path), layout, path)
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is not UTF-8 (byte {error.start + 1}: {error.reason}); save it as UTF-8") from None
        except _UNREADABLE as error:
            raise UserError(
                f"{path} cannot be read as {layout}: {str(error).splitlines()[0] if str(error) else 'it is cut short'}"
            ) from None
        if not len(table):
            raise UserError(f"{path} has no row")
        for name in ("user", "item"):
            missing = table[name].isna().to_numpy()
            if missing.any():
                raise UserError(f"{path}: no {name} in row {int(missing.argmax()) + 1} (column {self._mapped(table)[name]!r})")
        return table.assign(time=seconds(table["time"], str(path))) if "time" in table else table

    def _mapped(self, found: Any) -> dict[str, str]:
        """Field -> column of the file: as told, else by the standard names."""
        standard = {name: name for name in (*EVENT_FIELDS, "split") if name in found or name in ("user", "item")}
        told = self.config.columns
        return {**{name: column for name, column in standard.items() if column not in told.values()}, **told}

    def _columns(self, content: bytes, layout: str, path: Path) -> pd.DataFrame:
        if layout == "parquet":
            file = pa.parquet.ParquetFile(io.BytesIO(content))
            mapped = self._checked(file.schema_arrow.names, path)
            table = file.read(columns=list(dict.fromkeys(mapped.values())))
            columns = {name: table[column] for name, column in mapped.items()}
        else:
            delimiter, header = _header(content, path)
            mapped = self._checked(header, path)
            cells = _delimited(content, path, delimiter, header, [header.index(column) for column in mapped.values()])
            columns = {name: _typed(name, column) for name, column in zip(mapped, cells, strict=True)}
        # whole numbers beside missing ones stay whole, and no index is made of what pandas once wrote
        return pa.table(list(columns.values()), names=list(columns)).to_pandas(integer_object_nulls=True, ignore_metadata=True)

    def _checked(self, found: list[str], path: Path) -> dict[str, str]:
        mapped = self._mapped(found)
        for name, column in mapped.items():
            if column not in found:
                raise UserError(
                    f"{path}: no column {column!r} for {name!r} among {', '.join(found)}{did_you_mean(column, found)}\n"
                    f"name the columns with --columns user=COLUMN,item=COLUMN,time=COLUMN"
                )
            if found.count(column) > 1:
                raise UserError(f"{path}: the column {column!r} stands twice; rename one of the two")
        return mapped


def layout_of(path: Path) -> Layout | None:
    """The layout that a file's extension tells, `.gz` apart."""
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() != ".gz"]
    return _EXTENSIONS.get(suffixes[-1]) if suffixes else None


def _layout(path: Path) -> Layout:
    layout = layout_of(path)
    if layout is None:
        raise unknown("layout of", path.name, (*_EXTENSIONS, "or set dataset.layout"))
    return layout


def _content(path: Path) -> bytes:
    content = path.read_bytes()
    return gzip.decompress(content) if path.suffix.lower() == ".gz" else content


def _header(content: bytes, path: Path) -> tuple[str, list[str]]:
    """The delimiter that makes most cells of the first line that is not blank, and these cells."""
    rows = {}
    for delimiter in "\t,;|":
        text = io.TextIOWrapper(io.BytesIO(content), "utf-8-sig", newline="")
        rows[delimiter] = next(filter(None, csv.reader(text, delimiter=delimiter)), [])
    delimiter = max(rows, key=lambda sign: len(rows[sign]))
    if not rows[delimiter]:
        raise UserError(f"{path} is empty")
    return delimiter, rows[delimiter]


def _delimited(content: bytes, path: Path, delimiter: str, header: list[str], columns: list[int]) -> list[pa.ChunkedArray]:
    """The columns of these numbers as text; only an empty cell is missing. Raises UserError at a row longer or shorter."""
    names = [str(number) for number in range(len(header))]
    wanted = [str(number) for number in columns]
    try:
        table = pyarrow.csv.read_csv(
            io.BytesIO(content),
            pyarrow.csv.ReadOptions(column_names=names, skip_rows_after_names=1, block_size=1 << 24),
            pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=b'"' in content),
            pyarrow.csv.ConvertOptions(
                column_types=dict.fromkeys(wanted, pa.string()),
                include_columns=list(dict.fromkeys(wanted)),
                null_values=[""],
                strings_can_be_null=True,
            ),
        )
    except pa.ArrowInvalid:
        reader = csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""), delimiter=delimiter)
        ragged = next((row for row in reader if row and len(row) != len(header)), None)
        if ragged is None:
            raise
        raise UserError(
            f"{path}: line {reader.line_num} has {len(ragged)} cells, the header {len(header)}; "
            f"mend it, or quote a cell that holds {delimiter!r}"
        ) from None
    return [table[name] for name in wanted]


def _typed(name: str, texts: pa.ChunkedArray) -> pa.ChunkedArray:
    """A `rating` is a number, and a column of one's own that has a point; others are int64 where written so; else text."""
    if name != "rating":
        numbers = ids.parse(texts)
        decimal = name not in (*EVENT_FIELDS, "split") and pc.any(pc.match_substring(texts, ".")).as_py()
        if numbers.type == pa.int64() or not decimal:
            return numbers
    try:
        return texts.cast(pa.float64())
    except pa.ArrowInvalid:
        return texts


def _sequences(text: str, named: bool, users: int, path: Path) -> pd.DataFrame:
    """One sequence a line; without names a line's user is its number, counted on from `users`."""
    numbered = [(at, tokens) for at, line in enumerate(text.replace(",", " ").splitlines(), 1) if (tokens := line.split())]
    lines = [tokens for _, tokens in numbered]
    if not lines:
        raise UserError(f"{path} has no sequence")
    if named:
        short = next((at for at, tokens in numbered if len(tokens) < 2), None)
        if short is not None:
            raise UserError(f"{path}: line {short} names a user and no item")
        names = _coded([tokens[0] for tokens in lines])
        lines = [tokens[1:] for tokens in lines]
    else:
        names = np.arange(users + 1, users + len(lines) + 1)
    items = _coded([token for tokens in lines for token in tokens])
    return pd.DataFrame({"user": np.repeat(names, [len(tokens) for tokens in lines]), "item": items})


def _coded(tokens: list[str]) -> np.ndarray:
    return ids.parse(pa.chunked_array([tokens], pa.string())).to_numpy()


def seconds(column: pd.Series, where: str) -> pd.Series:
    """Whole or decimal seconds, dates, or ISO text -> int64 seconds. Raises UserError that names the row and the value."""
    whole = column.dtype.kind in "iu" and not column.isna().any()
    if whole:
        numbers = column
    elif column.dtype.kind == "M":
        numbers = pd.Series(np.nan, column.index)
    else:
        numbers = pd.to_numeric(column, errors="coerce").astype("float64")
    late = (numbers > LATEST) & (numbers < np.inf)
    if late.any():
        row = int(late.to_numpy().argmax())
        raise UserError(f"{where}: the time in row {row + 1}: {column.iloc[row]} looks like milliseconds; divide by 1000")
    if whole:
        return column.astype("int64")
    texts = column[numbers.isna()].dropna()
    dates = pd.to_datetime(texts, format="ISO8601", errors="coerce", utc=True).dropna()
    bad = numbers.isna() & ~column.index.isin(dates.index) | np.isinf(numbers)
    if bad.any():
        row = int(bad.to_numpy().argmax())
        raise UserError(
            f"{where}: no time in row {row + 1}: {column.iloc[row]!r}; a time is seconds or an ISO date (2024-05-01T12:00:00)"
        )
    result = pd.Series(np.floor(numbers.fillna(0)), column.index).astype("int64")
    result[dates.index] = dates.dt.as_unit("s").astype("int64")
    return result
