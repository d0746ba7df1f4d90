// Keeps parts of a page as they are now: by a socket, and while there is none by asking for the page again.
//
// An element with data-live="<address of the socket>" holds elements with
// data-live-part="<name>", whose content is replaced, and one with
// data-live-state, where it is said how new they are. Its sentences stand in
// data-says-…; {time} and {seconds} are put in here.

const ASK_SECONDS = 10;
const FIRST_PAUSE_SECONDS = 1;
const LONGEST_PAUSE_SECONDS = 30;
// The server says something every 15 seconds.
const SILENT_SECONDS = 35;
const PRESSED_SECONDS = 0.1;

// Closed with one of these, a socket has no successor. Of "hidden" nothing may be seen any more.
const ENDS = {
  4401: { says: "signedOut", hidden: true },
  4403: { says: "forbidden", hidden: true },
  4404: { says: "forbidden", hidden: true },
  4409: { says: "changed", hidden: false },
};

class Live {
  constructor(root) {
    this.root = root;
    this.state = root.querySelector("[data-live-state]");
    this.text = this.state.querySelector("[data-live-text]");
    this.socket = null;
    this.since = null;
    this.ended = false;
    this.due = {};
    this.pause = FIRST_PAUSE_SECONDS;
    this.timers = new Set();
    this.address = new URL(root.dataset.live, location.href);
    this.address.protocol = location.protocol === "https:" ? "wss:" : "ws:";
    document.addEventListener("visibilitychange", () => (document.hidden ? this.rest() : this.connect()));
    if (!document.hidden) this.connect();
  }

  connect() {
    if (this.socket || this.ended) return;
    const socket = new WebSocket(this.address);
    this.socket = socket;
    this.heard = Date.now();
    socket.addEventListener("message", (event) => {
      if (socket === this.socket) this.hear(JSON.parse(event.data));
    });
    socket.addEventListener("close", (event) => {
      if (socket === this.socket) this.closed(event.code);
    });
    this.after(SILENT_SECONDS, () => this.listen(socket));
  }

  listen(socket) {
    if (socket !== this.socket) return;
    const left = SILENT_SECONDS - (Date.now() - this.heard) / 1000;
    if (left > 0) {
      this.after(left, () => this.listen(socket));
    } else {
      this.closed(0);
      socket.close();
    }
  }

  hear(message) {
    this.heard = Date.now();
    if (this.since) this.forget();
    this.since = null;
    this.pause = FIRST_PAUSE_SECONDS;
    if (!("parts" in message)) return;
    this.show(message.parts);
    if (message.stale) this.say("stale", new Date(message.stale));
    else this.say("live");
  }

  closed(code) {
    this.socket = null;
    const end = ENDS[code];
    if (end) this.end(end);
    else this.lost();
  }

  lost() {
    if (!this.since) {
      this.since = new Date();
      this.ask();
    }
    this.say("lost", this.since);
    this.after(this.pause * (0.5 + Math.random() / 2), () => this.connect());
    this.pause = Math.min(2 * this.pause, LONGEST_PAUSE_SECONDS);
  }

  // The page itself says how its parts are now, to whoever may see it.
  async ask() {
    this.after(ASK_SECONDS, () => this.since && this.ask());
    let page;
    try {
      const answer = await fetch(location.href, { cache: "no-store", redirect: "manual" });
      if (answer.type === "opaqueredirect") return this.end(ENDS[4401]);
      if (answer.status === 403 || answer.status === 404) return this.end(ENDS[answer.status + 4000]);
      if (!answer.ok) return;
      page = new DOMParser().parseFromString(await answer.text(), "text/html");
    } catch {
      return; // Asked again in a while.
    }
    if (!this.since || this.ended) return;
    const root = page.querySelector(`[data-live="${CSS.escape(this.root.dataset.live)}"]`);
    const parts = {};
    for (const part of root?.querySelectorAll("[data-live-part]") ?? []) {
      parts[part.dataset.livePart] = part.innerHTML;
    }
    this.show(parts);
  }

  end({ says, hidden }) {
    this.rest();
    this.ended = true;
    if (hidden) for (const part of this.root.querySelectorAll("[data-live-part]")) part.replaceChildren();
    this.say(says);
  }

  // Nobody looks: neither listen nor ask.
  rest() {
    const socket = this.socket;
    this.socket = null;
    this.since = null;
    this.forget();
    socket?.close();
  }

  // Not while something is pressed: a button that is another one by the time it is let go is not clicked.
  show(parts) {
    Object.assign(this.due, parts);
    if (this.ended) return;
    if (this.root.matches(":active")) return this.after(PRESSED_SECONDS, () => this.show({}));
    for (const [name, html] of Object.entries(this.due)) {
      const part = this.root.querySelector(`[data-live-part="${CSS.escape(name)}"]`);
      if (part) replace(part, html);
    }
    this.due = {};
    tellAges(this.root);
  }

  // Said once, so that a screen reader hears of changes only.
  say(what, time) {
    const says = this.state.dataset[`says${what[0].toUpperCase()}${what.slice(1)}`];
    const shown = time?.toLocaleTimeString(document.documentElement.lang || undefined, {
      hour: "2-digit",
      minute: "2-digit",
      hourCycle: "h23",
      timeZone: this.state.dataset.zone,
    });
    const text = says.replace("{time}", shown).replace("{seconds}", ASK_SECONDS);
    this.state.dataset.liveState = what;
    if (this.text.textContent !== text) this.text.textContent = text;
  }

  after(seconds, work) {
    const timer = setTimeout(() => {
      this.timers.delete(timer);
      work();
    }, seconds * 1000);
    this.timers.add(timer);
  }

  forget() {
    for (const timer of this.timers) clearTimeout(timer);
    this.timers.clear();
    if (this.socket) this.after(SILENT_SECONDS, this.listen.bind(this, this.socket));
  }
}

// New content, with what was ticked and opened and where the keyboard was.
function replace(part, html) {
  const ticked = new Set([...part.querySelectorAll("input:checked")].map(nameOf));
  const opened = new Set([...part.querySelectorAll("details[open] > summary")].map((one) => one.textContent));
  const focused = part.contains(document.activeElement) ? nameOf(document.activeElement) : null;
  part.innerHTML = html;
  for (const one of part.querySelectorAll("input, button, a[href], summary")) {
    const name = nameOf(one);
    if (one.type === "checkbox" && ticked.has(name)) one.checked = true;
    if (one.tagName === "SUMMARY" && opened.has(one.textContent)) one.parentElement.open = true;
    if (name === focused) one.focus({ preventScroll: true });
  }
}

function nameOf(element) {
  return [element.tagName, element.id, element.name, element.value, element.getAttribute("href")].join(" ");
}

// How long ago the moments with data-age were, which the server leaves to us: it would change every second.
function tellAges(root) {
  for (const time of root.querySelectorAll("time[data-age]")) {
    const seconds = Math.max(0, Math.round((Date.now() - new Date(time.dateTime)) / 1000));
    time.textContent = seconds < 120 ? `${seconds} s` : `${Math.floor(seconds / 60)} min`;
  }
}

for (const root of document.querySelectorAll("[data-live]")) new Live(root);
setInterval(() => document.hidden || tellAges(document), 1000);
