"""The poller: a scheduler, and the kinds of work that it takes further."""
