"""The pages for people.

Each whole in one answer, under a policy by which the browser runs and loads nothing else.
"""

import base64
import hashlib
import re
from pathlib import Path

from taskhook.api import guide
from taskhook.core.message import minified

_PART = re.compile(r"/\* ((?:[a-z_]+/)?[a-z_]+\.(?:css|js)) \*/")
_VENDORS = "/* vendors.json */ []"  # in a script: the vendors, as the guide tells them
_INLINE = re.compile(r"<(script|style)>(.*?)</\1>", re.DOTALL)


def read(folder: Path, name: str) -> str:
    """Read a page, with its styles and scripts where it names them, in its order.

    One answer is the whole of it.
    """
    html = (folder / f"{name}.html").read_text(encoding="utf-8")
    return with_vendors(_PART.sub(lambda part: (folder / part[1]).read_text(encoding="utf-8"), html))


def with_vendors(script: str) -> str:
    """Put the vendors into a script that names them: it knows them before it has asked anything."""
    return script.replace(_VENDORS, minified(guide.vendors()).replace("</", r"<\/"))


def headers(html: str) -> dict[str, str]:
    """Give the headers that confine a page to its own script, its own style and its own origin."""
    hashes: dict[str, list[str]] = {"script": [], "style": []}
    for kind, content in _INLINE.findall(html):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        hashes[kind].append(f"'sha256-{digest}'")
    policy = (
        "default-src 'none'",
        "script-src " + " ".join(hashes["script"]),
        "style-src " + " ".join(hashes["style"]),
        "connect-src 'self'",
        # Results and inputs lie wherever vendor and caller put them; the page loads them on a click, and
        # never by itself. `http:` has effect on an http page only, which is the embedded stack's: browsers
        # upgrade or block it elsewhere.
        "img-src data: https: http:",
        "media-src https: http:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        # No string ever becomes markup or script, wherever it comes from: the browser itself refuses.
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
    return {
        "Content-Security-Policy": "; ".join(policy),
        "Cross-Origin-Opener-Policy": "same-origin",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }
