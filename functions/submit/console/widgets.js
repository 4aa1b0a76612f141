// What all views are made of: the words and colours of a task's state, and the pieces that show it.

const main = document.getElementById("main");

// Of a task (its stage) and of a callback (its state): the colour and the words.
const WORDS = {
  queued: ["wait", "queued"],
  submitting: ["busy live", "submitting"],
  watched: ["busy live", "processing"],
  unknown: ["wait", "outcome unknown"],
  archiving: ["busy live", "archiving"],
  success: ["good", "success"],
  failed: ["bad", "failed"],
  pending: ["none", "pending"],
  retrying: ["again", "retrying"],
  delivered: ["good", "delivered"],
  undelivered: ["bad stop", "undelivered"],
  none: ["none", "no callback"],
};
const word = (state, said) => el.span({ class: `word ${WORDS[state]?.[0] ?? "none"}` }, said ?? WORDS[state]?.[1] ?? String(state));

const hasEnded = (task) => task.stage === "success" || task.stage === "failed";

const isDelivered = (attempt) => attempt.status >= 200 && attempt.status < 300;

/** A callback that waits is remarkable only once an attempt has failed: it is retrying then, and pending before. */
function callbackState(task) {
  const { state, log } = task.callback;
  if (state !== "waiting") return state;
  return hasEnded(task) && log.length > 0 && !isDelivered(log.at(-1)) ? "retrying" : "pending";
}

/** Say what a receiver answered, or why it did not. */
const answered = (attempt) => (attempt.status ? `answered ${attempt.status}` : `no answer: ${attempt.error ?? "?"}`);

const amounts = new Intl.NumberFormat("en", { minimumFractionDigits: 2, maximumFractionDigits: 4 });
const digits = new Intl.NumberFormat("en");

/** Write what something has cost, as its vendor says. */
const price = ({ amount, currency }) => `${(currency === "credits" ? digits : amounts).format(Number(amount))}\u00a0${currency}`;

const isMoving = (task) => !hasEnded(task) || isDueSoon(task.callback);
const isDueSoon = (callback) =>
  callback.state === "waiting" && (!callback.next_attempt_at || new Date(callback.next_attempt_at) - Date.now() < 10000);

// Seconds between two looks: while something moves, while something is waited for, and where each look reads hundreds of tasks.
const LIVE = 2;
const CALM = 15;
const RARE = 30;

/** Say when a list is looked at again; a filter that has not filled its page makes the API look as far back as it goes. */
function listWait(tasks, { narrow, size, older }) {
  if (narrow && tasks.length < size) return RARE;
  if (size > 100) return CALM; // it takes several answers
  return tasks.some(isMoving) ? LIVE : older ? CALM : 5;
}

/** Write whatever the vendor said in some place: JSON where it is no text. `String` throws on some objects. */
const plain = (value) => (typeof value === "string" ? value : (JSON.stringify(value) ?? ""));
const isWeb = (url) => typeof url === "string" && /^https?:\/\//i.test(url);
const link = (url, text = url) =>
  isWeb(url)
    ? el.a({ href: url, target: "_blank", rel: "noopener noreferrer", class: "url" }, text)
    : el.span({ class: "url" }, plain(url));

let silence;

/** Say something to screen readers, once. */
function say(text) {
  const said = document.getElementById("said");
  said.textContent = text;
  clearTimeout(silence);
  silence = setTimeout(() => (said.textContent = ""), 5000);
}

/** Show an id in one piece: where there is no room for all of it, its end is cut off. */
const idOf = (id) => el.code({ class: "id", title: id }, id);

/** Lead to what a refusal means and what to do, in a tab of its own: what was filled in here stays. */
const meaning = ({ help }) => help && el.a({ href: help, target: "_blank", rel: "noopener" }, "What this means");

function notice(text, { kind = "bad", action, label = "Try again", of = {} } = {}) {
  return el.div(
    { class: `notice ${kind} row`, role: kind === "bad" ? "alert" : null },
    el.span(text),
    meaning(of),
    action && el.button({ type: "button", class: "push", onclick: action }, label),
  );
}

/** Offer to show a picture or video; nothing is asked of another host before the click. */
function media(url, kind, label) {
  if (!isWeb(url)) return null;
  const place = el.div({ class: "media" });
  const show = el.button({ type: "button", onclick: reveal }, label);
  place.append(show);
  function reveal() {
    const element =
      kind === "video"
        ? el.video({ controls: true, src: url, playsinline: true, "aria-label": label })
        : el.img({ src: url, alt: label, referrerpolicy: "no-referrer" });
    element.addEventListener("error", () =>
      place.replaceChildren(
        show,
        el.p({ class: "complaint" }, "It could not be loaded: it may have expired, or its host refuses."),
      ),
    );
    place.replaceChildren(element);
  }
  return place;
}

/** Say what kind of medium a URL is; the vendor's word first, then the ending. */
function kindOf(url, said) {
  const named = /^(video|image)/.exec(said ?? "");
  if (named) return named[1];
  if (/\.(mp4|mov|webm|avi|m4v)([?#]|$)/i.test(url)) return "video";
  return /\.(jpe?g|png|webp|gif|bmp)([?#]|$)/i.test(url) ? "image" : null;
}

/** Ask before doing what cannot be undone. */
function confirmed(question, yes) {
  return new Promise((settle) => {
    const dialog = el.dialog(
      { class: "sheet padded", "aria-label": question, onclose: () => settle(dialog.returnValue === "yes") },
      el.div(
        { class: "stack" },
        el.p(question),
        el.div(
          { class: "row" },
          el.button({ type: "button", class: "danger", onclick: () => dialog.close("yes") }, yes),
          el.button({ type: "button", onclick: () => dialog.close("") }, "Leave it"),
        ),
      ),
    );
    document.body.append(dialog);
    dialog.showModal();
  }).finally(() => document.querySelector("dialog")?.remove());
}
