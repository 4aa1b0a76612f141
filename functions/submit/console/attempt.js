// An attempt opened: what was sent and what came back, and the same again as a command.

// How long a receiver takes a signature for fresh, in minutes, by the Standard Webhooks libraries.
const FRESH = 5;

/** Fold an attempt's details; what was sent is asked for when they are opened. */
function attemptDetails(task, attempt, number) {
  const place = el.div({ class: "stack" });
  let asked = false;
  return el.details(
    { class: "attempt", ontoggle: (event) => event.target.open && open() },
    el.summary(`What was sent and came back`, el.span({ class: "skip" }, `, attempt ${number}`)),
    place,
  );
  async function open() {
    if (asked) return;
    asked = true;
    place.replaceChildren(el.p({ class: "soft" }, "Loading…"));
    try {
      const [{ data }, description] = await Promise.all([
        ask("GET", `/api/v1/tasks/${encodeURIComponent(task.task_id)}/callback`),
        attempt.error ? ask("GET", "/openapi.json") : null,
      ]);
      place.replaceChildren(...sent(data, number), ...cameBack(attempt, description && adviceOf(description, attempt.error)));
    } catch (error) {
      asked = false;
      place.replaceChildren(notice(judged(error).message, { action: open, of: error }), ...cameBack(attempt));
    }
  }
}

function sent(message, number) {
  const headers = { ...message.headers, "x-modellix-retry-count": String(number - 1) };
  const request = { method: message.method, url: message.url, headers, body: message.payload };
  return [
    el.h3("Sent"),
    el.p({ class: "url" }, `${message.method} ${message.url}`),
    el.dl({ class: "headers" }, Object.entries(headers).map(([name, value]) => [el.dt(name), el.dd({ title: value }, value)])),
    el.small(
      "The body and all other headers are those of this attempt. ",
      el.code("webhook-timestamp"),
      " and ",
      el.code("webhook-signature"),
      ` are signed anew: the old ones are not kept. A receiver takes the new ones for ${FRESH} minutes.`,
    ),
    json(parsed(message.payload), "The body that was sent"),
    el.div(
      { class: "row" },
      el.span({ class: "soft" }, "curl ", copier(curlOf(request), "the request as curl")),
      el.span({ class: "soft" }, "Body ", copier(message.payload, "the body")),
    ),
  ];
}

/** Read the body to show it; it is sent as it stands, without a space. */
function parsed(payload) {
  try {
    return JSON.parse(payload);
  } catch {
    return payload;
  }
}

/** Find what the API's description advises about a word for why no status came. */
function adviceOf(description, word) {
  const told = description.components.schemas.Attempt.properties.error.description;
  const [, advice = null] = told.split(`. \`${word}\`: `);
  return advice && advice.split(". `")[0].replace(/\.$/, "");
}

function cameBack(attempt, advice) {
  return [
    el.h3("Came back"),
    el.p(
      { class: "row" },
      word(isDelivered(attempt) ? "delivered" : "undelivered", answered(attempt)),
      el.small(`after ${lasting(attempt.ms)}`),
      attempt.next_at && el.small("the next attempt: ", moment(attempt.next_at)),
    ),
    advice && el.p(`${advice[0].toUpperCase()}${advice.slice(1)}.`),
    attempt.answer && el.code({ class: "answer" }, attempt.answer),
    el.small("Of an answer its status and its first 160 bytes are kept, and no header but where a redirect leads."),
  ].filter(Boolean);
}
