// Callbacks: a receiver is tried with samples, and the secrets that sign are shown.

function showCallbacks() {
  const url = el.input({
    id: "receiver",
    type: "text",
    inputmode: "url",
    autocomplete: "off",
    spellcheck: "false",
    placeholder: "https://you.example.com/hook",
    "aria-describedby": "receiver-complaint receiver-hint",
  });
  const complaint = el.p({ id: "receiver-complaint", class: "complaint" });
  const told = el.div({ "aria-live": "polite" });
  const button = el.button({ type: "submit", class: "first" }, "Send samples");
  async function test(event) {
    event.preventDefault();
    button.disabled = true;
    complaint.textContent = "";
    url.removeAttribute("aria-invalid");
    told.replaceChildren(el.p({ class: "soft" }, "Waiting for the receiver, for 15 s at most…"));
    try {
      const { data } = await ask("POST", "/api/v1/callbacks/test", {
        body: url.value.trim() ? { callback_url: url.value.trim() } : {},
      });
      told.replaceChildren(el.ul({ class: "samples" }, data.samples.map(sampleOf)));
    } catch (error) {
      const { status, message } = judged(error);
      told.replaceChildren(...(status === 400 ? [] : [notice(message, { of: error })]));
      if (status === 400) {
        const text = complaints(message)[0].text ?? message;
        complaint.textContent = text[0].toUpperCase() + text.slice(1);
        url.setAttribute("aria-invalid", "true");
        url.focus();
      }
    }
    button.disabled = false;
  }
  const secrets = el.div();
  async function reveal() {
    try {
      const { data } = await ask("GET", "/api/v1/callbacks/secret");
      secrets.replaceChildren(
        el.ul(
          { class: "samples" },
          data.secrets.map((one) =>
            el.li(
              { class: "row" },
              el.code(one.secret),
              copier(one.secret, "the secret"),
              el.small(one.expires_at ? ["signs until ", moment(one.expires_at)] : "signs until it is replaced"),
            ),
          ),
        ),
      );
    } catch (error) {
      secrets.replaceChildren(notice(judged(error).message, { action: reveal, of: error }));
    }
  }
  secrets.append(el.button({ type: "button", onclick: reveal }, "Show the secrets"));
  main.append(
    el.div(
      { class: "stack form" },
      el.h1("Callbacks"),
      el.form(
        { class: "sheet padded stack", onsubmit: test, novalidate: true },
        el.h2("Try a receiver"),
        el.div(
          { class: "tight" },
          el.label({ for: "receiver" }, "Callback URL"),
          url,
          complaint,
          el.small(
            { id: "receiver-hint" },
            "Without one, your default. A signed sample of each event is sent, as a callback would be; nothing is stored.",
          ),
        ),
        el.div(button),
        told,
      ),
      el.section(
        { class: "sheet padded stack" },
        el.h2("Signing secrets"),
        el.p({ class: "soft" }, "Their holder can sign as this deployment: show them only where you alone can see them."),
        secrets,
      ),
    ),
  );
}

function sampleOf(sample) {
  const said = sample.status ? `answered ${sample.status}` : `no answer: ${sample.error ?? "?"}`;
  return el.li(
    { class: "tight" },
    el.div(
      { class: "row" },
      word(sample.delivered ? "delivered" : "undelivered", sample.delivered ? "delivered" : "not delivered"),
      el.code(sample.type),
      el.small(`${said} after ${lasting(sample.ms)}`),
    ),
    sample.answer && el.code({ class: "answer" }, sample.answer),
  );
}
