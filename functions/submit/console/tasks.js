// The list of tasks: searched, filtered, paged, and alive.

const SIZES = [25, 50, 100, 500];
const MOST_ASKED = 100; // tasks of one answer of the API; a larger page is made of several
const DRAWN_AT_ONCE = 20; // rows; more are drawn frame by frame
const FILTERS = ["search", "status", "callback", "vendor", "model", "host", "since", "until"]; // of the API
const wordOf = (name, value) => (name === "callback" && value === "failed" ? "undelivered" : value); // older links say failed
const FAILING = { __proto__: null, retrying: "retrying", failed: "undelivered", undelivered: "undelivered" };

/** Give what the API is asked for a view of the list. */
function queryOf(parameters) {
  const query = new URLSearchParams();
  for (const name of FILTERS) if (parameters.get(name)) query.set(name, parameters.get(name));
  if (Object.hasOwn(RANGES, parameters.get("range") ?? "")) query.set("since", since(parameters.get("range")));
  return query;
}

function showTasks(parameters) {
  const cursor = parameters.get("cursor");
  const size = SIZES.find((one) => String(one) === parameters.get("size")) ?? SIZES[0];
  const filtered = [...FILTERS, "range"].filter((name) => parameters.get(name));
  const narrow = filtered.some((name) => !["since", "until", "range"].includes(name));
  const want = (changes) => {
    const wanted = new URLSearchParams({ ...Object.fromEntries(parameters), cursor: "", ...changes });
    for (const [name, value] of [...wanted]) if (!value) wanted.delete(name);
    go(`#/tasks${wanted.size ? `?${wanted}` : ""}`);
  };
  const trouble = el.div({ class: "tight" });
  const pulse = el.small();
  const sheet = el.div({ class: "sheet", role: "region", "aria-label": "List of tasks" });
  const pages = el.nav({ class: "row", "aria-label": "Pages" });
  const field = el.input({
    id: "search",
    type: "search",
    "aria-label": "Search",
    "aria-keyshortcuts": "/",
    placeholder: "Reference or id, then Enter",
    enterkeyhint: "search",
    autocomplete: "off",
    spellcheck: "false",
    maxlength: 128,
    value: parameters.get("search") ?? "",
  });
  const find = (event) => {
    event.preventDefault();
    const words = field.value.trim();
    if (ID.test(words)) go(`#/tasks/${words}`);
    else want({ search: words });
  };
  const counts = el.div();
  const bulk = el.div();
  main.append(
    el.div(
      { class: "stack" },
      el.div(
        { class: "row" },
        el.h1("Tasks"),
        pulse,
        el.form({ role: "search", class: "push tools", onsubmit: find }, field),
        el.a({ class: "button first", href: "#/submit", tabindex: -1 }, "Submit a task"), // the keyboard has it in the menu
      ),
      counts,
      filters(parameters, filtered, size, want),
      trouble,
      bulk,
      sheet,
      pages,
    ),
  );
  const counting = totals(counts);
  const failing = FAILING[parameters.get("callback")];
  if (failing && !parameters.get("search") && !parameters.get("status")) retryAll(bulk, parameters, failing, () => [counting, looking].forEach((one) => one.now()));

  let shown = null;
  const rows = table();
  async function look() {
    let data;
    try {
      data = await pageOf(queryOf(parameters), cursor, size);
    } catch (error) {
      const { status, message, wait } = judged(error);
      if (looking.over()) return null;
      const hopeless = status === 400;
      const text = hopeless ? message : `${message}. Trying again every ${wait} s.`;
      trouble.replaceChildren(notice(text, { action: looking.now, of: error }));
      pulse.textContent = "";
      if (shown === null) sheet.replaceChildren();
      return hopeless ? null : wait;
    }
    if (looking.over()) return null;
    trouble.replaceChildren();
    const now = JSON.stringify(data);
    if (now !== shown) {
      if (data.tasks.length) {
        if (!sheet.contains(rows.element)) sheet.replaceChildren(rows.element);
        rows.fill(data.tasks);
      } else sheet.replaceChildren(nothing(data, filtered.length > 0, cursor));
      pages.replaceChildren(...paging(cursor, data, filtered.length > 0, want));
      if (shown === null) say(`${data.tasks.length} tasks`);
      shown = now;
    }
    pulse.replaceChildren(el.span({ class: "word busy live" }, "Live"));
    return listWait(data.tasks, { narrow, size, older: cursor });
  }
  sheet.append(el.p({ class: "empty" }, "Loading…"));
  const looking = watch(look);
}

