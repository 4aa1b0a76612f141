// Which view is shown, and how long it lives.

let views; // none of which this file knows: `start` gets them
let shownAddress; // the one whose view it is
let left = () => {}; // stops what the view before had under way
let leaving = false; // its elements are being removed

/** Show what the address asks for, now and whenever it changes; of the `given` views, `named` are by an address's first word. */
function start(given) {
  views = given;
  addEventListener("keydown", pressed);
  addEventListener("hashchange", () => {
    if (location.hash !== shownAddress && location.hash !== "#main") arrive(); // the skip link leaves the view as it is
  });
  arrive();
}

/** Show what the address asks for; without a token, the way in. */
function route() {
  left();
  left = () => {};
  const [path, query = ""] = location.hash.replace(/^#/, "").split("?");
  const parameters = new URLSearchParams(query);
  const [, name = "", id = "", ...more] = path.split("/");
  const signedIn = token.get() !== null;
  document.getElementById("nav").hidden = !signedIn;
  document
    .getElementById("caller")
    .replaceChildren(
      ...(signedIn
        ? [
            el.small({ class: "mono" }, token.caller()),
            el.button(
              { type: "button", class: "plain keys", "aria-label": "Keys", "aria-keyshortcuts": "?", onclick: showKeys },
              el.kbd("?"),
            ),
            el.button({ type: "button", class: "plain", onclick: signOut }, "Sign out"),
          ]
        : [el.a({ href: "/docs" }, "API")]),
    );
  const known = (name || "tasks") in views.named && more.length === 0 && (id === "" || name === "tasks");
  const view = !signedIn ? views.signIn : known ? views.named[name || "tasks"] : views.nothing;
  for (const entry of document.querySelectorAll("#nav a")) {
    entry.toggleAttribute("aria-current", entry.hash === `#/${name || "tasks"}`);
    if (entry.hasAttribute("aria-current")) entry.setAttribute("aria-current", "page");
  }
  leaving = true;
  main.replaceChildren();
  leaving = false;
  view(parameters, id);
  const heading = main.querySelector("h1");
  document.title = heading ? `${heading.textContent} · taskhook` : "taskhook";
}

/** Show another view: a screen reader and the Tab key begin with it. */
function arrive() {
  shownAddress = location.hash;
  route();
  scrollTo(0, 0);
  if (!main.contains(document.activeElement)) main.focus({ preventScroll: true });
}

function signOut() {
  token.forget();
  go("#/");
}

/** Show the view of an address at once, so that what is typed or chosen next is for that view. */
function go(hash) {
  if (leaving) return; // Chromium tells of a field's change as the field is removed
  location.hash = hash;
  arrive();
}

/** Look now and again while the view is open and the tab is seen. `look` gives the seconds until the next look, or null: no more. */
function watch(look) {
  let timer,
    over = false,
    busy = false,
    due = false;
  async function turn() {
    clearTimeout(timer);
    if (busy) due = true; // once more, as soon as this one is through
    if (over || busy || document.hidden) return;
    busy = true;
    let wait = null;
    try {
      wait = await look();
    } finally {
      busy = false;
    }
    if (over) return;
    if (due) {
      due = false;
      turn();
    } else if (wait !== null) timer = setTimeout(turn, wait * 1000);
  }
  const seen = () => {
    if (!document.hidden) turn();
  };
  document.addEventListener("visibilitychange", seen);
  const before = left;
  left = () => {
    before();
    over = true;
    clearTimeout(timer);
    document.removeEventListener("visibilitychange", seen);
  };
  turn();
  return { now: turn, over: () => over };
}

/** A refused token ends the session; anything else is for the view to show. */
function judged(error) {
  if (!(error instanceof Refusal)) throw error;
  if (error.status === 401 && error.bearer === token.get()) {
    token.forget();
    sessionStorage.setItem("why", "Your token is not accepted any more: it was rotated or disabled. Sign in with another one.");
    arrive(); // the address stays: a caller that signs in again goes on there
  }
  return error;
}
