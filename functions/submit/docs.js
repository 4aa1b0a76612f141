// The documentation: /openapi.json, drawn. Whatever the document gains is shown without a change here.

const main = document.getElementById("main");
let api; // the OpenAPI document
let explained; // the named schemas whose fields have been shown already, with the id of the place

const section = (title, ...children) => el.div({ class: "tight" }, el.h4(title), children);
const bodyOf = (holder) => holder?.content?.["application/json"];

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
  if (explained.has(name)) return el.p(el.a({ href: `#${explained.get(name)}` }, `The fields of ${name}`), ", as above.");
  const id = name && `schema-${name}`;
  if (name) explained.set(name, id);
  const item = ([field, property]) =>
    entry(field, typeOf(property), {
      mark: found.required?.includes(field) ? !isAnswer && "required" : isAnswer && "where it applies",
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

/** Write a call as a command to paste. */
function command(method, path, operation) {
  const body = bodyOf(operation.requestBody)?.example;
  const filled = (operation.parameters ?? []).reduce((text, one) => text.replace(`{${one.name}}`, one.example), path);
  const parts = [
    `curl -sS${method === "post" && !body ? " -X POST" : ""} ${api.servers[0].url}${filled}`,
    ...(operation.security?.length === 0 ? [] : [`-H "Authorization: Bearer $TOKEN"`]),
  ];
  const key = operation.parameters?.find((one) => one.name === "Idempotency-Key");
  if (key) parts.push(`-H "${key.name}: ${key.example}"`);
  if (body) parts.push("-H 'Content-Type: application/json'", `-d '${JSON.stringify(body, null, 2).replaceAll("'", "'\\''")}'`);
  return parts.join(" \\\n  ");
}

function article(operation, verb, title, left, right) {
  const id = operation.operationId;
  return el.article(
    { class: "operation sheet padded stack", id, "aria-labelledby": `h-${id}` },
    el.header(el.span({ class: `verb ${verb}` }, verb), el.h3({ class: "path", id: `h-${id}` }, title)),
    el.p(prose(operation.summary)),
    el.div({ class: "halves" }, el.div({ class: "stack" }, left), el.div({ class: "stack" }, right)),
  );
}

function operationOf({ path, method, operation }) {
  const { parameters, requestBody, responses } = operation;
  const isDone = ([status]) => /^[23]/.test(status);
  const [status, done] = Object.entries(responses).find(isDone);
  const failures = Object.entries(responses).filter((one) => !isDone(one));
  const answer = bodyOf(done);
  const wrapped = answer && resolved(api, answer.schema).properties?.data; // what is inside the envelope
  const call = command(method, path, operation);
  return article(
    operation,
    method,
    path,
    [
      parameters && section("Parameters", parametersOf(parameters)),
      requestBody && section("Request", fieldsOf(bodyOf(requestBody).schema, false)),
      answer && section(wrapped ? ["Answer, in ", el.code("data")] : "Answer", fieldsOf(wrapped ?? answer.schema, true)),
    ],
    [
      section(
        "Call",
        el.pre({ class: "json", tabindex: 0, role: "region", "aria-label": `Call of ${path}` }, call),
        el.div(copier(call, "the call")),
      ),
      section(
        "Answer",
        answer
          ? json(answer.example, `Answer of ${method} ${path}`)
          : el.div({ class: "status" }, el.span({ class: "verb" }, status), prose(done.description), headersOf(done)),
      ),
      section("Errors", el.div(failures.map(failureOf))),
    ],
  );
}

function headersOf(response) {
  const line = ([name, header]) => el.p({ class: "soft" }, el.code(name), ` ${header.description}`);
  return Object.entries(response.headers ?? {}).map(line);
}

function failureOf([status, response]) {
  return el.details(
    { class: "status" },
    el.summary(el.span({ class: "verb" }, status), prose(response.description)),
    json(bodyOf(response).example, `Example of status ${status}`),
    headersOf(response),
  );
}

function eventOf({ path, operation }) {
  const { parameters, requestBody, responses } = operation;
  const body = bodyOf(requestBody);
  const meaning = ([status, response]) =>
    el.p({ class: "status" }, el.span({ class: "verb" }, status), prose(response.description));
  return article(
    operation,
    "event",
    path,
    [section("Headers", parametersOf(parameters)), section("Body", fieldsOf(body.schema, true))],
    [
      section("Example", json(body.example, `Example of ${path}`)),
      section("What your answer means", Object.entries(responses).sort(deliveredFirst).map(meaning)),
    ],
  );
}

const deliveredFirst = ([one], [other]) => Number(other === "2XX") - Number(one === "2XX");

// --- the page ----------------------------------------------------------------------------------------------------------------

/** Group every operation and event under the tag that it bears. */
function chapters() {
  const operations = Object.entries(api.paths).flatMap(([path, item]) =>
    Object.entries(item).map(([method, operation]) => ({ path, method, operation, render: operationOf })),
  );
  const events = Object.entries(api.webhooks).map(([path, { post }]) => ({ path, operation: post, render: eventOf }));
  return api.tags.map((tag) => ({
    tag,
    entries: [...operations, ...events].filter(({ operation }) => operation.tags.includes(tag.name)),
  }));
}

function contents(grouped) {
  const line = ({ path, method, operation }) =>
    el.li(
      el.a(
        { href: `#${operation.operationId}` },
        method && el.span({ class: `verb ${method}` }, method),
        el.span(path.replace(/^\/api\/v1/, "")),
      ),
    );
  return el.nav(
    { class: "contents", "aria-label": "Operations" },
    grouped.map(({ tag, entries }) => [el.strong(tag.name), el.ul(entries.map(line))]),
  );
}

function page() {
  const grouped = chapters();
  const chapter = ({ tag, entries }) =>
    el.section(
      { class: "chapter", "aria-label": tag.name },
      el.h2(tag.name),
      el.p({ class: "soft" }, prose(tag.description)),
      entries.map((one) => one.render(one)),
    );
  const introduction = el.div(
    { class: "stack" },
    el.h1(`The API of ${api.info.title}`),
    api.info.description.split("\n\n").map((text) => el.p(prose(text))),
    el.p(
      "It is at ",
      el.code(api.servers[0].url),
      " and wants the header ",
      el.code("Authorization: Bearer "),
      prose(api.components.securitySchemes.token.description),
      ".",
    ),
  );
  return el.div({ class: "book" }, contents(grouped), el.div(introduction, grouped.map(chapter)));
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
  explained = new Map();
  main.replaceChildren(page());
  document.getElementById(location.hash.slice(1))?.scrollIntoView();
}
load();
