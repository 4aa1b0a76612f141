"""Media files made on the spot: every format, each limit just inside and outside, and deceptions."""

import io
import struct
import tempfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, partial
from pathlib import Path
from typing import Any

import av
from PIL import Image

from taskhook.core.models import Verdict

MB = 1 << 20
IMAGE, VIDEO = "image_url", "video_url"
PAGE = b"<!doctype html><html><head><title>Sign in</title></head><body>Sign in to see this file</body></html>"


@dataclass(frozen=True)
class Row:
    """A file, for which input it is given, and what is to be said of it; `name` is what its URL ends in."""

    name: str
    field: str
    make: Callable[[], bytes]
    verdict: Verdict
    words: str = ""


# --- files ----------------------------------------------------------------------------------------


def image(kind: str, width: int, height: int, *, mode: str = "RGB", **options: Any) -> bytes:
    """Make an image, black."""
    file = io.BytesIO()
    Image.new(mode, (width, height)).save(file, kind, **options)
    return file.getvalue()


def animation(kind: str, width: int, height: int) -> bytes:
    """Make an image that moves."""
    first, *others = (Image.new("RGB", (width, height), (shade, 0, 0)) for shade in (0, 100, 200))
    file = io.BytesIO()
    first.save(file, kind, save_all=True, append_images=others, duration=100)
    return file.getvalue()


@cache
def video(
    kind: str,
    width: int,
    height: int,
    seconds: float,
    *,
    fps: int = 10,
    codec: str = "mpeg4",
    pixels: str = "yuv420p",
    flags: str = "",
    uneven: bool = False,
    sound: bool = False,
    sight: bool = True,
) -> bytes:
    """Make a video, black and silent; `uneven` frames last longer and longer."""
    # a muxer that moves the index to the front opens its file again
    with tempfile.NamedTemporaryFile() as kept:
        with av.open(kept.name, "w", format=kind, options={"movflags": flags} if flags else {}) as file:
            streams: list[tuple[Any, Iterator[Any]]] = []  # all of them, before the first frame is written
            if sight:
                pictures: Any = file.add_stream(codec, rate=fps)
                pictures.width, pictures.height, pictures.pix_fmt = width, height, pixels
                pictures.time_base = beat = Fraction(1, 1000 if uneven else fps)
                times = [
                    number * 1000 // fps + number * number if uneven else number
                    for number in range(round(seconds * fps))
                ]
                streams.append((pictures, _black(width, height, pixels, beat, times)))
            if sound:
                silence: Any = file.add_stream("aac", rate=8000)
                silence.layout = "mono"
                streams.append((silence, _silence(int(seconds * 8000 / 1024))))
            for stream, frames in streams:
                for frame in frames:
                    file.mux(stream.encode(frame))
                file.mux(stream.encode())
        return Path(kept.name).read_bytes()


def _black(width: int, height: int, pixels: str, beat: Fraction, times: list[int]) -> Iterator[Any]:
    picture = av.VideoFrame(width, height, pixels)
    for plane in picture.planes:
        plane.update(bytes(plane.buffer_size))
    for time in times:
        picture.time_base, picture.pts = beat, time
        yield picture


def _silence(count: int) -> Iterator[Any]:
    for number in range(count):
        frame = av.AudioFrame("fltp", "mono", 1024)
        frame.sample_rate, frame.pts = 8000, number * 1024
        for plane in frame.planes:
            plane.update(bytes(plane.buffer_size))
        yield frame


def boxes(mp4: bytes) -> Iterator[tuple[bytes, int, int]]:
    """List the outermost boxes of an MP4: name, start, end."""
    at = 0
    while at < len(mp4):
        [length] = struct.unpack_from(">I", mp4, at)
        yield mp4[at + 4 : at + 8], at, at + length
        at += length


def box(name: bytes, *content: bytes) -> bytes:
    """Make one."""
    return struct.pack(">I", 8 + sum(map(len, content))) + name + b"".join(content)


PICTURES_IN_BOXES = (
    ("avif", (b"avif", b"mif1", b"miaf"), "AVIF"),
    ("avif-sequence", (b"avis", b"msf1"), "AVIF"),
    ("avif-by-another", (b"mif1", b"avif"), "AVIF"),
    ("heic", (b"heic", b"mif1"), "HEIC"),
    ("heix", (b"heix", b"mif1"), "HEIC"),
    ("heic-by-another", (b"mif1", b"heic"), "HEIC"),
    ("heic-sequence", (b"hevc", b"msf1"), "HEIC"),
    ("picture", (b"mif1", b"miaf"), "HEIF"),
)


