"""What the layer leaves out: whole folders and files, run by its build on the folder of installed packages.

Nothing is cut open. Licences and each package's metadata stay: Amazon MediaInspection finds vulnerable
packages by them.
"""

import shutil
import sys
from pathlib import Path

# What the functions ask of AWS; botocore describes all of it, in 31 MB. A test compares this with what their
# roles may do.
SERVICES = {"dynamodb", "lambda", "s3", "secretsmanager"}
# Sources of compiled modules and types for a checker, none of which is read at run time.
SOURCES = {".c", ".h", ".pxd", ".pxi", ".pyi", ".pyx", ".typed"}
UNUSED = (
    "bin",  # commands
    "aws_lambda_powertools/event_handler/openapi/swagger_ui",
    "boto3/data",  # of its resource objects; only clients are used
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
    for service in [path for path in (packages / "botocore/data").iterdir() if path.is_dir()]:
        if service.name not in SERVICES:
            shutil.rmtree(service)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
