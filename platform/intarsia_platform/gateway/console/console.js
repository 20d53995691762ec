// Signing in and out, and moving between the two views.

import { Access } from "./access.js";
import { Asking } from "./asking.js";
import { Gateway, byId } from "./gateway.js";

let session = null;

byId("sign-in-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const gateway = new Gateway(byId("key").value.trim(), byId("purpose").value.trim());
  byId("sign-in-error").textContent = "";
  try {
    const [caller, models] = await Promise.all([
      gateway.get("/intarsia/caller"), gateway.get("/v1/models"),
    ]);
    byId("sign-in-form").reset();
    signIn(gateway, caller, models.data);
  } catch (error) {
    byId("sign-in-error").textContent = error.message;
    byId("key").focus();
  }
});

byId("sign-out").addEventListener("click", () => {
  session?.abort();
  session = null;
  byId("principal").textContent = "";
  for (const id of ["views", "caller", "ask", "access"]) byId(id).hidden = true;
  byId("sign-in").hidden = false;
  byId("key").focus();
});

function signIn(gateway, caller, models) {
  session = new AbortController();
  byId("principal").textContent = caller.principal;
  new Asking(gateway, caller, models, session.signal);
  const access = caller.steward ? new Access(gateway, session.signal) : null;
  byId("to-access").hidden = access === null;
  byId("views").hidden = access === null;
  byId("caller").hidden = false;
  byId("sign-in").hidden = true;
  for (const button of byId("views").querySelectorAll("button")) {
    button.addEventListener("click", () => view(button.dataset.view, access), { signal: session.signal });
  }
  view("ask", access);
}

function view(name, access) {
  for (const id of ["ask", "access"]) byId(id).hidden = id !== name;
  for (const button of byId("views").querySelectorAll("button")) {
    if (button.dataset.view === name) button.setAttribute("aria-current", "page");
    else button.removeAttribute("aria-current");
  }
  if (name === "access") access.show();
  else byId("prompt").focus();
}
