"""Verify a callback, keep it once, answer; the work comes after."""
# SECRET=whsec_… uvicorn receive_fastapi:app

import base64, hmac, os, time
from fastapi import FastAPI, Request, Response
from starlette.requests import ClientDisconnect

KEY = base64.b64decode(os.environ["SECRET"].removeprefix("whsec_"))
inbox: dict[str, bytes] = {}  # yours: a table whose key is the id; a worker goes through it
app = FastAPI()


@app.post("/hook")
async def receive(request: Request) -> Response:
    parts, size = [], 0
    try:
        async for part in request.stream():  # the raw bytes; a callback has less than 1 MB
            parts.append(part)
            if (size := size + len(part)) > 1_000_000:
                return Response(status_code=413)
    except ClientDisconnect:  # the sender went away half-way
        return Response(status_code=400)
    body = b"".join(parts)
    names = ("webhook-id", "webhook-timestamp", "webhook-signature")
    message, sent_at, sent = (request.headers.get(name, "") for name in names)
    mac = hmac.digest(KEY, f"{message}.{sent_at}.".encode(errors="replace") + body, "sha256")
    signature = b"v1," + base64.b64encode(mac)
    ours = any(hmac.compare_digest(signature, one.encode(errors="replace")) for one in sent.split())
    fresh = sent_at.isascii() and sent_at.isdecimal() and abs(time.time() - float(sent_at)) < 300
    if ours and fresh and inbox.setdefault(message, body) is body:
        print(body.decode(errors="replace"), flush=True)
    return Response(status_code=204 if ours and fresh else 401)
