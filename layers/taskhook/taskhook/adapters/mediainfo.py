"""The parser of media files, in a process of its own: `python -I -S mediainfo.py PACKAGES SIZE`.

It reads hostile files in native code. So it is started with nothing to steal, shuts itself in before it parses the first byte,
and asks its parent for each: `read OFFSET LENGTH` on stdout, answered on stdin by four bytes of length and the bytes.
The last line on stdout is what it found, in JSON.
"""

import json
import os
import resource
import struct
import sys
from collections.abc import Callable
from typing import Any

MEMORY = 128 << 20  # bytes of address space; an ordinary file needs 45 MB in all
CPU_TIME = 1  # seconds; an ordinary file needs 10 ms
READ = 8192  # bytes asked for at a time
_KINDS = {"Video", "Audio", "Image", "Text", "Other", "Menu"}


class _Pipe:
    """A seekable file whose bytes the parent has."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._at = 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, length: int = READ) -> bytes:
        length = min(length if length >= 0 else READ, READ, self._size - self._at)
        if length <= 0:
            return b""
        sys.stdout.write(f"read {self._at} {length}\n")
        sys.stdout.flush()
        [length] = struct.unpack(">I", sys.stdin.buffer.read(4))
        data = sys.stdin.buffer.read(length)
        self._at += len(data)
        return data


def _shut_in() -> None:
    """Give up files, sockets and processes for good, and all but a little memory and time."""
    limits = {
        resource.RLIMIT_AS: MEMORY,
        resource.RLIMIT_CPU: CPU_TIME,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_NPROC: 0,
        resource.RLIMIT_NOFILE: 0,  # what is open stays open: the two pipes
    }
    for limit, most in limits.items():
        resource.setrlimit(limit, (most, most))


def _sides_of_webp() -> Callable[[Any], tuple[int, int]]:
    """Load what is slow to load, and needed for WebP alone: MediaInfo does not tell its sides."""
    import imagesize  # type: ignore[import-untyped]  # noqa: PLC0415  # it has no stubs

    sides: Callable[[Any], tuple[int, int]] = imagesize.get
    return sides


def main() -> None:
    """Parse one file."""
    packages, size = sys.argv[1:]
    sys.path.append(packages)
    from pymediainfo import MediaInfo  # noqa: PLC0415  # found just now

    MediaInfo.can_parse()  # loads the library, which stays
    file = _Pipe(int(size))
    sides = _sides_of_webp() if file.read(12)[8:] == b"WEBP" else None
    _shut_in()
    answer = json.loads(MediaInfo.parse(file, parse_speed=0, buffer_size=READ, output="JSON"))
    tracks: list[dict[str, Any]] = (answer["media"] or {}).get("track", [])
    general, *others = tracks or [{}]
    found: dict[str, Any] = {
        "format": general.get("Format", ""),
        "tracks": sorted({track["@type"] for track in others} & _KINDS),
        "cut_off": (general.get("extra") or {}).get("IsTruncated") == "Yes",
    }
    if found["format"] and found["format"] == general.get("CodecID") and "Image" not in found["tracks"]:
        found["format"] = "MPEG-4"  # named by a brand that MediaInfo does not know, of which there are many
    seen = next((track for kind in ("Video", "Image") for track in others if track["@type"] == kind), {})
    found |= {name.lower(): int(seen[name]) for name in ("Width", "Height") if name in seen}
    found["seconds"] = [float(track["Duration"]) for track in (general, seen) if "Duration" in track]
    if sides is not None and found["format"] == "WebP":
        file.seek(0)
        width, height = sides(file)
        found |= {"width": width, "height": height} if width > 0 else {}
    sys.stdout.write(json.dumps(found) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
