"""Verify a callback, keep it once, answer; the work comes after."""
# SECRET=whsec_… gunicorn --threads 8 receive_flask:app

import base64, hmac, os, time
from flask import Flask, request

KEY = base64.b64decode(os.environ["SECRET"].removeprefix("whsec_"))
inbox: dict[str, bytes] = {}  # yours: a table whose key is the id; a worker goes through it
app = Flask(__name__)
app.config["MAX_CONTENT_LENGTH"] = 1_000_000  # a callback has less


@app.post("/hook")
def receive() -> tuple[str, int]:
    if request.content_length is None:  # as every callback has one
        return "", 411
    body = request.get_data()  # the raw bytes, not `request.json`
    names = ("webhook-id", "webhook-timestamp", "webhook-signature")
    message, sent_at, sent = (request.headers.get(name, "") for name in names)
    mac = hmac.digest(KEY, f"{message}.{sent_at}.".encode(errors="replace") + body, "sha256")
    signature = b"v1," + base64.b64encode(mac)
    ours = any(hmac.compare_digest(signature, one.encode(errors="replace")) for one in sent.split())
    fresh = sent_at.isascii() and sent_at.isdecimal() and abs(time.time() - float(sent_at)) < 300
    if ours and fresh and inbox.setdefault(message, body) is body:
        print(body.decode(errors="replace"), flush=True)
    return "", 204 if ours and fresh else 401
