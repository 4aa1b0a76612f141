from collections.abc import Iterator
from typing import Any

import pytest
from openapi_spec_validator import validate

from taskhook.api import openapi
from taskhook.core import signature
from taskhook.core.message import minified
from tests.contract import SERVER, Json, check, document
from tests.vectors import naming


def bodies() -> Iterator[tuple[str, Any, Json]]:
    """Give every example of a body with its schema."""
    for path, item in {**document()["paths"], **document()["webhooks"]}.items():
        for method, operation in item.items():
            named = {"request": operation.get("requestBody", {}), **operation["responses"]}
            for name, holder in named.items():
                for content in holder.get("content", {}).values():
                    yield f"{method} {path} {name}", content["example"], content["schema"]


def parameters() -> Iterator[Json]:
    """Give every parameter that has an example."""
    for item in {**document()["paths"], **document()["webhooks"]}.values():
        for operation in item.values():
            yield from (one for one in operation.get("parameters", []) if "example" in one)


def test_the_document_is_openapi() -> None:
    """In the eyes of a validator that is not ours."""
    validate(document())


def test_an_example_is_as_its_schema() -> None:
    """A copy of it is a correct request."""
    for name, example, schema in bodies():
        with naming(name):
            check(example, schema)


def test_the_parameters_examples_are_as_their_schemas() -> None:
    """Likewise."""
    for parameter in parameters():
        check(parameter["example"], parameter["schema"])


def test_every_operation_says_what_it_is() -> None:
    """A summary in words, a known chapter, a name of its own."""
    operations = [
        one for item in {**document()["paths"], **document()["webhooks"]}.values() for one in item.values()
    ]
    assert len({one["operationId"] for one in operations}) == len(operations)
    assert {tag for one in operations for tag in one["tags"]} == {tag["name"] for tag in document()["tags"]}
    assert all(one["summary"].endswith(".") for one in operations)


@pytest.mark.parametrize("event", ["prediction.task.succeeded", "prediction.task.failed"])
def test_a_callbacks_example_bears_its_signature(event: str) -> None:
    """The example can be used to try out a verifier: same body and headers, the secrets' example."""
    callback = document()["webhooks"][event]["post"]
    headers = {one["name"]: one["example"] for one in callback["parameters"]}
    answer = document()["paths"]["/api/v1/callbacks/secret"]["get"]["responses"]["200"]["content"][
        "application/json"
    ]
    [secret] = answer["example"]["data"]["secrets"]
    body = minified(callback["requestBody"]["content"]["application/json"]["example"]).encode()
    signed = signature.sign(secret["secret"], headers["webhook-id"], int(headers["webhook-timestamp"]), body)
    assert headers["webhook-signature"] == signed


def test_examples_have_media_that_exist_or_say_nothing_of_any() -> None:
    """Where the deployment is emulated: its vendor has some. A real one names the standard's own hosts."""
    at = "http://127.0.0.1:8080/media"
    emulated, real = openapi.document(SERVER, at), openapi.document(SERVER)
    assert (emulated["info"]["x-example-media"], "x-example-media" in real["info"]) == (at, False)
    for described, origin in ((emulated, at), (real, "https://example.com")):
        for path in ("/api/v1/alibaba/wan2.2-animate-mix", "/api/v1/{provider}/{model}"):
            body = described["paths"][path]["post"]["requestBody"]["content"]["application/json"]["example"]
            media = [value for name, value in body.items() if name in {"image_url", "video_url"}]
            assert media
            assert all(value.startswith(f"{origin}/") for value in media)
