// The API: the signed-in caller's token, what is asked with it, and what is refused.

const ID = /^tk_[A-Za-z0-9_-]{22}$/;

/** What the API refused, or that it did not answer (status 0). */
class Refusal extends Error {
  constructor(status, message, wait, unknown, bearer, help) {
    super(message);
    this.help = help; // where `/docs` explains it, or null
    this.bearer = bearer; // with which it was asked
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

/** Ask the API as the signed-in caller; give the answer's JSON. Throws Refusal. */
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
      bearer,
    );
  }
  if (!answer.ok)
    throw new Refusal(
      answer.status,
      told.message ?? `Status ${answer.status}`,
      Number(answer.headers.get("retry-after")) || 5,
      told.code === undefined, // API Gateway's own words
      bearer,
      helpOf(answer.headers.get("link")),
    );
  return told;
}

/** Find in a header `Link` where this deployment explains an error; null where it does not say. */
const helpOf = (header) => /<[^>]*(\/docs#error-[\w-]+)>; *rel="help"/.exec(header ?? "")?.[1] ?? null;

/** Take a message apart: `Invalid parameters: parameter 'a' is …; parameter 'b': …`, `Value out of range: a is …. Invalid format: b …`. */
function complaints(message) {
  return message.split(/; (?=parameter ')|\. (?=[A-Z][a-z ]+: )/).map((whole) => {
    const [, name, text] = /^(?:[A-Z][a-z ]+: )?(?:parameter ')?(\w+)'?:? (.*)$/s.exec(whole) ?? [];
    return { whole, name, text };
  });
}
