"""An S3 client in memory, as far as the archive's adapter asks it: multipart uploads and their files."""

import secrets
from dataclasses import dataclass, field
from typing import Any

from botocore.exceptions import ClientError


@dataclass
class MemoryS3:
    """Files and uploads of one bucket; refuses as S3 does."""

    files: dict[str, bytes] = field(default_factory=dict)
    uploads: dict[tuple[str, str], dict[int, bytes]] = field(default_factory=dict)

    def create_multipart_upload(self, **request: Any) -> dict[str, Any]:
        """Begin an upload."""
        upload = secrets.token_hex(8)
        self.uploads[request["Key"], upload] = {}
        return {"UploadId": upload}

    def list_parts(self, **request: Any) -> dict[str, Any]:
        """List what was put."""
        parts = self._parts(request)
        return {
            "Parts": [
                {"PartNumber": number, "Size": len(data), "ETag": str(hash(data))}
                for number, data in sorted(parts.items())
            ]
        }

    def upload_part(self, **request: Any) -> dict[str, Any]:
        """Keep a part."""
        self._parts(request)[request["PartNumber"]] = request["Body"]
        return {}

    def complete_multipart_upload(self, **request: Any) -> dict[str, Any]:
        """Make the file of the parts named."""
        parts, wanted = self._parts(request), request["MultipartUpload"]["Parts"]
        if not wanted or any(str(hash(parts.get(part["PartNumber"]))) != part["ETag"] for part in wanted):
            raise _refusal("InvalidPart")
        self.files[request["Key"]] = b"".join(parts[part["PartNumber"]] for part in wanted)
        del self.uploads[request["Key"], request["UploadId"]]
        return {}

    def abort_multipart_upload(self, **request: Any) -> dict[str, Any]:
        """Forget an upload."""
        self._parts(request)
        del self.uploads[request["Key"], request["UploadId"]]
        return {}

    def head_object(self, **request: Any) -> dict[str, Any]:
        """Look whether a file is there."""
        if request["Key"] not in self.files:
            raise _refusal("404")
        return {}

    def generate_presigned_url(self, _method: str, **request: Any) -> str:
        """Sign, which asks no server."""
        return f"https://bucket.example.com/{request['Params']['Key']}"

    def _parts(self, request: Any) -> dict[int, bytes]:
        try:
            return self.uploads[request["Key"], request["UploadId"]]
        except KeyError:
            raise _refusal("NoSuchUpload") from None


def _refusal(code: str) -> ClientError:
    return ClientError({"Error": {"Code": code, "Message": "no"}}, "Call")
