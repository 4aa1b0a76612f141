"""How large the layer is, packed and unpacked, by package; for the default architecture."""

import sys
import tempfile
import zipfile
from collections import Counter
from io import BytesIO
from pathlib import Path
from typing import Any

from tests import layer
from tests.local import stack

MB = 1_000_000


def measure(*, quick: bool, seed: int) -> dict[str, Any]:
    """Build it once and weigh it."""
    del quick, seed
    with tempfile.TemporaryDirectory() as folder:
        packed = layer.zipped(
            layer.build(Path(folder), stack.template()["Parameters"]["Architecture"]["Default"])
        )
    packages: Counter[str] = Counter()
    unzipped = 0
    with zipfile.ZipFile(BytesIO(packed)) as archive:
        for entry in archive.infolist():
            unzipped += entry.file_size
            packages[Path(entry.filename).parts[1:2][0] if "/" in entry.filename.rstrip("/") else "."] += (
                entry.compress_size
            )
    largest = {name: round(size / MB, 2) for name, size in packages.most_common(12)}
    print(f"zipped, MB: {largest}", file=sys.stderr)
    return {
        "zipped_mb": round(len(packed) / MB, 2),
        "unzipped_mb": round(unzipped / MB, 2),
        "zipped_by_package": largest,
    }
