"""The console's script without a browser: the order of its files, and its pure functions under node."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from taskhook.api import pages

FOLDER = Path(__file__).parents[2] / "functions" / "submit"
NODE = shutil.which("node")
# in the order of the page
FILES = re.findall(r"/\* (\S+\.js) \*/", (FOLDER / "console.html").read_text(encoding="utf-8"))
PURE = ("page.js", "console/api.js", "console/widgets.js", "console/time.js")
NOW = 1_800_000_000_000  # milliseconds

needs_node = pytest.mark.skipif(NODE is None, reason="node is not installed here")


def source(name: str) -> str:
    """Read a file of the script."""
    return (FOLDER / name).read_text(encoding="utf-8")


def evaluated(expression: str) -> Any:
    """Let node evaluate an expression beside the files that draw nothing by themselves, at the time `NOW`."""
    surroundings = f"globalThis.document = {{getElementById: () => null}}; Date.now = () => {NOW};"
    script = "\n".join([surroundings, *map(source, PURE), f"console.log(JSON.stringify({expression}))"])
    done = subprocess.run([str(NODE), "-"], input=script, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


# --- the files ------------------------------------------------------------------------------------


def test_each_file_uses_only_what_stands_above_it() -> None:
    """So there is no circle between them; and every file has its place in the page."""
    assert {name for name in FILES if "/" in name} == {
        f"console/{file.name}" for file in (FOLDER / "console").iterdir()
    }
    declared = {
        name: re.findall(r"^(?:async )?(?:function|const|let|class) (\w+)", source(name), flags=re.MULTILINE)
        for name in FILES
    }
    assert all(declared[name] for name in FILES[:-1])
    for place, name in enumerate(FILES):
        code = re.sub(r"//.*|(?s:/\*.*?\*/)|\"[^\"\n]*\"", "", source(name))
        below = [word for other in FILES[place + 1 :] for word in declared[other]]
        assert [word for word in below if re.search(rf"(?<![\w.]){word}\b(?!:)", code)] == [], name


@needs_node
@pytest.mark.parametrize("name", FILES)
def test_each_file_is_a_script(name: str) -> None:
    """It can be read by itself."""
    subprocess.run([str(NODE), "--check", str(FOLDER / name)], check=True)


@needs_node
@pytest.mark.parametrize("page", ["console", "docs"])
def test_a_page_has_one_script(page: str) -> None:
    """No file declares what another one does."""
    [script] = re.findall("<script>(.*?)</script>", pages.read(FOLDER, page), re.DOTALL)
    subprocess.run([str(NODE), "--check", "-"], input=script, text=True, check=True)


# --- the pure functions ---------------------------------------------------------------------------


@needs_node
def test_a_duration_is_rounded_before_it_is_taken_apart() -> None:
    """No part of it ever says 60 of what the next larger part counts, at whatever millisecond."""
    told = evaluated(
        "[0, 0.4, 999.4, 999.5, 59949, 59950, 119600, 3599499, 3599500, 3659600, 7199999, 270000000]"
        ".map(lasting)"
    )
    assert told == [
        *("0 ms", "0 ms", "999 ms", "1.0 s", "59.9 s", "1 min 0 s", "2 min 0 s"),
        *("59 min 59 s", "1 h 0 min", "1 h 1 min", "2 h 0 min", "75 h 0 min"),
    ]
    all_of_them = "Array.from({length: 400000}, (_, n) => lasting(n * 37))"
    odd = all_of_them + r".filter((said) => /\b(1000 ms|60(\.\d)? s|60 min)/.test(said))"
    assert evaluated(odd) == []


@needs_node
def test_how_far_off_a_moment_is_has_one_unit() -> None:
    """Whole units, never rounded up; what was just now is now, what comes in a second is not."""
    offsets = [
        0,
        -1_999,
        -2_000,
        -59_999,
        -60_000,
        -3_599_999,
        -3_600_000,
        -86_400_000,
        1_000,
        90_000,
        172_800_000,
    ]
    told = [
        re.sub(r"(\d+) ?([dhms])\w*", r"\1\2", one)
        for one in evaluated(f"{offsets}.map((offset) => ago({NOW} + offset))")
    ]
    assert told == [  # of a unit its first letter: how it is abbreviated is for node's version to say
        *("now", "now", "2s ago", "59s ago", "1m ago", "59m ago", "1h ago", "yesterday"),
        *("in 1s", "in 1m", "in 2d"),
    ]


@needs_node
def test_the_vendors_word_for_a_medium_comes_before_its_ending() -> None:
    """What neither tells is no medium."""
    cases: list[tuple[str, str | None, str | None]] = [
        ("https://a.example/x", "video/mp4", "video"),
        ("https://a.example/x.mp4", "image", "image"),
        ("https://a.example/x.MP4?sig=1", None, "video"),
        ("https://a.example/x.webp#top", "file", "image"),
        ("https://a.example/x.mp4.html", None, None),
        ("https://a.example/mp4", None, None),
    ]
    found = evaluated(f"{json.dumps(cases)}.map(([url, said]) => kindOf(url, said))")
    assert found == [kind for _, _, kind in cases]


@needs_node
def test_only_a_web_address_is_one() -> None:
    """Scripts, other schemes and what is no text are not."""
    cases = {
        "https://a.example": True,
        "HTTP://a.example": True,
        "javascript:x": False,
        "ftp://a": False,
        " https://a": False,
    }
    assert evaluated(f"{json.dumps([*cases, None, 1, {}])}.map(isWeb)") == [
        *cases.values(),
        False,
        False,
        False,
    ]


@needs_node
def test_a_refusal_is_taken_apart_by_field() -> None:
    """Each complaint names its field and says what is wrong; one without a field stays whole."""
    messages = [
        "Invalid parameters: parameter 'mode' is required; parameter 'image_url': has no host",
        "Value out of range: video_url is 3 s. Invalid format: image_url is a GIF",
        "The queue is full",
    ]
    mode, image, video, gif, full = evaluated(f"{json.dumps(messages)}.flatMap(complaints)")
    assert (mode["name"], mode["text"]) == ("mode", "is required")
    assert (image["name"], image["text"]) == ("image_url", "has no host")
    assert (video["name"], video["text"]) == ("video_url", "is 3 s")
    assert (gif["name"], gif["text"]) == ("image_url", "is a GIF")
    assert full["whole"] == "The queue is full"


@needs_node
def test_what_moves_is_looked_at_often() -> None:
    """A task before its end, a callback due within ten seconds; a callback that waits is ahead till then."""
    waiting = {"state": "waiting"}
    tasks = [
        {"stage": "watched", "callback": waiting},
        {"stage": "success", "callback": waiting},
        {"stage": "success", "callback": {**waiting, "next_attempt_at": NOW + 9_000}},
        {"stage": "success", "callback": {**waiting, "next_attempt_at": NOW + 11_000}},
        {"stage": "failed", "callback": {"state": "delivered"}},
    ]
    assert evaluated(f"{json.dumps(tasks)}.map(isMoving)") == [True, True, True, False, False]
    assert evaluated(f"{json.dumps(tasks)}.map(callbackState)") == [
        "ahead",
        "waiting",
        "waiting",
        "waiting",
        "delivered",
    ]
