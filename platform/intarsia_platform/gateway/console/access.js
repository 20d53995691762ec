// For stewards: who may read what, and which policies say so.

import { byId, element, labelChips } from "./gateway.js";

export class Access {
  #gateway;
  #signal;
  #place = { users: 0, adapters: 0 };
  #table = null;

  constructor(gateway, signal) {
    this.#gateway = gateway;
    this.#signal = signal;
    byId("access-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#place = { users: 0, adapters: 0 };
      this.show();
    }, { signal });
    signal.addEventListener("abort", () => {
      byId("access-table").replaceChildren();
      byId("access-pages").replaceChildren();
      this.#explain();
    });
  }

  async show() {
    const query = new URLSearchParams({
      purpose: byId("access-purpose").value,
      users_from: this.#place.users,
      adapters_from: this.#place.adapters,
    });
    byId("access-status").textContent = "Looking…";
    try {
      this.#table = await this.#gateway.get(`/intarsia/access?${query}`);
    } catch (error) {
      byId("access-status").textContent = error.message;
      return;
    }
    if (this.#signal.aborted) return;
    byId("access-status").textContent = "";
    this.#draw();
    this.#explain();
  }

  #draw() {
    const { users, adapters, decisions, purpose } = this.#table;
    const words = `Decided now by the policies in force, ${purpose ? `for the purpose “${purpose}”` : "for no purpose"}.`;
    const head = element("thead", {}, element("tr", {},
      element("th", { scope: "col" }, "Principal"),
      ...adapters.map((one) => element("th", { scope: "col" }, one.name,
        element("small", {}, ...labelChips(one.labels))))));
    const rows = users.map((user, row) => element("tr", {},
      element("th", { scope: "row" }, user.name, element("small", {}, user.groups.join(", "))),
      ...adapters.map((one, column) => element("td", {}, this.#cell(decisions[row][column], row, column)))));
    byId("access-table").replaceChildren(
      element("caption", {}, words), head, element("tbody", {}, ...rows));
    byId("access-pages").replaceChildren(
      ...this.#pages("users", "principals", users.length),
      ...this.#pages("adapters", "adapters", adapters.length));
  }

  #cell(decision, row, column) {
    const { users, adapters } = this.#table;
    const word = decision.allowed ? "may" : "may not";
    const button = element("button", {
      type: "button", class: word.replace(" ", "-"), "aria-pressed": "false",
      "aria-label": `${users[row].name} ${word} read ${adapters[column].name}. Why?`,
    }, `${decision.allowed ? "✓" : "✗"} ${word}`);
    button.addEventListener("click", () => {
      byId("access-table").querySelectorAll('[aria-pressed="true"]')
        .forEach((other) => other.setAttribute("aria-pressed", "false"));
      button.setAttribute("aria-pressed", "true");
      this.#explain(row, column);
    });
    return button;
  }

  #explain(row, column) {
    const place = byId("why-text");
    if (row === undefined) {
      place.replaceChildren(element("p", { class: "quiet" }, "Choose a cell of the table."));
      return;
    }
    const { users, adapters, decisions, policies } = this.#table;
    const [user, adapter, decision] = [users[row], adapters[column], decisions[row][column]];
    const may = decision.allowed ? "may" : "may not";
    const parts = [
      element("p", {}, element("strong", {}, `${user.name} ${may} read ${adapter.name}. `), because(decision)),
      element("p", { class: "quiet" },
        `Principal: groups ${user.groups.join(", ") || "none"}; clearance ${user.clearance}; tenant ${user.tenant || "none"}. `
        + `Adapter: labels ${adapter.labels.join(", ") || "none"}; level ${adapter.level}; tenant ${adapter.tenant || "none"}; `
        + `owner ${adapter.owner || "none"}${adapter.expires_at ? `; until ${adapter.expires_at}` : ""}.`),
    ];
    for (const reason of decision.reasons) {
      const text = policies[/\(line (\d+)\)$/.exec(reason)?.[1]];
      if (text) parts.push(element("pre", {}, text));
    }
    place.replaceChildren(...parts);
  }

  #pages(kind, word, shown) {
    const from = this.#table[`${kind}_from`];
    const total = this.#table[`${kind}_total`];
    if (from === 0 && shown === total) return [];
    const turn = (name, start, disabled) => {
      const button = element("button", { type: "button", class: "plain", disabled }, name);
      button.addEventListener("click", () => {
        this.#place[kind] = start;
        this.show();
      });
      return button;
    };
    return [element("span", { class: "quiet" }, `${word} ${from + 1} to ${from + shown} of ${total}`),
      turn(`Earlier ${word}`, Math.max(0, from - 50), from === 0),
      turn(`Later ${word}`, from + shown, from + shown >= total)];
  }
}

function because(decision) {
  if (decision.expired) return "The adapter has expired.";
  if (decision.errors.length) return `A policy could not be evaluated: ${decision.errors.join("; ")}.`;
  if (decision.reasons.length) return `Decided by ${decision.reasons.join(", ")}.`;
  return "No policy permits it.";
}
