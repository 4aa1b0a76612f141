// The documentation: a guide, then /openapi.json, drawn. Whatever that document gains is shown without a change here.

const main = document.getElementById("main");
let api; // the OpenAPI document
let facts; // its errors, retries and limits
let explained; // the named schemas whose fields have been shown already, with the id of the place
let language = "curl"; // of the samples, on the whole page

const section = (title, ...children) => el.div({ class: "tight" }, el.h4(title), children);
const bodyOf = (holder) => holder?.content?.["application/json"];
const isDone = ([status]) => /^[23]/.test(status);

// --- samples -----------------------------------------------------------------------------------------------------------------

const follow = new Set(); // what changes with the language

/** Show a sample in one language at a time; a choice holds for the whole page. */
function tabs(samples, what) {
  const names = Object.keys(samples);
  const id = `tabs-${follow.size}`;
  const shown = el.pre({ class: "json", id, tabindex: 0, role: "tabpanel" });
  const buttons = names.map((name) =>
    el.button({ type: "button", role: "tab", "aria-controls": id, onclick: () => choose(name), onkeydown: step }, name),
  );
  const row = el.div({ class: "tabs", role: "tablist", "aria-label": what }, buttons);
  const copy = el.span();

  function show() {
    const chosen = names.includes(language) ? language : names[0];
    buttons.forEach((button, place) => {
      button.setAttribute("aria-selected", names[place] === chosen);
      button.tabIndex = names[place] === chosen ? 0 : -1;
    });
    shown.setAttribute("aria-label", `${what}, ${chosen}`);
    shown.textContent = samples[chosen];
    copy.replaceChildren(copier(samples[chosen], what));
  }
  function step(event) {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (by === undefined) return;
    const next = (buttons.indexOf(event.target) + by + names.length) % names.length;
    choose(names[next]);
    buttons[next].focus();
    event.preventDefault();
  }
  follow.add(show);
  show();
  return el.div({ class: "sample" }, el.div({ class: "row" }, row, copy), shown);
}

/** Show every sample in another language, and keep what was clicked where it is on the screen. */
function choose(name) {
  const held = document.activeElement;
  const before = held.getBoundingClientRect().top;
  language = name;
  for (const show of follow) show();
  window.scrollBy({ top: held.getBoundingClientRect().top - before, behavior: "instant" });
}

function callOf(method, path, operation) {
  const filled = (operation.parameters ?? []).reduce((text, one) => text.replace(`{${one.name}}`, one.example), path);
  return callSamples({
    method: method.toUpperCase(),
    url: api.servers[0].url + filled,
    key: operation.parameters?.find((one) => one.name === "Idempotency-Key")?.example,
    body: bodyOf(operation.requestBody)?.example,
    isOpen: operation.security?.length === 0,
  });
}

// --- the guide ---------------------------------------------------------------------------------------------------------------

const link = (id, text) => el.a({ href: `#${id}` }, text);
const chapter = (id, title, ...children) =>
  el.section({ class: "chapter stack", id, "aria-labelledby": `h-${id}` }, el.h2({ id: `h-${id}` }, title), children);
const list = (...items) => el.ul({ class: "points" }, items.map((item) => el.li(item)));

/** Draw a table; a row is a list of cells, with `anchor` where it can be linked to. */
function table(label, heads, rows) {
  const cell = (content, place) => (place ? el.td({ "data-head": heads.length > 2 && `${heads[place]}: ` }, content) : el.th({ scope: "row" }, content));
  return el.table(
    { class: "facts", "aria-label": label },
    el.thead(el.tr(heads.map((head) => el.th({ scope: "col" }, head)))),
    el.tbody(rows.map(({ anchor, cells }) => el.tr({ id: anchor }, cells.map(cell)))),
  );
}

function introduction() {
  return el.div(
    { class: "stack", id: "start" },
    el.h1(`The API of ${api.info.title}`),
    el.p({ class: "lead" }, prose(api.info.description.split("\n\n")[0])),
    list(
      ["It is at ", el.code(api.servers[0].url), prose(". Every call wants the header `Authorization: Bearer`, and your token: "), prose(api.components.securitySchemes.token.description), "."],
      prose("A callback comes at least once, in no promised order: deduplicate on `webhook-id`. No task is ever paid twice."),
      [
        "For programs: ",
        el.a({ href: "/openapi.json" }, "/openapi.json"),
        "; for language models: ",
        el.a({ href: "/llms.txt" }, "/llms.txt"),
        ".",
      ],
    ),
  );
}

