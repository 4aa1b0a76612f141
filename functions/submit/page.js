"use strict";
// What all pages have in common. Nothing here or in them turns text into markup: elements are made one by one, and whatever
// a task, a vendor or a receiver says becomes a text node. The policy of the page forbids the browser anything else.

/** Make an element; an attribute that begins with `on` is a handler, and one that is null, undefined or false is left out. */
function made(name, attributes, ...children) {
  const element = document.createElement(name);
  const isChild = typeof attributes !== "object" || attributes === null || Array.isArray(attributes) || attributes instanceof Node;
  for (const [key, value] of Object.entries(isChild ? {} : attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else element.setAttribute(key, value === true ? "" : String(value));
  }
  const all = (isChild ? [attributes, ...children] : children).flat(Infinity);
  element.append(...all.filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** `el.p({ class: "soft" }, "text", el.b("more"))`: one function for each element, attributes first or none. */
const el = new Proxy(
  {},
  {
    get:
      (_, name) =>
      (...contents) =>
        made(name, ...contents),
  },
);

/** Show a value as JSON, with its keys, strings and other values told apart. */
function json(value, label) {
  const text = JSON.stringify(value, null, 2) ?? "";
  const shown = el.pre({ class: "json", tabindex: 0, role: "region", "aria-label": label });
  let end = 0;
  for (const found of text.matchAll(/("(?:\\.|[^"\\])*")(\s*:)?|\b(?:true|false|null)\b|-?\d[\d.eE+-]*/g)) {
    const kind = found[2] ? "key" : found[1] ? "text" : "other";
    shown.append(text.slice(end, found.index), el.span({ class: kind }, found[1] ?? found[0]), found[2] ?? "");
    end = found.index + found[0].length;
  }
  shown.append(text.slice(end));
  return shown;
}

/** Show text in which `…` marks code. */
function prose(text) {
  return text.split("`").map((part, index) => (index % 2 ? el.code(part) : part));
}

/** Follow a reference inside the OpenAPI document. */
function resolved(document_, schema) {
  let found = schema;
  while (found?.$ref)
    found = found.$ref
      .slice(2)
      .split("/")
      .reduce((inside, step) => inside?.[step], document_);
  return found ?? {};
}

/** Give a button that copies a text, or what a function gives by then. */
function copier(text, what) {
  const button = el.button({ type: "button", class: "plain", "aria-label": `Copy ${what}`, onclick: copy }, "Copy");
  async function copy() {
    try {
      await navigator.clipboard.writeText(typeof text === "function" ? text() : text);
      button.textContent = "Copied";
    } catch {
      button.textContent = "Not allowed";
    }
    setTimeout(() => (button.textContent = "Copy"), 1500);
  }
  return button;
}
