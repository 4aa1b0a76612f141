import json
import re
from collections.abc import Mapping
from itertools import combinations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskhook.core.errors import RejectedError
from taskhook.core.limits import MAX_URL
from taskhook.core.models import Judgement, MediaRule, Verdict
from taskhook.core.targets import TargetPolicy
from taskhook.submit.request import SubmitRequest
from taskhook.vendors.modellix import MODELS
from tests.rows import each_row
from tests.vectors import ALLOWED, FORBIDDEN, naming
from tests.world import GOOD_IMAGE, GOOD_VIDEO, START, a_caller, a_request

MIX = "alibaba/wan2.2-animate-mix"
MOVE = "alibaba/wan2.2-animate-move"
FIELDS = {
    "image_url": "https://example.com/a.jpg",
    "video_url": "http://example.com/b.mp4",
    "mode": "wan-std",
}
HOOK = "https://hooks.example.com/taskhook"
ABSENT = object()

# Never a valid value of any field, whatever the type it asks for.
WRONG_TYPES: tuple[object, ...] = (
    None,
    1,
    1.5,
    [],
    ["https://example.com/a"],
    {},
    {"url": "https://example.com/a"},
)


def read(
    fields: Mapping[str, Any] | None = None,
    *,
    slug: str = MIX,
    caller: str = "alice",
    default_url: str | None = None,
    webhook_url: str | None = None,
    key: str | None = None,
) -> SubmitRequest:
    """Read a submit that differs from a valid one by these fields; ABSENT leaves one out."""
    body = {name: value for name, value in {**FIELDS, **(fields or {})}.items() if value is not ABSENT}
    return a_request(
        slug,
        body,
        caller=a_caller(caller).model_copy(update={"callback_url": default_url}),
        targets=TargetPolicy(own_origins=("https://taskhook.example.com",)),
        x_webhook_url=webhook_url,
        idempotency_key=key,
    )


def refused(status: int, *named: str, fields: Mapping[str, Any] | None = None, **headers: Any) -> None:
    """Expect a refusal in the vendor's words, printable, of bounded length, that names all of this."""
    with pytest.raises(RejectedError) as rejected:
        read(fields, **headers)
    assert rejected.value.status == status
    for name in named:
        assert f"'{name}'" in rejected.value.message
    assert rejected.value.message.isprintable()
    assert len(rejected.value.message) <= 2000


@pytest.mark.parametrize("slug", sorted(MODELS))
def test_valid_request_is_read(slug: str) -> None:
    """A valid submit becomes what the vendor gets: the caller's own fields, minified, and nothing of ours."""
    request = read({"callback_url": HOOK, "reference": "order 7"}, slug=slug)
    assert (request.paid.model, request.callback_url, request.reference) == (slug, HOOK, "order 7")
    assert (
        request.paid.body
        == '{"image_url":"https://example.com/a.jpg","video_url":"http://example.com/b.mp4","mode":"wan-std"}'
    )


@each_row(
    "fields",
    [
        {"mode": "wan-pro"},
        {"check_image": False},
        {"check_image": True},
        {"reference": "x" * 200},
        {"reference": ""},
    ],
)
def test_optional_values_are_read(fields: dict[str, Any]) -> None:
    """Every documented value of an optional field is taken, and reaches the vendor if it is the model's."""
    sent = json.loads(read(fields).paid.body)
    assert sent == FIELDS | {name: value for name, value in fields.items() if name != "reference"}


@each_row(
    "slug",
    [
        "ALIBABA/wan2.2-animate-mix",
        "/",
        "",
        "x/y\u202e",
        "x/" + "y" * 129,
        "x/y/z",
        "tasks/x",
        "x/ y",
        "x/.y",
    ],
)
def test_what_is_no_name_of_a_model_is_not_found(slug: str) -> None:
    """A provider and a model: letters, digits, dots and lines, and none of the deployment's own paths."""
    with pytest.raises(RejectedError, match="no name of a model") as rejected:
        read(slug=slug)
    assert rejected.value.status == 404


def test_any_other_model_is_passed_through() -> None:
    """Whatever its fields are, without ours: the vendor alone knows what it takes, and the task says so."""
    fields = {"prompt": "a café", "sizes": [1, 2.5, None], "callback_url": HOOK, "reference": "7"}
    body = {**dict.fromkeys(FIELDS, ABSENT), **fields}
    request = read(body, slug="kling/kling-v2.6-i2v")
    assert (request.paid.validated, request.paid.media) == (False, ())
    assert request.paid.body == '{"prompt":"a café","sizes":[1,2.5,null]}'
    task = request.task(a_caller(), START, unchecked={}, claimed_until=None)
    assert (task.model, task.vendor, task.validated) == ("kling/kling-v2.6-i2v", "modellix", False)


