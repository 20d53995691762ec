// Asking: which adapters, what, and what each answer drew on.

import { byId, element, labelChips } from "./gateway.js";

export class Asking {
  #gateway;
  #running = null;
  #turns = [];
  #signal;

  // Everything that listens stops when the signal is aborted, as signing out does.
  constructor(gateway, caller, models, signal) {
    this.#gateway = gateway;
    this.#signal = signal;
    byId("tokens").value = caller.default_tokens;
    byId("tokens").max = caller.max_tokens;
    byId("mode").value = caller.conversations ? "chat" : "text";
    this.#showAdapters(models.filter((model) => !["auto", "base"].includes(model.id)));
    byId("ask-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#ask();
    }, { signal });
    byId("prompt").addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) byId("ask-form").requestSubmit();
    }, { signal });
    byId("stop").addEventListener("click", () => this.#running?.abort(), { signal });
    byId("fresh").addEventListener("click", () => this.#forget(), { signal });
    byId("adapters").addEventListener("submit", (event) => event.preventDefault(), { signal });
    signal.addEventListener("abort", () => this.#forget());
    this.#forget();
  }

  #showAdapters(models) {
    byId("use-named").disabled = models.length === 0;
    const list = byId("adapter-list");
    list.querySelectorAll(".adapter, .none").forEach((old) => old.remove());
    if (!models.length) {
      list.append(element("p", { class: "quiet none" }, "You may use no adapter. The base answers."));
    }
    models.forEach((model, place) => {
      const box = element("input", { type: "checkbox", value: model.id, id: `adapter-${place}` });
      const weight = element("input", {
        type: "number", min: "0.001", max: "1000", step: "any", value: "1",
        "aria-label": `Weight of ${model.id}`,
      });
      const choose = () => { byId("use-named").checked = true; };
      box.addEventListener("change", choose, { signal: this.#signal });
      weight.addEventListener("input", () => { box.checked = true; choose(); }, { signal: this.#signal });
      list.append(element("div", { class: "adapter" },
        element("label", { for: box.id }, box, model.id), weight,
        element("span", { class: "labels" }, ...labelChips(model.intarsia?.labels ?? []))));
    });
  }

  // The words of `model`, null where nothing is chosen.
  #model() {
    const use = document.querySelector('input[name="use"]:checked').value;
    if (use !== "named") return use;
    const parts = [...byId("adapter-list").querySelectorAll(".adapter")]
      .map((row) => [row.querySelector('[type="checkbox"]'), row.querySelector('[type="number"]')])
      .filter(([box]) => box.checked)
      .map(([box, weight]) => `${box.value}=${weight.value || 1}`);
    return parts.length ? parts.join(",") : null;
  }

  async #ask() {
    const text = byId("prompt").value;
    const model = this.#model();
    if (this.#running || !text.trim()) return;
    if (model === null) {
      this.#say("Choose an adapter first, or let one be chosen.");
      return;
    }
    const chat = byId("mode").value === "chat";
    const body = {
      model,
      max_tokens: Number(byId("tokens").value) || undefined,
      temperature: Number(byId("temperature").value) || 0,
      ...(chat ? { messages: [...this.#turns, { role: "user", content: text }] } : { prompt: text }),
    };
    const shown = this.#addAnswer(text);
    this.#busy(new AbortController());
    const running = this.#running;
    byId("prompt").value = "";
    try {
      const answer = await this.#read(chat, body, shown, running.signal);
      if (chat) this.#turns.push({ role: "user", content: text }, { role: "assistant", content: answer });
    } catch (error) {
      const stopped = error.name === "AbortError";
      this.#say(stopped ? "Stopped." : error.message);
      if (!stopped) shown.append(element("p", { class: "error", role: "alert" }, error.message));
    } finally {
      shown.querySelector(".answer").removeAttribute("aria-busy");
      if (this.#running === running) this.#busy(null);
    }
  }

  async #read(chat, body, shown, signal) {
    const place = shown.querySelector(".answer");
    const path = chat ? "/v1/chat/completions" : "/v1/completions";
    let answer = "";
    for await (const event of this.#gateway.answer(path, body, signal)) {
      if (event.intarsia) shown.append(usedLine(event.intarsia, body.model));
      const [choice] = event.choices;
      const piece = (chat ? choice?.delta.content : choice?.text) ?? "";
      if (piece) {
        answer += piece;
        place.append(piece);
        this.#follow();
      }
      if (event.usage) {
        this.#say(`Done: ${event.usage.prompt_tokens} tokens read, ${event.usage.completion_tokens} written.`);
      }
    }
    return answer;
  }

  #addAnswer(text) {
    byId("empty").hidden = true;
    const shown = element("article", {},
      element("p", { class: "asked" }, text),
      element("p", { class: "answer", "aria-busy": "true" }));
    byId("log").append(shown);
    this.#follow();
    return shown;
  }

  #follow() {
    const log = byId("log");
    log.scrollTop = log.scrollHeight;
  }

  #busy(running) {
    this.#running = running;
    byId("send").disabled = running !== null;
    byId("stop").hidden = running === null;
    if (running) this.#say("Answering…");
    else byId("prompt").focus();
  }

  #forget() {
    this.#running?.abort();
    this.#turns = [];
    byId("log").querySelectorAll("article").forEach((old) => old.remove());
    byId("empty").hidden = false;
    this.#say("");
  }

  #say(text) {
    byId("status").textContent = text;
  }
}

// "Drew on legal 63 % and medical 38 %", with their labels, the heaviest first.
function usedLine(told, model) {
  const line = element("p", { class: "used" });
  if (told.used && !told.used.length) {
    line.append(model === "auto"
      ? "Drew on no adapter: none of yours fits the question. The base answered."
      : "Drew on no adapter. The base answered.");
    return line;
  }
  if (!told.used) {
    line.append("Drew on data labelled ", ...labelChips(told.labels));
    return line;
  }
  line.append("Drew on ");
  [...told.used].sort((one, other) => other.weight - one.weight).forEach((one, place) => {
    if (place) line.append(" ");
    line.append(element("strong", {}, one.name), ` ${Math.round(one.weight * 100)} % `,
      element("meter", {
        min: "0", max: "1", value: String(one.weight), "aria-hidden": "true",
      }), " ", ...labelChips(one.labels));
  });
  return line;
}
