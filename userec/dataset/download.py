"""Downloads: whole, checked, or not at all. The publisher's checksum is verified here and nowhere else.

A file-sharing drive gives a page instead of a large file: its form is filled in as a browser would. A *folder* on such a drive
cannot be fetched by program, so the user is told the address and the place."""

from __future__ import annotations

import lzma
import os
import re
import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qs, urljoin, urlsplit

from userec.dataset.contract import Source
from userec.errors import UserError

if TYPE_CHECKING:
    import requests

DAMAGE: Final = (zipfile.BadZipFile, tarfile.TarError, EOFError, NotImplementedError, RuntimeError, zlib.error, lzma.LZMAError)
"""What reading a cut, flipped or locked archive raises, beside OSError."""

Progress = Callable[[int, int | None], None]
"""Called with the bytes so far and the bytes announced, None where the server does not say."""

CHUNK: Final = 1 << 18
TIMEOUT: Final = (15.0, 60.0)
"""Seconds to connect, and between two reads."""


def fetch(source: Source, folder: Path, *, progress: Progress | None = None) -> Path:
    """Download `source` to `folder`; returns the file. One that lies there already is left alone, unverified.

    The body goes to a `.part` file that takes its name only when it is whole and its checksum is right. Raises UserError, also
    where the publisher asks for a login."""
    target = folder / source.file
    if target.exists():
        return target
    if source.login:
        raise UserError(
            f"{source.url} asks for a login, so no program can fetch it: open it in a browser and save it as {target}"
        )
    address = direct_address(source.url, target)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}") from None
    part = target.with_name(target.name + ".part")
    try:
        _download(address, part, source, target, progress)
        _verify(part, source)
        os.replace(part, target)
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror or error}") from None
    finally:
        part.unlink(missing_ok=True)
    return target


def direct_address(url: str, target: Path) -> str:
    """The address that answers with the file itself. Raises UserError for a folder on a file-sharing drive."""
    parts = urlsplit(url)
    if parts.hostname not in ("drive.google.com", "docs.google.com"):
        return url
    if "/folders/" in parts.path or parts.path.rstrip("/").endswith("/folderview"):
        raise UserError(
            f"{url} is a folder on a file-sharing drive, which no program can fetch:\n"
            f"open it in a browser and put its files into {target.parent}"
        )
    found = re.search(r"/file/(?:u/\d+/)?d/([\w-]+)", parts.path)
    name = found.group(1) if found else parse_qs(parts.query).get("id", [""])[0]
    if not name:
        raise UserError(f"{url} names no file; open it in a browser and save the file as {target}")
    return f"https://drive.usercontent.google.com/download?id={name}&export=download"


def _download(address: str, part: Path, source: Source, target: Path, progress: Progress | None) -> None:
    import requests

    way_out = f"try again, or open {source.url} in a browser and save it as {target}"
    try:
        with requests.Session() as session:
            session.headers["Accept-Encoding"] = "identity"  # so that Content-Length counts the bytes we keep
            response = session.get(address, stream=True, timeout=TIMEOUT)
            if _is_page(response):
                form = _Form(response.text)
                if not form.fields:
                    raise UserError(f"{source.url} answered with a web page, not with {source.file}; {way_out}")
                response = session.get(urljoin(response.url, form.action), params=form.fields, stream=True, timeout=TIMEOUT)
            if not response.ok:
                raise UserError(f"{source.url} answered {response.status_code} {response.reason}; {way_out}")
            if _is_page(response):
                raise UserError(f"{source.url} answered with a web page, not with {source.file}; {way_out}")
            _save(response, part, progress)
    except requests.RequestException as error:
        raise UserError(f"{source.url} cannot be fetched ({type(error).__name__}); {way_out}") from None


def _save(response: requests.Response, part: Path, progress: Progress | None) -> None:
    """Raises UserError where the body is shorter than announced, or turns out to be a page of HTML."""
    announced = response.headers.get("Content-Length", "")
    total = int(announced) if announced.isdecimal() else None
    done = 0
    with part.open("wb") as file:
        for chunk in response.iter_content(CHUNK):
            if not done and chunk.lstrip()[:15].lower().startswith((b"<!doctype html", b"<html")):
                raise UserError(f"{response.url} answered with a web page where a file was expected")
            file.write(chunk)
            done += len(chunk)
            if progress is not None:
                progress(done, total)
    if total is not None and done != total:
        raise UserError(f"the download of {response.url} was cut: {done:,} of {total:,} bytes; try again")