@pytest.mark.parametrize("name", ["image_url", "video_url", "mode"])
def test_missing_field_is_named(name: str) -> None:
    """A required field that is missing is named."""
    refused(400, name, fields={name: ABSENT})


def test_every_wrong_field_is_named() -> None:
    """All that is wrong is told at once, not one thing at a time."""
    refused(
        400,
        "image_url",
        "video_url",
        "mode",
        "extra",
        fields={"image_url": ABSENT, "video_url": 1, "mode": "fast", "extra": 1},
    )


@each_row(
    "name",
    ["extra", "Mode", "callbackUrl", "webhook_url", "watermark", "", "mode ", "__class__", "a.b", "x" * 100],
)
def test_extra_field_is_named(name: str) -> None:
    """A field that the model does not take is refused, for a typing error would cost money silently."""
    refused(400, name, fields={name: "x"})


@each_row("name", ["x" * 10_000, "a\nb", "\x1b[31m", "\u202e", "\ud800"])
def test_name_of_an_extra_field_cannot_do_harm(name: str) -> None:
    """Whatever a field is called, the refusal stays short and can be encoded."""
    with pytest.raises(RejectedError) as rejected:
        read({name: 1})
    assert rejected.value.status == 400
    assert len(rejected.value.message) < 1000
    assert rejected.value.message.encode()


@each_row("value", WRONG_TYPES)
@each_row("name", ["image_url", "video_url", "mode", "check_image"])
def test_wrong_type_of_a_model_field_is_named(name: str, value: object) -> None:
    """A value of the wrong type is refused and its field named; nothing is coerced."""
    refused(400, name, fields={name: value})


@each_row("value", WRONG_TYPES[1:])
@each_row("name", ["callback_url", "reference"])
def test_wrong_type_of_an_own_field_is_named(name: str, value: object) -> None:
    """Our own optional fields take a string, or null for none."""
    refused(400, name, fields={name: value})


@each_row("value", [True, False])
@each_row("name", ["image_url", "video_url", "mode", "callback_url", "reference"])
def test_boolean_is_no_string(name: str, value: bool) -> None:  # noqa: FBT001  # a column of the table
    """A boolean is refused where a string is wanted."""
    refused(400, name, fields={name: value})


@each_row("value", [0, 1, "true", "false", "yes", ""])
def test_check_image_is_a_boolean_and_nothing_like_one(value: object) -> None:
    """`check_image` is true or false; a string or a number is a mistake."""
    refused(400, "check_image", fields={"check_image": value})


@each_row("value", ["", "wan", "WAN-STD", "wan-std ", " wan-pro", "wan_std", "wan-std,wan-pro"])
def test_unknown_mode_is_refused_with_the_known_ones(value: str) -> None:
    """An unknown mode is refused by a message that lists the modes."""
    with pytest.raises(RejectedError, match=r"'mode'.*'wan-std' or 'wan-pro'"):
        read({"mode": value})


@each_row(
    "value",
    [
        "",
        " ",
        "example.com/a.jpg",
        "//example.com/a.jpg",
        "/a.jpg",
        "ftp://example.com/a.jpg",
        "file:///a.jpg",
        "data:image/png;base64,AAAA",
        "s3://bucket/a.jpg",
        "http://",
        "http:///a.jpg",
        "https://?x",
        "http:example.com",
        "http://[::1/a.jpg",
        "http://b\u00fccher.example.com/a.jpg",
        "http://example.com/\u4e2d.jpg",
        "http://example.com/\u0430.jpg",
        "http://example.com/a b.jpg",
        " http://example.com/a.jpg",
        "http://example.com/a.jpg\n",
        "http://example.com/\x00.jpg",
        "http://example.com/\x7f.jpg",
        "http://example.com/\ud800.jpg",
        "http://example.com/" + "a" * MAX_URL,
    ],
)
@each_row("name", ["image_url", "video_url"])
def test_bad_media_url_is_named(name: str, value: str) -> None:
    """A media URL is http or https, ASCII, without spaces, with a host, and not over-long."""
    refused(400, name, fields={name: value})


@each_row(
    "value",
    [
        "http://example.com",
        "HTTPS://EXAMPLE.COM/a",
        "https://example.com:8443/a%20b?x=%E4#t=1",
        "https://example.com/".ljust(MAX_URL, "a"),
    ],
)
def test_good_media_url_reaches_the_vendor_unchanged(value: str) -> None:
    """A media URL is passed on character by character: some are signed."""
    assert json.loads(read({"image_url": value}).paid.body)["image_url"] == value


