"""taskhook turns slow submit-and-poll AI task APIs into ones that call you back.

The map, from the inside out; imports point inwards only, which import-linter checks:

core task (states, transitions), message, ports, errors, schedule, signature, targets, admission, rate_limit:
pure vendors one pure file for each vendor: its models, and what its answers mean adapters http, dynamodb,
aws: vendor error in, port error out use cases submit, delivery, archive, tasks (what a caller sees and does),
and over them the poller edges wiring (App), settings, api (routes, answers, the OpenAPI document), __main__
(the admin command)
"""
