"""`/llms.txt`: the deployment told to a language model, on about a page."""

from functools import cache

from taskhook.api import openapi
from taskhook.core.message import Json, minified

_SUBMIT = "/api/v1/alibaba/wan2.2-animate-mix"  # the one that is shown


@cache
def text(server: str) -> str:
    """Write it; `server` is the origin that callers use. It tells nothing else of the deployment."""
    api = openapi.document(server)
    facts = api["x-guide"]
    retries, limits = facts["retries"], facts["limits"]
    submit = api["paths"][_SUBMIT]["post"]
    example = submit["requestBody"]["content"]["application/json"]["example"]
    answer = submit["responses"]["200"]["content"]["application/json"]["example"]
    return f"""\
# taskhook

> This deployment turns slow submit-and-poll AI task APIs into ones that call back: send it the vendor's own \
request plus a callback URL, and it posts a signed webhook when the task has ended.

- Origin: {server}
- Models that are open to your token: GET /api/v1/limits
- Guarantee: at least once (deduplicate on `webhook-id`), in no promised order; never paid twice.

## Submit

POST {server}{_SUBMIT}
Authorization: Bearer thk_<caller>_<43 characters>
Idempotency-Key: order-17
Content-Type: application/json

{minified(example)}

answers {minified(answer)}

Any model, by its vendor's own path and in its vendor's own form:
{_vendors(facts["vendors"])}
There `X-Webhook-URL` and `X-Reference` are headers; a vendor's SDK works with another base URL.

Always send an `Idempotency-Key` of your own for each task (at most {limits["idempotency_key"]} characters): \
after a time-out, or an answer without `code`, repeat the same request with the same key; it is not paid \
twice.
`callback_url`: https, a public address, at most {limits["callback_url"]} characters. `reference`: yours, at \
most {limits["reference"]}. Body: at most {limits["body_kb"]} KB; files as URLs.

{_receive(api, retries)}

## Ask

{_calls(api)}

## Errors

`{{"code":<HTTP status>,"message":"…"}}`; `x-should-retry: false`, or `Retry-After` where a repeat is safe. \
The header `Link` leads to where the error is explained.
{_errors(facts["errors"])}

`data.error.code` of a failed task:
{_errors(facts["task_errors"])}

## More

- [Guide and reference]({server}/docs): with samples in curl, Python and JavaScript
- [OpenAPI 3.1]({server}/openapi.json): every call, field and example
"""


def _receive(api: Json, retries: Json) -> str:
    ended = api["webhooks"]["prediction.task.succeeded"]["post"]
    body = ended["requestBody"]["content"]["application/json"]["example"]
    sent = {one["name"]: one["description"] for one in ended["parameters"]}
    first, *later = retries["waits"]
    return f"""\
## Receive and verify

A callback is a POST of JSON with the headers of Standard Webhooks:
{_list(sent, "webhook-")}
Body: {minified(body)}
Failed tasks have `"type":"prediction.task.failed"` and `data.error` with `code` and `message`.

1. Read the raw bytes of the body. The key is the base64 behind `whsec_` of the secret \
(GET /api/v1/callbacks/secret).
2. One of the signatures must equal `v1,` + base64(HMAC-SHA256(key, \
`<webhook-id>.<webhook-timestamp>.<body>`)), compared in constant time. Any Standard Webhooks library does it.
3. Refuse a `webhook-timestamp` that is more than {retries["fresh_s"]} s off.
4. Take each `webhook-id` once. Answer 2xx within {retries["answer_within_s"]} s, and work afterwards.

Attempts: {first}, then after {", ".join(later)} (each ±{retries["jitter_percent"]} %), \
{retries["total_hours"]} h in all; then `undelivered`, and \
POST /api/v1/tasks/{{task_id}}/redeliver sends it again.
Try a receiver: POST /api/v1/callbacks/test {{"callback_url":"https://…"}}"""


def _list(described: dict[str, str], prefix: str) -> str:
    chosen = {name: about for name, about in described.items() if name.startswith(prefix)}
    return "\n".join(f"- `{name}`: {about}" for name, about in chosen.items())


def _calls(api: Json) -> str:
    """List what is neither a submit nor a link: what a caller asks about its tasks, secrets and limits."""
    return "\n".join(
        f"- {method.upper()} {path}: {operation['summary']}"
        for path, item in api["paths"].items()
        for method, operation in item.items()
        if not operation["operationId"].startswith(("submit_", "followLink"))
    )


def _vendors(rows: list[Json]) -> str:
    return "\n".join(f"- {row['name']}: {row['submit']}" for row in rows)


def _errors(rows: list[Json]) -> str:
    return "\n".join(f"- {row.get('answer') or row['code']}: {row['when']} {row['do']}" for row in rows)