def test_forbidden_callback_url_is_named() -> None:
    """Each vector of the table is refused in the body and in the header alike."""
    for row in FORBIDDEN:
        with naming(row):
            refused(400, "callback_url", fields={"callback_url": row[1]})
            refused(400, "X-Webhook-URL", webhook_url=row[1])


@each_row(
    "url",
    [
        "",
        "https://user:pass@example.com/",
        "https://example.com/#fragment",
        "http://example.com/",
        "https://example.com/".ljust(MAX_URL + 1, "a"),
        "https://taskhook.example.com/hooks/x/y",
        "https://example.com/\ud800",
        "https://example.com/\u00e9",
        "https://example.com/a b",
    ],
)
def test_bad_callback_url_is_named(url: str) -> None:
    """Userinfo, fragment, a bad scheme, an over-long URL, and the deployment's own endpoint are refused."""
    refused(400, "callback_url", fields={"callback_url": url})
    refused(400, "X-Webhook-URL", webhook_url=url)


def test_allowed_callback_url_is_kept_unchanged() -> None:
    """A good callback URL is stored as it was given, from the body or from the header."""
    for url in ALLOWED:
        with naming(url):
            assert read({"callback_url": url}).callback_url == url
            assert read(webhook_url=url).callback_url == url


def test_conflicting_callback_urls_are_refused() -> None:
    """Body and header may say the same; if they differ there is no telling which was meant."""
    refused(400, "callback_url", "X-Webhook-URL", fields={"callback_url": HOOK}, webhook_url=HOOK + "/")
    assert read({"callback_url": HOOK}, webhook_url=HOOK).callback_url == HOOK


@each_row("value", WRONG_TYPES[1:])
def test_a_callback_url_of_a_wrong_type_beside_the_header_is_refused(value: object) -> None:
    """Whatever JSON may hold, the two differ."""
    refused(400, "callback_url", "X-Webhook-URL", fields={"callback_url": value}, webhook_url=HOOK)


@each_row(
    ("body", "header", "default", "used"),
    [
        (None, None, None, None),
        (None, None, HOOK, HOOK),
        (None, HOOK, "https://default.example.com/", HOOK),
        (HOOK, None, "https://default.example.com/", HOOK),
        (HOOK, HOOK, "https://default.example.com/", HOOK),
    ],
)
def test_callback_url_comes_from_body_header_or_default(
    body: str | None, header: str | None, default: str | None, used: str | None
) -> None:
    """The request's own URL goes before the caller's default; with neither the task is only watched."""
    assert read({"callback_url": body}, webhook_url=header, default_url=default).callback_url == used


@pytest.mark.parametrize("reference", ["x" * 201, "\u00e9" * 201, "\ud800"])
def test_bad_reference_is_named(reference: str) -> None:
    """A reference has at most 200 characters, all of them encodable."""
    refused(400, "reference", fields={"reference": reference})


@each_row("reference", ["", "x" * 200, "\u00e9" * 200, "\U0001f600" * 200, 'quo"te\n\u2028'])
def test_reference_is_kept_unchanged(reference: str) -> None:
    """Up to 200 characters of any script are echoed as they came."""
    assert read({"reference": reference}).reference == reference


@each_row("key", ["", "k" * 256, "a\nb", "a\x00b", "a\x7f", "\ud800"])
def test_bad_idempotency_key_is_named(key: str) -> None:
    """A key has 1 to 255 printable characters."""
    refused(400, "Idempotency-Key", key=key)


@each_row("key", ["k", "k" * 255, "order 7/a+b=c", "\u00e9"])
def test_good_idempotency_key_is_taken(key: str) -> None:
    """Any printable key up to 255 characters will do."""
    assert read(key=key).task_id == read(key=key).task_id


# --- idempotency ----------------------------------------------------------------------------------


@each_row(
    "spelled_out",
    [
        {"check_image": True},
        {"callback_url": None},
        {"reference": None},
        {"check_image": True, "callback_url": None, "reference": None},
    ],
)
def test_defaults_spelled_out_are_defaults_left_out(spelled_out: dict[str, Any]) -> None:
    """A repeat that spells out defaults is the same request."""
    assert read(spelled_out).fingerprint == read().fingerprint


def test_order_of_fields_does_not_matter() -> None:
    """A client that writes its JSON in another order repeats itself all the same."""
    caller = a_caller()
    requests = [
        a_request(MIX, body, caller=caller, idempotency_key="k")
        for body in (FIELDS, dict(reversed(FIELDS.items())))
    ]
    assert requests[0].fingerprint == requests[1].fingerprint