def _is_page(response: requests.Response) -> bool:
    return response.ok and response.headers.get("Content-Type", "").partition(";")[0].strip().lower() == "text/html"


class _Form(HTMLParser):
    """The confirmation form of a drive's page: where it leads, and its hidden fields."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.action = ""
        self.fields: dict[str, str] = {}
        self._inside = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """The first form that has hidden fields is the one."""
        known = {key: value or "" for key, value in attrs}
        if tag == "form" and not self.fields:
            self._inside, self.action = True, known.get("action", "")
        elif tag == "input" and self._inside and known.get("type", "").lower() == "hidden" and known.get("name"):
            self.fields[known["name"]] = known.get("value", "")

    def handle_endtag(self, tag: str) -> None:
        """The form's end."""
        if tag == "form":
            self._inside = False


def _verify(path: Path, source: Source) -> None:
    import pooch

    for kind, expected in (("sha256", source.sha256), ("md5", source.md5)):
        if expected is not None and (found := pooch.file_hash(str(path), alg=kind)) != expected.lower():
            raise UserError(f"{source.url}: the {kind} of what came is {found}, its publisher says {expected}; nothing was kept")


def extract(archive: Path, folder: Path) -> list[Path]:
    """Unpack a zip or tar file into `folder`; returns the files written. Which of the two it is, its content says.

    Every member is looked at before anything is written. Raises UserError for a path that leaves the folder, a link, a device,
    and an archive that cannot be read."""
    try:
        with tempfile.TemporaryDirectory(prefix=f".{archive.name}-", dir=_made(folder)) as name, _members(archive) as members:
            draft, inside = Path(name), [(_vetted(archive, path, plain), save) for path, plain, save in members]
            for path, save in inside:
                (draft / path).parent.mkdir(parents=True, exist_ok=True)
                save(draft / path)
            for path, _ in inside:
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                os.replace(draft / path, folder / path)
            return [folder / path for path, _ in inside]
    except DAMAGE as error:
        raise UserError(f"{archive} cannot be unpacked ({error}); delete it and fetch it again") from None
    except OSError as error:
        raise UserError(f"{archive} cannot be unpacked into {folder}: {error.strerror or error}") from None


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


Member = tuple[str, bool, Callable[[Path], None]]
"""Its path in the archive, whether it is a plain file, and what writes it out."""


@contextmanager
def _members(archive: Path) -> Iterator[list[Member]]:
    """The members that are not folders. Raises UserError for what is neither zip nor tar."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as opened:
            yield [_zip_member(opened, info) for info in opened.infolist() if not info.is_dir()]
    elif tarfile.is_tarfile(archive):
        with tarfile.open(archive) as opened_tar:
            yield [_tar_member(opened_tar, entry) for entry in opened_tar.getmembers() if not entry.isdir()]
    else:
        raise UserError(f"{archive} is neither a zip nor a tar file; unpack it by hand into {archive.parent}")


def _zip_member(opened: zipfile.ZipFile, info: zipfile.ZipInfo) -> Member:
    def save(path: Path) -> None:
        with opened.open(info) as stream, path.open("wb") as file:
            shutil.copyfileobj(stream, file, CHUNK)

    return info.filename, stat.S_IFMT(info.external_attr >> 16) in (0, stat.S_IFREG), save


def _tar_member(opened: tarfile.TarFile, entry: tarfile.TarInfo) -> Member:
    def save(path: Path) -> None:
        stream = opened.extractfile(entry)
        if stream is None:
            raise tarfile.ExtractError(f"{entry.name} has no content")
        with stream, path.open("wb") as file:
            shutil.copyfileobj(stream, file, CHUNK)

    return entry.name, entry.isreg(), save


def _vetted(archive: Path, path: str, plain: bool) -> PurePosixPath:
    """The path as one below the folder. Raises UserError where it is not one."""
    inner = PurePosixPath(path.replace("\\", "/"))
    if inner.is_absolute() or ".." in inner.parts or not inner.parts or ":" in inner.parts[0]:
        raise UserError(f"{archive} is refused: its member {path!r} would be written outside the folder; nothing was unpacked")
    if not plain:
        raise UserError(f"{archive} is refused: its member {path!r} is a link or a device; nothing was unpacked")
    return inner
