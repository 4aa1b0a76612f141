"""Names a file by its first bytes.

Formats that the parser may read, others so that a refusal can say what came, and text.
"""

import re

LOOK = 512  # bytes that are enough
# What the vendor takes; nothing else reaches the parser.
PARSED = frozenset({"JPEG", "PNG", "BMP", "WebP", "MPEG-4", "AVI"})

_BITMAP_HEADERS = {12, 16, 40, 52, 56, 64, 108, 124}  # lengths; two letters alone would be any text
_BOXES = re.compile(rb"(ftyp|styp|moov|moof|mdat|free|skip|wide|pnot|uuid|sidx)", re.DOTALL)
_HEIC = re.compile(rb"(hei[cxms]|hev[cxms])")
_PREFIXES = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF8", "GIF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (b"\0\0\0\x0cJXL ", "JPEG XL"),
    (b"\0\0\1\0", "ICO"),
    (b"FLV\1", "Flash Video"),
    (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "Windows Media"),
    (b"\0\0\1\xba", "MPEG-PS"),
    (b"OggS", "Ogg"),
    (b"ID3", "MP3"),
    (b"fLaC", "FLAC"),
    (b"%PDF-", "PDF"),
    (b"PK\3\4", "ZIP"),
    (b"\x1f\x8b\x08", "gzip"),
)
_PAGE = re.compile(
    rb"\s*(<!--|<(head|body|script|title|meta|iframe)\b)|.*<(!doctype\s+html|html)\b",
    re.IGNORECASE | re.DOTALL,
)
_PACKET, _SYNC = 188, b"\x47"  # bytes of an MPEG transport stream's packet, and the first of each


def name(head: bytes) -> str:
    """Name the format of a file that begins like this; empty where it is none of those known."""
    if _BOXES.fullmatch(head[4:8]):  # before ICO, whose first bytes are a box's length too
        return _name_of_boxes(head)
    if head[:4] == b"RIFF":
        return {b"WEBP": "WebP", b"AVI ": "AVI", b"WAVE": "WAV"}.get(head[8:12], "")
    if head[:2] == b"BM" and int.from_bytes(head[14:18], "little") in _BITMAP_HEADERS:
        return "BMP"
    if head[:4] == b"\x1a\x45\xdf\xa3":
        return "WebM" if b"webm" in head[:64] else "Matroska"
    if head[: 2 * _PACKET + 1 : _PACKET] == _SYNC * 3:
        return "MPEG-TS"
    return next((named for prefix, named in _PREFIXES if head.startswith(prefix)), "")


def _name_of_boxes(head: bytes) -> str:
    """Tell pictures in boxes from videos.

    By the major brand, or the others where that one says only that it is a picture.
    """
    if head[4:8] != b"ftyp":
        return "MPEG-4"
    major, others = head[8:12], head[16 : int.from_bytes(head[:4])]
    if major in {b"avif", b"avis"} or (major in {b"mif1", b"msf1"} and re.search(rb"avi[fs]", others)):
        return "AVIF"
    if _HEIC.fullmatch(major) or major in {b"mif1", b"msf1"}:
        return "HEIC" if _HEIC.search(head[8:12] + others) else "HEIF"
    return "MPEG-4"


def is_page(head: bytes) -> bool:
    """Tell whether this is a web page."""
    return _PAGE.match(head.removeprefix(b"\xef\xbb\xbf")) is not None


def is_text(head: bytes) -> bool:
    """Tell whether a file begins as a page or a message does: no media format does."""
    head = head[:LOOK]
    try:
        text = head.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:  # else a character was cut in two
            return False
        text = head[: error.start].decode("utf-8-sig")
    return bool(text) and all(character.isprintable() or character in "\t\n\r\f" for character in text)
