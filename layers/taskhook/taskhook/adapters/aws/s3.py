"""The archive in S3.

Multipart uploads whose parts outlive their maker, and links that are signed for some minutes.
"""

import asyncio
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from botocore.exceptions import BotoCoreError, ClientError

from taskhook.core.errors import ArchiveUnavailableError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import PartTypeDef

# Signed links name the region's own endpoint, which needs no redirect; and no checksum is made that is not
# looked at.
CLIENT: dict[str, Any] = {
    "signature_version": "s3v4",
    "s3": {"addressing_style": "virtual"},
    "request_checksum_calculation": "when_required",
    "response_checksum_validation": "when_required",
}
_LINK_S = 600
# What can hold no script.
_SHOWN = re.compile(r"(?!.*(svg|xml))(image|video|audio)/[a-z0-9.+-]+", re.IGNORECASE)
_NO_UPLOAD = {"NoSuchUpload", "404"}
# Without the right to list a bucket, what is not there is a 403.
_NO_FILE = {
    "NoSuchKey",
    "NotFound",
    "404",
    "403",
}


class S3Archive:
    """`Archive` over one bucket."""

    def __init__(self, client: "S3Client", bucket: str) -> None:
        self._client = client
        self._bucket = bucket

    async def begin(self, key: str, media_type: str) -> str:
        """Begin a multipart upload; the bucket's lifecycle removes it if it is not ended."""
        more = {"ContentType": media_type} if media_type else {}
        answer = await _call(self._client.create_multipart_upload, Bucket=self._bucket, Key=key, **more)
        return str(answer["UploadId"])

    async def parts(self, key: str, upload: str) -> list[int] | None:
        """List the sizes of the parts that are there, from the first on without a gap.

        None where the upload has ended.
        """
        try:
            listed = await self._parts(key, upload)
        except _RefusedError as error:
            if error.code in _NO_UPLOAD:
                return None
            raise
        return [part["Size"] for part in listed]

    async def put(self, key: str, upload: str, number: int, data: bytes) -> None:
        """Keep a part; S3 keeps the last one put under a number."""
        await _call(
            self._client.upload_part,
            Bucket=self._bucket,
            Key=key,
            UploadId=upload,
            PartNumber=number,
            Body=data,
        )

    async def finish(self, key: str, upload: str) -> None:
        """Make the file of the upload's parts."""
        parts = [
            {"PartNumber": part["PartNumber"], "ETag": part["ETag"]}
            for part in await self._parts(key, upload)
        ]
        await _call(
            self._client.complete_multipart_upload,
            Bucket=self._bucket,
            Key=key,
            UploadId=upload,
            MultipartUpload={"Parts": parts},
        )

    async def drop(self, key: str, upload: str) -> None:
        """End an upload without a file, also where it has ended."""
        try:
            await _call(self._client.abort_multipart_upload, Bucket=self._bucket, Key=key, UploadId=upload)
        except _RefusedError as error:
            if error.code not in _NO_UPLOAD:
                raise

    async def link(self, key: str) -> str | None:
        """Sign a link to a file; None where there is no such file."""
        try:
            head = await _call(self._client.head_object, Bucket=self._bucket, Key=key)
        except _RefusedError as error:
            if error.code in _NO_FILE:
                return None
            raise
        wanted = {"Bucket": self._bucket, "Key": key}
        if not _SHOWN.fullmatch(head.get("ContentType", "")):
            wanted["ResponseContentDisposition"] = "attachment"
        return self._client.generate_presigned_url(
            "get_object", Params=wanted, ExpiresIn=_LINK_S, HttpMethod="GET"
        )

    async def _parts(self, key: str, upload: str) -> "list[PartTypeDef]":
        """List the parts up to the first gap; there are fewer than the thousand of one page."""
        answer = await _call(self._client.list_parts, Bucket=self._bucket, Key=key, UploadId=upload)
        return [
            part
            for number, part in enumerate(answer.get("Parts", []), start=1)
            if part["PartNumber"] == number
        ]


class _RefusedError(ArchiveUnavailableError):
    """S3 has answered, and not as wanted. Its text never leaves here: it may hold a key."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


async def _call(method: Callable[..., Any], **request: Any) -> Any:
    """Call S3 off the event loop; its errors become this package's."""
    try:
        return await asyncio.to_thread(method, **request)
    except ClientError as error:
        raise _RefusedError(error.response["Error"]["Code"]) from None
    except BotoCoreError as error:
        raise ArchiveUnavailableError(type(error).__name__) from None
