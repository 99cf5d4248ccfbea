"""The wire: what is signed, what is refused, and the mathematics that both sides share."""

import hashlib
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as some

from agent import protocol
from agent.protocol import (
    MAX_MESSAGE,
    Ack,
    Desired,
    File,
    FileToSend,
    Heartbeat,
    Malformed,
    Part,
    Usage,
    decode,
    decode_down,
    decode_up,
    encode,
    merkle_levels,
    merkle_path,
    merkle_root,
    proof_row,
)

NODE = UUID(int=1)
ROWS = some.integers(0, 6).flatmap(
    lambda height: some.lists(
        some.binary(min_size=1, max_size=8), min_size=2**height, max_size=2**height
    )
)


@given(ROWS, some.data())
def test_a_path_leads_from_each_row_to_the_root(rows, data):
    levels = merkle_levels(rows)
    index = data.draw(some.integers(0, len(rows) - 1))
    path = merkle_path(levels, index)
    assert merkle_root(rows[index], index, path) == levels[-1][0].hex()
    assert len(path) == len(rows).bit_length() - 1


@given(ROWS, some.data())
def test_no_other_row_has_that_path(rows, data):
    levels = merkle_levels(rows)
    index = data.draw(some.integers(0, len(rows) - 1))
    other = data.draw(some.binary(min_size=1, max_size=8).filter(lambda row: row != rows[index]))
    root = merkle_root(other, index, merkle_path(levels, index))
    assert root != levels[-1][0].hex()


def test_two_hashes_do_not_pass_for_a_row():
    levels = merkle_levels([b"a", b"b"])
    assert merkle_root(levels[0][0] + levels[0][1], 0, []) != levels[-1][0].hex()


def test_rows_are_drawn_evenly():
    row = proof_row("ab" * 32, "x", 3, 4096)
    assert len(row) == 4096
    assert set(row) == set(range(17))
    assert proof_row("ab" * 32, "b", 3, 4096) != row


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"type":"ack"}', "missing required field"),
        ('{"type":"hello"}', "hello"),
        ('{"type":"gossip"}', "gossip"),
        ('{"type":"ack","seq":1,"extra":2}', "extra"),
        ('{"type":"ack","seq":-1}', "seq"),
        ('{"type":"ack","seq":1e400}', "seq"),
        ("[]", "object"),
        ('{"type":"ack"', "truncated"),
        (b"\xff\xfe", "malformed|invalid|codec"),
    ],
)
def test_what_is_not_of_this_protocol_is_named(text, words: str):
    with pytest.raises(Malformed, match=words):
        decode_down(text)


def test_a_message_has_at_most_64_kib():
    with pytest.raises(Malformed, match="65536"):
        decode_up(b" " * (MAX_MESSAGE + 1))


def test_a_peer_of_the_other_side_is_not_understood():
    ack = encode(Ack(seq=1))
    assert decode_down(ack) == Ack(seq=1)
    with pytest.raises(Malformed):
        decode_up(ack)


@given(some.binary())
def test_noise_is_malformed_and_nothing_else(noise):
    for decoder in (decode_up, decode_down):
        with pytest.raises(Malformed):
            decoder(noise)


@given(some.binary(max_size=64), some.binary(max_size=64))
def test_messages_survive_the_way(claim, signature):
    usage = Usage(claim=claim, signature=signature)
    assert decode_up(encode(usage)) == usage
    beat = Heartbeat(seq=1, boot_id="b", up_ms=3, assignments=[])
    assert decode_up(encode(beat)) == beat
    assert decode_down(encode(Desired(assignments=[]))) == Desired(assignments=[])


def test_each_signature_is_over_its_own_kind_of_bytes():
    signed = [
        protocol.enrol_bytes("token", b"k" * 32),
        protocol.hello_bytes(NODE, "0" * 64, "boot", "server"),
        protocol.claim_bytes(NODE, b"body"),
        protocol.receipt_bytes(NODE, b"body"),
    ]
    assert len({one.split(b"\0")[0] for one in signed}) == len(signed)


def test_a_fingerprint_is_readable():
    text = protocol.fingerprint(b"k" * 32)
    assert [len(group) for group in text.split(":")] == [4] * 8
    assert text.replace(":", "") == hashlib.sha256(b"k" * 32).hexdigest()[:32]


def test_a_manifest_does_not_depend_on_the_order_of_its_files():
    files = [File(path=name, bytes=1, sha256="0" * 64) for name in ("b", "a", "c")]
    assert protocol.manifest_sha256(files) == protocol.manifest_sha256(files[::-1])


def test_an_upload_may_be_gone_on_with():
    part = Part(bytes=1, sha256="0" * 64)
    file = FileToSend(path="a", bytes=1, sha256="0" * 64, parts=[part], upload_id="u")
    assert decode(encode(file), FileToSend) == file
    plain = msgspec.structs.replace(file, upload_id=None)
    assert decode(encode(plain), FileToSend).upload_id is None