def in_boxes(major: bytes, *others: bytes, size: int = 0) -> bytes:
    """Make a picture as telephones do, with these brands, padded where it is to be larger."""
    picture = without(image("AVIF", 300, 400), b"ftyp")
    content = box(b"ftyp", major, bytes(4), major, *others) + picture
    return content + (box(b"free", bytes(size - len(content) - 8)) if size else b"")


def write_stretched(mp4: bytes, size: int, path: Path) -> None:
    """Write an MP4 with zeros between pictures and index, up to that size; they take no disk."""
    [(start, end)] = [(start, end) for name, start, end in boxes(mp4) if name == b"mdat"]
    gap = size - len(mp4)
    with path.open("wb") as file:
        file.write(mp4[:start] + struct.pack(">I", end - start + gap) + mp4[start + 4 : end])
        file.seek(gap, io.SEEK_CUR)
        file.write(mp4[end:])
        file.truncate(size)


def padded(content: bytes, size: int) -> bytes:
    """Put zeros behind the end, which decoders do not read."""
    return content + bytes(size - len(content))


def rotated(mp4: bytes) -> bytes:
    """Turn an MP4 by 90 degrees, as telephones do: by the matrix in its track header."""
    at = mp4.index(b"tkhd") + 4 + 40
    return mp4[:at] + struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30) + mp4[at + 36 :]


def branded(brand: bytes) -> bytes:
    """Make an MP4 that calls itself something else; what plays it does not mind."""
    return video("mp4", 320, 240, 3).replace(b"ftypisom", b"ftyp" + brand)


def without(mp4: bytes, *names: bytes) -> bytes:
    """Leave boxes out."""
    return b"".join(mp4[start:end] for name, start, end in boxes(mp4) if name not in names)


