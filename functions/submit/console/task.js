// One task: where it is, what it has brought, and what can be done with it.

function showTask(id) {
  if (!ID.test(id)) return showNoTask(main);
  const trouble = el.div({ class: "tight" });
  const page = el.div({ class: "stack" }, el.h1("Task"), trouble, el.p({ class: "empty" }, "Loading…"));
  main.append(page);
  let parts = null;
  async function look() {
    let task;
    try {
      task = (await ask("GET", `/api/v1/tasks/${encodeURIComponent(id)}`)).data;
    } catch (error) {
      const { status, message, wait } = judged(error);
      if (looking.over()) return null;
      if (status === 404) {
        showNoTask(page);
        return null;
      }
      trouble.replaceChildren(notice(`${message}. Trying again every ${wait} s.`, { action: looking.now, of: error }));
      return wait;
    }
    if (looking.over()) return null;
    trouble.replaceChildren();
    parts ??= frame(page, trouble, task);
    draw(parts, task, looking);
    if (isMoving(task)) return LIVE;
    return task.callback.state === "waiting" ? CALM : null;
  }
  const looking = watch(look);
}

function showNoTask(page) {
  page.replaceChildren(
    el.h1("No such task"),
    el.p({ class: "soft" }, "There is none of yours with this id, or it was kept long enough and is gone."),
    el.p(el.a({ href: "#/tasks" }, "To the tasks")),
  );
}

/** Lay out a task's page; each part is drawn anew only when what it shows has changed, so that a film goes on playing. */
function frame(page, trouble, task) {
  const names = ["head", "actions", "told", "timeline", "result", "callback", "request", "raw"];
  const parts = Object.fromEntries(names.map((name) => [name, el.div({ class: "part" })]));
  parts.attempts = new Map(); // by number: what is open stays open, and is not asked for again
  page.replaceChildren(
    parts.head,
    parts.actions,
    parts.told,
    trouble,
    el.div(
      { class: "halves" },
      el.div({ class: "stack" }, parts.timeline, parts.callback),
      el.div({ class: "stack" }, parts.result, parts.request, parts.raw),
    ),
  );
  document.title = `${task.reference || task.task_id} · taskhook`;
  return parts;
}

function draw(parts, task, looking) {
  const part = (name, shows, render) => {
    const now = JSON.stringify(shows);
    if (parts[name].shown === now) return;
    parts[name].shown = now;
    const focused = parts[name].contains(document.activeElement);
    const drawn = render();
    parts[name].replaceChildren(...(drawn ? [drawn] : []));
    parts[name].hidden = !drawn;
    if (focused) parts[name].querySelector("button, a, summary")?.focus({ preventScroll: true });
  };
  const { stage, error, callback } = task;
  const state = callbackState(task);
  part("head", [stage, state, task.cost], () =>
    el.div(
      { class: "tight" },
      el.div(
        { class: "row" },
        el.h1(task.reference || "Task"),
        word(task.stage),
        hasEnded(task) && state !== "none" && word(state, `callback ${WORDS[state]?.[1] ?? state}`),
      ),
      el.p(
        { class: "row soft" },
        el.span({ class: "row" }, idOf(task.task_id), copier(task.task_id, "the task's id")),
        el.span(task.vendor),
        el.span(task.model_id),
        task.cost && el.span(`cost ${price(task.cost)}`),
      ),
    ),
  );
  if (parts.told.about !== undefined && parts.told.about !== callback.attempts) parts.told.replaceChildren(); // it has come to pass
  part("actions", [stage, callbackState(task)], () => actions(task, looking, parts.told));
  part("timeline", [stage, error, task.submitted_at, task.taken_at, task.ended_at, callback], () =>
    el.section(
      { class: "sheet padded stack", "aria-labelledby": "h-timeline" },
      el.h2({ id: "h-timeline" }, "Timeline"),
      timeline(task, parts.attempts),
    ),
  );
  part("callback", [task.callback_url, callbackState(task), callback], () => callbackFacts(task));
  part("result", [task.result, task.error, task.billing, task.truncated], () => resultOf(task));
  part("request", [task.request, task.unchecked], () => requestOf(task));
  part("raw", task, () => {
    const open = parts.raw.querySelector("details")?.open ?? false;
    return el.details({ class: "sheet padded", open }, el.summary("The API's answer"), json(task, "The API's answer"));
  });
}

