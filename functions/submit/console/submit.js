// The form that submits a task, made from the API's own description.

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
      place.replaceChildren(el.h1("Submit a task"), notice(judged(error).message, { action: route, of: error }));
    }
    return null;
  });
}

/** What the token may still spend today; nothing where that is not limited. */
async function spendable(place) {
  try {
    const { data } = await ask("GET", "/api/v1/limits");
    const parts = [];
    if (data.per_day !== null) parts.push(`${data.left_today} of ${data.per_day} tasks are left today (UTC)`);
    if (!data.models.includes("*")) parts.push(`open models: ${data.models.join(", ")}`);
    place.textContent = parts.length ? `${parts.join("; ")}.` : "";
  } catch {
    place.textContent = ""; // the submit itself will say
  }
}

function submitForm(description, models, slug, values) {
  const operation = description.paths[`/api/v1/${slug}`].post;
  const { schema, example = {} } = operation.requestBody.content["application/json"];
  const fields = fieldsOf(schema, values, description);
  const told = el.div();
  const allowance = el.small();
  const button = el.button({ type: "submit", class: "first" }, "Submit");
  // One key for one filled-in form: whatever the network does, pressing Submit again never pays a second time.
  let key = newKey();
  const code = samples(() => ({
    url: `${location.origin}/api/v1/${slug}`,
    headers: { "Idempotency-Key": key },
    body: filledIn(fields),
  }));
  const changed = () => {
    key = newKey();
    code.update();
  };
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
    el.div(
      { class: "row" },
      button,
      exampleMedia(description) && el.button({ type: "button", onclick: fill }, "Fill in the example"),
    ),
    el.small(
      "This costs what the vendor asks for it, once, however often you press: the form carries an ",
      el.code("Idempotency-Key"),
      ".",
    ),
    allowance,
    el.small(
      el.a({ href: "#/any" }, "Any other model, or another vendor"),
      " · ",
      el.a({ href: "#/watch" }, "Watch a task that was submitted elsewhere"),
    ),
  );
  spendable(allowance);
  function fill() {
    // Media that are there; where the callback goes, the example cannot know.
    for (const field of fields) if (field.name !== "callback_url") field.set(example[field.name] ?? null);
    changed();
  }
  async function send(event) {
    event.preventDefault();
    button.disabled = true;
    told.replaceChildren();
    for (const field of fields) field.complain("");
    const body = filledIn(fields);
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
    const others = complain(fields, error.message);
    if (error.unknown) others.push("Press Submit again: with the same key nothing is paid twice");
    const task = /tk_[A-Za-z0-9_-]{22}/.exec(error.message)?.[0];
    if (others.length)
      told.replaceChildren(
        notice(`${others.join("; ")}.`, { of: error }),
        ...(task ? [el.p(el.a({ href: `#/tasks/${task}` }, "To the task"))] : []),
      );
  }
  code.update();
  return el.div({ class: "stack beside" }, form, code.element);
}

const newKey = () =>
  `console-${[...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("")}`;

/** Make the fields of an object's schema, with the values that are given. */
function fieldsOf(schema, values, description) {
  const isRequired = (name) => Boolean(schema.required?.includes(name));
  return Object.entries(schema.properties)
    .sort(([one], [other]) => isRequired(other) - isRequired(one)) // what must be filled in comes first
    .map(([name, property]) =>
      fieldOf(name, { ...resolved(description, property), ...property }, isRequired(name), values[name] ?? null, description),
    );
}

/** Give what is filled in, by name. */
const filledIn = (fields) =>
  Object.fromEntries(fields.map((field) => [field.name, field.get()]).filter(([, value]) => value !== undefined));

/** Say beside each field what the server says of it; give the rest. */
function complain(fields, message) {
  const others = [];
  for (const complaint of complaints(message)) {
    const field = fields.find((one) => one.name === complaint.name);
    if (field) field.complain(complaint.text);
    else others.push(complaint.whole);
  }
  fields.find((field) => field.complained())?.focus();
  return others;
}

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
      placeholder: isWeb(property.examples?.[0]) ? "https://…" : (property.examples?.[0] ?? null),
    });
  const complaint = el.p({ id: `${id}-complaint`, class: "complaint" });
  const hint = el.small({ id: `${id}-hint` }, prose(property.description ?? ""));
  const label = el.label({ for: id }, el.code(name), !required && el.span({ class: "soft" }, " (optional)"));
  const isBox = input.type === "checkbox";
  const set = (given) =>
    isBox ? (input.checked = given ?? property.default ?? false) : (input.value = plain(given ?? property.default ?? ""));
  set(value);
  const complain = (text) => {
    complaint.textContent = text && text[0].toUpperCase() + text.slice(1);
    input.toggleAttribute("aria-invalid", Boolean(text));
    if (text) input.setAttribute("aria-invalid", "true");
  };
  input.addEventListener("input", () => complain("")); // it was about what stood there before
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
    complain,
    complained: () => complaint.textContent !== "",
    focus: () => input.focus(),
  };
}