/** Ask for a page, of however many answers it is made. */
async function pageOf(query, cursor, size) {
  const page = { tasks: [], next_cursor: cursor };
  let limit, came;
  do {
    limit = Math.min(size - page.tasks.length, MOST_ASKED);
    query.set("limit", limit);
    if (page.next_cursor) query.set("cursor", page.next_cursor);
    const { data } = await ask("GET", `/api/v1/tasks?${query}`);
    came = data.tasks.length;
    page.tasks.push(...data.tasks);
    page.next_cursor = data.next_cursor;
    page.looked_at = data.looked_at && { ...data.looked_at, tasks: data.looked_at.tasks + (page.looked_at?.tasks ?? 0) };
  } while (page.next_cursor && came === limit && page.tasks.length < size);
  return page;
}

/** Draw the filters, folded away while none is set: the list is what the keyboard is to reach first. */
function filters(parameters, filtered, size, want) {
  const choice = (name, label, values) =>
    el.div(
      { class: "tight" },
      el.label({ for: `filter-${name}` }, label),
      el.select(
        { id: `filter-${name}`, onchange: (event) => want({ [name]: event.target.value }) },
        el.option({ value: "" }, "any"),
        values.map((value) => el.option({ value, selected: wordOf(name, parameters.get(name)) === value }, value)),
      ),
    );
  const text = (name, label, hint) =>
    el.div(
      { class: "tight" },
      el.label({ for: `filter-${name}` }, label),
      el.input({
        id: `filter-${name}`,
        type: "text",
        autocomplete: "off",
        spellcheck: "false",
        placeholder: hint,
        value: parameters.get(name) ?? "",
        onchange: (event) => want({ [name]: event.target.value.trim() }),
      }),
    );
  const bound = (name, label) => {
    const at = new Date(parameters.get(name) ?? "");
    const local = Number.isNaN(at.getTime())
      ? ""
      : new Date(at.getTime() - at.getTimezoneOffset() * 60000).toISOString().slice(0, 16);
    const change = (event) => want({ [name]: event.target.value && new Date(event.target.value).toISOString(), range: "" });
    return el.div(
      { class: "tight" },
      el.label({ for: `filter-${name}` }, label),
      el.input({ id: `filter-${name}`, type: "datetime-local", value: local, onchange: change }),
    );
  };
  const range = (name) => {
    const on = parameters.get("range") === name;
    return el.button(
      { type: "button", "aria-pressed": String(on), onclick: () => want({ range: on ? "" : name, since: "", until: "" }) },
      name,
    );
  };
  const open = filtered.some((name) => name !== "search") || sessionStorage.getItem("filters") === "open";
  const told = filtered.map((name) => (name === "range" ? `last ${parameters.get(name)}` : `${name} ${wordOf(name, parameters.get(name))}`));
  const remember = (event) => sessionStorage.setItem("filters", event.currentTarget.parentNode.open ? "" : "open");
  return el.div(
    { class: "sheet" },
    el.details(
      { open },
      el.summary({ onclick: remember }, el.span("Filters"), told.length > 0 && el.small(told.join(" · "))),
      el.form(
        { class: "filters", "aria-label": "Filters", onsubmit: (event) => event.preventDefault() },
        choice("status", "Status", ["pending", "processing", "success", "failed"]),
        choice("callback", "Callback", ["pending", "retrying", "delivered", "undelivered", "none"]),
        choice("vendor", "Vendor", Object.keys(VENDORS)),
        text("model", "Model", "alibaba/*"),
        text("host", "Receiver's host", "hooks.example.com"),
        el.div(
          { class: "tight" },
          el.span({ class: "label", id: "h-range" }, "Accepted in the last"),
          el.div({ class: "choice", role: "group", "aria-labelledby": "h-range" }, Object.keys(RANGES).map(range)),
        ),
        bound("since", "Accepted from"),
        bound("until", "Accepted before"),
        el.div(
          { class: "tight" },
          el.label({ for: "filter-size" }, "Tasks on a page"),
          el.select(
            { id: "filter-size", onchange: (event) => want({ size: event.target.value === String(SIZES[0]) ? "" : event.target.value }) },
            SIZES.map((one) => el.option({ value: one, selected: one === size }, String(one))),
          ),
        ),
        el.button({ type: "button", hidden: !filtered.length, onclick: () => go("#/tasks") }, "Clear filters"),
      ),
    ),
  );
}

