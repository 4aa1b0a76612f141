// The keyboard: `/` searches, `j` and `k` move through the list, Enter opens, `?` tells the keys.

const KEYS = [
  ["/", "search"],
  ["j", "next task"],
  ["k", "task before"],
  ["Enter", "open the task"],
  ["?", "these keys"],
];

/** Act on a key, but where text is typed, and where it is the browser's or the system's. */
function pressed(event) {
  const { key, target } = event;
  if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented || token.get() === null) return;
  if (target.closest("input, select, textarea, dialog") || sessionStorage.getItem("keys") === "off") return;
  if (key === "?") showKeys();
  else if (key === "/") search();
  else if (key === "j" || key === "k") moveBy(key === "j" ? 1 : -1);
  else return;
  event.preventDefault();
}

/** Go to the search field, from another view by way of the list. */
function search() {
  const field = () => document.getElementById("search");
  if (!field()) {
    location.hash = "#/tasks";
    dispatchEvent(new HashChangeEvent("hashchange")); // the browser's own comes later, when keys may be typed already
  }
  field().focus();
  field().select();
}

/** Move the focus through the list; from outside of it, to its first task. */
function moveBy(by) {
  const links = [...document.querySelectorAll(".tasks .title")];
  const at = links.indexOf(document.activeElement);
  const next = links[at < 0 ? 0 : Math.min(Math.max(at + by, 0), links.length - 1)];
  next?.focus({ preventScroll: true });
  next?.closest("tr").scrollIntoView({ block: "nearest" });
}

/** Tell the keys, and let them be switched off: they may be in the way of a speech input. */
function showKeys() {
  const box = el.input({
    id: "keys-on",
    type: "checkbox",
    checked: sessionStorage.getItem("keys") !== "off",
    onchange: (event) =>
      event.target.checked ? sessionStorage.removeItem("keys") : sessionStorage.setItem("keys", "off"),
  });
  const dialog = el.dialog(
    { class: "sheet padded", "aria-labelledby": "h-keys", onclose: () => dialog.remove() },
    el.form(
      { method: "dialog", class: "stack" },
      el.h2({ id: "h-keys" }, "Keys"),
      el.dl({ class: "facts" }, KEYS.map(([key, does]) => [el.dt(el.kbd(key)), el.dd(does)])),
      el.div({ class: "check" }, box, el.label({ for: "keys-on" }, "Single keys act in this tab")),
      el.div(el.button({ autofocus: true }, "Close")),
    ),
  );
  document.body.append(dialog);
  dialog.showModal();
}
