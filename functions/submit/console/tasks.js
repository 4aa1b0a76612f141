// The list of tasks: filtered, paged, and alive.

function showTasks(parameters) {
  const cursor = parameters.get("cursor");
  const filtered = ["status", "callback", "since", "until"].some((name) => parameters.get(name));
  const want = (changes) => {
    const wanted = new URLSearchParams({ ...Object.fromEntries(parameters), ...changes });
    for (const [name, value] of [...wanted]) if (!value) wanted.delete(name);
    go(`#/tasks${wanted.size ? `?${wanted}` : ""}`);
  };
  const choice = (name, label, values) =>
    el.div(
      { class: "tight" },
      el.label({ for: `filter-${name}` }, label),
      el.select(
        { id: `filter-${name}`, onchange: (event) => want({ [name]: event.target.value, cursor: "" }) },
        el.option({ value: "" }, "any"),
        values.map((value) => el.option({ value, selected: parameters.get(name) === value }, value)),
      ),
    );
  const bound = (name, label) => {
    const at = new Date(parameters.get(name) ?? "");
    const local = Number.isNaN(at.getTime())
      ? ""
      : new Date(at.getTime() - at.getTimezoneOffset() * 60000).toISOString().slice(0, 16);
    const change = (event) => want({ [name]: event.target.value && new Date(event.target.value).toISOString(), cursor: "" });
    return el.div(
      { class: "tight" },
      el.label({ for: `filter-${name}` }, label),
      el.input({ id: `filter-${name}`, type: "datetime-local", value: local, onchange: change }),
    );
  };
  const trouble = el.div({ class: "tight" });
  const pulse = el.small();
  const sheet = el.div({ class: "sheet" });
  const pages = el.nav({ class: "row", "aria-label": "Pages" });
  const search = el.input({ type: "search", "aria-label": "Task id", placeholder: "tk_… to open a task", size: 27 });
  const open = (event) => {
    event.preventDefault();
    const id = search.value.trim();
    if (ID.test(id)) return go(`#/tasks/${id}`);
    search.setAttribute("aria-invalid", "true");
    say("A task's id is tk_ and 22 characters.");
  };
  main.append(
    el.div(
      { class: "stack" },
      el.div(
        { class: "row" },
        el.h1("Tasks"),
        pulse,
        el.div(
          { class: "push row tools" },
          el.form({ role: "search", onsubmit: open }, search),
          el.a({ class: "button first", href: "#/submit" }, "Submit a task"),
        ),
      ),
      el.form(
        { class: "sheet filters", "aria-label": "Filters", onsubmit: (event) => event.preventDefault() },
        choice("status", "Status", ["pending", "processing", "success", "failed"]),
        choice("callback", "Callback", ["none", "waiting", "delivered", "undelivered"]),
        bound("since", "Accepted from"),
        bound("until", "until"),
        el.button({ type: "button", hidden: !filtered, onclick: () => go("#/tasks") }, "Clear"),
      ),
      trouble,
      sheet,
      pages,
    ),
  );
  if (parameters.get("callback") === "undelivered") trouble.before(redeliverAll(parameters));

  let shown = null;
  const known = new Set();
  async function look() {
    const query = new URLSearchParams({ limit: 25 });
    for (const name of ["status", "callback", "since", "until", "cursor"])
      if (parameters.get(name)) query.set(name, parameters.get(name));
    let data;
    try {
      ({ data } = await ask("GET", `/api/v1/tasks?${query}`));
    } catch (error) {
      const { status, message, wait } = judged(error);
      if (looking.over()) return null;
      const hopeless = status === 400;
      trouble.replaceChildren(notice(`${message}${hopeless ? "" : `. Trying again every ${wait} s.`}`, { action: looking.now }));
      pulse.textContent = "";
      return hopeless ? null : wait;
    }
    if (looking.over()) return null;
    trouble.replaceChildren();
    const now = JSON.stringify(data);
    if (now !== shown) {
      const focused = document.activeElement?.dataset?.key;
      sheet.replaceChildren(
        data.tasks.length ? table(data.tasks, shown === null ? null : known) : nothing(data.next_cursor, filtered, cursor),
      );
      pages.replaceChildren(...paging(cursor, data.next_cursor, want));
      if (focused) sheet.querySelector(`[data-key="${CSS.escape(focused)}"]`)?.focus({ preventScroll: true });
      if (shown === null) say(`${data.tasks.length} tasks`);
      shown = now;
      for (const task of data.tasks) known.add(task.task_id);
    }
    const moving = data.tasks.some(isMoving);
    pulse.replaceChildren(el.span({ class: "word busy live" }, "Live"));
    return moving ? LIVE : cursor ? CALM : 5;
  }
  sheet.append(el.p({ class: "empty" }, "Loading…"));
  const looking = watch(look);
}