/** Make a table whose rows stay as long as what they show: a large one is drawn frame by frame. */
function table() {
  const body = el.tbody();
  const drawn = new Map(); // by task: its row, and what that shows
  let turn = 0;
  const rowOf = (task, fresh) => {
    const shows = JSON.stringify(task);
    const before = drawn.get(task.task_id);
    if (before?.shows === shows) return before.row;
    const row = taskRow(task, fresh && !before);
    const focused = before?.row.contains(document.activeElement);
    if (focused) {
      before.row.replaceWith(row);
      row.querySelector("a").focus({ preventScroll: true });
    }
    drawn.set(task.task_id, { row, shows });
    return row;
  };
  function fill(tasks) {
    const mine = ++turn;
    const fresh = drawn.size > 0;
    const ids = new Set(tasks.map((task) => task.task_id));
    for (const [id, { row }] of drawn) {
      if (ids.has(id)) continue;
      row.remove();
      drawn.delete(id);
    }
    let done = 0;
    const some = () => {
      if (mine !== turn) return; // a later answer is being drawn
      const end = Math.min(done + DRAWN_AT_ONCE, tasks.length);
      for (; done < end; done++) {
        const row = rowOf(tasks[done], fresh);
        if (body.rows[done] !== row) body.insertBefore(row, body.rows[done] ?? null);
        const after = body.rows[done + 1];
        if (after && !isRowOf(after)) after.remove(); // what this row was before
      }
      if (done < tasks.length) requestAnimationFrame(some);
      else while (body.rows.length > tasks.length) body.lastChild.remove();
    };
    some();
  }
  const isRowOf = (row) => drawn.get(row.dataset.task)?.row === row;
  const heads = ["Task", "Model", "Status", "Callback", "Accepted"].map((name) => el.th({ scope: "col" }, name));
  return { element: el.table({ class: "tasks" }, el.thead(el.tr(heads)), body), fill };
}

function taskRow(task, fresh) {
  const state = callbackState(task);
  const failing = state === "retrying" || state === "undelivered";
  return el.tr(
    { class: `${failing ? `failing ${state}` : ""}${fresh ? " fresh" : ""}`, "data-task": task.task_id },
    el.td(
      { class: "of-task" },
      el.a(
        { class: "title", href: `#/tasks/${encodeURIComponent(task.task_id)}` },
        task.reference || idOf(task.task_id),
      ),
      task.reference && el.small(idOf(task.task_id)),
    ),
    el.td({ class: "of-model" }, el.small(task.model_id), task.vendor !== "modellix" && el.small(task.vendor)),
    el.td({ class: "of-status" }, word(task.stage), task.error && el.small({ class: "mono" }, task.error.code)),
    el.td({ class: "of-callback" }, word(state), callbackNote(task, state)),
    el.td(
      { class: "when" },
      moment(task.created_at, { near: true }),
      task.ended_at && el.small(`took ${lasting(task.ended_at - task.created_at)}`),
      task.cost && el.small(price(task.cost)),
    ),
  );
}

/** Say beside a callback's state what is remarkable of it. */
function callbackNote(task, state) {
  const { attempts, log, next_attempt_at } = task.callback;
  const made = `${attempts} ${attempts === 1 ? "attempt" : "attempts"}`;
  const last = log.length > 0 && answered(log.at(-1));
  const isDue = new Date(next_attempt_at) <= Date.now();
  const next = next_attempt_at && (isDue ? "on its way" : ["next ", moment(next_attempt_at, { near: true })]);
  if (state === "retrying") return el.small(last, el.br(), made, next && [", ", next]);
  if (state === "undelivered") return el.small(last, last && el.br(), made);
  if (state === "delivered" && attempts > 1) return el.small(made);
  if (state !== "pending") return null;
  return el.small(hasEnded(task) ? next || "on its way" : "after the end");
}