function submitting() {
  const [path, { post }] = Object.entries(api.paths).find(([, item]) => item.post?.operationId.startsWith("submit_"));
  const { limits, vendors } = facts;
  return chapter(
    "submit",
    "Submit",
    el.p("Send the vendor's own request, plus where the result goes."),
    tabs(callOf("post", path, post), "Submit a task"),
    section("Answer", json(bodyOf(post.responses[200]).example, "Answer to a submit")),
    list(
      [
        prose(`\`Idempotency-Key\`: your own, one for each task, at most ${limits.idempotency_key} characters. `),
        el.strong("After a time-out, or an answer without "),
        el.code("code"),
        el.strong(", send the same request with the same key: "),
        "you get the first answer again, and nothing is paid twice.",
      ],
      prose(`\`callback_url\`: https, at a public address, at most ${limits.callback_url} characters; or header \`X-Webhook-URL\`. Without it your default is used, if you have one.`),
      prose(`\`reference\`: yours, at most ${limits.reference} characters; it comes back. Or header \`X-Reference\`.`),
      prose(`A body has at most ${limits.body_kb} KB: give files as URLs.`),
    ),
    table(
      "Vendors",
      ["Vendor", "Submit with"],
      vendors.map(({ name, submit }) => ({ cells: [name, prose(submit)] })),
    ),
  );
}

function receiving() {
  const { post } = api.webhooks["prediction.task.succeeded"];
  const headers = post.parameters.filter((one) => one.name.startsWith("webhook-"));
  const { fresh_s: fresh, answer_within_s: within } = facts.retries;
  const step = (...content) => el.li(content);
  return chapter(
    "receive",
    "Receive and verify",
    el.p("A task's end is posted to its callback URL, signed as ", el.a({ href: "https://www.standardwebhooks.com" }, "Standard Webhooks"), " has it."),
    el.ol(
      { class: "points" },
      step("Take the body as raw bytes, before anything parses it."),
      step("Verify it with your secret, from ", link("showSecrets", "/api/v1/callbacks/secret"), ": with any Standard Webhooks library, or with this:"),
    ),
    tabs(verifySamples(fresh), "Verify a callback"),
    el.ol(
      { class: "points", start: 3 },
      step(prose("Take each `webhook-id` once: store it with the body in one step.")),
      step(prose(`Answer any 2xx within ${within} s, and work afterwards; 401 to what is not ours.`)),
    ),
    table(
      "Raw bodies",
      ["Framework", "The raw body"],
      RAW_BODIES.map(([name, code, where]) => ({ cells: [name, [el.code(code), where && prose(` ${where}`)]] })),
    ),
    el.p({ class: "soft" }, prose("Whole receivers to copy are in the repository, in `events/receivers`: FastAPI, Flask, Django, Express, Next.js, Go, a shell, and Python and Node alone.")),
    section("Headers", el.ul({ class: "fields" }, headers.map((one) => entry(one.name, one.example, { description: one.description })))),
    section("Body", json(bodyOf(post.requestBody).example, "Body of a callback")),
    el.p(
      "All fields: ",
      Object.entries(api.webhooks).map(([name, item], place) => [place > 0 && ", ", link(item.post.operationId, name)]),
      ". Before you rely on it, ",
      link("tryReceiver", "send your receiver a signed sample"),
      ".",
    ),
  );
}

function retrying() {
  const { waits, jitter_percent: jitter, total_hours: hours, answers } = facts.retries;
  return chapter(
    "retries",
    "Retries",
    el.p(`A callback is tried up to ${waits.length} times in ${hours} h, with these waits, each ±${jitter} %:`),
    el.ol({ class: "waits", "aria-label": "Waits before each attempt" }, waits.map((wait) => el.li(wait))),
    el.p(prose("Then it is `undelivered`. It is kept: once your receiver is mended, "), link("redeliverTask", "deliver it again"), ", or ", link("redeliverTasks", "many at once"), "."),
    table(
      "What your answer means",
      ["Your answer", "The next attempt"],
      answers.map(({ answer, means }) => ({ cells: [prose(answer), prose(means)] })),
    ),
  );
}