def test_callback_url_in_body_or_header_is_the_same_request() -> None:
    """Where the URL was given does not change what was asked for."""
    prints = {
        read({"callback_url": HOOK}).fingerprint,
        read(webhook_url=HOOK).fingerprint,
        read({"callback_url": HOOK}, webhook_url=HOOK).fingerprint,
    }
    assert len(prints) == 1


DIFFERENT: dict[str, dict[str, Any]] = {
    "plain": {},
    "model": {"slug": MOVE},
    "image": {"fields": {"image_url": "https://example.com/c.jpg"}},
    "image's scheme": {"fields": {"image_url": "http://example.com/a.jpg"}},
    "image's case": {"fields": {"image_url": "https://example.com/A.jpg"}},
    "video": {"fields": {"video_url": "https://example.com/c.mp4"}},
    "swapped": {"fields": {"image_url": FIELDS["video_url"], "video_url": FIELDS["image_url"]}},
    "mode": {"fields": {"mode": "wan-pro"}},
    "check_image": {"fields": {"check_image": False}},
    "callback": {"fields": {"callback_url": HOOK}},
    "other callback": {"fields": {"callback_url": HOOK + "?x"}},
    "reference": {"fields": {"reference": "x"}},
    "other reference": {"fields": {"reference": "X"}},
    "empty reference": {"fields": {"reference": ""}},
    "reference like a callback": {"fields": {"reference": HOOK}},
    "reference null": {"fields": {"reference": "null"}},
}


def test_different_requests_have_different_fingerprints() -> None:
    """Whatever differs in what was asked for differs in the fingerprint."""
    for one, other in combinations(DIFFERENT, 2):
        assert read(**DIFFERENT[one]).fingerprint != read(**DIFFERENT[other]).fingerprint, (one, other)


@given(
    references=st.lists(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=200), min_size=2, max_size=2, unique=True
    )
)
def test_fingerprint_tells_references_apart(references: list[str]) -> None:
    """Two references are one request only if they are equal."""
    one, other = ({"reference": reference} for reference in references)
    assert read(one).fingerprint == read(one).fingerprint != read(other).fingerprint


@given(key=st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1, max_size=255))
def test_id_follows_from_caller_and_key(key: str) -> None:
    """A repeat of a key meets the first task, whatever else the request holds."""
    assert read(key=key).task_id == read({"mode": "wan-pro", "reference": "x"}, key=key, slug=MOVE).task_id


@given(
    keys=st.lists(
        st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1, max_size=255),
        min_size=2,
        max_size=2,
        unique=True,
    )
)
def test_other_keys_and_callers_get_other_ids(keys: list[str]) -> None:
    """Two keys, or one key of two callers, never meet; nor can a caller's name run over into the key."""
    ids = {
        read(key=key, caller=caller).task_id
        for key in keys
        for caller in ("alice", "bob", "alice" + keys[0][:1])
    }
    assert len(ids) == 6


def test_ids_without_a_key_are_random() -> None:
    """Without a key every submit is a task of its own."""
    assert len({read().task_id for _ in range(1000)}) == 1000


@pytest.mark.parametrize("key", [None, "k", "order-7"])
def test_id_has_the_documented_form(key: str | None) -> None:
    """An id is safe in paths, headers and shells, and tells nothing of caller or key."""
    assert re.fullmatch(r"tk_[A-Za-z0-9_-]{22}", read(key=key).task_id)


# --- media ----------------------------------------------------------------------------------------

IMAGE_RULE, VIDEO_RULE = MODELS[MIX].media


def test_both_models_take_the_same_media() -> None:
    """The vendor's two pages have the same limits."""
    assert MODELS[MIX].media == MODELS[MOVE].media
    assert {rule.field for rule in MODELS[MIX].media} == {"image_url", "video_url"}


@pytest.mark.parametrize("slug", sorted(MODELS))
def test_the_limits_of_media_are_told_with_their_field(slug: str) -> None:
    """Each that a file can be refused for, in the words that /docs, the console and the contract show."""
    for rule in MODELS[slug].media:
        told = MODELS[slug].request.model_fields[rule.field].description or ""
        assert f"sides {rule.least_side} to {rule.most_side} px" in told
        assert f"ratio 1:{rule.most_ratio} to {rule.most_ratio}:1" in told
        assert f"at most {rule.most_bytes >> 20} MB" in told
        assert all(kind in told for words in rule.formats.values() for kind in words.split(" or "))
        if rule.least_seconds is not None:
            assert f"{rule.least_seconds:g} to {rule.most_seconds:g} s" in told