/** Whether the form that is made from the API's description is for this task's model. */
const isDescribed = (task) => task.vendor === "modellix" && task.validated !== false;

function actions(task, looking, told) {
  const path = `/api/v1/tasks/${encodeURIComponent(task.task_id)}`;
  const does = async (button, verb, done) => {
    button.disabled = true;
    told.about = task.callback.attempts;
    try {
      await ask("POST", `${path}/${verb}`);
      say(done);
      told.replaceChildren(notice(done, { kind: "good" }));
      looking.now();
    } catch (error) {
      told.replaceChildren(notice(judged(error).message, { of: error }));
    }
    button.disabled = false;
  };
  const redeliver =
    hasEnded(task) &&
    task.callback.state !== "none" &&
    el.button(
      { type: "button", class: "first", onclick: (event) => does(event.target, "redeliver", "The callback is on its way again.") },
      { pending: "Deliver now", retrying: "Retry now" }[callbackState(task)] ?? "Redeliver callback",
    );
  const queued = task.stage === "queued";
  const cancel =
    (queued || (task.stage === "watched" && VENDORS[task.vendor]?.cancels)) &&
    el.button(
      {
        type: "button",
        class: "danger",
        onclick: async (event) =>
          (await confirmed(
            queued ? "Take this task back? It has not been paid for, and will not be." : "Ask the vendor to cancel this task? Whether it costs something is the vendor's to say.",
            "Cancel the task",
          )) && does(event.target, "cancel", queued ? "Canceled." : "The vendor was asked to cancel it."),
      },
      "Cancel task",
    );
  const again = el.a({ class: "button", href: `#/${isDescribed(task) ? "submit" : "any"}?from=${encodeURIComponent(task.task_id)}` }, "Submit one like it");
  return el.div({ class: "row" }, redeliver, cancel, again);
}

function timeline(task, attempts) {
  const { callback } = task;
  const { log } = callback;
  const item = (kind, what, at, detail, ahead) =>
    el.li(
      { class: `${kind}${ahead ? " ahead" : ""}` },
      el.span({ class: "what" }, what),
      at ? moment(at, ahead ? { near: true } : { day: what !== "Accepted" && task.created_at }) : el.span(),
      detail && el.div({ class: "detail" }, detail),
    );
  const waited = task.submitted_at - task.created_at;
  const list = [item("good", "Accepted", task.created_at)];
  if (task.stage === "queued")
    list.push(item("wait", "Queued", null, "Here, until the vendor has a free slot. Not paid for yet.", true));
  if (waited > 0) list.push(item("good", "Queued", task.created_at, `Waited here for ${lasting(waited)}.`));
  if (task.submitted_at)
    list.push(item(task.stage === "submitting" ? "busy" : "good", "Submitted to the vendor", task.submitted_at, null));
  if (task.stage === "unknown")
    list.push(
      item(
        "wait",
        "Outcome unknown",
        null,
        "The vendor's answer was lost. It is being watched whether the task was taken; it is not submitted again.",
        true,
      ),
    );
  if (task.taken_at)
    list.push(
      item(
        "good",
        "Processing",
        task.taken_at,
        task.upstream_task_id && [
          `At the vendor${task.ended_at ? ` for ${lasting(task.ended_at - task.taken_at)}` : ""}, as `,
          idOf(task.upstream_task_id),
        ],
      ),
    );
  if (task.stage === "archiving")
    list.push(item("busy", "Archiving", null, "The result is there, and is being copied here.", true));
  if (task.stage === "watched") list.push(item("busy", "Result", null, "The vendor is at it.", true));
  if (task.ended_at)
    list.push(
      item(
        task.stage === "success" ? "good" : "bad",
        task.stage === "success" ? "Succeeded" : "Failed",
        task.ended_at,
        task.error && [el.code(task.error.code), ` ${task.error.message}`],
      ),
    );
  const kept = callback.attempts - log.length;
  if (kept > 0) list.push(item("none", `${kept} earlier attempts`, null, "Only the last 20 are kept."));
  log.forEach((attempt, index) => {
    const number = kept + index + 1;
    if (!attempts.has(number)) attempts.set(number, attemptDetails(task, attempt, number));
    list.push(
      item(
        isDelivered(attempt) ? "good" : "bad",
        `Callback, attempt ${number}: ${answered(attempt)} after ${lasting(attempt.ms)}`,
        attempt.at,
        [attempt.answer && el.code({ class: "answer" }, attempt.answer), attempts.get(number)],
      ),
    );
  });
  if (hasEnded(task) && callback.state === "waiting")
    list.push(
      item(
        "wait",
        `Callback, attempt ${callback.attempts + 1}`,
        callback.next_attempt_at,
        callback.next_attempt_at ? null : "On its way.",
        true,
      ),
    );
  if (callback.state === "undelivered")
    list.push(item("bad", "Given up", null, "The schedule is through. The message is kept and can be redelivered.", true));
  return el.ol({ class: "timeline" }, list);
}

