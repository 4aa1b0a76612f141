"""Verify a callback, keep it once, answer; the work comes after. `SECRET=whsec_… python receive.py 8000`."""

import base64, hmac, os, re, sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KEY = base64.b64decode(os.environ["SECRET"].removeprefix("whsec_"))
inbox: dict[str, bytes] = {}  # yours: a table whose key is the id; a worker goes through it


class Receiver(BaseHTTPRequestHandler):
    timeout = 20  # seconds; a stranger may begin a request and never end it
    do_GET = do_HEAD = do_PUT = do_PATCH = do_DELETE = lambda self: self.send_error(405)

    def do_POST(self) -> None:
        length = re.fullmatch("[0-9]{1,6}", self.headers.get("content-length", ""))  # it has less than 1 MB
        body = self.rfile.read(int(length[0])) if length else b""
        names = ("webhook-id", "webhook-timestamp", "webhook-signature")
        message, sent_at, sent = (self.headers.get(name, "") for name in names)
        mac = hmac.digest(KEY, f"{message}.{sent_at}.".encode(errors="replace") + body, "sha256")
        signature = b"v1," + base64.b64encode(mac)
        ours = any(hmac.compare_digest(signature, one.encode(errors="replace")) for one in sent.split())
        fresh = sent_at.isascii() and sent_at.isdecimal() and abs(time.time() - float(sent_at)) < 300
        if ours and fresh and inbox.setdefault(message, body) is body:
            print(body.decode(errors="replace"), flush=True)
        self.send_response(204 if ours and fresh else 401 if length else 400)
        self.end_headers()


ThreadingHTTPServer(("", int(sys.argv[1])), Receiver).serve_forever()
