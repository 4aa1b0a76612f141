"""The poller: a scheduler, and the kinds of work that it takes further.

```
invocation   the story of one invocation, from leadership to report; names the kinds
scheduler    begins the steps that are due, one of a task at a time
work         what a kind of work is asked, and what all of them share
leadership   which invocation stays until the next tick, and what it leaves to its successor

the kinds, in the order of a task's way; each keeps its own tasks
queue        waits for the vendor to take it; submit_answers: what an answer means for the next submit
watch        from its submit to its end: polls (one step), watch_index (what is new), aside (what is not kept
             whole), adoption (a submit whose outcome is unknown)
archiving    waits for its results to be copied
delivery     waits for its callback to be delivered

pacing       when one vendor is asked next; long_poll: whether it holds polls
endings      stores the end of a task, and claims its first delivery
```
"""
