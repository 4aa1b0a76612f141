// Moments and durations, in the viewer's own zone.

const zone = Intl.DateTimeFormat().resolvedOptions().timeZone;
const full = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });
const clock = new Intl.DateTimeFormat(undefined, { timeStyle: "medium" });
const relative = new Intl.RelativeTimeFormat("en", { numeric: "auto", style: "narrow" });

/** Say in one unit how far off a moment is; milliseconds or a `Date`. */
function ago(at) {
  const seconds = (at - Date.now()) / 1000;
  if (seconds > -2 && seconds <= 0) return "now";
  for (const [unit, size] of [
    ["day", 86400],
    ["hour", 3600],
    ["minute", 60],
    ["second", 1],
  ]) {
    if (Math.abs(seconds) >= size) return relative.format(Math.trunc(seconds / size), unit);
  }
  return "now";
}

/** Show a moment, milliseconds or ISO 8601: in full, without the day where that is `day`'s, or (`near`) how long ago it was. */
function moment(value, { near = false, day } = {}) {
  const at = new Date(typeof value === "number" || typeof value === "string" ? value : NaN);
  if (Number.isNaN(at.getTime())) return el.span(plain(value));
  const text = near ? ago(at) : day && new Date(day).toDateString() === at.toDateString() ? clock.format(at) : full.format(at);
  return el.time({ datetime: at.toISOString(), title: `${full.format(at)} (${zone})`, "data-near": near }, text);
}

/** Say anew how long ago the moments were that are shown as near. */
function refreshNear() {
  for (const time of document.querySelectorAll("time[data-near]")) {
    const told = ago(new Date(time.dateTime));
    if (time.textContent !== told) time.textContent = told;
  }
}

/** Write a duration, given in milliseconds. It is rounded before it is taken apart: else 119.6 s would be "1 min 60 s". */
function lasting(ms) {
  const [whole, tenths, seconds, minutes] = [1, 100, 1000, 60000].map((unit) => Math.round(ms / unit));
  if (whole < 1000) return `${whole} ms`;
  if (tenths < 600) return `${(tenths / 10).toFixed(1)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${seconds % 60} s`;
  return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}
