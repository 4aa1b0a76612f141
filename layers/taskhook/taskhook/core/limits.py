"""What a request may be at most. Each limit is said here, once: rules, models, OpenAPI and console follow."""

MAX_BODY = 64 * 1024  # bytes
MAX_URL = 2048  # characters
MAX_IDEMPOTENCY_KEY = 255  # characters
MAX_REFERENCE = 200  # characters
MAX_MODEL = 128  # characters of a model's name, or of each half of a slug
MAX_UPSTREAM_ID = 255  # characters
MAX_LISTED = 100  # tasks in one answer
MAX_SEARCH = 128  # characters; all filters together fit into a line of HTTP, whatever is in them
MAX_LOOKED_AT = 900  # tasks that one call reads to find those; with their requests 1,000 items in all
MAX_LOOKED_MB = 8  # of them, where they are large
MAX_REDELIVERED = 500  # callbacks delivered again by one call
PRINTABLE = "^[!-~]+$"  # as ids, names and hosts are
TASK_ID = r"tk_[A-Za-z0-9_-]{22}"
