"""What the layer leaves out: run by its build on the folder of installed packages, before byte code is made.

Licences stay, and of each package's metadata name and version: Amazon Inspector finds vulnerable packages by them.
"""

import gzip
import json
import shutil
import struct
import sys
from pathlib import Path
from typing import Any

# What the functions ask of AWS; botocore describes all of it, in 31 MB. A test compares this with what their roles may do.
OPERATIONS = {
    "dynamodb": {"BatchGetItem", "GetItem", "PutItem", "Query", "UpdateItem"},
    "lambda": {"Invoke"},
    "s3": {
        *("AbortMultipartUpload", "CompleteMultipartUpload", "CreateMultipartUpload", "GetObject", "HeadObject", "ListParts"),
        "UploadPart",
    },
    "secretsmanager": {"GetSecretValue"},
}
# Sources of compiled modules and types for a checker, none of which is read at run time.
SOURCES = {".c", ".h", ".pxd", ".pxi", ".pyi", ".pyx", ".typed"}
UNUSED = (
    "bin",  # commands
    "aws_lambda_powertools/event_handler/openapi/swagger_ui",
    "boto3/data",  # of its resource objects; clients come from botocore
    "boto3/examples",
    "multidict/_testcapi.*.so",
    "pydantic/v1",  # its former self
)


def main(packages: Path) -> None:
    """Leave out what no function ever reads."""
    for pattern in ("**/__pycache__", *UNUSED):
        for path in list(packages.glob(pattern)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in list(packages.rglob("*")):
        if path.suffix in SOURCES:
            path.unlink()
    for module in packages.rglob("*.so"):
        module.write_bytes(_without_debugging(module.read_bytes()))
    for info in packages.glob("*.dist-info"):
        _trim_metadata(info)
    _trim_descriptions(packages / "botocore/data")


def _without_debugging(module: bytes) -> bytes:
    """Cut a 64-bit ELF file off behind its last segment: the loader reads segments, a debugger sections, half of some files.

    Done here because a host's `strip` seldom knows the other architecture.
    """
    header = bytearray(module[:64])
    (segments,) = struct.unpack_from("<Q", header, 0x20)
    size, count = struct.unpack_from("<HH", header, 0x36)
    ends = [sum(struct.unpack_from("<Q16xQ", module, segments + number * size + 8)) for number in range(count)]
    struct.pack_into("<Q", header, 0x28, 0)  # there is no table of sections any more
    struct.pack_into("<HHH", header, 0x3A, 0, 0, 0)
    return bytes(header) + module[64 : max(ends)]


def _trim_metadata(info: Path) -> None:
    for path in [path for path in info.rglob("*") if path.is_file()]:
        if path.name == "METADATA":
            path.write_text(path.read_text().partition("\n\n")[0] + "\n")  # what follows is the package's README
        elif not path.name.upper().startswith(("LICEN", "COPYING", "NOTICE", "AUTHORS")):
            path.unlink()
    for folder in sorted((path for path in info.rglob("*") if path.is_dir()), reverse=True):
        if not any(folder.iterdir()):
            folder.rmdir()


def _trim_descriptions(data: Path) -> None:
    """Keep what makes a client of each service in use: the operations in use, of its newest version, and its endpoints."""
    for service in [path for path in data.iterdir() if path.is_dir()]:
        if service.name not in OPERATIONS:
            shutil.rmtree(service)
            continue
        *older, newest = sorted(service.iterdir())
        for version in older:
            shutil.rmtree(version)
        for path in newest.iterdir():
            if path.name == "service-2.json.gz":
                described = _trim_service(json.loads(gzip.decompress(path.read_bytes())), OPERATIONS[service.name])
                path.with_suffix("").write_text(_minified(described))
                path.unlink()
            elif not path.name.startswith(("service-2.", "endpoint-rule-set-")):
                path.unlink()
    endpoints = json.loads((data / "endpoints.json").read_text())
    for partition in endpoints["partitions"]:
        partition["services"] = {name: where for name, where in partition["services"].items() if name in OPERATIONS}
    (data / "endpoints.json").write_text(_minified(endpoints))


def _trim_service(described: dict[str, Any], operations: set[str]) -> dict[str, Any]:
    """Keep these operations and the shapes that they reach, without prose."""
    kept = {name: described["operations"][name] for name in sorted(operations)}
    shapes: dict[str, Any] = {}
    reached: list[Any] = list(kept.values())
    while reached:
        part = reached.pop()
        if isinstance(part, list):
            reached += part
        elif isinstance(part, dict):
            if isinstance(part.get("documentation"), str):
                del part["documentation"]
            reached += part.values()
            if isinstance(name := part.get("shape"), str) and name not in shapes:
                shapes[name] = described["shapes"][name]
                reached.append(shapes[name])
    return {**described, "operations": kept, "shapes": shapes}


def _minified(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
