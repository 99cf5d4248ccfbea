"""Files arrive whole or not at all, over a network that does its worst."""

import hashlib
from pathlib import Path

import httpx
import pytest

from buyers.sdk import Damaged, GridloomError, Unreachable, transfer
from buyers.sdk.shapes import File, Put
from tests.sdk.stub import serving

DATA = bytes(range(256)) * 4096


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(transfer.time, "sleep", lambda seconds: None)


@pytest.fixture
def fetch(tmp_path):
    def fetch(server, *, path="a/model.bin", data=DATA, progress=lambda size: None):
        file = File(path, len(data), hashlib.sha256(data).hexdigest(), f"{server.url}/file")
        with httpx.Client() as http:
            return transfer.fetch(http, file, tmp_path, progress)

    return fetch


def ranged(request, data=DATA):
    start = int((request.headers.get("Range") or "bytes=0-").removeprefix("bytes=")[:-1])
    request.answer(206 if start else 200, data[start:])


def test_a_download_that_breaks_off_goes_on_where_it_was(fetch):
    def script(request):
        if len(server.seen) == 1:
            request.cut(DATA, after=300_000)
        else:
            ranged(request)

    told = []
    with serving(script) as server:
        found = fetch(server, progress=told.append)
        asked = [request.headers.get("Range") for request in server.seen]
    assert found.read_bytes() == DATA
    assert asked[0] is None
    assert asked[1].startswith("bytes=")
    assert sum(told) >= len(DATA)
    assert [path.name for path in found.parent.iterdir()] == ["model.bin"], "nothing else is left"


def test_an_earlier_try_is_gone_on_with_and_a_whole_file_is_not_fetched_again(fetch, tmp_path):
    part = tmp_path / "a" / ".model.bin.part"
    part.parent.mkdir()
    part.write_bytes(DATA[:1000])
    with serving(ranged) as server:
        assert fetch(server).read_bytes() == DATA
        assert server.seen[0].headers["Range"] == "bytes=1000-"
        fetch(server)
        assert len(server.seen) == 1


def test_a_part_that_was_damaged_is_fetched_anew(fetch, tmp_path):
    part = tmp_path / "a" / ".model.bin.part"
    part.parent.mkdir()
    part.write_bytes(b"x" * 1000)
    with serving(ranged) as server:
        assert fetch(server).read_bytes() == DATA
        assert [request.headers.get("Range") for request in server.seen] == ["bytes=1000-", None]


def test_a_storage_that_knows_no_ranges_will_do(fetch, tmp_path):
    part = tmp_path / "a" / ".model.bin.part"
    part.parent.mkdir()
    part.write_bytes(DATA[:1000])
    with serving(lambda request: request.answer(200, DATA)) as server:
        assert fetch(server).read_bytes() == DATA


def test_what_is_not_what_its_hash_says_is_never_kept(fetch, tmp_path):
    backwards = serving(lambda request: ranged(request, DATA[::-1]))
    with backwards as server, pytest.raises(Damaged, match="not what its hash says"):
        fetch(server)
    assert not (tmp_path / "a" / "model.bin").exists()


def test_a_url_that_is_too_old_is_told_apart(fetch):
    with serving(lambda request: request.answer(403)) as server, pytest.raises(transfer.Expired):
        fetch(server)


def test_a_storage_that_is_away_is_unreachable(fetch):
    broken = serving(lambda request: request.answer(500))
    with broken as server, pytest.raises(Unreachable, match="HTTP 500"):
        fetch(server)


def test_an_empty_file_needs_no_request(fetch):
    with serving(ranged) as server:
        assert fetch(server, data=b"").read_bytes() == b""
        assert not server.seen


@pytest.mark.parametrize(
    "path", ["../x", "/etc/x", "a/../../x", "a\\..\\x", "C:x", "", "a\nb", "..", "a/.."]
)
def test_a_name_that_leads_out_of_the_folder_is_refused(fetch, tmp_path, path):
    with serving(ranged) as server, pytest.raises(Damaged, match="outside"):
        fetch(server, path=path)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "data.bin"
    path.write_bytes(DATA)
    return path


def send(server, source, progress=lambda size: None):
    put = Put(f"{server.url}/put", {"content-length": str(len(DATA)), "x-signed": "yes"})
    transfer.send({"data.bin": source}, {"data.bin": put}, progress)


def test_an_upload_sends_the_signed_headers_and_every_byte(source):
    told = []
    with serving(lambda request: request.answer(200)) as server:
        send(server, source, told.append)
        (request,) = server.seen
    assert request.body == DATA
    assert request.headers["X-Signed"] == "yes"
    assert "Authorization" not in request.headers, "our key is nobody else's business"
    assert sum(told) == len(DATA)


def test_an_upload_is_tried_again(source):
    told = []

    def script(request):
        (request.hang_up if len(server.seen) < 3 else lambda: request.answer(200))()

    with serving(script) as server:
        send(server, source, told.append)
        assert len(server.seen) == 3
    assert sum(told) == len(DATA), "what was sent in vain is taken back"


@pytest.mark.parametrize(
    ("status", "error"), [(403, transfer.Expired), (400, Damaged), (500, Unreachable)]
)
def test_a_refused_upload_says_why(source, status, error):
    with serving(lambda request: request.answer(status)) as server, pytest.raises(error):
        send(server, source)


def test_a_folder_is_scanned_without_what_nobody_means_to_send(tmp_path):
    for name in ("main.py", "lib/x.py", ".git/config", "lib/__pycache__/x.pyc", ".env"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("x")
    assert list(transfer.scan(tmp_path)) == ["lib/x.py", "main.py"]
    assert list(transfer.scan(tmp_path / "main.py")) == ["main.py"]


def test_a_folder_of_nothing_is_refused(tmp_path):
    with pytest.raises(GridloomError, match="no files"):
        transfer.scan(tmp_path)
    with pytest.raises(GridloomError, match="there is no folder"):
        transfer.scan(Path("/nowhere"))
