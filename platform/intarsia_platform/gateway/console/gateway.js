// The gateway as this page sees it. The key lives in a private field and nowhere else.

export class Refusal extends Error {}

export class Gateway {
  #key;
  #purpose;

  constructor(key, purpose) {
    this.#key = key;
    this.#purpose = purpose;
  }

  #headers() {
    const headers = { Authorization: `Bearer ${this.#key}` };
    if (this.#purpose) {
      // A header holds bytes: those of UTF-8, each as the letter that stands for it.
      const bytes = new TextEncoder().encode(this.#purpose);
      headers["X-Intarsia-Purpose"] = String.fromCharCode(...bytes);
    }
    return headers;
  }

  async get(path) {
    const response = await reached(path, { headers: this.#headers(), cache: "no-store" });
    if (!response.ok) throw await refusalOf(response);
    return response.json();
  }

  // The events of a streamed answer, one by one.
  async *answer(path, body, signal) {
    const headers = { ...this.#headers(), "Content-Type": "application/json" };
    const options = { stream: true, stream_options: { include_usage: true } };
    const response = await reached(path, {
      method: "POST", headers, signal, body: JSON.stringify({ ...body, ...options }),
    });
    if (!response.ok) throw await refusalOf(response);
    for await (const data of lines(response.body)) {
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new Refusal(event.error.message);
      yield event;
    }
    throw new Refusal("The answer broke off.");
  }
}

async function reached(path, options) {
  try {
    return await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal("The server cannot be reached.");
  }
}

async function refusalOf(response) {
  try {
    return new Refusal((await response.json()).error.message);
  } catch {
    return new Refusal(`The server answered with status ${response.status}.`);
  }
}

// What stands behind "data: " in a stream of server-sent events.
async function* lines(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      held += value;
      let end;
      while ((end = held.indexOf("\n\n")) >= 0) {
        const event = held.slice(0, end);
        held = held.slice(end + 2);
        if (event.startsWith("data: ")) yield event.slice(6);
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

// An element with its attributes and children; text is always text, never markup.
export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === true) made.setAttribute(key, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

export function labelChips(labels) {
  return labels.map((label) => element("span", { class: "label" }, label));
}

export const byId = (id) => document.getElementById(id);
