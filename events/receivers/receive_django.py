"""Verify a callback, keep it once, answer; the work comes after."""
# SECRET=whsec_… gunicorn --threads 8 receive_django:app

import base64, hmac, os, time
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, HttpResponse, UnreadablePostError
from django.urls import path
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST

KEY = base64.b64decode(os.environ["SECRET"].removeprefix("whsec_"))
inbox: dict[str, bytes] = {}  # yours: a table whose key is the id; a worker goes through it


@csrf_exempt
@require_POST
def receive(request: HttpRequest) -> HttpResponse:
    try:
        body = request.body  # the raw bytes; Django itself refuses more than 2.5 MB
    except UnreadablePostError:  # the sender went away half-way
        return HttpResponse(status=400)
    names = ("webhook-id", "webhook-timestamp", "webhook-signature")
    message, sent_at, sent = (request.headers.get(name, "") for name in names)
    mac = hmac.digest(KEY, f"{message}.{sent_at}.".encode(errors="replace") + body, "sha256")
    signature = b"v1," + base64.b64encode(mac)
    ours = any(hmac.compare_digest(signature, one.encode(errors="replace")) for one in sent.split())
    fresh = sent_at.isascii() and sent_at.isdecimal() and abs(time.time() - float(sent_at)) < 300
    if ours and fresh and inbox.setdefault(message, body) is body:
        print(body.decode(errors="replace"), flush=True)
    return HttpResponse(status=204 if ours and fresh else 401)


# Your project has these already.
urlpatterns = [path("hook", receive)]
settings.configure(ROOT_URLCONF=__name__, SECRET_KEY=os.urandom(32).hex())
app = get_wsgi_application()
