"""Amazon Beauty as S3-Rec publishes it (Zhou et al. 2020): users and items with five reviews at least, in order, no times.

`Beauty.txt` holds one user a line, `user item item ...`; `Beauty_item2attributes.json` maps an item to a list of numbered
attributes, its finer categories and its brand in one numbering. Other Beauty sets of the literature (BERT4Rec's has 54,542
items) are cut otherwise: their values do not compare."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from userec.dataset.contract import Dataset, Source
from userec.errors import UserError
from userec.schema import Field
from userec_datasets import sample
from userec_datasets.lines import LARGEST, UNREADABLE, find, read_lines

EVENTS: Final = "Beauty.txt"
ATTRIBUTES: Final = "Beauty_item2attributes.json"
FOLDERS: Final = ("", "s3rec_beauty/")
"""Where they may lie in a data folder."""

SAMPLE: Final = {"follow": 0.6, "breadth": 0.06, "zipf": 1.0}
"""How the sample's users buy, see `sample.world`."""


class Beauty(Dataset):
    """Who reviewed what, in order; items with `item.attributes`, where their file is here."""

    name = "beauty"
    fields = {"item.attributes": Field("item.attributes", many=True)}
    default_split = "leave_last"
    files = tuple(f"{folder}{EVENTS}{suffix}" for folder in FOLDERS for suffix in ("", ".gz"))
    source = Source(
        "https://raw.githubusercontent.com/RUCAIBox/CIKM2020-S3Rec/master/data/Beauty.txt",
        EVENTS,
        terms="research use; cite McAuley et al. 2015 (SIGIR) and Zhou et al. 2020 (CIKM)",
    )
    summary = "Amazon Beauty, S3-Rec's: 198,502 reviews of 12,101 items by 22,363 users, in order, with attributes"

    def sources(self) -> list[Path]:
        """The sequences, and the attributes where they are here."""
        return [path for name in (EVENTS, ATTRIBUTES) if (path := find(self.home, name, FOLDERS)) is not None]

    def events(self) -> pd.DataFrame:
        """`user`, `item`, in order."""
        path = find(self.home, EVENTS, FOLDERS)
        if path is None:
            raise UserError(f"data set 'beauty': {EVENTS} is not in {self.home}")
        lines = read_lines(path, least=2, holds="a user and his items")
        first = lines.offsets[:-1]
        users, counts = np.unique(lines.ids[first], return_counts=True)
        if (counts > 1).any():
            raise UserError(f"{path}: user {users[counts.argmax()]} stands on {counts.max()} lines; a user has one")
        return pd.DataFrame({"user": np.repeat(lines.ids[first], lines.lengths - 1), "item": np.delete(lines.ids, first)})

    def items(self) -> pd.DataFrame | None:
        """`item.attributes`: numbers, several an item."""
        path = find(self.home, ATTRIBUTES, FOLDERS)
        return None if path is None else read_attributes(path)

    def notes(self) -> list[str]:
        """Whether the attributes are absent."""
        if find(self.home, ATTRIBUTES, FOLDERS) is not None:
            return []
        return [f"items have no attributes, for want of {ATTRIBUTES}, which lies beside {EVENTS} at its publisher's"]

    @classmethod
    def write_sample(cls, home: Path) -> bool:
        """1,000 made-up users with 20 to 100 of 500 items, each of a category and a brand; writes both files to `home`."""
        rng = np.random.default_rng(20200819)
        drawn = sample.world(rng, users=1000, items=500, clusters=25, length=(20, 100), **SAMPLE)
        name = 1 + rng.permutation(drawn.items)
        brand = 26 + rng.integers(60, size=drawn.items)
        bounds = np.searchsorted(drawn.user, np.arange(1, drawn.users))
        lines = [
            " ".join(map(str, [user, *items.tolist()])) for user, items in enumerate(np.split(name[drawn.item], bounds), start=1)
        ]
        attributes = {str(name[item]): [1 + int(drawn.cluster[item]), int(brand[item])] for item in np.argsort(name)}
        home.mkdir(parents=True, exist_ok=True)
        (home / EVENTS).write_text("\n".join(lines) + "\n", encoding="ascii", newline="\n")
        (home / ATTRIBUTES).write_text(json.dumps(attributes) + "\n", encoding="ascii", newline="\n")
        return True


def read_attributes(path: Path) -> pd.DataFrame:
    """`item` and `item.attributes`. Raises UserError where the file is not a mapping of items to lists of numbers."""
    try:
        content = path.read_bytes()
        found = json.loads(gzip.decompress(content) if path.suffix == ".gz" else content)
    except UNREADABLE as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} holds a {type(found).__name__}, expected a mapping of items to lists of attributes")
    for item, values in found.items():
        if not (item.isascii() and item.isdecimal() and len(item) <= 30 and int(item) <= LARGEST and _numbers(values)):
            expected = f"expected an item's number up to {LARGEST} and a list of such numbers"
            raise UserError(f"{path}: {item[:30]!r} has {json.dumps(values)[:60]}, {expected}")
    return pd.DataFrame({"item": np.fromiter(map(int, found), np.int64, len(found)), "item.attributes": list(found.values())})


def _numbers(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and abs(value) <= LARGEST for value in values)
