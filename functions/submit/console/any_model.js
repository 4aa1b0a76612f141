// The view that submits any request of any vendor, as JSON.

/** A form for what is not described here: the vendor's own path and request. */
function showAny(parameters) {
  const like = parameters.get("from");
  const place = el.div({ class: "stack form" }, el.h1("Submit any model"), el.p({ class: "soft" }, "Loading…"));
  main.append(place);
  const show = (part) => place.replaceChildren(el.h1("Submit any model"), part);
  watch(async () => {
    try {
      const [description, from] = await Promise.all([
        ask("GET", "/openapi.json"),
        like ? ask("GET", `/api/v1/tasks/${encodeURIComponent(like)}`) : null,
      ]);
      show(anyForm(from?.data.vendor ?? parameters.get("vendor"), from?.data ?? null, exampleMedia(description)));
    } catch (error) {
      show(notice(judged(error).message, { action: route, of: error }));
    }
    return null;
  });
}

function anyForm(wanted, task, media) {
  const name = Object.hasOwn(VENDORS, wanted ?? "") ? wanted : "modellix";
  const vendor = VENDORS[name];
  const text = (label, value, hint, required = false) => fieldOf(label, { type: "string", description: hint }, required, value);
  const itsPath = task && name === "modellix" ? `/api/v1/${task.model_id}` : vendor.path;
  const path = text("path", itsPath, "The vendor's own path.", true);
  const hook = text("callback_url", task?.callback_url ?? "", "Where the signed result is posted; empty: the default, or nowhere.");
  const reference = text("reference", task?.reference ?? "", "Yours; comes back in answers and callback.");
  const request = el.textarea({ id: "field-request", rows: 10, spellcheck: "false" });
  const example = exampleOf(vendor, media ? `${media}/actor.jpg` : "", media ? `${media}/scene.mp4` : "");
  request.value = JSON.stringify(task?.request ?? example, null, 2);
  const told = el.div();
  const button = el.button({ type: "submit", class: "first" }, "Submit");
  let key = newKey();
  const headers = () => {
    const own = { "idempotency-key": key, "x-webhook-url": hook.get(), "x-reference": reference.get() };
    return Object.fromEntries(Object.entries({ ...vendor.headers, ...own }).filter(([, value]) => value !== undefined));
  };
  const code = samples(() => {
    try {
      return { url: `${location.origin}${path.get() ?? ""}`, headers: headers(), body: JSON.parse(request.value) };
    } catch {
      return "The request is not JSON.";
    }
  });
  const changed = () => {
    key = newKey();
    code.update();
  };
  async function send(event) {
    event.preventDefault();
    told.replaceChildren();
    let body;
    try {
      body = JSON.parse(request.value);
    } catch (error) {
      told.replaceChildren(notice(`The request is not JSON: ${error.message}.`));
      request.focus();
      return;
    }
    button.disabled = true;
    try {
      const answer = await ask("POST", path.get() ?? "", { body, headers: headers() });
      say("Accepted");
      go(`#/tasks/${/tk_[A-Za-z0-9_-]{22}/.exec(JSON.stringify(answer))[0]}`);
    } catch (error) {
      const { message, unknown } = judged(error);
      const text = unknown ? `${message}; press Submit again: with the same key nothing is paid twice.` : message;
      told.replaceChildren(notice(text, { of: error }));
    }
    button.disabled = false;
  }
  code.update();
  const form = el.form(
    { class: "sheet padded stack", novalidate: true, onsubmit: send, oninput: changed },
    el.div(
      { class: "tight" },
      el.label({ for: "vendor" }, "Vendor"),
      el.select(
        { id: "vendor", onchange: (event) => go(`#/any?vendor=${event.target.value}`) },
        Object.keys(VENDORS).map((one) => el.option({ value: one, selected: one === name }, one)),
      ),
      el.small("The vendor alone knows what its model takes; the request goes to it as it is."),
    ),
    path.element,
    el.div({ class: "tight" }, el.label({ for: "field-request" }, "Request, as JSON"), request),
    hook.element,
    reference.element,
    told,
    el.div({ class: "row" }, button),
  );
  return el.div({ class: "stack beside" }, form, code.element);
}
