"""A user's own file as a data set: csv, tsv, parquet, or one sequence a line, any of them gzipped."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet

from userec.config import Config
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
_UNREADABLE = (OSError, EOFError, zlib.error, UnicodeDecodeError, pa.ArrowException, pd.errors.ParserError)
"""What a missing right, a cut archive or a file of another kind raises."""


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
        layout = _layout(path) if self.config.layout == "auto" else self.config.layout
        if not path.is_file():
            raise UserError(f"no such file: {path}" if not path.exists() else f"{path} is not a file")
        try:
            if layout in ("lines", "user_lines"):
                return _sequences(_content(path).decode("utf-8"), layout == "user_lines", users, path)
            table = self._columns(_content(path), layout, path)
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
            table = file.read(columns=list(dict.fromkeys(mapped.values()))).to_pandas()
        else:
            header = content.partition(b"\n")[0].decode("utf-8-sig").strip("\r")
            if not header:
                raise UserError(f"{path} is empty")
            delimiter = max("\t,;|", key=header.count)
            mapped = self._checked([name.strip('"') for name in header.split(delimiter)], path)
            table = _delimited(content, delimiter, list(dict.fromkeys(mapped.values())))
        return pd.DataFrame({name: table[column] for name, column in mapped.items()})

    def _checked(self, found: list[str], path: Path) -> dict[str, str]:
        mapped = self._mapped(found)
        for name, column in mapped.items():
            if column not in found:
                raise UserError(
                    f"{path}: no column {column!r} for {name!r} among {', '.join(found)}{did_you_mean(column, found)}\n"
                    f"name the columns with --columns user=COLUMN,item=COLUMN,time=COLUMN"
                )
        return mapped


def _layout(path: Path) -> Layout:
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() != ".gz"]
    if suffixes and suffixes[-1] in _EXTENSIONS:
        return _EXTENSIONS[suffixes[-1]]
    raise unknown("layout of", path.name, (*_EXTENSIONS, "or set dataset.layout"))


def _content(path: Path) -> bytes:
    content = path.read_bytes()
    return gzip.decompress(content) if path.suffix.lower() == ".gz" else content


def _delimited(content: bytes, delimiter: str, columns: list[str]) -> pd.DataFrame:
    """The columns, by pyarrow; by pandas' own parser where a column changes its type on the way."""
    try:
        return pd.read_csv(io.BytesIO(content), sep=delimiter, usecols=columns, engine="pyarrow")
    except (pa.ArrowException, pd.errors.ParserError):
        return pd.read_csv(io.BytesIO(content), sep=delimiter, usecols=columns, low_memory=False)


def _sequences(text: str, named: bool, users: int, path: Path) -> pd.DataFrame:
    """One sequence a line; without names a line's user is its number, counted on from `users`."""
    lines = [tokens for line in text.replace(",", " ").splitlines() if (tokens := line.split())]
    if not lines:
        raise UserError(f"{path} has no sequence")
    if named:
        short = next((number for number, tokens in enumerate(lines, 1) if len(tokens) < 2), None)
        if short is not None:
            raise UserError(f"{path}: line {short} names a user and no item")
        names = _numbers([tokens[0] for tokens in lines])
        lines = [tokens[1:] for tokens in lines]
    else:
        names = np.arange(users + 1, users + len(lines) + 1)
    items = _numbers([token for tokens in lines for token in tokens])
    return pd.DataFrame({"user": np.repeat(names, [len(tokens) for tokens in lines]), "item": items})


def _numbers(tokens: list[str]) -> np.ndarray:
    """int64 where every token is made of digits, else text."""
    letters = "".join(tokens)
    if letters.isascii() and letters.isdigit() and max(map(len, tokens)) < 19:  # 19 digits may exceed int64
        return np.array(list(map(int, tokens)), dtype=np.int64)
    return np.array(tokens, dtype=object)


def seconds(column: pd.Series, where: str) -> pd.Series:
    """Whole or decimal seconds, dates, or ISO text -> int64 seconds. Raises UserError that names the row and the value."""
    if column.dtype.kind in "iu":
        return column.astype("int64")
    numbers = (
        pd.Series(np.nan, column.index) if column.dtype.kind == "M" else pd.to_numeric(column, errors="coerce").astype("float64")
    )
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
