"""Bytes come and go whole, whatever breaks on the way."""

import asyncio
import hashlib
import os
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from agent import cache, uploads
from agent.api import Api, Bearer, Refused
from agent.cache import BadInput, NoRoom, Shelf, lay_out, make_room
from agent.protocol import File
from agent.transfer import Bandwidth, Downloads, Progress, Source
from agent.uploads import Fenced, Folder, NotSent, Outgoing, Uploads
from tests.agent.conftest import spec
from tests.agent.market import Market

DATA = os.urandom(2 * 2**20 + 12345)


class _Urls:
    def __init__(self, market: Market) -> None:
        self.market, self.renewed = market, 0

    async def get(self, sha256: str) -> Source:
        return Source(f"{self.market.url}/store/get/{sha256}?{self.renewed}")

    async def renew(self, stale: Source) -> None:
        self.renewed += 1


@pytest.fixture
def urls(market: Market) -> _Urls:
    return _Urls(market)


@pytest.fixture
async def downloads(tmp_path: Path):
    it = Downloads(tmp_path / "cache", Bandwidth(tmp_path / "bandwidth"))
    it.root.mkdir()
    yield it
    await it.aclose()


@pytest.fixture
def shelf(downloads: Downloads) -> Shelf:
    return Shelf(downloads.root, UUID(int=1), public=False)


def _offered(market: Market, data: bytes = DATA) -> File:
    return market.offer({"deep/model": data}, "base").files[0]


async def _fetched(downloads: Downloads, file: File, shelf: Shelf, urls: _Urls) -> bytes:
    counted: list[int] = []
    path = await downloads.fetch(file, shelf, urls, counted.append)
    assert sum(counted) == file.bytes
    return path.read_bytes()


async def test_a_file_is_fetched_once(market, downloads, shelf, urls):
    file = _offered(market)
    for _ in range(2):
        assert await _fetched(downloads, file, shelf, urls) == DATA
    assert len(market.gets) == 1
    assert list(shelf.root.rglob("partial/*")) == []


async def test_two_at_once_share_one_download(market, downloads, shelf, urls):
    file = _offered(market)
    both = (_fetched(downloads, file, shelf, urls) for _ in range(2))
    assert await asyncio.gather(*both) == [DATA, DATA]
    assert len(market.gets) == 1


async def test_a_broken_download_goes_on_where_it_broke(market, downloads, shelf, urls):
    market.faults.break_after = [2**20, 2**20]
    assert await _fetched(downloads, _offered(market), shelf, urls) == DATA
    assert [span for _, span in market.gets] == ["", f"bytes={2**20}-", f"bytes={2**21}-"]


async def test_a_storage_without_ranges_sends_all_of_it_again(market, downloads, shelf, urls):
    market.faults.no_ranges = True
    market.faults.break_after = [2**20]
    assert await _fetched(downloads, _offered(market), shelf, urls) == DATA


async def test_what_an_earlier_agent_has_fetched_counts(market, downloads, shelf, urls):
    file = _offered(market)
    shelf.partial(file).write_bytes(DATA[:2000])
    assert await _fetched(downloads, file, shelf, urls) == DATA
    assert [span for _, span in market.gets] == ["bytes=2000-"]


@pytest.mark.parametrize("left", [b"\0" * 5000, DATA + b"more", bytes(len(DATA))])
async def test_a_wrong_beginning_is_thrown_away(market, downloads, shelf, urls, left: bytes):
    file = _offered(market)
    shelf.partial(file).write_bytes(left)
    assert await _fetched(downloads, file, shelf, urls) == DATA


async def test_wrong_bytes_are_never_kept(market, downloads, shelf, urls):
    market.faults.spoil = 9
    file = _offered(market)
    with pytest.raises(BadInput, match="SHA-256 differs"):
        await downloads.fetch(file, shelf, urls, lambda size: None)
    assert shelf.find(file) is None
    market.faults.spoil = 0
    assert await _fetched(downloads, file, shelf, urls) == DATA


async def test_a_url_that_has_run_out_is_asked_for_anew(market, downloads, shelf, urls):
    market.faults.expire_downloads = 1
    assert await _fetched(downloads, _offered(market), shelf, urls) == DATA
    assert urls.renewed == 1


async def test_a_file_that_storage_does_not_give_is_said(market, downloads, shelf, urls):
    market.faults.expire_downloads = 99
    with pytest.raises(BadInput, match="403"):
        await downloads.fetch(_offered(market), shelf, urls, lambda size: None)


async def test_more_bytes_than_announced_are_not_taken(market, downloads, shelf, urls):
    file = _offered(market)
    market.objects[file.sha256] = DATA + b"x" * 2**20
    with pytest.raises(BadInput, match="more than"):
        await downloads.fetch(file, shelf, urls, lambda size: None)


