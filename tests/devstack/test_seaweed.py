"""The object store on this machine: by its key everything, without one nothing."""

from hashlib import sha256

import httpx
import pytest

from marketplace import storage
from marketplace.devstack import ports

PART = 5 * 2**20
BODY = b"weights " * (PART // 8)


@pytest.fixture(scope="module")
def stored(s3) -> str:
    """The key of an object that lies in a volume, not in the filer's own rows."""
    storage.put("datasets/mine/weights", BODY)
    return "datasets/mine/weights"


def test_signed_urls_read_and_write(s3, stored):
    assert httpx.get(storage.signed_get(stored, seconds=60)).content == BODY
    digest = sha256(b"rows").hexdigest()
    put = storage.signed_put("datasets/mine/rows", size=4, sha256=digest, seconds=60)
    assert httpx.put(put.url, headers=put.headers, content=b"rows").status_code == 200
    assert b"".join(storage.read("datasets/mine/rows")) == b"rows"


def test_parts_become_one_object(s3):
    key, bodies = "datasets/mine/parts", (BODY, b"the rest")
    upload, etags = storage.start_parts(key), []
    for number, body in enumerate(bodies, 1):
        digest = sha256(body).hexdigest()
        part = storage.signed_part(key, upload, number, size=len(body), sha256=digest, seconds=60)
        answer = httpx.put(part.url, headers=part.headers, content=body)
        assert answer.status_code == 200, answer.text
        etags.append(answer.headers["etag"])
    storage.finish_parts(key, upload, etags)
    assert b"".join(storage.read(key)) == b"".join(bodies)


def test_the_filer_shows_and_takes_nothing_without_a_key(s3, stored):
    url = f"http://127.0.0.1:{s3.port[ports.S3_FILER.name]}/buckets/gridloom/{stored}"
    assert httpx.get(url).status_code in (401, 403)
    assert httpx.put(url, content=b"other").status_code in (401, 403)
    assert httpx.delete(url).status_code in (401, 403)
    assert b"".join(storage.read(stored)) == BODY


def test_a_volume_takes_and_shows_nothing_without_a_key(s3):
    master = f"http://127.0.0.1:{s3.port[ports.S3_MASTER.name]}"
    place = httpx.get(f"{master}/dir/assign").json()
    url = f"http://{place['url']}/{place['fid']}"
    assert httpx.post(url, files={"file": b"stray"}).status_code in (401, 403)
    assert httpx.get(url).status_code in (401, 403)