/** Say how far it was looked, where that was not to the end. */
const lookedBack = ({ tasks, back_to }) => [
  `${digits.format(tasks)} tasks were looked at`,
  back_to && [", back to ", moment(back_to)],
];

function nothing(data, filtered, cursor) {
  if (data.next_cursor)
    return el.p({ class: "empty" }, "None matches so far: ", data.looked_at && lookedBack(data.looked_at), ". Older ones may match.");
  if (filtered || cursor) return el.p({ class: "empty" }, "No task matches.");
  return el.div(
    { class: "empty tight" },
    el.p("No tasks yet."),
    el.p(el.a({ href: "#/submit" }, "Submit the first one"), ", or read ", el.a({ href: "/docs" }, "how the API does it"), "."),
  );
}

function paging(cursor, data, filtered, want) {
  const next = data.next_cursor;
  return [
    cursor && el.button({ type: "button", onclick: () => want({}) }, "Newest"),
    cursor && el.button({ type: "button", onclick: () => history.back() }, "« Newer"),
    filtered && next && data.tasks.length > 0 && data.looked_at && el.small(lookedBack(data.looked_at), "."),
    next &&
      el.button(
        { type: "button", class: "push", onclick: () => want({ cursor: next }) },
        data.tasks.length ? "Older »" : "Look further back »",
      ),
  ].filter(Boolean);
}

/** Offer to send every failing callback that the filters choose, now; nothing where there is none. */
function retryAll(place, parameters, state, counted) {
  const chosen = {};
  for (const [name, value] of queryOf(parameters)) if (["since", "until", "host", "vendor", "model"].includes(name)) chosen[name] = value;
  const isRetrying = state === "retrying";
  const label = isRetrying ? "Retry all of them now" : "Redeliver all of them";
  async function offer() {
    try {
      const { data } = await ask("GET", `/api/v1/tasks/totals?${new URLSearchParams(chosen)}`);
      const count = isRetrying ? data.retrying : data.exhausted;
      const more = data.next_cursor !== null;
      if (count === 0 && !more) return place.replaceChildren();
      const about = `${digits.format(count)}${more ? " or more" : ""} ${count === 1 && !more ? "callback" : "callbacks"}`;
      const what = isRetrying ? `${about} waiting for the next attempt.` : `${about} undelivered.`;
      place.replaceChildren(
        el.div(
          { class: "notice row" },
          el.span(`${what} Is the receiver mended?`),
          el.button({ type: "button", class: "push", onclick: () => run(count, more) }, label),
        ),
      );
    } catch (error) {
      judged(error); // the list says what is wrong
      place.replaceChildren();
    }
  }
  async function run(expected, more) {
    const bar = el.progress({ max: Math.max(expected, 1), value: 0, "aria-label": "Progress" });
    const told = el.span({ "aria-live": "polite" });
    place.replaceChildren(el.div({ class: "notice row" }, told, bar));
    const wanted = { state: "undelivered", limit: 500 };
    Object.assign(wanted, chosen, isRetrying && { state, limit: 100 });
    let count = 0;
    let last = null;
    try {
      do {
        told.textContent = `${digits.format(count)} of ${digits.format(expected)}${more ? " or more" : ""} are on their way…`;
        bar.value = count;
        const { data } = await ask("POST", "/api/v1/tasks/redeliver", { body: wanted });
        count += data.count;
        last = data.last_attempt_at ?? last;
        wanted.cursor = data.next_cursor;
      } while (wanted.cursor);
      const text = count
        ? el.span(`${digits.format(count)} on their way again`, last && [", the last of them ", moment(last, { near: true })], ".")
        : el.span("All of them are on their way already.");
      say(text.textContent);
      place.replaceChildren(el.div({ class: "notice good row" }, text));
      // Once the last one has gone out, what it says is old news.
      const wait = Math.max(0, new Date(last ?? 0) - Date.now()) + 5000;
      setTimeout(() => place.isConnected && (offer(), counted()), wait);
    } catch (error) {
      place.replaceChildren(
        notice(`${judged(error).message}. ${digits.format(count)} are on their way.`, { action: () => run(expected, more), of: error }),
      );
    }
    counted();
  }
  offer();
}