async def test_an_empty_file_needs_no_request(market, downloads, shelf, urls):
    assert await _fetched(downloads, _offered(market, b""), shelf, urls) == b""
    assert market.gets == []


async def test_orgs_share_what_is_public_and_nothing_else(market, downloads, urls):
    file = _offered(market)
    shelves = [Shelf(downloads.root, uuid4(), public) for public in (False, False, True, True)]
    for shelf in shelves[:3]:
        await _fetched(downloads, file, shelf, urls)
    assert len(market.gets) == 3  # each of the two orgs for itself, then the public one
    await _fetched(downloads, file, shelves[3], urls)
    assert len(market.gets) == 3


async def test_bandwidth_is_measured_on_the_way(market, downloads, shelf, urls, tmp_path):
    await _fetched(downloads, _offered(market), shelf, urls)
    assert downloads.bandwidth.mbps == 0  # too little to tell
    await _fetched(downloads, _offered(market, os.urandom(5 * 2**20)), shelf, urls)
    assert downloads.bandwidth.mbps > 0
    assert Bandwidth(tmp_path / "bandwidth").mbps == pytest.approx(downloads.bandwidth.mbps, 0.01)


async def test_inputs_are_laid_out_read_only_and_all_at_once(
    market, downloads, shelf, urls, tmp_path
):
    file = _offered(market)
    path = await downloads.fetch(file, shelf, urls, lambda size: None)
    for _ in range(2):
        lay_out({file.path: path}, [file], tmp_path / "inputs" / "base")
    laid = tmp_path / "inputs" / "base" / "deep" / "model"
    assert laid.read_bytes() == DATA
    assert laid.stat().st_mode & 0o222 == 0
    assert laid.stat().st_ino == path.stat().st_ino
    assert os.listdir(tmp_path / "inputs") == ["base"]


@pytest.mark.parametrize(
    ("name", "paths", "words"),
    [
        ("base", ["../x"], "outside"),
        ("base", ["/etc/x"], "outside"),
        ("base", ["a/../../x"], "outside"),
        ("base", ["a//x"], "outside"),
        ("base", ["a/./x"], "outside"),
        ("base", [".."], "outside"),
        ("base", ["a\0b"], "control characters"),
        ("base", ["a\\b"], "backslashes"),
        ("base", ["x" * 256], "too long"),
        ("base", ["x", "x"], "twice"),
        ("base", ["a/b", "a"], "both a file and a folder"),
        (".base", ["x"], "plain letters"),
        ("b\n", ["x"], "plain letters"),
        ("b" * 65, ["x"], "plain letters"),
    ],
)
def test_no_input_lies_elsewhere(tmp_path: Path, name: str, paths: list[str], words: str):
    (tmp_path / "cached").write_bytes(b"x")
    files = [File(path=path, bytes=1, sha256="0" * 64) for path in paths]
    with pytest.raises(BadInput, match=words):
        lay_out(dict.fromkeys(paths, tmp_path / "cached"), files, tmp_path / "in" / name)
    assert os.listdir(tmp_path) == ["cached"]


@pytest.mark.parametrize(
    "url",
    ["http://storage.example", "http://127.0.0.1.example", "ftp://127.0.0.1", "http://[x", "/x"],
)
async def test_no_file_goes_where_it_could_be_read_on_the_way(
    market, job, sender, monkeypatch, tmp_path, url
):
    monkeypatch.setattr(type(market), "url", property(lambda self: url))
    with pytest.raises(Refused, match="without https"):
        await sender.api.inputs(job)
    with pytest.raises(NotSent, match="without https"):
        await sender.send(_folder(job, tmp_path, {"weights": b"x"}), lambda size: None)


async def test_the_storage_may_be_the_market_or_far_and_encrypted(market, job, sender, monkeypatch):
    for url in ("https://storage.example", "http://localhost:1", market.url):
        monkeypatch.setattr(type(market), "url", property(lambda self, url=url: url))
        [given] = (await sender.api.inputs(job)).values()
        assert given.startswith(url)


def test_room_is_made_of_what_nobody_uses(tmp_path: Path, monkeypatch):
    folder = tmp_path / "sha256"
    folder.mkdir()
    for age, name in enumerate(("old", "used", "young")):
        (folder / name).write_bytes(b"x" * 4096)
        os.utime(folder / name, (10 + age, 10 + age))
    os.link(folder / "used", tmp_path / "link")
    free = [cache.workspace.RESERVE_BYTES]
    monkeypatch.setattr(cache.workspace, "free_bytes", lambda root: free[0])
    make_room(tmp_path, 4096)
    assert sorted(os.listdir(folder)) == ["used", "young"]
    with pytest.raises(NoRoom, match="are missing on the disk"):
        make_room(tmp_path, 10 * 2**20)
    assert os.listdir(folder) == ["used"]