@pytest.mark.parametrize("doubt", ["", "slow host", "too much to read"])
def test_what_is_certain_is_wrong_whatever_else_is_not_known(doubt: str) -> None:
    """A size, a format, sides, and a video that is too long already."""
    for rule, changes in (
        (IMAGE_RULE, {"size": (5 << 20) + 1, "format": "", "tracks": ()}),
        (IMAGE_RULE, {"format": "GIF"}),
        (IMAGE_RULE, {"width": 4097}),
        (VIDEO_RULE, {"seconds": (30.001, 31.0)}),
    ):
        good = GOOD_IMAGE if rule is IMAGE_RULE else GOOD_VIDEO
        assert rule.judge(good).verdict is Verdict.FINE
        assert rule.judge(good.model_copy(update={**changes, "doubt": doubt})).verdict is Verdict.WRONG


@each_row(
    ("rule", "changes"),
    [
        (VIDEO_RULE, {"seconds": (1.5,)}),
        (VIDEO_RULE, {"tracks": ("Audio",)}),
        (VIDEO_RULE, {"width": None}),
        (IMAGE_RULE, {"tracks": ()}),
    ],
)
def test_what_may_lie_beyond_the_look_is_wrong_only_after_a_whole_look(
    rule: MediaRule, changes: dict[str, Any]
) -> None:
    """The reason of the doubt is told."""
    good = GOOD_IMAGE if rule is IMAGE_RULE else GOOD_VIDEO
    assert rule.judge(good.model_copy(update=changes)).verdict is Verdict.WRONG
    doubtful = rule.judge(good.model_copy(update={**changes, "doubt": "slow host"}))
    assert doubtful.verdict is not Verdict.WRONG


@each_row(
    ("rule", "changes", "reason"),
    [
        (IMAGE_RULE, {"format": "", "tracks": (), "width": None}, "unknown format"),
        (IMAGE_RULE, {"format": "", "doubt": "name does not resolve"}, "name does not resolve"),
        (VIDEO_RULE, {"seconds": ()}, "unknown duration"),
        (VIDEO_RULE, {"cut_off": True}, "cut off"),
        (IMAGE_RULE, {"size": None, "doubt": "unknown size"}, "unknown size"),
        (
            VIDEO_RULE,
            {"format": "", "size": None, "doubt": "host answers with a page"},
            "host answers with a page",
        ),
        (VIDEO_RULE, {"tracks": (), "doubt": "too much to read"}, "too much to read"),
    ],
)
def test_what_cannot_be_told_is_unchecked(rule: MediaRule, changes: dict[str, Any], reason: str) -> None:
    """In a few words, which the task keeps."""
    good = GOOD_IMAGE if rule is IMAGE_RULE else GOOD_VIDEO
    assert rule.judge(good.model_copy(update=changes)) == Judgement(rule.field, Verdict.UNCHECKED, reason)


@pytest.mark.parametrize("tracks", [("Audio",), ("Audio", "Image"), ("Audio", "Text")])
def test_a_video_of_sound_alone_is_named_as_that(tracks: tuple[str, ...]) -> None:
    """It is not broken: m4a files are MP4 too."""
    facts = GOOD_VIDEO.model_copy(update={"tracks": tracks, "width": None, "height": None})
    said = "Invalid format: video_url has no video in it, only sound"
    assert VIDEO_RULE.judge(facts) == Judgement("video_url", Verdict.WRONG, said)


def test_a_video_is_as_long_as_its_longest_and_shortest_say_together() -> None:
    """Where file and track differ, only what both break is broken."""
    for seconds, verdict in (
        ((1.9, 2.0), Verdict.FINE),
        ((29.9, 30.1), Verdict.FINE),
        ((1.8, 1.9), Verdict.WRONG),
    ):
        assert VIDEO_RULE.judge(GOOD_VIDEO.model_copy(update={"seconds": seconds})).verdict is verdict


@given(width=st.integers(1, 5000), height=st.integers(1, 5000))
def test_sides_keep_to_the_vendors_page(width: int, height: int) -> None:
    """Each side, and the ratio of both, whichever is the longer."""
    for rule, most in ((IMAGE_RULE, 4096), (VIDEO_RULE, 2048)):
        good = GOOD_IMAGE if rule is IMAGE_RULE else GOOD_VIDEO
        judged = rule.judge(good.model_copy(update={"width": width, "height": height}))
        allowed = min(width, height) >= 200 and max(width, height) <= most and 1 / 3 <= width / height <= 3
        assert judged.verdict is (Verdict.FINE if allowed else Verdict.WRONG)
        assert allowed or f"is {width}x{height} px" in judged.reason
