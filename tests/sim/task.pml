/* One task, from two requests with one key to its callback, in Promela for SPIN.
   Two submits (a repeat beside its first), two pollers, a webhook of the vendor's or of a stranger's, and a
   vendor. A process may die between any two steps, and may be frozen while its claim ends. Every write of the
   item makes old what the other processes have read of it (in the product a fresh nonce does).
   Holds: at most one POST that may have been taken; none but of a claimed task, none after its end; one
   message; no success that the vendor has not reported; every accepted task is delivered or given up.
   Each guard below can be taken away (`false`): tests/unit/test_model.py sees the model fail then. */
#define PUT_IF_ABSENT          true  /* a new task is stored where none stands under its key */
#define WRITE_AHEAD            true  /* the intent is stored before the POST */
#define CLAIM_IF_UNCHANGED     true  /* a queued task is claimed as it was read, or not at all */
#define CLAIM_STILL_MINE       true  /* looked at once more before the first byte */
#define WAIT_FOR_CLAIM         true  /* a claimed task is no other's until its claim is over */
#define UNKNOWN_IS_NOT_REFUSED true  /* only what was provably not taken is queued again */
#define SETTLE_IF_UNCHANGED    true  /* what came of a POST is stored where its claim still stands */
#define END_IF_UNCHANGED       true  /* the end is stored once, with the message */
#define ASK_THE_VENDOR         true  /* a webhook is never believed */
#define TICKS_COME             true  /* after a poller's death there is another */
#define CLAIMS_END             true  /* a dead process's claim is over some time */

#define DEATHS   1  /* of processes, between any two steps */
#define FREEZES  1  /* of processes, past the end of their claim */
#define ATTEMPTS 2  /* of a delivery, then it is given up */
mtype = { none, queued, submitting, watched, unknown, ended,   /* states of the task */
          taken, ambiguous, busy, not_sent,                    /* what a sender knows of its POST */
          waiting, delivered, undelivered };                   /* states of its callback */

mtype state = none, callback = none;
byte fresh, at_work, valid;     /* bits of processes: knows the item as it is; amid a step; its claim lasts */
byte attempts, message, holder, leader;
bool live, orphaned;            /* the claim lasts; its holder is dead */
bool accepted, ours = true;     /* ours: the vendor's id in the item is this task's */
byte posts, renderings;         /* POSTs that may have been taken; messages that were made */
bool has, has_ended;            /* of the vendor: it has the task, and is through with it */
byte deaths = DEATHS, freezes = FREEZES, refusals = 1, webhooks = 1, takeovers = 1;

/* There is something to do: nothing is, of a task that another process has claimed. */
#define due ((!live || !WAIT_FOR_CLAIM || (holder == me && !orphaned)) && \
             state != none && (state != watched || has_ended))
#define over (callback == delivered || callback == undelivered)
#define may_die if :: deaths > 0 -> deaths--; goto dead :: true fi
#define me (_pid + 1)
#define mine (1 << _pid)
#define not_mine (~(1 << _pid))
#define holders (1 << (holder - 1))
#define unchanged (fresh & mine)

/* Store a claim: all others know the item no more as it is. */
inline claim() { holder = me; live = true; orphaned = false; fresh = mine; valid = valid | mine }

/* A POST, as its sender sees it; a claim lasts longer than a request. */
inline post() {
  atomic {
    if
    :: CLAIM_STILL_MINE && WRITE_AHEAD && !(valid & mine) -> outcome = not_sent
    :: else ->
       if
       :: refusals > 0 -> refusals--; outcome = busy
       :: has = true; posts++; outcome = taken
       :: has = true; posts++; outcome = ambiguous
       :: posts++; outcome = ambiguous
       fi;
       assert(posts <= 1);
       assert(state == submitting || !WRITE_AHEAD);
       may_die
    fi
  }
}

inline store(new) {
  state = new; fresh = 0; live = false; orphaned = false; holder = 0; valid = valid & not_mine
}

/* What came of it: a late answer settles an unknown outcome, too. */
inline settle() {
  atomic {
    if
    :: unchanged || !SETTLE_IF_UNCHANGED || (state == unknown && outcome != ambiguous) ->
       if
       :: outcome == taken -> store(watched)
       :: outcome == ambiguous && UNKNOWN_IS_NOT_REFUSED -> store(unknown)
       :: else -> store(queued)
       fi
    :: else fi
  }
}

