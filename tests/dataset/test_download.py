"""Downloads from a local server: redirect, confirmation page, cut body, wrong hash, hostile archives, folder links."""

from __future__ import annotations

import contextlib
import hashlib
import io
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest

from userec.dataset.contract import Source
from userec.dataset.download import direct_address, extract, fetch
from userec.errors import UserError

BODY = bytes(range(256)) * 4000
PAGE = b"""<!DOCTYPE html><html><body><form action="/confirmed?x=1" id="download-form" method="get">
<input type="hidden" name="id" value="abc"><input type="hidden" name="confirm" value="t"><input type="submit" value="Download">
</form></body></html>"""


class Handler(BaseHTTPRequestHandler):
    """Answers by path."""

    def do_GET(self) -> None:
        """One branch a trap."""
        parts = urlsplit(self.path)
        asked = parse_qs(parts.query)
        if parts.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/file")
            self.end_headers()
        elif parts.path == "/file" or (parts.path == "/confirmed" and asked.get("id") == ["abc"] and asked["confirm"] == ["t"]):
            self.answer(BODY)
        elif parts.path == "/asks":
            self.answer(PAGE, "text/html; charset=utf-8")
        elif parts.path == "/page":
            self.answer(b"<html>sign in</html>", "text/html")
        elif parts.path == "/disguised":
            self.answer(b"\n<!DOCTYPE HTML><html>quota</html>", "application/zip")
        elif parts.path == "/cut":
            self.answer(BODY[:1000], length=len(BODY))
        else:
            self.send_error(404)

    def answer(self, body: bytes, kind: str = "application/octet-stream", length: int | None = None) -> None:
        """200 with the body; `length` is what is announced."""
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Silence."""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address of a server of our own."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()
        thread.join()


@pytest.mark.parametrize("path", ["/file", "/moved", "/asks"])
def test_the_file_arrives_whole(server: str, tmp_path: Path, path: str) -> None:
    seen: list[tuple[int, int | None]] = []
    source = Source(server + path, "a.zip", sha256=hashlib.sha256(BODY).hexdigest(), md5=hashlib.md5(BODY).hexdigest())
    got = fetch(source, tmp_path / "new", progress=lambda done, total: seen.append((done, total)))
    assert got == tmp_path / "new/a.zip"
    assert got.read_bytes() == BODY
    assert seen[-1] == (len(BODY), len(BODY))
    assert [path.name for path in got.parent.iterdir()] == ["a.zip"]


@pytest.mark.parametrize(
    ("path", "says"),
    [("/page", "web page"), ("/disguised", "web page"), ("/cut", "try again"), ("/nothing", "404")],
)
def test_what_is_not_the_file_is_an_error_that_leaves_nothing(server: str, tmp_path: Path, path: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        fetch(Source(server + path, "a.zip"), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["sha256", "md5"])
def test_a_wrong_checksum_leaves_nothing_behind(server: str, tmp_path: Path, kind: str) -> None:
    with pytest.raises(UserError, match=f"the {kind} of what came"):
        fetch(Source(f"{server}/file", "a.zip", **{kind: "0" * 32}), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_is_not_there_names_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"browser and save it as .*a\.zip"):
        fetch(Source("http://127.0.0.1:9/file", "a.zip"), tmp_path)


def test_a_login_is_told_before_anything_is_asked(server: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"asks for a login.* save it as .*new/a\.zip"):
        fetch(Source(f"{server}/file", "a.zip", login=True), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_file_of_ones_own_is_not_verified(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"mine")
    assert fetch(Source("http://127.0.0.1:9/file", "a.zip", md5="0" * 32), tmp_path).read_bytes() == b"mine"


@pytest.mark.parametrize(
    "url",
    ["https://drive.google.com/drive/folders/1AbC", "https://drive.google.com/drive/u/0/folders/1AbC?usp=sharing"],
)
def test_a_folder_on_a_drive_prints_address_and_destination(tmp_path: Path, url: str) -> None:
    with pytest.raises(UserError) as told:
        fetch(Source(url, "a.zip"), tmp_path / "data")
    assert f"{url} is a folder" in str(told.value)
    assert str(tmp_path / "data") in str(told.value)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    "url",
    [
        "https://drive.google.com/file/d/1a-B_c/view?usp=sharing",
        "https://drive.google.com/open?id=1a-B_c",
        "https://drive.google.com/uc?export=download&id=1a-B_c",
    ],
)
def test_a_file_on_a_drive_has_a_direct_address(url: str) -> None:
    assert direct_address(url, Path("a")) == "https://drive.usercontent.google.com/download?id=1a-B_c&export=download"


def test_other_addresses_stay() -> None:
    assert direct_address("https://example.org/folders/a.zip", Path("a")) == "https://example.org/folders/a.zip"


def zip_of(path: Path, **extra: bytes) -> Path:
    """A sound zip file."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("ok/a.txt", b"a")
        for name, body in extra.items():
            archive.writestr(name, body)
    return path


