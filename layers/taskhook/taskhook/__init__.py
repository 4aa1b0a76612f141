"""taskhook turns slow submit-and-poll AI task APIs into ones that call you back.

The map, from the inside out; imports point inwards only, which import-linter checks:

pure       task (states, transitions, bodies), schedule (when to poll and retry), budget, signature, targets, models
ports      what the use cases need from the world, and what may go wrong there
use cases  submit (accept, and the one code path that pays), poll (the loop), hints, deliver, archive, query, callers
edges      api (routes and envelope), openapi, __main__ (the admin command), settings, wiring
adapters   dynamodb, vendor, callbacks, media, originals, fetch, archive_s3, guard, surroundings: vendor error in, port error out
"""
