"""MovieLens 100K, 1M and 25M (Harper and Konstan 2015), read straight from GroupLens's archive or from its unpacked folder.

Gender, age and occupation are fields of the profile and, in the same spaces, label tasks: an objective or evaluator that
predicts one hides the field. The rating of a film is a task too: what is known then is every rating strictly before it. Times
are the seconds GroupLens prints; many neighbouring ratings share one, and the order of rows in the file settles those. Genres
are a field of the item with several values."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
import pandas as pd
from pyarrow import csv

from userec.dataset.contract import Dataset, Source
from userec.dataset.download import DAMAGE
from userec.errors import UserError
from userec.schema import NEXT, Field, Task
from userec_datasets import sample

TERMS: Final = "research use; cite Harper and Konstan 2015; no redistribution without permission"
GENRES: Final = {"item.genres": Field("item.genres", many=True), "item.year": Field("item.year", "number")}
PROFILE: Final = {name: Field(name) for name in ("profile.age", "profile.gender", "profile.occupation")}
RATING: Final = {"rating": Field("rating", "number")}
STARS: Final = Task("rating", "rating", "item")
TASKS: Final = (
    (NEXT,),
    (Task("age", "label", "profile.age"),),
    (Task("gender", "label", "profile.gender"),),
    (Task("occupation", "label", "profile.occupation"),),
    (STARS,),
)
AGES: Final = np.array([1, 18, 25, 35, 45, 50, 56])
"""The lower bounds of MovieLens-1M's age groups, which are its codes; MovieLens-100K's ages in years are put into the same."""


def _paths(name: str, events: str) -> tuple[str, ...]:
    return f"{name}.zip", f"{name}/{events}", events


def _source(name: str, md5: str) -> Source:
    # The md5 is the one GroupLens prints in the `.md5` file beside each archive.
    return Source(f"https://files.grouplens.org/datasets/movielens/{name}.zip", f"{name}.zip", md5=md5, terms=TERMS)


class MovieLens1M(Dataset):
    """A million ratings of 6,040 users: `ratings.dat`, `users.dat`, `movies.dat`, separated by `::`, in latin-1."""

    name = "movielens-1m"
    fields = {**RATING, **PROFILE, **GENRES}
    tasks = TASKS
    files = _paths("ml-1m", "ratings.dat")
    source = _source("ml-1m", "c4d9eecfca2ab87c1945afe126590906")
    summary = "MovieLens-1M: 1,000,209 ratings of 3,706 films by 6,040 users, with age, gender and occupation"

    def events(self) -> pd.DataFrame:
        """`user`, `item`, `rating` 1..5, `time`."""
        return self._log

    @cached_property
    def _log(self) -> pd.DataFrame:  # read once: the task `rating` asks for it too
        return _ratings(self._table("ratings.dat", ["user", "item", "rating", "time"]))

    def users(self) -> pd.DataFrame:
        """`profile.gender` F or M, `profile.age` (the lower bound of the group), `profile.occupation` 0..20."""
        table = self._table("users.dat", ["user", "profile.gender", "profile.age", "profile.occupation", "zip"], text=["zip"])
        return table[["user", *PROFILE]]

    def items(self) -> pd.DataFrame:
        """`item.genres` and `item.year`, out of the title's parentheses."""
        return _films(self._table("movies.dat", ["item", "title", "genres"], text=["title", "genres"]))

    def labels(self, task: str) -> pd.DataFrame | None:
        """The user's own field as `id`; for `rating` the events themselves."""
        return _labels(self, task)

    def sources(self) -> list[Path]:
        """The archive, or the unpacked files."""
        return _sources(self.home, "ml-1m", ["ratings.dat", "users.dat", "movies.dat"])

    def _table(self, file: str, names: list[str], text: Sequence[str] = ()) -> pd.DataFrame:
        with _open(self.home, "ml-1m", file) as stream:
            return _read(stream.read().replace(b"::", b"\x01"), file, "\x01", names, text, encoding="latin-1")

    @classmethod
    def write_sample(cls, home: Path) -> bool:
        """1,000 made-up users and 500 films, a year long; writes `ml-1m/*.dat` to `home`."""
        made = sample.films(np.random.default_rng(20240301), AGES.tolist(), list(range(21)))
        genres = ["|".join(row) for row in made.genres]
        _write(home / "ml-1m/ratings.dat", "::", [made.user, made.item, made.rating, made.time], "latin-1")
        _write(home / "ml-1m/users.dat", "::", [made.users, made.gender, made.age, made.occupation, made.zip_code], "latin-1")
        _write(home / "ml-1m/movies.dat", "::", [made.items, made.title, genres], "latin-1")
        return True


