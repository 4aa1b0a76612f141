// What became of the tasks of the last 24 hours, counted when it is looked at.

const DAY = 86400000; // milliseconds
const RANGES = { hour: DAY / 24, day: DAY, week: 7 * DAY };
const COUNTED_EVERY = 60; // seconds: a count reads up to 900 tasks

const since = (range) => new Date(Date.now() - RANGES[range]).toISOString();

/** Draw the totals into `place`, now and every minute while the view is open; nothing where there is nothing. */
function totals(place) {
  return watch(async () => {
    try {
      const { data } = await ask("GET", `/api/v1/tasks/totals?${new URLSearchParams({ since: since("day") })}`);
      place.replaceChildren(...(data.accepted ? [strip(data)] : []));
    } catch (error) {
      judged(error); // the list says what is wrong
    }
    return COUNTED_EVERY;
  });
}

/** Each number leads to its tasks; by the keyboard those are reached by the filters, which come first. */
function strip(data) {
  const at = (name, value, filter, kind) =>
    el.div(
      { class: value ? kind : null },
      el.dt(name),
      el.dd(filter && value ? el.a({ href: `#/tasks?range=day&${filter}`, tabindex: -1 }, digits.format(value)) : digits.format(value)),
    );
  const rate = data.callback_success;
  const { tasks, back_to } = data.looked_at;
  return el.section(
    { class: "sheet strip", "aria-label": "The last 24 hours" },
    el.dl(
      { class: "numbers" },
      at("accepted", data.accepted, "status="),
      at("running", data.running, null, "busy"),
      at("succeeded", data.succeeded, "status=success", "good"),
      at("failed", data.failed, "status=failed", "bad"),
    ),
    el.dl(
      { class: "numbers" },
      at("delivered", data.delivered, "callback=delivered", "good"),
      at("retrying", data.retrying, "callback=retrying", "again"),
      at("undelivered", data.exhausted, "callback=undelivered", "bad"),
      rate !== null && el.div(el.dt("callbacks delivered"), el.dd(`${rate < 1 ? Math.min(99.9, Math.round(rate * 1000) / 10) : 100} %`)),
      data.costs.map((cost) => el.div(el.dt("cost"), el.dd(price(cost)))),
    ),
    el.small(
      data.next_cursor
        ? [`Last 24 h, of which the newest ${digits.format(tasks)} tasks are counted, back to `, moment(back_to), "."]
        : "Last 24 h, counted every minute",
    ),
  );
}
