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
  waiting: ["wait", "waiting"],
  delivered: ["good", "delivered"],
  undelivered: ["bad", "undelivered"],
  none: ["none", "no callback"],
  ahead: ["none", "after the end"],
};
const word = (state, said) => el.span({ class: `word ${WORDS[state]?.[0] ?? "none"}` }, said ?? WORDS[state]?.[1] ?? String(state));

const hasEnded = (task) => task.stage === "success" || task.stage === "failed";

/** A callback that waits is remarkable only once its task has ended. */
const callbackState = (task) => (task.callback.state === "waiting" && !hasEnded(task) ? "ahead" : task.callback.state);

const isMoving = (task) => !hasEnded(task) || isDueSoon(task.callback);
const isDueSoon = (callback) =>
  callback.state === "waiting" && (!callback.next_attempt_at || new Date(callback.next_attempt_at) - Date.now() < 10000);

/** Write whatever the vendor said in some place: JSON where it is no text. `String` throws on some objects. */
const plain = (value) => (typeof value === "string" ? value : (JSON.stringify(value) ?? ""));
const isWeb = (url) => typeof url === "string" && /^https?:\/\//i.test(url);
const link = (url, text = url) =>
  isWeb(url)
    ? el.a({ href: url, target: "_blank", rel: "noopener noreferrer", class: "url" }, text)
    : el.span({ class: "url" }, plain(url));
const say = (text) => (document.getElementById("said").textContent = text);

function notice(text, { kind = "bad", action, label = "Try again" } = {}) {
  return el.div(
    { class: `notice ${kind} row`, role: kind === "bad" ? "alert" : null },
    el.span(text),
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
