"""Bytes: where they lie, and who may touch them for how long. The only module with boto3.

Keys: `datasets/<id>/<sha256>`, `bases/<id>/<sha256>`, `rounds/<id>/<sha256>`,
`jobs/<job>/<epoch>/<kind>-<step>/<sha256>`; the paths stand in the manifest. Named by its content, an object can't be overwritten by another.
Each lease writes under its own epoch, so a zombie can only write where nobody reads. Every
upload is by a presigned URL that also signs the SHA-256 and the length of what may be sent.
"""

import base64
import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any
from uuid import UUID

import boto3
from botocore.client import Config
from botocore.exceptions import BotoCoreError, ClientError
from django.conf import settings

from marketplace.core.errors import Conflict, Unavailable


@dataclass(frozen=True)
class SignedPut:
    """A PUT that anybody holding it may make until it expires; `headers` are signed too."""

    url: str
    headers: dict[str, str]


@dataclass(frozen=True)
class Stored:
    """What our storage says of an object. `sha256` is hex, or "" if sent in parts."""

    bytes: int
    sha256: str


def dataset_prefix(dataset: UUID) -> str:
    return f"datasets/{dataset}/"


def base_prefix(artifact: UUID) -> str:
    return f"bases/{artifact}/"


def round_prefix(round: UUID) -> str:
    return f"rounds/{round}/"


def run_prefix(job: UUID, epoch: int, kind: str, step: int) -> str:
    """Where one lease of a job puts one checkpoint, artifact or log."""
    return f"jobs/{job}/{epoch}/{kind}-{step}/"


def file_key(prefix: str, sha256: str) -> str:
    """Where a folder's file of this content lies."""
    return prefix + sha256


def ensure_bucket() -> None:
    """Makes the bucket if it isn't there yet."""
    try:
        _client().create_bucket(Bucket=settings.S3_BUCKET)
    except ClientError as error:
        if error.response["Error"]["Code"] not in (
            "BucketAlreadyOwnedByYou",
            "BucketAlreadyExists",
        ):
            raise


def signed_put(key: str, *, size: int, sha256: str, seconds: int) -> SignedPut:
    """A PUT of exactly these bytes to `key`."""
    checksum = _base64(sha256)
    url = _client().generate_presigned_url(
        "put_object",
        Params={
            "Bucket": settings.S3_BUCKET,
            "Key": key,
            "ContentLength": size,
            "ChecksumSHA256": checksum,
        },
        ExpiresIn=seconds,
    )
    return SignedPut(url, {"content-length": str(size), "x-amz-checksum-sha256": checksum})


def start_parts(key: str) -> str:
    """Begins an upload in parts; returns its id."""
    answer = _client().create_multipart_upload(Bucket=settings.S3_BUCKET, Key=key)
    return str(answer["UploadId"])


def signed_part(
    key: str, upload_id: str, number: int, *, size: int, sha256: str, seconds: int
) -> SignedPut:
    """A PUT of part `number` (from 1) of an upload."""
    checksum = _base64(sha256)
    url = _client().generate_presigned_url(
        "upload_part",
        Params={
            "Bucket": settings.S3_BUCKET,
            "Key": key,
            "UploadId": upload_id,
            "PartNumber": number,
            "ContentLength": size,
            "ChecksumSHA256": checksum,
        },
        ExpiresIn=seconds,
    )
    return SignedPut(url, {"content-length": str(size), "x-amz-checksum-sha256": checksum})


def finish_parts(key: str, upload_id: str, etags: Sequence[str]) -> None:
    """Puts the parts together; raises Conflict if they are not all there."""
    parts = [{"ETag": etag, "PartNumber": n} for n, etag in enumerate(etags, 1)]
    try:
        _client().complete_multipart_upload(
            Bucket=settings.S3_BUCKET,
            Key=key,
            UploadId=upload_id,
            MultipartUpload={"Parts": parts},
        )
    except ClientError as error:
        # A repeated commit finds its upload already put together.
        if error.response["Error"]["Code"] == "NoSuchUpload" and stat(key):
            return
        raise Conflict(f"the parts of {key} are not all there: {error}") from None


def signed_get(key: str, *, seconds: int, filename: str = "") -> str:
    """A URL that reads `key`; with a filename, a browser saves it under that name."""
    params: dict[str, Any] = {"Bucket": settings.S3_BUCKET, "Key": key}
    if filename:
        params["ResponseContentDisposition"] = f'attachment; filename="{filename}"'
    return str(_client().generate_presigned_url("get_object", Params=params, ExpiresIn=seconds))


def stat(key: str) -> Stored | None:
    """Size and hash of an object, or None if there is none. Raises Unavailable."""
    try:
        head = _client().head_object(Bucket=settings.S3_BUCKET, Key=key, ChecksumMode="ENABLED")
    except ClientError as error:
        if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
            return None
        raise Unavailable(f"our storage refuses: {error}") from None
    except BotoCoreError as error:
        raise Unavailable(f"our storage does not answer: {error}") from None
    checksum = head.get("ChecksumSHA256", "")
    whole = "-" not in checksum
    return Stored(head["ContentLength"], base64.b64decode(checksum).hex() if whole else "")


def put(key: str, body: bytes | IO[bytes]) -> None:
    """Writes an object from this process: small things, and the public bases. Of bytes, raises
    Unavailable."""
    if isinstance(body, bytes):
        try:
            _client().put_object(Bucket=settings.S3_BUCKET, Key=key, Body=body)
        except (ClientError, BotoCoreError) as error:
            raise Unavailable(f"our storage does not take {key}: {error}") from None
    else:
        _client().upload_fileobj(body, settings.S3_BUCKET, key)


def read(key: str, *, start: int = 0, size: int | None = None) -> Iterator[bytes]:
    """Streams an object, or `size` bytes of it from `start` on, in chunks. Raises Unavailable."""
    end = "" if size is None else start + size - 1
    # An empty object has no range that could be asked for.
    span = {"Range": f"bytes={start}-{end}"} if start or size is not None else {}
    try:
        answer = _client().get_object(Bucket=settings.S3_BUCKET, Key=key, **span)
        yield from answer["Body"].iter_chunks(1 << 20)
    except (ClientError, BotoCoreError) as error:
        raise Unavailable(f"our storage can't read {key}: {error}") from None


def delete(keys: Iterable[str]) -> None:
    """Removes objects; those already gone are no error. Raises Unavailable."""
    names = [{"Key": key} for key in keys]
    try:
        for start in range(0, len(names), 1000):
            _client().delete_objects(
                Bucket=settings.S3_BUCKET, Delete={"Objects": names[start : start + 1000]}
            )
    except (ClientError, BotoCoreError) as error:
        raise Unavailable(f"our storage does not delete: {error}") from None


@functools.cache
def _client() -> Any:
    """One client a process; boto3's clients are safe to share between threads."""
    return boto3.client(
        "s3",
        endpoint_url=settings.S3_ENDPOINT_URL,
        aws_access_key_id=settings.S3_ACCESS_KEY,
        aws_secret_access_key=settings.S3_SECRET_KEY,
        region_name="us-east-1",
        config=Config(
            signature_version="s3v4",
            s3={"addressing_style": "path"},
            connect_timeout=3,
            read_timeout=60,
            retries={"max_attempts": 3},
            max_pool_connections=32,
        ),
    )


def _base64(sha256: str) -> str:
    return base64.b64encode(bytes.fromhex(sha256)).decode()