function failing() {
  const { errors, task_errors: ofTasks, delivery_errors: ofDeliveries } = facts;
  const coded = ({ anchor, code, when, do: what }) => ({ anchor, cells: [el.code(code), ...(when ? [when] : []), prose(what)] });
  return chapter(
    "errors",
    "Errors",
    el.p(prose('An error is `{"code": <HTTP status>, "message": "…"}`, in the form of the vendor on its own paths. It says `x-should-retry: false`, or `Retry-After` where a repeat is safe. Its header `Link` leads to its row here.')),
    table(
      "Errors of a call",
      ["Answer", "Means", "What to do"],
      errors.map(({ anchor, answer, when, do: what }) => ({ anchor, cells: [prose(answer), prose(when), prose(what)] })),
    ),
    el.h3({ id: "task-errors" }, "Errors of a task"),
    el.p(prose("`prediction.task.failed` has them in `data.error.code`.")),
    table("Errors of a task", ["Code", "Means", "What to do"], ofTasks.map(coded)),
    el.h3({ id: "delivery-errors" }, "Errors of a delivery"),
    el.p(prose("Why an attempt brought no status, as `error` in a task's `callback.log`. All are tried again by the schedule.")),
    table("Errors of a delivery", ["Error", "What to do"], ofDeliveries.map(coded)),
  );
}

// --- schemas -----------------------------------------------------------------------------------------------------------------

/** Say in words what a schema allows. */
function typeOf(schema) {
  const found = resolved(api, schema);
  if ("const" in found) return `always ${JSON.stringify(found.const)}`;
  if (found.enum) return `one of ${found.enum.join(", ")}`;
  const type = [found.type ?? "anything"].flat().join(" or ");
  const words = [
    type === "array" && found.items ? `array of ${typeOf(found.items)}` : type,
    found.format === "uri" ? "URL" : found.format,
    found.minimum !== undefined && `from ${found.minimum}`,
    found.maximum !== undefined && `to ${found.maximum}`,
    found.maxLength !== undefined && `at most ${found.maxLength} characters`,
    found.pattern && `like ${found.pattern}`,
    found.default !== undefined && `default ${JSON.stringify(found.default)}`,
  ];
  return words.filter(Boolean).join(", ");
}

/** List the fields of an object, and theirs below them; those of a named schema once, then with a link to the place. */
function fieldsOf(schema, isAnswer) {
  const found = resolved(api, schema);
  if (found.type === "array") return fieldsOf(found.items, isAnswer);
  if (!found.properties) return null;
  const name = schema.$ref?.split("/").at(-1);
  if (explained.has(name)) return el.p(link(explained.get(name), `The fields of ${name}`), ", as above.");
  const id = name && `schema-${name}`;
  if (name) explained.set(name, id);
  const item = ([field, property]) =>
    entry(field, typeOf(property), {
      mark: found.required?.includes(field) ? !isAnswer && "required" : isAnswer && "optional",
      description: { ...resolved(api, property), ...property }.description,
      more: fieldsOf(property, isAnswer),
    });
  return el.ul({ class: "fields", id }, Object.entries(found.properties).map(item));
}

function entry(name, type, { mark, description, example, more }) {
  return el.li(
    el.span({ class: "name" }, name),
    el.span({ class: "type" }, type),
    mark && el.span({ class: mark === "required" ? "must" : "type" }, mark),
    description && el.p(prose(description)),
    example !== undefined && el.p("Example: ", el.code(String(example))),
    more,
  );
}

function parametersOf(list) {
  const item = ({ name, in: where, required, schema, description, example }) =>
    entry(name, `${where}, ${typeOf(schema)}`, {
      mark: required && "required",
      description: description ?? schema.description,
      example,
    });
  return el.ul({ class: "fields" }, list.map(item));
}

// --- operations and events ---------------------------------------------------------------------------------------------------

/** Draw an entry of the reference: a line, which opens. */
function reference(operation, verb, title, left, right) {
  return el.details(
    { class: "operation", id: operation.operationId },
    el.summary(
      el.span({ class: `verb ${verb}` }, verb),
      el.span({ class: "path" }, title),
      el.span({ class: "about" }, prose(operation.summary)),
    ),
    el.div({ class: "halves" }, el.div({ class: "stack" }, left), el.div({ class: "stack" }, right)),
  );
}

