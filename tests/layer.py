"""The layer as `sam build` makes it, and as it would be without its makefile."""

import hashlib
import io
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from tests.local import stack

SOURCE = stack.ROOT / "layers/taskhook"


def build(folder: Path, architecture: str = stack.ARCHITECTURE) -> Path:
    """Build the layer into a folder by the very makefile that SAM runs; give what would be `/opt/python`."""
    environment = {
        **os.environ,
        "ARCHITECTURE": architecture,
        "ARTIFACTS_DIR": str(folder),
        "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])),
        "UV": stack.UV,
    }
    subprocess.run(
        ["make", "--silent", "build-Layer"], cwd=SOURCE, env=environment, check=True, capture_output=True
    )
    return folder / "python"


def naive(folder: Path) -> Path:
    """Install what the layer holds, and nothing more: no byte code, nothing left out."""
    _install(folder / "python", "--require-hashes", "-r", str(SOURCE / "requirements.txt"))
    shutil.copytree(
        SOURCE / "taskhook", folder / "python/taskhook", ignore=shutil.ignore_patterns("__pycache__")
    )
    return folder / "python"


def floor(folder: Path) -> Path:
    """Install boto3 of the layer's version, untrimmed, with byte code."""
    lock = (SOURCE / "requirements.txt").read_text().splitlines()
    [boto3] = [line.removesuffix(" \\") for line in lock if line.startswith("boto3==")]
    _install(folder / "python", boto3)
    compiled = [sys.executable, "-m", "compileall", "-q", "-j", "0", "--invalidation-mode", "unchecked-hash"]
    subprocess.run([*compiled, folder / "python"], check=True)
    return folder / "python"


def _install(target: Path, *what: str) -> None:
    installed = [
        stack.UV,
        "pip",
        "install",
        "--quiet",
        "--python",
        sys.executable,
        "--link-mode",
        "copy",
        "--target",
        str(target),
    ]
    subprocess.run([*installed, *what], check=True, capture_output=True)


def zipped(layer: Path) -> bytes:
    """Pack a layer as it is deployed, in an order of its own."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(layer.parent.rglob("*")):
            archive.write(path, path.relative_to(layer.parent))
    return packed.getvalue()


def digest(layer: Path) -> str:
    """Digest names, times, modes and contents: one build, one digest."""
    digested = hashlib.sha256()
    for path in sorted(layer.rglob("*")):
        known = path.lstat()
        digested.update(f"{path.relative_to(layer)} {known.st_mtime_ns} {known.st_mode:o}\n".encode())
        digested.update(path.read_bytes() if path.is_file() else b"")
    return digested.hexdigest()


def machine(module: Path) -> str:
    """Read from its ELF header which processor a compiled module is for."""
    header = module.read_bytes()[:20]
    assert header[:4] == b"\x7fELF", module
    return {62: "x86_64", 183: "arm64"}[int.from_bytes(header[18:20], "little")]