class MovieLens100K(Dataset):
    """A hundred thousand ratings of 943 users: `u.data` (tabs), `u.user`, `u.item` and `u.genre` (`|`, latin-1)."""

    name = "movielens-100k"
    fields = {**RATING, **PROFILE, **GENRES}
    tasks = TASKS
    files = _paths("ml-100k", "u.data")
    source = _source("ml-100k", "0e33842e24a9c977be4e0107933c0723")
    summary = "MovieLens-100K: 100,000 ratings of 1,682 films by 943 users, with age, gender and occupation"

    def events(self) -> pd.DataFrame:
        """`user`, `item`, `rating` 1..5, `time`."""
        return self._log

    @cached_property
    def _log(self) -> pd.DataFrame:  # read once: the task `rating` asks for it too
        return _ratings(self._table("u.data", "\t", ["user", "item", "rating", "time"]))

    def users(self) -> pd.DataFrame:
        """`profile.age` as MovieLens-1M's group, `profile.gender` F or M, `profile.occupation` by name."""
        names = ["user", "profile.age", "profile.gender", "profile.occupation", "zip"]
        table = self._table("u.user", "|", names, text=["zip"])
        table["profile.age"] = AGES[np.searchsorted(AGES, table["profile.age"].clip(lower=1), side="right") - 1]
        return table[["user", *PROFILE]]

    def items(self) -> pd.DataFrame:
        """`item.genres` by name (the flags of `u.item`, in the order of `u.genre`) and `item.year`, of the release date."""
        genres = self._table("u.genre", "|", ["genre", "number"], text=["genre"])["genre"].tolist()
        names = ["item", "title", "released", "video", "address", *genres]
        table = self._table("u.item", "|", names, text=["title", "released", "video", "address"])
        item, genre = np.nonzero(table[genres].to_numpy() == 1)
        lists = np.split(np.array(genres, dtype=object)[genre], np.searchsorted(item, np.arange(1, len(table))))
        year = pd.to_numeric(table["released"].str[-4:], errors="coerce").astype("float32")
        return pd.DataFrame({"item": table["item"], "item.genres": [list(row) for row in lists], "item.year": year})

    def labels(self, task: str) -> pd.DataFrame | None:
        """The user's own field as `id`; for `rating` the events themselves."""
        return _labels(self, task)

    def sources(self) -> list[Path]:
        """The archive, or the unpacked files."""
        return _sources(self.home, "ml-100k", ["u.data", "u.user", "u.item", "u.genre"])

    def _table(self, file: str, separator: str, names: list[str], text: Sequence[str] = ()) -> pd.DataFrame:
        with _open(self.home, "ml-100k", file) as stream:
            return _read(stream.read(), file, separator, names, text, encoding="latin-1")

    @classmethod
    def write_sample(cls, home: Path) -> bool:
        """1,000 made-up users and 500 films, a year long; writes `ml-100k/u.*` to `home`."""
        made = sample.films(np.random.default_rng(20240302), list(range(14, 70)), list(sample.OCCUPATIONS))
        genres = ["unknown", *sample.GENRES]
        flags = [[int(genre in row) for row in made.genres] for genre in genres]
        released = [f"01-Jan-{title[-5:-1]}" for title in made.title]
        nothing = [""] * len(made.items)
        _write(home / "ml-100k/u.data", "\t", [made.user, made.item, made.rating, made.time], "latin-1")
        _write(home / "ml-100k/u.user", "|", [made.users, made.age, made.gender, made.occupation, made.zip_code], "latin-1")
        _write(home / "ml-100k/u.item", "|", [made.items, made.title, released, nothing, nothing, *flags], "latin-1")
        _write(home / "ml-100k/u.genre", "|", [genres, range(len(genres))], "latin-1")
        return True


class MovieLens25M(Dataset):
    """Twenty-five million ratings of 162,541 users: `ratings.csv` and `movies.csv`, with a header, in UTF-8; no profiles."""

    name = "movielens-25m"
    fields = {**RATING, **GENRES}
    tasks = ((NEXT,), (STARS,))
    files = _paths("ml-25m", "ratings.csv")
    source = _source("ml-25m", "6b51fb2759a8657d3bfcbfc42b592ada")
    summary = "MovieLens-25M: 25,000,095 ratings of 62,423 films by 162,541 users"

    def events(self) -> pd.DataFrame:
        """`user`, `item`, `rating` 0.5..5, `time`."""
        return self._log

    @cached_property
    def _log(self) -> pd.DataFrame:  # read once: the task `rating` asks for it too
        return _ratings(self._table("ratings.csv", ["user", "item", "rating", "time"]))

    def items(self) -> pd.DataFrame:
        """`item.genres` and `item.year`, out of the title's parentheses."""
        return _films(self._table("movies.csv", ["item", "title", "genres"], text=["title", "genres"]))

    def labels(self, task: str) -> pd.DataFrame | None:
        """For `rating` the events themselves."""
        return _labels(self, task)

    def sources(self) -> list[Path]:
        """The archive, or the unpacked files."""
        return _sources(self.home, "ml-25m", ["ratings.csv", "movies.csv"])

    def _table(self, file: str, names: list[str], text: Sequence[str] = ()) -> pd.DataFrame:
        with _open(self.home, "ml-25m", file) as stream:
            return _read(stream, file, ",", names, text, header=True)

    @classmethod
    def write_sample(cls, home: Path) -> bool:
        """1,000 made-up users and 500 films, a year long; writes `ml-25m/*.csv` to `home`."""
        made = sample.films(np.random.default_rng(20240303), AGES.tolist(), list(range(21)))
        ratings = [["userId", *made.user], ["movieId", *made.item], ["rating", *(made.rating - 0.5)], ["timestamp", *made.time]]
        genres = ["|".join(row) for row in made.genres]
        _write(home / "ml-25m/ratings.csv", ",", ratings, "utf-8")
        _write(home / "ml-25m/movies.csv", ",", [["movieId", *made.items], ["title", *made.title], ["genres", *genres]], "utf-8")
        return True