/* The end is stored together with the message, and with the claim of its first delivery. */
inline end_task() {
  atomic {
    if
    :: unchanged || !END_IF_UNCHANGED ->
       store(ended); callback = waiting; renderings++; message = renderings; claim();
       refusals = 0; webhooks = 0; has = false; has_ended = false   /* of no use any more */
    :: else fi
  }
}

active [2] proctype submit() {
  mtype outcome; bool pays;
  if :: !WRITE_AHEAD -> post() :: else fi;
  atomic {
    if
    :: state == none || !PUT_IF_ABSENT ->
       accepted = true;
       if   /* there is a way to the vendor; or others wait, or it is in trouble */
       :: state = submitting; claim(); at_work = at_work | mine; pays = true
       :: state = queued; fresh = 0
       fi
    :: else fi;   /* a repeat gets the first answer */
    may_die
  }
  if :: pays -> post(); settle() :: else fi;
  goto done;
dead: atomic { if :: holder == me -> orphaned = true :: else fi };
done: atomic { fresh = fresh & not_mine; at_work = at_work & not_mine; outcome = 0; pays = false }
}

inline forget() { s = 0; sent = 0; outcome = 0; fresh = fresh & not_mine; at_work = at_work & not_mine }

active [2] proctype poller() {
  byte sent; mtype outcome, s;
tick:
  do
  :: over -> goto done
  :: atomic { !over && takeovers > 0 && leader != me -> takeovers--; leader = me }
  :: atomic { !over && leader == 0 -> leader = me }
  :: atomic { !over && leader == me && due -> s = state; fresh = fresh | mine; at_work = at_work | mine };
     /* from here on, by what was read of item and leadership, which may be old by now */
     if
     :: s == queued ->
        atomic {
          if :: unchanged || !CLAIM_IF_UNCHANGED -> state = submitting; claim(); may_die
             :: else -> s = none
          fi
        }
        if :: s == queued -> post(); settle() :: else fi
     :: s == submitting -> atomic { if :: unchanged -> store(unknown) :: else fi }
     :: s == unknown -> end_task()         /* its quarter of an hour is over */
     :: s == watched -> assert(!unchanged || (has && ours)); end_task()
     :: s == ended ->
        atomic {
          if :: unchanged && callback == waiting -> claim(); sent = message; may_die
             :: else -> sent = 0
          fi
        }
        if
        :: sent > 0 ->
           atomic {
             assert(state == ended && sent == 1);
             if :: outcome = delivered :: outcome = waiting fi;   /* the receiver's answer */
             may_die
           }
           atomic {
             if :: unchanged ->
                store(ended); attempts++; callback = outcome;
                if :: callback == waiting && attempts == ATTEMPTS -> callback = undelivered :: else fi
             :: else fi
           }
        :: else fi
     fi;
     atomic { forget() }
  od;
dead:
  atomic {
    forget();
    if :: holder == me -> orphaned = true :: else fi;
    if :: leader == me -> leader = 0 :: else fi;
    if :: TICKS_COME -> goto tick :: else fi
  }
done: skip
}

/* The vendor says that a task has ended, or a stranger does. */
active proctype webhook() {
  bool real;
  do
  :: over -> break
  :: atomic { state == unknown && webhooks > 0 ->
              webhooks--; fresh = fresh | mine; if :: has -> real = true :: real = false fi };
     atomic {
       if :: unchanged && (real || !ASK_THE_VENDOR) -> store(watched); ours = real :: else fi;
       real = false; fresh = fresh & not_mine
     }
  od
}

active proctype vendor() { if :: has && state == watched -> has_ended = true :: over fi }

/* A claim ends some time after its holder's life or work; before that, where the holder is frozen. */
active proctype time() {
  do
  :: over -> break
  :: atomic { CLAIMS_END && live && (orphaned || (leader != holder && !(at_work & holders))) ->
              live = false; valid = valid & ~holders; holder = 0; orphaned = false }
  :: atomic { live && !orphaned && freezes > 0 -> freezes--; live = false; valid = valid & ~holders }
  od
}
ltl told { [] (accepted -> <> over) }