function table(tasks, known) {
  const row = (task) =>
    el.tr(
      { class: known && !known.has(task.task_id) ? "fresh" : null },
      el.td(
        { class: "of-task" },
        el.a(
          { class: "title", href: `#/tasks/${encodeURIComponent(task.task_id)}`, "data-key": task.task_id },
          task.reference || task.task_id,
        ),
        task.reference && el.small({ class: "mono" }, task.task_id),
      ),
      el.td({ class: "of-model" }, el.small(task.model_id), task.vendor !== "modellix" && el.small(task.vendor)),
      el.td({ class: "of-status" }, word(task.stage), task.error && el.small({ class: "mono" }, task.error.code)),
      el.td({ class: "of-callback" }, callbackWord(task)),
      el.td({ class: "when" }, moment(task.created_at, { near: true }), el.small(duration(task))),
    );
  return el.table(
    { class: "tasks" },
    el.thead(el.tr(["Task", "Model", "Status", "Callback", "Accepted"].map((name) => el.th({ scope: "col" }, name)))),
    el.tbody(tasks.map(row)),
  );
}

const duration = (task) => (task.ended_at ? `took ${lasting(task.ended_at - task.created_at)}` : "");

function callbackWord(task) {
  const { callback } = task;
  const tries = callback.attempts > 1 ? `${callback.attempts} attempts` : "";
  const next =
    callback.state === "waiting" && callback.next_attempt_at ? ["next ", moment(callback.next_attempt_at, { near: true })] : null;
  return [word(callbackState(task)), (tries || next) && el.small(tries, tries && next ? ", " : "", next)];
}

function nothing(more, filtered, cursor) {
  if (more) return el.p({ class: "empty" }, "None among the newest. Older ones may match: look further back.");
  if (filtered || cursor) return el.p({ class: "empty" }, "No task matches.");
  return el.div(
    { class: "empty tight" },
    el.p("No tasks yet."),
    el.p(el.a({ href: "#/submit" }, "Submit the first one"), ", or read ", el.a({ href: "/docs" }, "how the API does it"), "."),
  );
}

function paging(cursor, next, want) {
  return [
    cursor && el.button({ type: "button", onclick: () => want({ cursor: "" }) }, "Newest"),
    cursor && el.button({ type: "button", onclick: () => history.back() }, "« Newer"),
    next && el.button({ type: "button", class: "push", onclick: () => want({ cursor: next }) }, "Older »"),
  ].filter(Boolean);
}

/** Offer to have every undelivered callback of the chosen time delivered again. */
function redeliverAll(parameters) {
  const place = el.div();
  const start = el.button({ type: "button", onclick: run }, "Redeliver all of them");
  place.append(
    el.div(
      { class: "notice row" },
      el.span("Is the receiver mended? Every undelivered callback of this time can be sent again."),
      el.span({ class: "push" }, start),
    ),
  );
  async function run() {
    start.disabled = true;
    const wanted = { state: "undelivered", limit: 500 };
    for (const bound of ["since", "until"]) if (parameters.get(bound)) wanted[bound] = parameters.get(bound);
    let count = 0;
    try {
      do {
        const { data } = await ask("POST", "/api/v1/tasks/redeliver", { body: wanted });
        count += data.count;
        wanted.cursor = data.next_cursor;
      } while (wanted.cursor);
      place.replaceChildren(notice(`${count} on their way again.`, { kind: "good" }));
    } catch (error) {
      place.replaceChildren(notice(`${judged(error).message}. ${count} are on their way.`, { action: run }));
    }
  }
  return place;
}