function operationOf({ path, method, operation, also }) {
  const { parameters, requestBody, responses } = operation;
  const [status, done] = Object.entries(responses).find(isDone);
  const failures = Object.entries(responses).filter((one) => !isDone(one));
  const answer = bodyOf(done);
  const wrapped = answer && resolved(api, answer.schema).properties?.data; // what is inside the envelope
  return reference(
    operation,
    method,
    path,
    [
      also && el.p({ class: "soft" }, "The same as ", el.code(also), "."),
      parameters && section("Parameters", parametersOf(parameters)),
      requestBody && section("Request", fieldsOf(bodyOf(requestBody).schema, false)),
      answer && section(wrapped ? ["Answer, in ", el.code("data")] : "Answer", fieldsOf(wrapped ?? answer.schema, true)),
    ],
    [
      section("Call", tabs(callOf(method, path, operation), `Call of ${method.toUpperCase()} ${path}`)),
      section(
        "Answer",
        answer
          ? json(answer.example, `Answer of ${method.toUpperCase()} ${path}`)
          : el.div({ class: "status" }, el.span({ class: "verb" }, status), prose(done.description), headersOf(done)),
      ),
      section("Errors", el.p(failures.map(([code], place) => [place > 0 && ", ", link(`error-${code}`, code)]))),
    ],
  );
}

function headersOf(response) {
  const line = ([name, header]) => el.p({ class: "soft" }, el.code(name), ` ${header.description}`);
  return Object.entries(response.headers ?? {}).map(line);
}

function eventOf({ path, operation }) {
  const { parameters, requestBody } = operation;
  const body = bodyOf(requestBody);
  return reference(
    operation,
    "event",
    path,
    [section("Headers", parametersOf(parameters)), section("Body", fieldsOf(body.schema, true))],
    [section("Example", json(body.example, `Example of ${path}`)), el.p("What your answer means: ", link("retries", "Retries"), ".")],
  );
}

// --- the page ----------------------------------------------------------------------------------------------------------------

/** Group every operation and event under the tag that it bears; one that is another's by an older path is told there. */
function groups() {
  const operations = Object.entries(api.paths)
    .filter(([path]) => !isOlder(path))
    .flatMap(([path, item]) =>
      Object.entries(item).map(([method, operation]) => {
        const also = isOlder(`${path}/async`) && `${path}/async`;
        return { path, method, operation, also, render: operationOf };
      }),
    );
  const events = Object.entries(api.webhooks).map(([path, { post }]) => ({ path, operation: post, render: eventOf }));
  return api.tags.map((tag) => ({
    tag,
    entries: [...operations, ...events].filter(({ operation }) => operation.tags.includes(tag.name)),
  }));
}

const isOlder = (path) => path.endsWith("/async") && path in api.paths && path.slice(0, -"/async".length) in api.paths;
const idOf = (tag) => `tag-${tag.name.toLowerCase()}`;

function contents(guide, grouped) {
  const line = ([id, text]) => el.li(link(id, text));
  return el.nav(
    { class: "contents", "aria-label": "On this page" },
    el.strong("Guide"),
    el.ul(guide.map((one) => line([one.id, one.querySelector("h2").textContent]))),
    el.strong("Reference"),
    el.ul(grouped.map(({ tag }) => line([idOf(tag), tag.name]))),
  );
}

function page() {
  follow.clear();
  explained = new Map();
  const guide = [submitting(), receiving(), retrying(), failing()];
  const grouped = groups();
  const group = ({ tag, entries }) =>
    el.section(
      { class: "group", id: idOf(tag), "aria-label": tag.name },
      el.h3(tag.name),
      el.p({ class: "soft" }, prose(tag.description)),
      el.div({ class: "sheet" }, entries.map((one) => one.render(one))),
    );
  return el.div(
    { class: "book" },
    contents(guide, grouped),
    el.div(introduction(), guide, chapter("reference", "Reference", grouped.map(group))),
  );
}

/** Go to what the address names, and open what it is in. */
function arrive() {
  const wanted = document.getElementById(location.hash.slice(1));
  document.querySelector(".arrived")?.classList.remove("arrived"); // `:target` knows nothing of what is drawn after the load
  wanted?.classList.add("arrived");
  for (let place = wanted; place; place = place.parentElement) if (place.tagName === "DETAILS") place.open = true;
  wanted?.scrollIntoView();
}

async function load() {
  try {
    const answer = await fetch("/openapi.json", { credentials: "omit" });
    if (!answer.ok) throw new Error(`status ${answer.status}`);
    api = await answer.json();
  } catch (error) {
    const again = el.button({ type: "button", class: "push", onclick: load }, "Try again");
    main.replaceChildren(
      el.div({ class: "notice bad row", role: "alert" }, el.span(`The description did not come: ${error.message}.`), again),
    );
    return;
  }
  facts = api["x-guide"];
  main.replaceChildren(page());
  arrive();
}
window.addEventListener("hashchange", arrive);
load();
