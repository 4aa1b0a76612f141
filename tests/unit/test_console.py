"""The console's script without a browser: the order of its files, and its pure functions under node."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from taskhook.api import failures, pages
from taskhook.vendors import VENDORS

FOLDER = Path(__file__).parents[2] / "functions" / "submit"
NODE = shutil.which("node")
# in the order of the page
FILES = re.findall(r"/\* (\S+\.js) \*/", (FOLDER / "console.html").read_text(encoding="utf-8"))
PURE = (
    "page.js",
    *(f"console/{name}.js" for name in ("api", "widgets", "time", "samples", "vendors")),
)
NOW = 1_800_000_000_000  # milliseconds

needs_node = pytest.mark.skipif(NODE is None, reason="node is not installed here")


def source(name: str) -> str:
    """Read a file of the script."""
    return (FOLDER / name).read_text(encoding="utf-8")


def evaluated(expression: str) -> Any:
    """Let node evaluate an expression beside the files that draw nothing by themselves, at the time `NOW`."""
    surroundings = f"globalThis.document = {{getElementById: () => null}}; Date.now = () => {NOW};"
    script = "\n".join(
        [
            surroundings,
            *(pages.with_vendors(source(name)) for name in PURE),
            f"console.log(JSON.stringify({expression}))",
        ]
    )
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
    """A task before its end, a callback due within ten seconds; what is tried again later is not."""
    waiting = {"state": "waiting", "log": []}
    tasks = [
        {"stage": "watched", "callback": waiting},
        {"stage": "success", "callback": waiting},
        {"stage": "success", "callback": {**waiting, "next_attempt_at": NOW + 9_000}},
        {"stage": "success", "callback": {**waiting, "next_attempt_at": NOW + 11_000}},
        {"stage": "failed", "callback": {"state": "delivered", "log": []}},
    ]
    assert evaluated(f"{json.dumps(tasks)}.map(isMoving)") == [True, True, True, False, False]


@needs_node
def test_a_filter_that_finds_few_is_looked_at_rarely() -> None:
    """Each look of it reads hundreds of tasks, whatever moves; a page that is full is as alive as any."""
    running = {"stage": "watched", "callback": {"state": "waiting", "log": []}}
    done = {"stage": "success", "callback": {"state": "delivered", "log": []}}
    cases: list[tuple[list[Any], dict[str, Any], int]] = [
        ([running], {"narrow": True, "size": 25}, 30),
        ([], {"narrow": True, "size": 25}, 30),
        ([running] * 25, {"narrow": True, "size": 25}, 2),
        ([running], {"narrow": False, "size": 25}, 2),
        ([done], {"narrow": False, "size": 25}, 5),
        ([done], {"narrow": False, "size": 25, "older": "cursor"}, 15),
        ([running] * 500, {"narrow": True, "size": 500}, 15),
    ]
    asked = json.dumps([(tasks, how) for tasks, how, _ in cases])
    assert evaluated(f"{asked}.map(([tasks, how]) => listWait(tasks, how))") == [wait for *_, wait in cases]


@needs_node
def test_a_failing_callback_has_a_word_of_its_own() -> None:
    """Pending before an attempt has failed, retrying after, also where it came once and is sent again."""
    bad, dead, good = {"status": 503}, {"error": "dns"}, {"status": 204}
    cases: list[tuple[str, str, list[dict[str, Any]], str]] = [
        ("watched", "waiting", [], "pending"),
        ("success", "waiting", [], "pending"),
        ("success", "waiting", [bad], "retrying"),
        ("failed", "waiting", [good, dead], "retrying"),
        ("success", "waiting", [bad, good], "pending"),
        ("success", "delivered", [bad, good], "delivered"),
        ("failed", "undelivered", [bad, bad], "undelivered"),
        ("failed", "none", [], "none"),
    ]
    tasks = [{"stage": stage, "callback": {"state": state, "log": log}} for stage, state, log, _ in cases]
    assert evaluated(f"{json.dumps(tasks)}.map(callbackState)") == [said for *_, said in cases]
    words = ["pending", "retrying", "delivered", "undelivered"]
    assert evaluated(f"{words}.map((state) => WORDS[state][1])") == words  # and the filter's and totals':
    assert f'"Callback", {json.dumps([*words, "none"])}' in source("console/tasks.js")
    assert [word for word in words if f'at("{word}"' in source("console/totals.js")] == words[1:]
    colours = evaluated("['pending', 'retrying', 'delivered', 'undelivered'].map((state) => WORDS[state][0])")
    assert len(set(colours)) == 4


@needs_node
def test_a_refusal_leads_to_what_it_means() -> None:
    """By the address that the header `Link` of each error has, on whichever host this page is."""
    address = failures.help_link("https://tasks.example.com", 422, "")
    headers = [address, None, "", '<https://elsewhere.example.com/>; rel="help"']
    assert evaluated(f"{json.dumps(headers)}.map(helpOf)") == ["/docs#error-422", None, None, None]


@needs_node
def test_a_price_is_written_as_its_vendor_counts() -> None:
    """Money with cents, and with the smaller parts that are there; credits as they are."""
    costs = [("0.2400", "USD"), ("12", "USD"), ("1234.5678", "EUR"), ("25", "credits"), ("1000", "credits")]
    told = evaluated(f"{json.dumps(costs)}.map(([amount, currency]) => price({{amount, currency}}))")
    assert [one.replace("\u00a0", " ") for one in told] == [
        *("0.24 USD", "12.00 USD", "1,234.5678 EUR", "25 credits", "1,000 credits")
    ]


@needs_node
def test_the_console_knows_every_vendor() -> None:
    """By the name that a task has, with a path that is the vendor's and an example that has media or none."""
    at = "https://a.example"
    told = evaluated(
        "Object.entries(VENDORS).map(([name, vendor]) => [name, vendor.path, "
        f"exampleOf(vendor, '{at}/i.jpg', '{at}/v.mp4'), exampleOf(vendor, '', ''), vendor.headers])"
    )
    assert [name for name, *_ in told] == list(VENDORS)
    for name, path, example, bare, headers in told:
        vendor = VENDORS[name]
        assert (path, headers) == (vendor.example.path, vendor.example.headers)
        assert example == vendor.example.with_media(f"{at}/i.jpg", f"{at}/v.mp4")
        assert at in json.dumps(example)
        assert "://" not in json.dumps(bare)


