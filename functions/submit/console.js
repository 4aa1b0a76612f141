// The console: who signs in sees the own tasks, where their callbacks are, and may submit, cancel, redeliver and try out.

const main = document.getElementById("main");
const ID = /^tk_[A-Za-z0-9_-]{22}$/;
// Seconds between two looks: while something moves, and while something is waited for.
const LIVE = 2;
const CALM = 15;

// --- the API ---------------------------------------------------------------------------------------------------------------

/** What the API refused, or that it did not answer (status 0). */
class Refusal extends Error {
  constructor(status, message, wait, unknown) {
    super(message);
    this.status = status;
    this.wait = wait; // seconds until it makes sense to try again
    this.unknown = unknown; // whether it was done all the same cannot be told
  }
}

// The token lives in this tab alone, and ends with it.
const token = {
  get: () => sessionStorage.getItem("token"),
  set: (value) => sessionStorage.setItem("token", value),
  forget: () => sessionStorage.clear(),
  caller: () => /^thk_(.+)_[A-Za-z0-9_-]{43}$/.exec(token.get() ?? "")?.[1] ?? "?",
};

/** Ask the API, as the caller who is signed in; give the answer's JSON. Throws Refusal. */
async function ask(method, path, { body, headers = {}, bearer = token.get() } = {}) {
  let answer, told;
  try {
    answer = await fetch(path, {
      method,
      headers: {
        ...(bearer && { authorization: `Bearer ${bearer}` }),
        ...(body && { "content-type": "application/json" }),
        ...headers,
      },
      body: body && JSON.stringify(body),
      cache: "no-cache",
      credentials: "omit",
    });
    told = await answer.json();
  } catch {
    throw new Refusal(
      answer?.status ?? 0,
      answer ? `The answer (${answer.status}) was not JSON` : "No answer: the network, or this deployment, is away",
      5,
      true,
    );
  }
  if (!answer.ok)
    throw new Refusal(
      answer.status,
      told.message ?? `Status ${answer.status}`,
      Number(answer.headers.get("retry-after")) || 5,
      told.code === undefined, // API Gateway's own words
    );
  return told;
}

// --- times, in the viewer's own zone -----------------------------------------------------------------------------------------

const zone = Intl.DateTimeFormat().resolvedOptions().timeZone;
const full = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });
const clock = new Intl.DateTimeFormat(undefined, { timeStyle: "medium" });
const relative = new Intl.RelativeTimeFormat("en", { numeric: "auto", style: "narrow" });

function ago(at) {
  const seconds = (at - Date.now()) / 1000;
  if (seconds > -2 && seconds <= 0) return "now";
  for (const [unit, size] of [
    ["day", 86400],
    ["hour", 3600],
    ["minute", 60],
    ["second", 1],
  ]) {
    if (Math.abs(seconds) >= size) return relative.format(Math.trunc(seconds / size), unit);
  }
  return "now";
}

/** Show a moment, milliseconds or ISO 8601: in full, without the day where that is `day`'s, or (`near`) how long ago it was. */
function moment(value, { near = false, day } = {}) {
  const at = new Date(typeof value === "number" || typeof value === "string" ? value : NaN);
  if (Number.isNaN(at.getTime())) return el.span(plain(value));
  const text = near ? ago(at) : day && new Date(day).toDateString() === at.toDateString() ? clock.format(at) : full.format(at);
  return el.time({ datetime: at.toISOString(), title: `${full.format(at)} (${zone})`, "data-near": near }, text);
}

setInterval(() => {
  for (const time of document.querySelectorAll("time[data-near]")) {
    const told = ago(new Date(time.dateTime));
    if (time.textContent !== told) time.textContent = told;
  }
}, 1000);

