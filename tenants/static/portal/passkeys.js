// Says on the page why a passkey was not used; allauth's own script only throws the event heard here.
//
// The sentences stand in data-says-… of the element with data-passkeys.

"use strict";

const place = document.querySelector("[data-passkeys]");

// By the names of the exceptions of WebAuthn, level 2, §5.1.3 and §5.1.4.
const SAYS = { InvalidStateError: "saysKnown", SecurityError: "saysImpossible" };

function say(sentence) {
  const text = document.createElement("p");
  text.className = "notice error";
  text.textContent = place.dataset[sentence];
  place.replaceChildren(text);
}

document.addEventListener("allauth.error", (event) => {
  event.preventDefault();
  say(SAYS[event.detail.exception.name] ?? "saysFailed");
});

if (!window.PublicKeyCredential) say("saysImpossible");