# --- requests as code -----------------------------------------------------------------------------

NASTY: dict[str, Any] = {
    "quotes": 'it\'s "here" and `there`',
    "shell": "$HOME $(touch /tmp/x) `id` !! \\ %s ; & | < > *",
    "lines": "one\ntwo\r\n\tthree\u2028four",
    "more": "Grüße, 你好, 🎬, </script>, {x}, ${x}, #{x}, %(x)s",
    "python": [True, False, None, {}, [], {"nested": [{"deep": [1, -2.5, 1e21]}]}],
    "": {"@file": "@/etc/passwd"},
}


@needs_node
@pytest.mark.parametrize("language", ["curl", "Python", "JavaScript"])
def test_a_request_as_code_sends_what_the_form_would(language: str, tmp_path: Path) -> None:
    """Whatever is in it, in any of the languages; the token comes from the environment."""
    headers = {"Idempotency-Key": "console-1", "X-Reference": 'it\'s; "mine" $(id)'}
    request = {"url": "https://tasks.example.com/api/v1/a/b?c='d'", "headers": headers, "body": NASTY}
    code = evaluated(f"LANGUAGES[{json.dumps(language)}]({json.dumps(request)})")
    assert "thk_" not in code
    heard = json.loads(run_sample(language, code, tmp_path))
    assert heard["url"] == request["url"]
    assert json.loads(heard["body"]) == NASTY
    expected = {"authorization": "Bearer the-token", "content-type": "application/json"}
    expected |= {name.lower(): value for name, value in headers.items()}
    sent = {name.lower(): value for name, value in heard["headers"].items()}
    assert expected.items() <= sent.items() | {("content-type", "application/json")}


FAKE_CURL = """\
#!{python}
import json, sys
headers, url, body, words = {{}}, "", "", iter(sys.argv[1:])
for word in words:
    if word == "-H":
        name, _, value = next(words).partition(": ")
        headers[name] = value
    elif word == "--data-raw":
        body = next(words)
    elif word == "-X":
        assert next(words) == "POST"
    else:
        url = word
print(json.dumps({{"url": url, "headers": headers, "body": body}}))
"""
FAKE_HTTPX = """\
import json
class _Answer:
    status_code, text = "", ""
def post(url, *, headers, json, timeout):
    print(globals()["json"].dumps({"url": url, "headers": headers, "body": globals()["json"].dumps(json)}))
    sys = __import__("sys"); sys.stdout.flush(); __import__("os")._exit(0)
"""
FAKE_FETCH = """\
globalThis.fetch = async (url, { method, headers, body }) => {
  console.log(JSON.stringify({ url, headers, body }));
  process.exit(method === "POST" ? 0 : 1);
};
"""


def run_sample(language: str, code: str, folder: Path) -> str:
    """Run code in its language, with what sends replaced by what tells; give that."""
    environment = {"PATH": f"{folder}:/usr/bin:/bin", "TOKEN": "the-token"}
    if language == "curl":
        (folder / "curl").write_text(FAKE_CURL.format(python=sys.executable))
        (folder / "curl").chmod(0o755)
        command = ["bash", "-c", code]
    elif language == "Python":
        (folder / "httpx.py").write_text(FAKE_HTTPX)
        (folder / "sample.py").write_text(code, encoding="utf-8")
        command = [sys.executable, str(folder / "sample.py")]
    else:
        (folder / "sample.mjs").write_text(FAKE_FETCH + code, encoding="utf-8")
        command = [str(NODE), str(folder / "sample.mjs")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