/** Write a duration. It is rounded before it is taken apart: else 119.6 s would be "1 min 60 s". */
function lasting(ms) {
  const [whole, tenths, seconds, minutes] = [1, 100, 1000, 60000].map((unit) => Math.round(ms / unit));
  if (whole < 1000) return `${whole} ms`;
  if (tenths < 600) return `${(tenths / 10).toFixed(1)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${seconds % 60} s`;
  return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

// --- words and pieces ----------------------------------------------------------------------------------------------------------

// Of a task (its stage) and of a callback (its state): the colour and the words.
const WORDS = {
  queued: ["wait", "queued"],
  submitting: ["busy live", "submitting"],
  watched: ["busy live", "processing"],
  rescue: ["wait", "outcome unknown"],
  archiving: ["busy live", "archiving"],
  success: ["good", "success"],
  failed: ["bad", "failed"],
  waiting: ["wait", "waiting"],
  delivered: ["good", "delivered"],
  undelivered: ["bad", "undelivered"],
  none: ["none", "no callback"],
  ahead: ["none", "after the end"],
};
const word = (state, said) => el.span({ class: `word ${WORDS[state]?.[0] ?? "none"}` }, said ?? WORDS[state]?.[1] ?? String(state));
const hasEnded = (task) => task.stage === "success" || task.stage === "failed";
/** Write whatever the vendor said in some place: JSON where it is no text. `String` throws on some objects. */
const plain = (value) => (typeof value === "string" ? value : (JSON.stringify(value) ?? ""));
const isWeb = (url) => typeof url === "string" && /^https?:\/\//i.test(url);
const link = (url, text = url) =>
  isWeb(url)
    ? el.a({ href: url, target: "_blank", rel: "noopener noreferrer", class: "url" }, text)
    : el.span({ class: "url" }, plain(url));
const say = (text) => (document.getElementById("said").textContent = text);

function notice(text, { kind = "bad", action, label = "Try again" } = {}) {
  return el.div(
    { class: `notice ${kind} row`, role: kind === "bad" ? "alert" : null },
    el.span(text),
    action && el.button({ type: "button", class: "push", onclick: action }, label),
  );
}

/** Offer to show a picture or video; nothing is asked of another host before the click. */
function media(url, kind, label) {
  if (!isWeb(url)) return null;
  const place = el.div({ class: "media" });
  const show = el.button({ type: "button", onclick: reveal }, label);
  place.append(show);
  function reveal() {
    const element =
      kind === "video"
        ? el.video({ controls: true, src: url, playsinline: true, "aria-label": label })
        : el.img({ src: url, alt: label, referrerpolicy: "no-referrer" });
    element.addEventListener("error", () =>
      place.replaceChildren(
        show,
        el.p({ class: "complaint" }, "It could not be loaded: it may have expired, or its host refuses."),
      ),
    );
    place.replaceChildren(element);
  }
  return place;
}

/** Say what kind of medium a URL is; the vendor's word first, then the ending. */
function kindOf(url, said) {
  const named = /^(video|image)/.exec(said ?? "");
  if (named) return named[1];
  if (/\.(mp4|mov|webm|avi|m4v)([?#]|$)/i.test(url)) return "video";
  return /\.(jpe?g|png|webp|gif|bmp)([?#]|$)/i.test(url) ? "image" : null;
}

/** Ask before doing what cannot be undone. */
function confirmed(question, yes) {
  return new Promise((settle) => {
    const dialog = el.dialog(
      { class: "sheet padded", "aria-label": question, onclose: () => settle(dialog.returnValue === "yes") },
      el.div(
        { class: "stack" },
        el.p(question),
        el.div(
          { class: "row" },
          el.button({ type: "button", class: "danger", onclick: () => dialog.close("yes") }, yes),
          el.button({ type: "button", onclick: () => dialog.close("") }, "Leave it"),
        ),
      ),
    );
    document.body.append(dialog);
    dialog.showModal();
  }).finally(() => document.querySelector("dialog")?.remove());
}

// --- which view is shown -----------------------------------------------------------------------------------------------------

let left = () => {}; // stops what the view before had under way

/** Show what the address asks for; without a token, the way in. */
function route() {
  left();
  left = () => {};
  const [path, query = ""] = location.hash.replace(/^#/, "").split("?");
  if (path && !path.startsWith("/")) return; // the skip link
  const parameters = new URLSearchParams(query);
  const [, name = "", id = "", ...more] = path.split("/");
  const signedIn = token.get() !== null;
  document.getElementById("nav").hidden = !signedIn;
  document
    .getElementById("who")
    .replaceChildren(
      ...(signedIn
        ? [
            el.small({ class: "mono" }, token.caller()),
            el.button({ type: "button", class: "plain", onclick: () => leave() }, "Sign out"),
          ]
        : [el.a({ href: "/docs" }, "API")]),
    );
  const views = {
    __proto__: null, // else `#/constructor` would be a view
    tasks: () => (id ? showTask(id) : showTasks(parameters)),
    submit: () => showSubmit(parameters),
    callbacks: showCallbacks,
  };
  const known = (name || "tasks") in views && more.length === 0 && (id === "" || name === "tasks");
  const view = !signedIn ? showSignIn : known ? views[name || "tasks"] : showNothing;
  for (const entry of document.querySelectorAll("#nav a")) {
    entry.toggleAttribute("aria-current", entry.hash === `#/${name || "tasks"}`);
    if (entry.hasAttribute("aria-current")) entry.setAttribute("aria-current", "page");
  }
  main.replaceChildren();
  view();
  const heading = main.querySelector("h1");
  document.title = heading ? `${heading.textContent} · taskhook` : "taskhook";
}

/** Show another view: whoever reads or tabs on begins with it. */
function arrive() {
  route();
  scrollTo(0, 0);
  if (!main.contains(document.activeElement)) main.focus({ preventScroll: true });
}

function leave(why = "") {
  token.forget();
  if (why) sessionStorage.setItem("why", why);
  go("#/");
}

/** Show the view of an address, also where it is the present one. */
function go(hash) {
  if (location.hash === hash) arrive();
  else location.hash = hash;
}

/** Look now and again while the view is open and the tab is seen. `look` gives the seconds until the next look, or null: no more. */
function watch(look) {
  let timer,
    over = false,
    busy = false,
    due = false;
  async function turn() {
    clearTimeout(timer);
    if (busy) due = true; // once more, as soon as this one is through
    if (over || busy || document.hidden) return;
    busy = true;
    let wait = null;
    try {
      wait = await look();
    } finally {
      busy = false;
    }
    if (over) return;
    if (due) {
      due = false;
      turn();
    } else if (wait !== null) timer = setTimeout(turn, wait * 1000);
  }
  const seen = () => {
    if (!document.hidden) turn();
  };
  document.addEventListener("visibilitychange", seen);
  const before = left;
  left = () => {
    before();
    over = true;
    clearTimeout(timer);
    document.removeEventListener("visibilitychange", seen);
  };
  turn();
  return { now: turn, over: () => over };
}

/** A refused token ends the session; anything else is for the view to show. */
function judged(error) {
  if (!(error instanceof Refusal)) throw error;
  if (error.status === 401) leave("Your token is not accepted any more: it was rotated or disabled. Sign in with another one.");
  return error;
}

// --- sign in -----------------------------------------------------------------------------------------------------------------

function showSignIn() {
  const why = sessionStorage.getItem("why");
  sessionStorage.removeItem("why");
  const field = el.input({
    id: "token",
    name: "token",
    type: "password",
    autocomplete: "off",
    spellcheck: "false",
    placeholder: "thk_…",
    "aria-describedby": "token-hint token-complaint",
  });
  const complaint = el.p({ id: "token-complaint", class: "complaint", role: "alert" });
  const button = el.button({ type: "submit", class: "first" }, "Sign in");
  async function signIn(event) {
    event.preventDefault();
    const value = field.value.trim();
    button.disabled = true;
    complaint.textContent = "";
    try {
      const good = value !== "" && (await ask("GET", "/api/v1/apikey/validate", { bearer: value })).data.is_valid;
      if (good) {
        token.set(value);
        go("#/tasks");
        return;
      }
      complaint.textContent = value ? "This deployment does not accept that token." : "A token is needed.";
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      complaint.textContent = error.message;
    }
    button.disabled = false;
    field.setAttribute("aria-invalid", "true");
    field.focus();
  }
  main.append(
    el.div(
      { class: "sign-in stack" },
      why && notice(why),
      el.form(
        { class: "sheet padded stack", onsubmit: signIn, novalidate: true },
        el.div({ class: "tight" }, el.h1("Sign in"), el.p({ class: "soft" }, "See your tasks and where their callbacks are.")),
        el.div(
          { class: "tight" },
          el.label({ for: "token" }, "Caller token"),
          field,
          complaint,
          el.small(
            { id: "token-hint" },
            "Kept in this tab only, and sent to this deployment only. Whoever runs it makes one with ",
            el.code("make caller NAME=you"),
            ".",
          ),
        ),
        el.div(button),
      ),
    ),
  );
  field.focus();
}

function showNothing() {
  main.append(el.div({ class: "empty tight" }, el.h1("There is no such page"), el.p(el.a({ href: "#/tasks" }, "To the tasks"))));
}

// --- the tasks ---------------------------------------------------------------------------------------------------------------

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

const isMoving = (task) => !hasEnded(task) || isDueSoon(task.callback);
const isDueSoon = (callback) =>
  callback.state === "waiting" && (!callback.next_attempt_at || new Date(callback.next_attempt_at) - Date.now() < 10000);

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
      el.td({ class: "of-model" }, el.small(task.model_id)),
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

/** A callback that waits is remarkable only once its task has ended. */
const callbackState = (task) => (task.callback.state === "waiting" && !hasEnded(task) ? "ahead" : task.callback.state);

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

// --- one task ----------------------------------------------------------------------------------------------------------------

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
      trouble.replaceChildren(notice(`${message}. Trying again every ${wait} s.`, { action: looking.now }));
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
  part("head", stage, () =>
    el.div(
      { class: "tight" },
      el.div({ class: "row" }, el.h1(task.reference || "Task"), word(task.stage)),
      el.p(
        { class: "row soft" },
        el.span(el.code(task.task_id), " ", copier(task.task_id, "the task's id")),
        el.span(task.model_id),
      ),
    ),
  );
  part("actions", [stage, callback.state], () => actions(task, looking, parts.told));
  part("timeline", [stage, error, task.submitted_at, task.taken_at, task.ended_at, callback], () =>
    el.section(
      { class: "sheet padded stack", "aria-labelledby": "h-timeline" },
      el.h2({ id: "h-timeline" }, "Timeline"),
      timeline(task),
    ),
  );
  part("callback", [task.callback_url, callbackState(task), callback.attempts], () => callbackFacts(task));
  part("result", [task.result, task.error, task.billing, task.truncated], () => resultOf(task));
  part("request", [task.request, task.unchecked], () => requestOf(task));
  part("raw", task, () => {
    const open = parts.raw.querySelector("details")?.open ?? false;
    return el.details({ class: "sheet padded", open }, el.summary("The API's answer"), json(task, "The API's answer"));
  });
}

function actions(task, looking, told) {
  const path = `/api/v1/tasks/${encodeURIComponent(task.task_id)}`;
  const does = async (button, verb, done) => {
    button.disabled = true;
    try {
      await ask("POST", `${path}/${verb}`);
      say(done);
      told.replaceChildren(notice(done, { kind: "good" }));
      looking.now();
    } catch (error) {
      told.replaceChildren(notice(judged(error).message));
    }
    button.disabled = false;
  };
  const redeliver =
    hasEnded(task) &&
    task.callback.state !== "none" &&
    el.button(
      { type: "button", class: "first", onclick: (event) => does(event.target, "redeliver", "The callback is on its way again.") },
      task.callback.state === "waiting" ? "Deliver now" : "Redeliver callback",
    );
  const cancel =
    task.stage === "queued" &&
    el.button(
      {
        type: "button",
        class: "danger",
        onclick: async (event) =>
          (await confirmed("Take this task back? It has not been paid for, and will not be.", "Cancel the task")) &&
          does(event.target, "cancel", "Canceled."),
      },
      "Cancel task",
    );
  const again = el.a({ class: "button", href: `#/submit?from=${encodeURIComponent(task.task_id)}` }, "Submit one like it");
  return el.div({ class: "row" }, redeliver, cancel, again);
}

function timeline(task) {
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
    list.push(item("wait", "Queued", null, "Here, until the vendor has a place. Not paid for yet.", true));
  if (waited > 0) list.push(item("good", "Queued", task.created_at, `Waited here for ${lasting(waited)}.`));
  if (task.submitted_at)
    list.push(item(task.stage === "submitting" ? "busy" : "good", "Submitted to the vendor", task.submitted_at, null));
  if (task.stage === "rescue")
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
          "At the vendor as ",
          el.code(task.upstream_task_id),
          task.ended_at ? `, for ${lasting(task.ended_at - task.taken_at)}.` : ".",
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
    const good = attempt.status >= 200 && attempt.status < 300;
    const said = attempt.status ? `answered ${attempt.status}` : `no answer: ${attempt.error ?? "?"}`;
    list.push(
      item(
        good ? "good" : "bad",
        `Callback, attempt ${kept + index + 1}: ${said} after ${lasting(attempt.ms)}`,
        attempt.at,
        attempt.answer && el.code({ class: "answer" }, attempt.answer),
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
      el.dd(word(callbackState(task), callback.state === "none" ? "none, for the submit itself was refused" : undefined)),
      el.dt("Attempts"),
      el.dd(String(callback.attempts)),
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
    (task.billing?.amount || expires || task.truncated) &&
      el.small([
        task.billing?.amount && `Billed ${plain(task.billing.amount)}. `,
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

// --- submit ------------------------------------------------------------------------------------------------------------------

function showSubmit(parameters) {
  const place = el.div({ class: "stack form" }, el.h1("Submit a task"), el.p({ class: "soft" }, "Loading…"));
  main.append(place);
  watch(async () => {
    try {
      const like = parameters.get("from");
      const [description, known, from] = await Promise.all([
        ask("GET", "/openapi.json"),
        ask("GET", "/api/v1/models"),
        like ? ask("GET", `/api/v1/tasks/${encodeURIComponent(like)}`) : null,
      ]);
      const task = from?.data;
      const wanted = task?.model_id ?? parameters.get("model") ?? known.models[0].slug;
      const values = task ? { ...task.request, callback_url: task.callback_url, reference: task.reference } : {};
      place.replaceChildren(
        el.h1("Submit a task"),
        submitForm(
          description,
          known.models,
          known.models.some((model) => model.slug === wanted) ? wanted : known.models[0].slug,
          values,
        ),
      );
    } catch (error) {
      place.replaceChildren(el.h1("Submit a task"), notice(judged(error).message, { action: route }));
    }
    return null;
  });
}

function submitForm(description, models, slug, values) {
  const operation = description.paths[`/api/v1/${slug}`].post;
  const { schema, example = {} } = operation.requestBody.content["application/json"];
  const fields = Object.entries(schema.properties).map(([name, property]) =>
    fieldOf(
      name,
      { ...resolved(description, property), ...property },
      schema.required?.includes(name),
      values[name] ?? null,
      description,
    ),
  );
  const told = el.div();
  const button = el.button({ type: "submit", class: "first" }, "Submit");
  // One key for one filled-in form: whatever the network does, pressing Submit again never pays a second time.
  let key = newKey();
  const changed = () => (key = newKey());
  const form = el.form(
    { class: "sheet padded stack", novalidate: true, onsubmit: send, oninput: changed },
    el.div(
      { class: "tight" },
      el.label({ for: "model" }, "Model"),
      el.select(
        { id: "model", onchange: (event) => go(`#/submit?model=${encodeURIComponent(event.target.value)}`) },
        models.map((model) => el.option({ value: model.slug, selected: model.slug === slug }, model.slug)),
      ),
      el.small(operation.summary),
    ),
    fields.map((field) => field.element),
    told,
    el.div({ class: "row" }, button, el.button({ type: "button", onclick: fill }, "Fill in the example")),
    el.small(
      "This costs what the vendor asks for it, once, however often you press: the form carries an ",
      el.code("Idempotency-Key"),
      ".",
    ),
  );
  function fill() {
    for (const field of fields) field.set(example[field.name] ?? null);
    changed();
  }
  async function send(event) {
    event.preventDefault();
    button.disabled = true;
    told.replaceChildren();
    for (const field of fields) field.complain("");
    const body = {};
    for (const field of fields) if (field.get() !== undefined) body[field.name] = field.get();
    try {
      const { data } = await ask("POST", `/api/v1/${slug}`, { body, headers: { "idempotency-key": key } });
      say("Accepted");
      go(`#/tasks/${data.task_id}`);
      return;
    } catch (error) {
      refused(judged(error));
    }
    button.disabled = false;
  }
  function refused(error) {
    const others = [];
    for (const complaint of complaints(error.message)) {
      const field = fields.find((one) => one.name === complaint.name);
      if (field) field.complain(complaint.text);
      else others.push(complaint.whole);
    }
    fields.find((field) => field.complained())?.focus();
    if (error.unknown) others.push("Press Submit again: with the same key nothing is paid twice");
    const task = /tk_[A-Za-z0-9_-]{22}/.exec(error.message)?.[0];
    if (others.length)
      told.replaceChildren(
        notice(`${others.join("; ")}.`),
        ...(task ? [el.p(el.a({ href: `#/tasks/${task}` }, "To the task"))] : []),
      );
  }
  return form;
}

/** Take a message apart: `Invalid parameters: parameter 'a' is …; parameter 'b': …`, `Value out of range: a is …. Invalid format: b …`. */
function complaints(message) {
  return message.split(/; (?=parameter ')|\. (?=[A-Z][a-z ]+: )/).map((whole) => {
    const [, name, text] = /^(?:[A-Z][a-z ]+: )?(?:parameter ')?(\w+)'?:? (.*)$/s.exec(whole) ?? [];
    return { whole, name, text };
  });
}

const newKey = () =>
  `console-${[...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("")}`;

/** Make a field from its schema. Only the server judges: what it takes and what not is said once. */
function fieldOf(name, property, required, value, description) {
  const id = `field-${name}`;
  const types = [property.type].flat();
  const choices = property.enum ?? resolved(description, property).enum;
  const described = { id, name, "aria-describedby": `${id}-hint ${id}-complaint`, "aria-required": required ? "true" : null };
  let input;
  if (choices)
    input = el.select(
      described,
      el.option({ value: "" }, "choose…"),
      choices.map((choice) => el.option({ value: choice }, choice)),
    );
  else if (types.includes("boolean")) input = el.input({ ...described, type: "checkbox" });
  else
    input = el.input({
      ...described,
      type: "text",
      inputmode:
        types.includes("integer") || types.includes("number")
          ? "decimal"
          : property.format === "uri" || /_url$/.test(name)
            ? "url"
            : null,
      autocomplete: "off",
      spellcheck: "false",
      placeholder: property.examples?.[0] ?? null,
    });
  const complaint = el.p({ id: `${id}-complaint`, class: "complaint" });
  const hint = el.small({ id: `${id}-hint` }, prose(property.description ?? ""));
  const label = el.label({ for: id }, el.code(name), !required && el.span({ class: "soft" }, " (optional)"));
  const isBox = input.type === "checkbox";
  const set = (given) =>
    isBox ? (input.checked = given ?? property.default ?? false) : (input.value = plain(given ?? property.default ?? ""));
  set(value);
  return {
    name,
    element: isBox
      ? el.div({ class: "tight" }, el.div({ class: "check" }, input, label), complaint, hint)
      : el.div({ class: "tight" }, label, input, complaint, hint),
    set,
    get() {
      if (isBox) return input.checked === property.default ? undefined : input.checked;
      if (input.value === "") return undefined;
      const number = types.includes("integer") || types.includes("number");
      return number && input.value.trim() !== "" && Number.isFinite(Number(input.value)) ? Number(input.value) : input.value;
    },
    complain(text) {
      complaint.textContent = text && text[0].toUpperCase() + text.slice(1);
      input.toggleAttribute("aria-invalid", Boolean(text));
      if (text) input.setAttribute("aria-invalid", "true");
    },
    complained: () => complaint.textContent !== "",
    focus: () => input.focus(),
  };
}

// --- callbacks ---------------------------------------------------------------------------------------------------------------

function showCallbacks() {
  const url = el.input({
    id: "receiver",
    type: "text",
    inputmode: "url",
    autocomplete: "off",
    spellcheck: "false",
    placeholder: "https://you.example.com/hook",
    "aria-describedby": "receiver-complaint receiver-hint",
  });
  const complaint = el.p({ id: "receiver-complaint", class: "complaint" });
  const told = el.div({ "aria-live": "polite" });
  const button = el.button({ type: "submit", class: "first" }, "Send samples");
  async function test(event) {
    event.preventDefault();
    button.disabled = true;
    complaint.textContent = "";
    url.removeAttribute("aria-invalid");
    told.replaceChildren(el.p({ class: "soft" }, "Waiting for the receiver, for 15 s at most…"));
    try {
      const { data } = await ask("POST", "/api/v1/callbacks/test", {
        body: url.value.trim() ? { callback_url: url.value.trim() } : {},
      });
      told.replaceChildren(el.ul({ class: "samples" }, data.samples.map(sampleOf)));
    } catch (error) {
      const { status, message } = judged(error);
      told.replaceChildren(...(status === 400 ? [] : [notice(message)]));
      if (status === 400) {
        const text = complaints(message)[0].text ?? message;
        complaint.textContent = text[0].toUpperCase() + text.slice(1);
        url.setAttribute("aria-invalid", "true");
        url.focus();
      }
    }
    button.disabled = false;
  }
  const secrets = el.div();
  async function reveal() {
    try {
      const { data } = await ask("GET", "/api/v1/callbacks/secret");
      secrets.replaceChildren(
        el.ul(
          { class: "samples" },
          data.secrets.map((one) =>
            el.li(
              { class: "row" },
              el.code(one.secret),
              copier(one.secret, "the secret"),
              el.small(one.expires_at ? ["signs until ", moment(one.expires_at)] : "signs until it is replaced"),
            ),
          ),
        ),
      );
    } catch (error) {
      secrets.replaceChildren(notice(judged(error).message, { action: reveal }));
    }
  }
  secrets.append(el.button({ type: "button", onclick: reveal }, "Show the secrets"));
  main.append(
    el.div(
      { class: "stack form" },
      el.h1("Callbacks"),
      el.form(
        { class: "sheet padded stack", onsubmit: test, novalidate: true },
        el.h2("Try a receiver"),
        el.div(
          { class: "tight" },
          el.label({ for: "receiver" }, "Callback URL"),
          url,
          complaint,
          el.small(
            { id: "receiver-hint" },
            "Without one, your default. A signed sample of each event is sent, as a callback would be; nothing is stored.",
          ),
        ),
        el.div(button),
        told,
      ),
      el.section(
        { class: "sheet padded stack" },
        el.h2("Signing secrets"),
        el.p({ class: "soft" }, "Whoever holds one can sign as this deployment: show them where nobody looks on."),
        secrets,
      ),
    ),
  );
}

function sampleOf(sample) {
  const said = sample.status ? `answered ${sample.status}` : `no answer: ${sample.error ?? "?"}`;
  return el.li(
    { class: "tight" },
    el.div(
      { class: "row" },
      word(sample.delivered ? "delivered" : "undelivered", sample.delivered ? "delivered" : "not delivered"),
      el.code(sample.type),
      el.small(`${said} after ${lasting(sample.ms)}`),
    ),
    sample.answer && el.code({ class: "answer" }, sample.answer),
  );
}

addEventListener("hashchange", arrive);
route();
