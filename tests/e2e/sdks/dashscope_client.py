"""What a user of the official `dashscope` SDK does, with no more changed than its base URL.

Prints a line of JSON for each step.
"""

import json
import sys
from typing import Any

import dashscope
from dashscope.client.base_api import BaseAsyncApi

base_url, token, webhook_url, image_url, reference = sys.argv[1:]
dashscope.base_http_api_url = f"{base_url}/api/v1"
dashscope.api_key = token


def submit(url: str, **headers: str) -> Any:
    """Submit a task."""
    return BaseAsyncApi.async_call(
        model="wan2.2-animate-mix",
        input={"image_url": url, "video_url": url},
        task_group="aigc",
        task="image2video",
        function="video-synthesis",
        headers={"X-Webhook-URL": webhook_url, "X-Reference": reference, **headers},
    )


def say(**facts: object) -> None:
    """Tell of a step."""
    sys.stdout.write(json.dumps(facts) + "\n")


taken = submit(image_url)
say(step="submit", status=taken.status_code, output=taken.output)
fetched = BaseAsyncApi.fetch(taken)
say(step="fetch", status=fetched.status_code, output=fetched.output)
ended = BaseAsyncApi.wait(taken)
say(step="wait", status=ended.status_code, output=ended.output, usage=ended.usage)
listed = BaseAsyncApi.list(page_size=5)
say(step="list", status=listed.status_code, data=getattr(listed, "data", None) or listed.output)
slow = submit(f"{image_url}&task_seconds=40.0")
canceled = BaseAsyncApi.cancel(slow)
say(step="cancel", status=canceled.status_code, code=canceled.code, task_id=slow.output["task_id"])
over = BaseAsyncApi.wait(slow)
say(step="canceled", status=over.status_code, output=over.output)
gone = BaseAsyncApi.list(status="CANCELED", page_size=100)
say(step="canceled_list", status=gone.status_code, data=getattr(gone, "data", None) or gone.output)
unknown = BaseAsyncApi.fetch("tk_0000000000000000000000")
say(step="unknown", status=unknown.status_code)