@contextmanager
def _open(home: Path, name: str, file: str) -> Iterator[IO[bytes]]:
    """One member of the archive, or the unpacked file. Raises UserError where it is absent or cannot be read."""
    archive, member = home / f"{name}.zip", f"{name}/{file}"
    path = archive if archive.is_file() else _unpacked(home, name, file)
    if not path.is_file():
        raise UserError(f"{path} is absent; the data set is {name}.zip, or the folder that it unpacks to, with all its files")
    try:
        if path != archive:
            with path.open("rb") as stream:
                yield stream
            return
        with zipfile.ZipFile(archive) as members:
            if member not in members.namelist():
                raise UserError(f"{archive} has no member {member}: it is not GroupLens's archive")
            with members.open(member) as stream:
                yield stream
    except DAMAGE as error:
        raise UserError(f"{path} cannot be unpacked ({error}); delete it and fetch it again") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None


def _unpacked(home: Path, name: str, file: str) -> Path:
    return home / name / file if (home / name).is_dir() else home / file


def _sources(home: Path, name: str, files: Sequence[str]) -> list[Path]:
    archive = home / f"{name}.zip"
    return [archive] if archive.is_file() else [_unpacked(home, name, file) for file in files]


def _read(
    source: bytes | IO[bytes],
    file: str,
    separator: str,
    names: list[str],
    text: Sequence[str] = (),
    *,
    encoding: str = "utf-8",
    header: bool = False,
) -> pd.DataFrame:
    """The columns of a separated file, by `names`; those of `text` stay strings. Raises UserError where it does not parse."""
    import pyarrow as pa

    try:
        table = csv.read_csv(
            io.BytesIO(source) if isinstance(source, bytes) else source,
            csv.ReadOptions(column_names=names, skip_rows=int(header), encoding=encoding),
            csv.ParseOptions(delimiter=separator, quote_char='"' if header else False),
            csv.ConvertOptions(column_types={name: pa.string() for name in text}, strings_can_be_null=False),
        )
    except pa.ArrowInvalid as error:
        raise UserError(f"{file}: {str(error).splitlines()[0]}; expected the columns {', '.join(names)}") from None
    return table.to_pandas()


def _ratings(table: pd.DataFrame) -> pd.DataFrame:
    odd = [name for name in ("user", "item", "rating", "time") if table[name].dtype.kind not in "if"]
    if odd:
        raise UserError(f"ratings: the column {odd[0]!r} has cells that are not numbers")
    for name in ("user", "item", "rating", "time"):
        missing = table[name].isna().to_numpy()
        if missing.any():
            raise UserError(f"ratings: no {name} in row {int(missing.argmax()) + 1}")
    return table.astype({"rating": "float32", "time": "int64"})


def _films(table: pd.DataFrame) -> pd.DataFrame:
    """Genres split at `|` (GroupLens's word for none becomes an empty list) and the year at the end of the title."""
    genres = table["genres"].replace("(no genres listed)", "").str.split("|")
    year = pd.to_numeric(table["title"].str.extract(r"\((\d{4})\)\s*$", expand=False), errors="coerce").astype("float32")
    lists = [[genre for genre in row if genre] for row in genres]
    return pd.DataFrame({"item": table["item"], "item.genres": lists, "item.year": year})


def _labels(data: Dataset, task: str) -> pd.DataFrame | None:
    """The ratings themselves with `value`, or the user's own field, as `id`."""
    if task == STARS.name:
        return data.events()[["user", "item", "rating", "time"]].rename(columns={"item": "id", "rating": "value"})
    users, field = data.users(), f"profile.{task}"
    return users[["user", field]].rename(columns={field: "id"}) if users is not None and field in users else None


def _write(path: Path, separator: str, columns: Sequence[Sequence[Any]], encoding: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [separator.join(map(str, row)) for row in zip(*columns, strict=True)]
    path.write_text("\n".join(lines) + "\n", encoding=encoding, newline="\n")
