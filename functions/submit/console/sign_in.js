// The way in.

function showSignIn() {
  const why = sessionStorage.getItem("why");
  sessionStorage.removeItem("why");
  const field = el.input({
    id: "token",
    name: "token",
    type: "password",
    autocomplete: "off",
    spellcheck: "false",
    placeholder: "thk_…",
    "aria-describedby": "token-hint token-complaint",
  });
  const complaint = el.p({ id: "token-complaint", class: "complaint", role: "alert" });
  const button = el.button({ type: "submit", class: "first" }, "Sign in");
  async function signIn(event) {
    event.preventDefault();
    const value = field.value.trim();
    button.disabled = true;
    complaint.textContent = "";
    try {
      const good = value !== "" && (await ask("GET", "/api/v1/apikey/validate", { bearer: value })).data.is_valid;
      if (good) {
        token.set(value);
        go(/^#\/./.test(location.hash) ? location.hash : "#/tasks"); // to where the link led that was followed
        return;
      }
      complaint.textContent = value ? "This deployment does not accept that token." : "A token is needed.";
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      complaint.replaceChildren(...[error.message, " ", meaning(error)].filter(Boolean));
    }
    button.disabled = false;
    field.setAttribute("aria-invalid", "true");
    field.focus();
  }
  main.append(
    el.div(
      { class: "sign-in stack" },
      why && notice(why),
      el.form(
        { class: "sheet padded stack", onsubmit: signIn, novalidate: true },
        el.div({ class: "tight" }, el.h1("Sign in"), el.p({ class: "soft" }, "See your tasks and where their callbacks are.")),
        el.div(
          { class: "tight" },
          el.label({ for: "token" }, "Caller token"),
          field,
          complaint,
          el.small(
            { id: "token-hint" },
            "Kept in this tab only, and sent to this deployment only. Its operator makes one with ",
            el.code("make caller NAME=you"),
            ".",
          ),
        ),
        el.div(button),
      ),
    ),
  );
  field.focus();
}

function showNothing() {
  main.append(el.div({ class: "empty tight" }, el.h1("There is no such page"), el.p(el.a({ href: "#/tasks" }, "To the tasks"))));
}
