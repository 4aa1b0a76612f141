"""taskhook turns slow submit-and-poll AI task APIs into ones that call you back.

The map, from the top down; imports point down only, which import-linter checks:

```
api          HTTP in, one use case, HTTP out; the OpenAPI document        __main__, cli   the admin command
wiring.py    class App: every object of a deployment, built once
poller       one invocation: a scheduler, and the kinds of work          adapters   HTTP, DynamoDB, AWS
submit, delivery, archive, tasks       the other use cases
vendors      one pure file each: what is asked, and what the answers mean
core         the task with its states and transitions, the ports, the errors: pure
```

A use case takes what it needs of the world as a port (`core.ports`); `wiring` alone hands it the adapter.
"""
