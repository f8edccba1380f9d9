"use strict";
/* Puts the pieces that the run sends into their places. They are made and escaped by the server; the policy of the page
   lets nothing in them run. What a reader opened or scrolled to stays as it is. */

(function live() {
  const light = document.getElementById("light");
  const state = document.getElementById("state");

  function say(text, isLive) {
    if (state.textContent !== text) state.textContent = text;
    light.classList.toggle("off", !isLive);
  }

  function put(name, html) {
    const place = document.querySelector(`[data-piece="${CSS.escape(name)}"]`);
    if (place === null) return;
    const opened = [...place.querySelectorAll("details")].map((one) => one.open);
    const scrolled = [...place.querySelectorAll(".stream, .scroll")].map((one) => one.scrollTop);
    const hadFocus = place.contains(document.activeElement)
      ? [...place.querySelectorAll("summary, [tabindex]")].indexOf(document.activeElement) : -1;
    place.innerHTML = html;
    place.querySelectorAll("details").forEach((one, i) => { one.open = opened[i] || false; });
    place.querySelectorAll(".stream, .scroll").forEach((one, i) => { one.scrollTop = scrolled[i] || 0; });
    if (hadFocus >= 0) place.querySelectorAll("summary, [tabindex]")[hadFocus]?.focus({ preventScroll: true });
  }

  const source = new EventSource("/events");
  let told = "connected";
  source.onopen = () => say(told, true);
  source.onerror = () => say("no connection; trying again", false);
  source.onmessage = (event) => {
    const { state: text, title, ...pieces } = JSON.parse(event.data);
    if (title !== undefined) document.title = title;
    for (const [name, html] of Object.entries(pieces)) put(name, html);
    told = text ?? told;
    say(told, true);
  };
  source.addEventListener("end", (event) => {
    source.close();
    say(event.data, false);
  });
})();
