// The page that shows a secret works without this; here is what makes it handier, and takes the secret
// away when the page is left, because browsers may keep a page as it was for their way back.
"use strict";

const once = document.querySelector("[data-shown-once]");
const told = once.querySelector("[data-told]");
const saved = [];

// What the gateway says of a call, which is told as it says it; what a browser says of its network is not.
class Refused extends Error {}

const text = (id) => document.getElementById(id).textContent;

for (const button of once.querySelectorAll("[data-copy]")) {
  button.hidden = false;
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text(button.dataset.copy));
      told.textContent = button.dataset.done;
    } catch {
      told.textContent = button.dataset.failed;
    }
  });
}

// Made in the browser: no second request has to carry the secret.
for (const link of once.querySelectorAll("[data-save]")) {
  link.textContent = link.dataset.saves;
  link.download = ".env";
  link.addEventListener("click", () => {
    const file = new Blob([text(link.dataset.save)], { type: "text/plain" });
    link.href = URL.createObjectURL(file);
    saved.push(link.href);
  });
}

window.addEventListener("pagehide", () => {
  saved.forEach((address) => URL.revokeObjectURL(address));
  once.textContent = once.dataset.gone;
});

const trial = once.querySelector("[data-try]");
if (trial !== null) {
  trial.hidden = false;
  prepare(trial);
}

function prepare(section) {
  const form = section.querySelector("form");
  const stop = section.querySelector("[data-stop]");
  const answer = section.querySelector("[data-answer]");
  const state = section.querySelector("[data-state]");
  const headers = section.querySelector("[data-headers]");
  const send = form.querySelector("[type=submit]");

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const leaving = new AbortController();
    stop.onclick = () => leaving.abort();
    stop.hidden = false;
    send.disabled = true;
    answer.textContent = "";
    headers.textContent = "";
    state.textContent = state.dataset.waiting;
    try {
      const whole = await ask(form.elements.prompt.value, leaving.signal);
      state.textContent = whole ? state.dataset.done : state.dataset.cut;
    } catch (error) {
      if (leaving.signal.aborted) state.textContent = state.dataset.stopped;
      else if (error instanceof Refused) state.textContent = `${state.dataset.failed} ${error.message}`;
      else state.textContent = state.dataset.unreachable;
    } finally {
      stop.hidden = true;
      send.disabled = false;
    }
  });

  // Whether the answer came to its end.
  async function ask(prompt, signal) {
    const response = await fetch("/v1/chat/completions", {
      method: "POST",
      credentials: "omit",
      headers: { Authorization: `Bearer ${text("secret")}`, "Content-Type": "application/json" },
      body: JSON.stringify({
        model: section.dataset.model,
        messages: [{ role: "user", content: prompt }],
        stream: true,
        stream_options: { include_usage: true },
      }),
      signal,
    });
    for (const name of ["x-request-id", "x-ratelimit-remaining-requests", "x-ratelimit-remaining-tokens"]) {
      if (response.headers.has(name)) tell(name, response.headers.get(name));
    }
    if (!response.ok) {
      throw new Refused((await response.json()).error.message);
    }
    state.textContent = state.dataset.streaming;
    let rest = "";
    for await (const piece of pieces(response.body)) {
      const lines = (rest + piece).split("\n");
      rest = lines.pop();
      for (const line of lines) {
        if (!line.startsWith("data: ")) continue;
        if (line === "data: [DONE]") return true;
        const event = JSON.parse(line.slice("data: ".length));
        if (event.error) throw new Refused(event.error.message);
        for (const choice of event.choices) answer.append(choice.delta.content ?? "");
        if (event.usage) tellTokens(event.usage);
      }
    }
    return false;
  }

  function tellTokens(usage) {
    const [input, output] = [usage.prompt_tokens, usage.completion_tokens].map((number) =>
      number.toLocaleString(document.documentElement.lang),
    );
    tell(headers.dataset.tokens, headers.dataset.saysTokens.replace("IN", input).replace("OUT", output));
  }

  function tell(name, value) {
    const term = document.createElement("dt");
    const said = document.createElement("dd");
    term.textContent = name;
    said.textContent = value;
    headers.append(term, said);
  }
}

async function* pieces(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    yield value;
  }
}
