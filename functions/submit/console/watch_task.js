// The view that takes over a task which was submitted elsewhere.

/** A form for a task that its vendor has already. */
function showWatch() {
  const place = el.div({ class: "stack form" }, el.h1("Watch a task"), el.p({ class: "soft" }, "Loading…"));
  main.append(place);
  watch(async () => {
    try {
      const description = await ask("GET", "/openapi.json");
      place.replaceChildren(el.h1("Watch a task"), watchForm(description));
    } catch (error) {
      place.replaceChildren(el.h1("Watch a task"), notice(judged(error).message, { action: route, of: error }));
    }
    return null;
  });
}

function watchForm(description) {
  const { schema } = description.paths["/api/v1/watch"].post.requestBody.content["application/json"];
  const fields = fieldsOf(schema, {}, description);
  const told = el.div();
  const button = el.button({ type: "submit", class: "first" }, "Watch");
  async function send(event) {
    event.preventDefault();
    button.disabled = true;
    told.replaceChildren();
    for (const field of fields) field.complain("");
    try {
      const { data } = await ask("POST", "/api/v1/watch", { body: filledIn(fields) });
      say("Watched");
      go(`#/tasks/${data.task_id}`);
      return;
    } catch (error) {
      const others = complain(fields, judged(error).message);
      if (others.length) told.replaceChildren(notice(`${others.join("; ")}.`, { of: error }));
    }
    button.disabled = false;
  }
  return el.form(
    { class: "sheet padded stack", novalidate: true, onsubmit: send },
    el.small("For a task that was submitted elsewhere with the same vendor key: taskhook watches it and calls back. Nothing is paid for it."),
    fields.map((field) => field.element),
    told,
    el.div({ class: "row" }, button),
  );
}
