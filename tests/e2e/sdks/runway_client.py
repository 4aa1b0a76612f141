"""What a user of the official `runwayml` SDK does, with no more changed than its base URL.

Prints a line of JSON for each step.
"""

import json
import sys
from typing import Any

import runwayml

base_url, token, webhook_url, image_url, only_submit = sys.argv[1:]
client = runwayml.RunwayML(
    api_key=token, base_url=base_url, default_headers={"X-Webhook-URL": webhook_url}, timeout=60
)


def submit(url: str) -> Any:
    """Submit a task."""
    return client.image_to_video.create(
        model="gen4_turbo", prompt_image=url, prompt_text="waves", ratio="1280:720"
    )


def say(**facts: object) -> None:
    """Tell of a step."""
    sys.stdout.write(json.dumps(facts) + "\n")


try:
    taken = submit(image_url)
except runwayml.APIStatusError as error:
    say(step="refused", status=error.status_code, body=error.body)
    sys.exit()
say(step="submit", id=taken.id)
if only_submit == "yes":
    sys.exit()
say(step="retrieve", status=client.tasks.retrieve(taken.id).status)
ended = taken.wait_for_task_output(timeout=120)
say(step="wait", status=ended.status, output=ended.output, id=ended.id)
slow = submit(f"{image_url}&task_seconds=40.0")
client.tasks.delete(slow.id)
say(step="delete", id=slow.id)
client.tasks.delete(taken.id)
say(step="delete again", id=taken.id)