function callbackFacts(task) {
  const { callback } = task;
  const state = callbackState(task);
  if (callback.state === "none" && !task.callback_url)
    return el.section(
      { class: "sheet padded tight" },
      el.h2("Callback"),
      el.p({ class: "soft" }, "None was asked for: the task is only watched."),
    );
  return el.section(
    { class: "sheet padded stack" },
    el.h2("Callback"),
    el.dl(
      { class: "facts" },
      el.dt("Goes to"),
      el.dd({ class: "url" }, task.callback_url),
      el.dt("State"),
      el.dd(word(state, callback.state === "none" ? "none, for the submit itself was refused" : undefined)),
      el.dt("Attempts"),
      el.dd(String(callback.attempts)),
      callback.log.length > 0 && [el.dt("Last"), el.dd(`${answered(callback.log.at(-1))}, `, moment(callback.log.at(-1).at, { near: true }))],
      hasEnded(task) && callback.next_attempt_at && [el.dt("Next"), el.dd(moment(callback.next_attempt_at, { near: true }))],
      state === "undelivered" && [el.dt("Next"), el.dd("none: the schedule is through")],
    ),
  );
}

function resultOf(task) {
  const resources = Array.isArray(task.result?.resources) ? task.result.resources : [];
  if (task.stage !== "success") return null;
  const expires = task.result_expires_at;
  return el.section(
    { class: "sheet padded stack" },
    el.h2("Result"),
    resources.length === 0 && el.p({ class: "soft" }, "The vendor named no file."),
    resources.map(resourceOf),
    (task.cost || expires || task.truncated) &&
      el.small([
        task.cost && `Cost ${price(task.cost)}. `,
        expires && ["Kept by the vendor until ", moment(expires), ". "],
        task.truncated && "The vendor's answer was too large and is shortened.",
      ]),
  );
}

/** Show a file of a result; what is no link is shown as the vendor gave it. */
function resourceOf(resource) {
  const url = typeof resource === "string" ? resource : resource?.url;
  if (!isWeb(url)) return link(resource);
  const kind = kindOf(url, plain(resource.type)) ?? "video";
  return el.div({ class: "tight" }, link(url), media(url, kind, `Show the ${kind}`));
}

function requestOf(task) {
  if (!task.request) return null;
  const previews = Object.entries(task.request).filter(([, value]) => isWeb(value) && kindOf(value));
  return el.section(
    { class: "sheet padded stack" },
    el.h2("Request"),
    json(task.request, "Request"),
    Object.entries(task.unchecked ?? {}).map(([name, why]) =>
      el.p({ class: "soft" }, "Not checked here: ", el.code(name), `, ${why}.`),
    ),
    previews.length > 0 &&
      el.div(
        { class: "row" },
        previews.map(([name, value]) => media(value, kindOf(value), `Preview ${name}`)),
      ),
  );
}
