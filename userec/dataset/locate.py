"""Where a named data set lies: the folder that was named, else the user's cache, else its generated sample."""

from __future__ import annotations

import hashlib
import inspect
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from userec.errors import UserError

if TYPE_CHECKING:  # the registry reads `cache_folder` here and stays free of pandas
    from userec.dataset.contract import Dataset


def home_of(
    dataset: type[Dataset], data_dir: Path | None, environ: Mapping[str, str], *, force_sample: bool = False
) -> tuple[Path, bool]:
    """The folder of the data set's files, and whether they are its sample.

    A folder that was named, by `data_dir` or USEREC_DATA, must hold the data set: it is never replaced by the sample.
    Raises UserError that names the folder and the expected file."""
    if force_sample:
        home = sample_home(dataset, environ)
        if home is None:
            raise UserError(f"data set {dataset.name!r} has no sample; name {dataset.name!r} and a folder with --data-dir")
        return home, True
    named, by = named_folder(data_dir, environ)
    if named is not None:
        if not named.is_dir():
            raise UserError(f"the data folder {named} ({by}) {'is not a folder' if named.exists() else 'does not exist'}")
        return dataset.locate(named), False
    folder = data_folder(None, environ)
    try:
        return dataset.locate(folder), False
    except UserError:
        home = sample_home(dataset, environ)
        if home is None:
            raise
        return home, True


def named_folder(data_dir: Path | None, environ: Mapping[str, str]) -> tuple[Path | None, str]:
    """The data folder the user named, and what named it."""
    if data_dir is not None:
        return data_dir, "--data-dir"
    return (Path(environ["USEREC_DATA"]).expanduser(), "USEREC_DATA") if environ.get("USEREC_DATA") else (None, "")


def data_folder(data_dir: Path | None, environ: Mapping[str, str]) -> Path:
    """The folder that data sets are looked for in and fetched to; it may not exist yet."""
    named, _ = named_folder(data_dir, environ)
    return named if named is not None else cache_folder(environ) / "data"


def sample_home(dataset: type[Dataset], environ: Mapping[str, str]) -> Path | None:
    """The folder of the generated sample, written on first use; None where the data set ships none.

    It is keyed by the code that writes it, so that a new generator never finds an old sample."""
    home = cache_folder(environ) / "samples" / f"{dataset.name}-{_code_key(dataset)}"
    if home.is_dir():
        return home
    try:
        home.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{home.name}-", dir=home.parent))
    except OSError as error:
        raise UserError(
            f"cannot write the sample of {dataset.name!r} to {home.parent}: {error.strerror}; set USEREC_CACHE"
        ) from None
    try:
        if not dataset.write_sample(draft):
            return None
        try:
            os.replace(draft, home)
        except OSError:  # another process was first: theirs is the same
            if not home.is_dir():
                raise
        return home
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def cache_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """Where userec may keep what it can make again: USEREC_CACHE, else the user's cache folder."""
    if named := environ.get("USEREC_CACHE"):
        return Path(named).expanduser()
    import platformdirs

    return Path(platformdirs.user_cache_dir("userec", appauthor=False))


def code_files(dataset: type[Dataset]) -> list[Path]:
    """The code that defines the data set: its whole package, or its one file."""
    source = Path(inspect.getfile(dataset))
    return sorted(source.parent.glob("*.py")) if (source.parent / "__init__.py").is_file() else [source]


def _code_key(dataset: type[Dataset]) -> str:
    """Eight hex digits of that code."""
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in code_files(dataset))).hexdigest()[:8]