def test_a_stale_partial_is_swept(tmp_path: Path):
    partial = tmp_path / "partial"
    partial.mkdir()
    for name, age in (("old", 0), ("new", None)):
        (partial / name).touch()
        if age is not None:
            os.utime(partial / name, (age, age))
    cache.sweep(tmp_path)
    assert os.listdir(partial) == ["new"]


def test_progress_is_said_in_words():
    said: list[str] = []
    progress = Progress("fetching base", 270_000_000, said.append)
    progress.add(120_000_000)
    assert said == ["fetching base, 0 of 270 MB", "fetching base, 120 of 270 MB"]


# Uploads.


@pytest.fixture
async def sender(market: Market):
    bearer = Bearer()
    bearer.set("here")
    market.bearers["here"] = UUID(int=1)
    api = Api(market.url, bearer)
    it = Uploads(api)
    yield it
    await it.aclose()
    await api.aclose()


@pytest.fixture
def job(market: Market) -> UUID:
    return market.want(spec(market.offer({"main.py": b""}, "script")))


def _folder(job: UUID, tmp_path: Path, files: dict[str, bytes], epoch: int = 5) -> Folder:
    outgoing = []
    for name, data in files.items():
        path = tmp_path / hashlib.sha256(name.encode()).hexdigest()
        path.write_bytes(data)
        outgoing.append(Outgoing(name, len(data), lambda path=path: os.open(path, os.O_RDONLY)))
    return Folder(job, epoch, "checkpoint", 3, outgoing, seconds=1.5)


async def test_a_folder_is_sent_and_committed(market, sender, job, tmp_path):
    files = {"weights": DATA, "deep/config": b"{}", "empty": b""}
    counted: list[int] = []
    await sender.send(_folder(job, tmp_path, files), counted.append)
    [sent] = market.folders
    assert (sent.kind, sent.step, sent.files, sent.seconds) == ("checkpoint", 3, files, 1.5)
    assert sum(counted) == sum(map(len, files.values()))


async def test_a_large_file_goes_in_parts(market, sender, job, tmp_path, monkeypatch):
    monkeypatch.setattr(uploads, "PART_BYTES", 2**20)
    market.faults.expire_uploads = 2  # parts whose URLs ran out are signed anew
    await sender.send(_folder(job, tmp_path, {"weights": DATA}), lambda size: None)
    assert market.folders[0].files == {"weights": DATA}
    assert len(market.puts) == 3


async def test_many_files_take_several_calls(market, sender, job, tmp_path):
    files = {f"{n:03}": bytes([n % 256]) for n in range(450)}
    await sender.send(_folder(job, tmp_path, files), lambda size: None)
    assert market.folders[0].files == files
    assert market.commits == 1


async def test_an_upload_waits_for_a_market_that_is_away(market, sender, job, tmp_path):
    market.faults.unavailable = 2
    market.faults.expire_uploads = 1
    await sender.send(_folder(job, tmp_path, {"a": b"x"}), lambda size: None)
    assert market.folders


async def test_a_zombie_is_told_so(market, sender, job, tmp_path):
    with pytest.raises(Fenced):
        await sender.send(_folder(job, tmp_path, {"a": b"x"}, epoch=4), lambda size: None)
    assert market.puts == []


async def test_a_quota_is_the_end_of_it(market, sender, job, tmp_path):
    market.faults.refuse_uploads = True
    with pytest.raises(NotSent, match="quota"):
        await sender.send(_folder(job, tmp_path, {"a": b"x"}), lambda size: None)


async def test_a_file_that_shrinks_is_not_sent(market, sender, job, tmp_path):
    folder = _folder(job, tmp_path, {"a": b"x" * 100})
    short = Folder(job, 5, "checkpoint", 3, [Outgoing("a", 200, folder.files[0].open)])
    with pytest.raises(NotSent, match="became shorter"):
        await sender.send(short, lambda size: None)


async def test_a_file_that_changes_while_it_is_sent_is_never_committed(
    market, sender, job, tmp_path
):
    path, opened = tmp_path / "hostile", 0

    def change() -> int:
        nonlocal opened
        opened += 1
        path.write_bytes(bytes([opened]) * 100)
        return os.open(path, os.O_RDONLY)

    folder = Folder(job, 5, "checkpoint", 3, [Outgoing("a", 100, change)])
    with pytest.raises(NotSent, match="storage refuses a"):
        await sender.send(folder, lambda size: None)
    assert market.folders == []
