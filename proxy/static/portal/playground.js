// One chat through the gateway's own door. The secret is read from its field for each call, is sent
// nowhere else and kept nowhere: no storage, no address, no form that a browser would remember.
"use strict";

const place = document.getElementById("playground");
const texts = place.dataset;
const field = (id) => document.getElementById(id);

// What the head of an answer says of limits and of the call itself.
const TOLD = /^(x-ratelimit-|ratelimit|x-request-id|x-tollgate-|retry-after|x-should-retry)/i;
// The worker books within seconds.
const BOOKED_TRIES = 20;
const BOOKED_PAUSE_MS = 500;

let running = null;

// As the rest of the page writes numbers.
function grouped(number) {
  return number.toLocaleString(document.documentElement.lang);
}

function tell(text) {
  field("state").textContent = text;
}

function showHead(head) {
  const rows = [...head].filter(([name]) => TOLD.test(name)).sort();
  field("headers").replaceChildren(
    ...rows.map(([name, value]) => {
      const row = document.createElement("tr");
      const heading = document.createElement("th");
      heading.scope = "row";
      heading.textContent = name;
      const cell = document.createElement("td");
      cell.textContent = value;
      row.append(heading, cell);
      return row;
    }),
  );
  field("request").textContent = head.get("x-request-id") || "–";
}

function clear() {
  field("answer").textContent = "";
  field("tokens").textContent = "–";
  field("cost").textContent = "–";
  field("request").textContent = "–";
  field("headers").replaceChildren();
  field("why").hidden = true;
}

function explain(requestId) {
  const link = field("why").querySelector("a");
  link.href = requestId ? `${texts.refusals}${encodeURIComponent(requestId)}/` : texts.refusals;
  field("why").hidden = false;
}

// Yields the data of each server-sent event; "[DONE]" ends them.
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) {
      return;
    }
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      if (part.startsWith("data: ")) {
        yield part.slice("data: ".length);
      }
    }
  }
}

async function showCost(requestId) {
  field("cost").textContent = texts.textBooking;
  for (let tries = 0; tries < BOOKED_TRIES; tries += 1) {
    await new Promise((go) => setTimeout(go, BOOKED_PAUSE_MS));
    if (field("request").textContent !== requestId) {
      return;
    }
    // Without an answer for as long as it is not booked.
    const told = await fetch(`${texts.booked}${encodeURIComponent(requestId)}/`);
    const booked = told.ok ? await told.json() : {};
    if (booked.cost !== undefined) {
      field("cost").textContent = booked.cost;
      return;
    }
  }
  field("cost").textContent = texts.textUnbooked;
}

async function chat(secret, model, message) {
  clear();
  running = new AbortController();
  field("send").disabled = true;
  field("stop").disabled = false;
  tell(texts.textRunning);
  let requestId = "";
  try {
    const response = await fetch(texts.door, {
      method: "POST",
      credentials: "omit",
      signal: running.signal,
      headers: { Authorization: `Bearer ${secret}`, "Content-Type": "application/json" },
      body: JSON.stringify({
        model,
        stream: true,
        stream_options: { include_usage: true },
        messages: [{ role: "user", content: message }],
      }),
    });
    showHead(response.headers);
    requestId = response.headers.get("x-request-id") || "";
    if (!response.ok) {
      const refused = await response.json();
      field("answer").textContent = refused.error.message;
      tell(`${texts.textRefused} ${response.status} ${refused.error.code}`);
      explain(requestId);
      return;
    }
    let whole = false;
    for await (const event of events(response.body)) {
      if (event === "[DONE]") {
        whole = true;
        break;
      }
      const part = JSON.parse(event);
      if (part.error) {
        field("answer").append(` ${part.error.message}`);
        explain(requestId);
        break;
      }
      if (part.usage) {
        const { prompt_tokens: input, completion_tokens: output } = part.usage;
        field("tokens").textContent = texts.textTokens.replace("IN", grouped(input)).replace("OUT", grouped(output));
      }
      field("answer").append(part.choices?.[0]?.delta?.content ?? "");
    }
    tell(whole ? texts.textDone : texts.textBroken);
  } catch (trouble) {
    tell(trouble.name === "AbortError" ? texts.textStopped : texts.textUnreachable);
  } finally {
    running = null;
    field("send").disabled = false;
    field("stop").disabled = true;
  }
  if (requestId) {
    await showCost(requestId);
  }
}

place.hidden = false;
field("without-script").hidden = true;
place.querySelector("form").addEventListener("submit", (event) => {
  event.preventDefault();
  chat(field("secret").value.trim(), field("model").value, field("message").value);
});
field("stop").addEventListener("click", () => running?.abort());
// Nothing is left for the back button.
window.addEventListener("pagehide", () => {
  running?.abort();
  field("secret").value = "";
});