def chunk(name: bytes, content: bytes) -> bytes:
    """Make a chunk of a PNG."""
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(width: int, height: int, *chunks: bytes) -> bytes:
    """Make a PNG that says what it likes."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + header
        + b"".join(chunks)
        + chunk(b"IDAT", zlib.compress(bytes(100)))
        + chunk(b"IEND", b"")
    )


@cache
def bomb(megabytes: int = 256) -> bytes:
    """Deflate a lot of nothing."""
    press = zlib.compressobj(9)
    return b"".join([*(press.compress(bytes(MB)) for _ in range(megabytes)), press.flush()])


def nested(name: bytes, depth: int) -> bytes:
    """Put boxes into boxes."""
    return box(b"ftyp", b"isom\0\0\0\0isom") + b"".join(
        struct.pack(">I", 8 * left) + name for left in range(depth, 0, -1)
    )


# --- the rows -------------------------------------------------------------------------------------


def _images() -> Iterator[Row]:
    fine = partial(Row, field=IMAGE, verdict=Verdict.FINE)
    wrong = partial(Row, field=IMAGE, verdict=Verdict.WRONG)
    sample = partial(image, width=300, height=400)
    for kind, name in (("JPEG", "a.jpg"), ("PNG", "a.png"), ("BMP", "a.bmp"), ("WEBP", "a.webp")):
        yield fine(name, make=partial(sample, kind))
        yield fine(f"small-{name}", make=partial(image, kind, 200, 200))
        yield wrong(
            f"thin-{name}",
            make=partial(image, kind, 199, 200),
            words=f"{IMAGE} is 199x200 px; each side must be 200 to 4096",
        )
        mode = {"mode": "1"} if kind == "BMP" else {}  # else it would be heavier than is allowed
        yield fine(f"large-{name}", make=partial(image, kind, 4096, 4096, **mode))
        yield wrong(
            f"wide-{name}", make=partial(image, kind, 4097, 4096, **mode), words="is 4097x4096 px; each side"
        )
        yield fine(f"long-{name}", make=partial(image, kind, 200, 600))
        yield wrong(
            f"longer-{name}",
            make=partial(image, kind, 200, 601),
            words="is 200x601 px; the ratio of its sides must be 1:3",
        )
        yield fine(f"flat-{name}", make=partial(image, kind, 600, 200))
        yield wrong(f"flatter-{name}", make=partial(image, kind, 601, 200), words="is 601x200 px; the ratio")


def _odd_images() -> Iterator[Row]:
    fine = partial(Row, field=IMAGE, verdict=Verdict.FINE)
    wrong = partial(Row, field=IMAGE, verdict=Verdict.WRONG)
    sample = partial(image, width=300, height=400)
    yield fine("heavy.jpg", make=lambda: padded(sample("JPEG"), 5 * MB))
    yield wrong(
        "heavier.jpg",
        make=lambda: padded(sample("JPEG"), 5 * MB + 1),
        words="is 5242881 bytes long; it must be at most 5242880",
    )
    yield wrong(
        "issue.png",
        make=partial(image, "PNG", 150, 4000),
        words=f"{IMAGE} is 150x4000 px; each side must be 200 to 4096",
    )
    yield fine("cmyk.jpg", make=partial(sample, "JPEG", mode="CMYK"))
    yield fine("grey.jpg", make=partial(sample, "JPEG", mode="L"))
    yield fine("progressive.jpg", make=partial(sample, "JPEG", progressive=True))
    # its sides lie far behind the first range
    yield fine("profile.jpg", make=partial(sample, "JPEG", icc_profile=bytes(300_000)))
    yield fine("camera.jpg", make=partial(sample, "JPEG", exif=b"Exif\0\0" + bytes(60_000)))
    yield fine("palette.png", make=partial(sample, "PNG", mode="P"))
    yield fine("lossless.webp", make=partial(sample, "WEBP", lossless=True))
    yield fine("alpha.webp", make=partial(sample, "WEBP", mode="RGBA"))
    yield fine("animated.png", make=partial(animation, "PNG", 300, 400))
    yield fine("several.jpg", make=partial(animation, "MPO", 300, 400))
    yield fine("animated.webp", make=partial(animation, "WEBP", 300, 400))
    yield wrong("animated-thin.webp", make=partial(animation, "WEBP", 199, 400), words="is 199x400 px")
    for kind, name, said in (
        ("GIF", "a.gif", "GIF"),
        ("TIFF", "a.tiff", "TIFF"),
        ("JPEG2000", "a.jp2", "JPEG 2000"),
        ("ICO", "a.ico", "ICO"),
        ("AVIF", "a.avif", "AVIF"),
    ):
        yield wrong(
            name,
            make=partial(sample, kind),
            words=f"{IMAGE} is {said}; it must be JPG/JPEG or PNG or BMP or WEBP",
        )
    for name, brands, said in PICTURES_IN_BOXES:
        yield wrong(
            f"{name}.heic", make=partial(in_boxes, *brands), words=f"is {said}; it must be JPG/JPEG or PNG"
        )
        yield wrong(
            f"{name}-large.heic",
            make=partial(in_boxes, *brands, size=120_000),
            words=f"is {said}; it must be",
        )
    yield fine("png-in-truth.jpg", make=partial(sample, "PNG"))
    yield fine("jpeg-in-truth.mp4", make=partial(sample, "JPEG"))
    yield wrong("mp4-in-truth.jpg", make=partial(video, "mp4", 320, 240, 3), words="is MPEG-4")
    yield wrong(
        "a.svg",
        make=lambda: b'<svg xmlns="http://www.w3.org/2000/svg" width="300" height="400"/>',
        words="is text",
    )
    yield Row("page.jpg", IMAGE, lambda: PAGE, Verdict.UNCHECKED, "host answers with a page")
    yield Row(
        "long-page.jpg", IMAGE, lambda: padded(PAGE, 6 * MB), Verdict.UNCHECKED, "host answers with a page"
    )
    yield Row(
        "challenge.jpg",
        IMAGE,
        lambda: b"\n<!-- \xc2\xa9 -->" + PAGE,
        Verdict.UNCHECKED,
        "host answers with a page",
    )
    yield wrong(
        "message.jpg", make=lambda: b'{"error":"no such file"}', words="is text, for example an error message"
    )
    yield wrong("utf8-page.jpg", make=("é" * 300).encode, words="is text")
    yield wrong("empty.jpg", make=bytes, words=f"{IMAGE} is empty")
    yield Row("cut-in-the-header.png", IMAGE, lambda: sample("PNG")[:20], Verdict.WRONG, "broken, or cut off")
    yield Row(
        "cut-in-the-header.webp", IMAGE, lambda: sample("WEBP")[:20], Verdict.WRONG, "broken, or cut off"
    )
    yield Row(
        "cut-in-the-header.jpg", IMAGE, lambda: sample("JPEG")[:100], Verdict.UNCHECKED, "unknown format"
    )
    # its sides are as they should be; the vendor will see
    yield fine("cut-in-the-picture.jpg", make=lambda: sample("JPEG")[:-500])
    yield Row("noise.jpg", IMAGE, lambda: bytes(range(256)) * 100, Verdict.UNCHECKED, "unknown format")
    yield fine("jpeg-and-zip.jpg", make=lambda: sample("JPEG") + b"PK\3\4" + bytes(200))
    yield wrong("gif-and-zip.jpg", make=lambda: sample("GIF") + b"PK\3\4" + bytes(200), words="is GIF")
    yield wrong(
        "pdf-and-jpeg.jpg", make=lambda: b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n" + sample("JPEG"), words="is PDF"
    )
    yield Row(
        "page-and-jpeg.jpg",
        IMAGE,
        lambda: PAGE * 6 + sample("JPEG"),
        Verdict.UNCHECKED,
        "host answers with a page",
    )
    yield wrong(
        "text-as-bitmap.bmp",
        make=lambda: b"BM begins like a bitmap, and goes on like a letter. " * 20,
        words="is text",
    )
    yield wrong("zip.png", make=lambda: b"PK\3\4" + bytes(200), words="is ZIP")
    yield wrong("bomb.png", make=partial(png, 50_000, 50_000), words="is 50000x50000 px")
    yield wrong("nothing.png", make=partial(png, 0, 0), words="broken")
    yield fine("text-bomb.png", make=lambda: png(300, 400, chunk(b"zTXt", b"Comment\0\0" + bomb())))
    yield fine("profile-bomb.png", make=lambda: png(300, 400, chunk(b"iCCP", b"x\0\0" + bomb())))
    yield fine(
        "xmp-bomb.png", make=lambda: png(300, 400, chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + bomb()))
    )


def _videos() -> Iterator[Row]:
    fine = partial(Row, field=VIDEO, verdict=Verdict.FINE)
    wrong = partial(Row, field=VIDEO, verdict=Verdict.WRONG)
    for kind in ("mp4", "mov", "avi"):
        sample = partial(video, kind, width=320, height=240)
        yield fine(f"a.{kind}", make=partial(sample, seconds=3))
        yield fine(f"h264.{kind}", make=partial(sample, seconds=3, codec="libx264"))
        yield fine(f"short.{kind}", make=partial(sample, seconds=2))
        yield wrong(
            f"shorter.{kind}",
            make=partial(sample, seconds=1.9),
            words=f"{VIDEO} is 1.900 s long; it must be 2 to 30 s",
        )
        yield fine(f"long.{kind}", make=partial(sample, seconds=30))
        yield wrong(
            f"longer.{kind}",
            make=partial(sample, seconds=30.1),
            words="is 30.100 s long; it must be 2 to 30 s",
        )
        yield fine(f"small.{kind}", make=partial(video, kind, 200, 200, 2))
        yield wrong(
            f"thin.{kind}",
            make=partial(video, kind, 198, 200, 2),
            words="is 198x200 px; each side must be 200 to 2048",
        )
        yield fine(f"large.{kind}", make=partial(video, kind, 2048, 2048, 2, fps=2))
        yield wrong(
            f"wide.{kind}",
            make=partial(video, kind, 2050, 2048, 2, fps=2),
            words="is 2050x2048 px; each side",
        )
        yield fine(f"flat.{kind}", make=partial(video, kind, 600, 200, 2))
        yield wrong(
            f"flatter.{kind}",
            make=partial(video, kind, 602, 200, 2),
            words="is 602x200 px; the ratio of its sides",
        )
        yield fine(f"upright.{kind}", make=partial(video, kind, 200, 600, 2))
        yield wrong(
            f"more-upright.{kind}", make=partial(video, kind, 200, 602, 2), words="is 200x602 px; the ratio"
        )


def _odd_videos() -> Iterator[Row]:
    fine = partial(Row, field=VIDEO, verdict=Verdict.FINE)
    wrong = partial(Row, field=VIDEO, verdict=Verdict.WRONG)
    sample = partial(video, "mp4", 320, 240)
    yield fine("index-in-front.mp4", make=partial(sample, 3, flags="faststart"))
    yield fine("fragmented.mp4", make=partial(sample, 10, codec="libx264", flags="frag_keyframe+empty_moov"))
    yield wrong(
        "fragmented-long.mp4", make=partial(sample, 31, flags="frag_keyframe+empty_moov"), words="is 31."
    )
    yield fine("dash.mp4", make=partial(sample, 10, codec="libx264", flags="dash+global_sidx"))
    yield fine("uneven.mp4", make=partial(sample, 5, codec="libx264", uneven=True))
    yield fine("uneven.mov", make=partial(video, "mov", 320, 240, 5, codec="libx264", uneven=True))
    yield fine("sound.mp4", make=partial(sample, 5, sound=True))
    yield fine("rotated.mp4", make=lambda: rotated(video("mp4", 600, 200, 2)))
    yield wrong("rotated-thin.mp4", make=lambda: rotated(video("mp4", 600, 198, 2)), words="is 600x198 px")
    for brand in (b"iso6", b"dash", b"hvc1", b"CAEP", b"M4B ", b"^t  ", b"?!\xff\0"):
        yield fine(f"{brand.hex()}.mp4", make=partial(branded, brand))
    yield fine("motion-jpeg.avi", make=partial(video, "avi", 320, 240, 3, codec="mjpeg", pixels="yuvj420p"))
    yield fine("old.mov", make=lambda: without(video("mov", 320, 240, 3), b"ftyp", b"wide"))
    yield fine("mp4-in-truth.avi", make=partial(sample, 3))
    for kind, codec, said in (
        ("matroska", "mpeg4", "Matroska"),
        ("webm", "libvpx", "WebM"),
        ("mpegts", "mpeg4", "MPEG-TS"),
        ("flv", "flv", "Flash Video"),
        ("asf", "mpeg4", "Windows Media"),
    ):
        yield wrong(
            f"{kind}.mp4",
            make=partial(video, kind, 320, 240, 3, codec=codec, fps=25),
            words=f"{VIDEO} is {said}; it must be MP4 or MOV or AVI",
        )
    yield wrong("gif.mp4", make=partial(animation, "GIF", 320, 240), words="is GIF")
    yield wrong("jpeg.mp4", make=partial(image, "JPEG", 300, 400), words="is JPEG")
    yield wrong(
        "only-sound.mp4",
        make=partial(sample, 5, sound=True, sight=False),
        words="has no video in it, only sound",
    )
    yield wrong(
        "a.m4a",
        make=partial(video, "ipod", 320, 240, 5, sound=True, sight=False),
        words="has no video in it, only sound",
    )
    yield wrong("a.mp3", make=lambda: b"ID3\4" + bytes(1000), words="is MP3; it must be")
    yield wrong("no-index.mp4", make=lambda: without(sample(3), b"moov"), words="no video in it")
    yield wrong("cut-in-the-index.mp4", make=lambda: sample(3)[:-600], words="broken, or cut off")
    yield Row(
        "cut-in-the-pictures.mp4",
        VIDEO,
        lambda: sample(3, flags="faststart")[:-500],
        Verdict.UNCHECKED,
        "cut off",
    )
    yield Row(
        "cut-in-the-pictures.avi",
        VIDEO,
        lambda: video("avi", 320, 240, 3)[:-3000],
        Verdict.UNCHECKED,
        "cut off",
    )
    yield wrong("empty.mp4", make=bytes, words="is empty")
    yield Row("page.mp4", VIDEO, lambda: PAGE, Verdict.UNCHECKED, "host answers with a page")
    for name, brands, said in PICTURES_IN_BOXES:
        yield wrong(
            f"{name}.mp4",
            make=partial(in_boxes, *brands, size=120_000),
            words=f"is {said}; it must be MP4 or MOV or AVI",
        )
    yield wrong(
        "playlist.mp4", make=lambda: b"#EXTM3U\n#EXTINF:3,\nhttp://127.0.0.1/secret.ts\n", words="is text"
    )
    yield Row("noise.mp4", VIDEO, lambda: bytes(range(256)) * 100, Verdict.UNCHECKED, "unknown format")
    yield fine("jpeg-in-mp4.mp4", make=lambda: sample(3) + box(b"free", image("JPEG", 10, 10)))
    yield wrong("jpeg-before-mp4.mp4", make=lambda: image("JPEG", 300, 400) + sample(3), words="is JPEG")
    yield fine("mp4-and-zip.mp4", make=lambda: sample(3) + b"\0\0\0\x0cPK\3\4" + bytes(4))
    yield wrong(
        "index-bomb.mov",
        make=lambda: (
            box(b"ftyp", b"qt  \0\0\0\0qt  ")
            + box(
                b"moov",
                box(b"cmov", box(b"dcom", b"zlib") + box(b"cmvd", struct.pack(">I", 256 * MB), bomb())),
            )
        ),
        words="no video in it",
    )
    yield wrong("nested.mp4", make=partial(nested, b"moov", 8000), words="no video in it")


ROWS = (*_images(), *_odd_images(), *_videos(), *_odd_videos())
