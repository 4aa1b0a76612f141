from collections import Counter

from tests.sim.mutations import PACKAGE, find
from tests.vectors import naming

# What the proof rests on; `python -m tests.sim.mutations` removes each and shows that a test notices.
LEAST = {
    "claim": 40,
    "condition": 20,
    "dedupe": 26,
    "guard": 12,
    "nonce": 12,
    "paging": 7,
    "time": 10,
    "turn": 3,
    "write-ahead": 19,
}
NAMED = {
    "adapters/dynamodb/tasks.py DynamoTasks.add: condition: 'attribute_not_exists(task_id)'",
    "adapters/dynamodb/tasks.py DynamoTasks.swap: condition: 'nonce = :old'",
    (
        "adapters/dynamodb/control.py DynamoControl.acquire: condition: "
        "'attribute_not_exists(leader) OR leader = :seen OR leader = :leader'"
    ),
    "adapters/dynamodb/control.py DynamoControl.resign: condition: 'leader = :leader'",
    (
        "adapters/dynamodb/control.py DynamoControl.set_admission: condition:"
        " 'attribute_not_exists(task_id) OR nonce = :old'"
    ),
    (
        "adapters/dynamodb/control.py DynamoControl.take_tokens: condition: 'attribute_not_exists(used) OR"
        " used <= :rest'"
    ),
    "adapters/dynamodb/callers.py DynamoCallers.add: condition: 'attribute_not_exists(caller)'",
    "adapters/dynamodb/tasks.py DynamoTasks.add: nonce: current.nonce != task.nonce",
    "adapters/dynamodb/tasks.py DynamoTasks.swap: nonce: current.nonce != new.nonce",
    "adapters/dynamodb/items.py Table.query: paging: answer.get('LastEvaluatedKey')",
    "delivery/attempt.py claim_covers_attempt: time: now + ATTEMPT_TIME",
    (
        "delivery/attempt.py _claimed: write-ahead: await ports.tasks.swap(task,"
        " task.claim_delivery(until=now + CLAIM))"
    ),
    (
        "poller/queue.py Queue._serve: write-ahead: await self._ports.tasks.swap(task,"
        " task.claim_submit(now, until=now + PAY_CLAIM))"
    ),
    "core/record.py TaskRecord.unknown_until: time: self.submitted_at or self.accepted_at",
    "poller/polls.py Polls._polled: time: asked_at",
    "poller/watch_index.py WatchIndex._since: time: self._newest - INDEX_LAG",
    "submit/submit.py _accept: write-ahead: await tasks.add(wanted)",
    "submit/submit.py _require_same: dedupe: first.fingerprint != request.fingerprint",
    "submit/payment.py pay: claim: end - payment.clock.now() < LEAST_POST_TIME",
}


def test_the_finder_still_finds_what_the_proof_rests_on() -> None:
    """What is moved or written otherwise must be found again, and nothing gets lost on the way."""
    found = find()
    kinds = Counter(mutation.kind for mutation in found)
    assert {kind: kinds[kind] for kind in LEAST if kinds[kind] < LEAST[kind]} == {}
    names = {mutation.name.partition(" -> ")[0].replace('"', "'") for mutation in found}
    assert sorted(NAMED - names) == []


def test_every_mutation_is_a_program() -> None:
    """A mutation that does not compile would be noticed for the wrong reason."""
    for mutation in find():
        with naming(mutation):
            source = (PACKAGE / mutation.file).read_text()
            changed = mutation.apply(source)
            assert changed != source
            compile(changed, mutation.file, "exec")