def test_zip_and_tar_are_unpacked_by_content(tmp_path: Path) -> None:
    archive = zip_of(tmp_path / "one.archive", **{"b.txt": b"b"})
    assert {path.read_bytes() for path in extract(archive, tmp_path / "zip")} == {b"a", b"b"}
    with tarfile.open(tmp_path / "two.archive", "w:gz") as packed:
        entry = tarfile.TarInfo("ok/a.txt")
        entry.size = 1
        packed.addfile(entry, io.BytesIO(b"a"))
    assert extract(tmp_path / "two.archive", tmp_path / "tar") == [tmp_path / "tar/ok/a.txt"]
    assert sorted(path.name for path in (tmp_path / "zip").iterdir()) == ["b.txt", "ok"]


@pytest.mark.parametrize("name", ["../x", "ok/../../x", "/tmp/x", "C:\\x", "..\\x"])
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_a_path_out_of_the_folder_is_refused_before_anything_is_written(tmp_path: Path, name: str, kind: str) -> None:
    archive = tmp_path / "bad.archive"
    if kind == "zip":
        zip_of(archive, **{name: b"x"})
    else:
        with tarfile.open(archive, "w") as packed:
            packed.addfile(tarfile.TarInfo("ok.txt"))
            packed.addfile(tarfile.TarInfo(name))
    with pytest.raises(UserError, match="outside the folder"):
        extract(archive, tmp_path / "in")
    assert list((tmp_path / "in").iterdir()) == []
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("kind", ["zip", "symlink", "hardlink"])
def test_links_are_refused(tmp_path: Path, kind: str) -> None:
    archive = tmp_path / "bad.archive"
    if kind == "zip":
        info = zipfile.ZipInfo("link")
        info.external_attr = 0o120777 << 16
        with zipfile.ZipFile(archive, "w") as packed:
            packed.writestr(info, "/etc/passwd")
    else:
        entry = tarfile.TarInfo("link")
        entry.type = tarfile.SYMTYPE if kind == "symlink" else tarfile.LNKTYPE
        entry.linkname = "/etc/passwd"
        with tarfile.open(archive, "w") as packed_tar:
            packed_tar.addfile(entry)
    with pytest.raises(UserError, match="a link or a device"):
        extract(archive, tmp_path / "in")
    assert list((tmp_path / "in").iterdir()) == []


def test_what_is_no_archive_or_a_cut_one_is_told(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"hello")
    with pytest.raises(UserError, match="neither a zip nor a tar"):
        extract(tmp_path / "text", tmp_path / "in")
    whole = zip_of(tmp_path / "a.zip", **{"b.txt": bytes(5000)}).read_bytes()
    (tmp_path / "bad.zip").write_bytes(whole[:60] + b"\xff" * 40 + whole[100:])
    with pytest.raises(UserError, match="cannot be unpacked"):
        extract(tmp_path / "bad.zip", tmp_path / "in")
    assert list((tmp_path / "in").iterdir()) == []


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_a_flipped_byte_anywhere_is_told(tmp_path: Path, method: int) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", method) as packed:
        packed.writestr("b.txt", bytes(range(256)) * 4)
        packed.writestr("c.txt", "text " * 90)
    whole = (tmp_path / "a.zip").read_bytes()
    refused = 0
    for at in range(len(whole)):
        (tmp_path / "bad.zip").write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        try:
            extract(tmp_path / "bad.zip", tmp_path / "in")
        except UserError:
            refused += 1
    assert refused > len(whole) // 2


@pytest.mark.parametrize("mode", ["w:gz", "w:xz"])
def test_a_flipped_byte_of_a_tar_file_is_told(tmp_path: Path, mode: str) -> None:
    with tarfile.open(tmp_path / "a.tar", mode) as packed:  # type: ignore[call-overload]
        entry = tarfile.TarInfo("a.txt")
        entry.size = 4096
        packed.addfile(entry, io.BytesIO(np.random.default_rng(0).bytes(4096)))
    whole = (tmp_path / "a.tar").read_bytes()
    for at in range(0, len(whole), 41):
        (tmp_path / "bad.tar").write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        with contextlib.suppress(UserError):
            extract(tmp_path / "bad.tar", tmp_path / "in")
