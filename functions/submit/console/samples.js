// A request as code: for a shell, in Python, in JavaScript. The token is never part of it.

const TOKEN = "TOKEN"; // the variable of the environment that holds it

/** Quote a text for a shell: nothing between single quotes means anything. */
const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

/** Write a request as a command of curl; `bearer` adds the token from the environment. */
function curlOf({ method = "POST", url, headers, body, bearer = false }) {
  const parts = [
    `curl -X ${method} ${quoted(url)}`,
    ...(bearer ? [`-H "Authorization: Bearer $${TOKEN}"`] : []),
    ...Object.entries(headers).map(([name, value]) => `-H ${quoted(`${name}: ${value}`)}`),
    `--data-raw ${quoted(body)}`,
  ];
  return parts.join(" \\\n  ");
}

/** Write a value of JSON as Python does, its lines after the first indented by `indent`. */
function pythonOf(value, indent = "") {
  const inner = `${indent}    `;
  if (value === null) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (Array.isArray(value))
    return value.length === 0 ? "[]" : `[\n${value.map((one) => `${inner}${pythonOf(one, inner)},\n`).join("")}${indent}]`;
  if (typeof value !== "object") return JSON.stringify(value);
  const entries = Object.entries(value);
  if (entries.length === 0) return "{}";
  const lines = entries.map(([name, one]) => `${inner}${JSON.stringify(name)}: ${pythonOf(one, inner)},\n`);
  return `{\n${lines.join("")}${indent}}`;
}

/** Write a submit of a JSON body in each language. */
const LANGUAGES = {
  curl: ({ url, headers, body }) =>
    curlOf({
      url,
      headers: { "Content-Type": "application/json", ...headers },
      body: JSON.stringify(body, null, 2),
      bearer: true,
    }),
  Python: ({ url, headers, body }) => `import os

import httpx

answer = httpx.post(
    ${JSON.stringify(url)},
    headers={
        "Authorization": f"Bearer {os.environ['${TOKEN}']}",
${Object.entries(headers)
  .map(([name, value]) => `        ${JSON.stringify(name)}: ${JSON.stringify(value)},\n`)
  .join("")}    },
    json=${pythonOf(body, "    ")},
    timeout=30,
)
print(answer.status_code, answer.text)
`,
  JavaScript: ({ url, headers, body }) => `const answer = await fetch(${JSON.stringify(url)}, {
  method: "POST",
  headers: {
    "Authorization": \`Bearer \${process.env.${TOKEN}}\`,
    "Content-Type": "application/json",
${Object.entries(headers)
  .map(([name, value]) => `    ${JSON.stringify(name)}: ${JSON.stringify(value)},\n`)
  .join("")}  },
  body: JSON.stringify(${JSON.stringify(body, null, 2).replaceAll("\n", "\n  ")}),
});
console.log(answer.status, await answer.text());
`,
};

/** Show what a form would send, as code that follows it: `request` gives it anew, or a text that says why there is none. */
function samples(request) {
  let language = "curl";
  let written = "";
  const code = el.pre({ class: "json", tabindex: 0, role: "region", "aria-label": "Code" });
  const buttons = Object.keys(LANGUAGES).map((name) =>
    el.button({ type: "button", onclick: () => ((language = name), update()) }, name),
  );
  function update() {
    const given = request();
    written = typeof given === "string" ? given : LANGUAGES[language](given);
    code.textContent = written;
    for (const button of buttons) button.setAttribute("aria-pressed", String(button.textContent === language));
  }
  const element = el.section(
    { class: "sheet padded stack", "aria-labelledby": "h-code" },
    el.h2({ id: "h-code" }, "The same from your code"),
    el.div(
      { class: "row" },
      el.div({ class: "choice", role: "group", "aria-label": "Language" }, buttons),
      el.span({ class: "push" }, copier(() => written, "the code")),
    ),
    code,
    el.small("It reads your token from the variable ", el.code(TOKEN), "; its ", el.code("Idempotency-Key"), " is this form's."),
  );
  return { element, update };
}
