"""Files of one sequence a line: whole numbers with blanks between them, plain or gzipped, read without a loop over lines."""

from __future__ import annotations

import gzip
import io
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyarrow import csv

from userec.errors import UserError

LARGEST: Final = 2**63 - 1
UNREADABLE: Final = (OSError, EOFError, zlib.error)
"""What a missing right or a cut or foreign gzip file raises."""


@dataclass(frozen=True)
class Lines:
    """N lines that are not blank; those of line n are `ids[offsets[n]:offsets[n + 1]]`."""

    offsets: NDArray[np.int64]  # [N + 1]
    ids: NDArray[np.int64]  # [sum of lengths]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Ids a line: [N]."""
        return np.diff(self.offsets)


def find(home: Path, name: str, folders: tuple[str, ...]) -> Path | None:
    """The file of that name in `home` or one of its `folders`, plain or with `.gz`; None where there is none."""
    paths = (home / folder / f"{name}{suffix}" for folder in folders for suffix in ("", ".gz"))
    return next((path for path in paths if path.is_file()), None)


def read_lines(path: Path, *, least: int, holds: str) -> Lines:
    """All lines of the file, each of at least `least` ids; `holds` says in an error what a line must hold.

    Raises UserError with the line of the first row that holds anything else."""
    lengths, ids = [np.zeros(1, np.int64)], [np.zeros(0, np.int64)]
    options = csv.ReadOptions(column_names=["row"], block_size=1 << 24)
    plain = csv.ParseOptions(delimiter="\x01", quote_char=False)
    text = csv.ConvertOptions(column_types={"row": pa.string()}, strings_can_be_null=False)
    try:
        with pa.input_stream(str(path)) as stream:
            for batch in csv.open_csv(stream, options, plain, text):
                rows = pc.ascii_trim_whitespace(batch.column(0))
                cells = pc.ascii_split_whitespace(rows.filter(pc.not_equal(rows, "")))
                words = cells.flatten()
                if not pc.all(pc.ascii_is_decimal(words)).as_py():
                    raise pa.ArrowInvalid("a word that is no whole number")
                lengths.append(pc.list_value_length(cells).to_numpy(zero_copy_only=False).astype(np.int64))
                ids.append(words.cast(pa.int64()).to_numpy(zero_copy_only=False))
        if sum(map(len, lengths)) == 1 or min(int(part.min(initial=least)) for part in lengths[1:]) < least:
            raise pa.ArrowInvalid("no lines, or a short one")
    except pa.ArrowInvalid as error:
        raise _fault(path, least, holds, error) from None
    except UNREADABLE as error:
        raise _unreadable(path, error) from None
    return Lines(np.cumsum(np.concatenate(lengths)), np.concatenate(ids))


def _fault(path: Path, least: int, holds: str, error: Exception) -> UserError:
    """The error for the first bad line: slow and plain, for it runs once and only then."""
    empty = True
    try:
        with _bytes(path) as kept, io.TextIOWrapper(kept, "utf-8-sig", errors="replace") as lines:
            for number, line in enumerate(lines, start=1):
                words = line.split()
                empty = empty and not words
                complaint = _complaint(words, least)
                if complaint:
                    return UserError(f"{path}, line {number}: {complaint}; a line holds {holds}")
    except UNREADABLE as cut:
        return _unreadable(path, cut)
    if empty:
        return UserError(f"{path} has no line; a line holds {holds}")
    return UserError(f"{path}: cannot be read as lines of ids ({str(error).splitlines()[0]})")


def _bytes(path: Path) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(path)) if path.suffix == ".gz" else path.open("rb")


def _complaint(words: list[str], least: int) -> str | None:
    """What is wrong with a line, None where it is sound or blank."""
    if not words:
        return None
    for word in words:
        if not (word.isascii() and word.isdecimal()):
            return f"{word!r} is not a whole number"
        if len(word) > 30 or int(word) > LARGEST:
            return f"the id {word} is above {LARGEST}"
    return f"{len(words)} ids, expected at least {least}" if len(words) < least else None


def _unreadable(path: Path, error: Exception) -> UserError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error) or "it is cut short"
    return UserError(f"{path} cannot be read: {reason}")
