// Keeps the overview alive. Everything is drawn by the node; this only puts it in its place.
"use strict";
const journal = document.getElementById("journal");
const live = document.getElementById("live");
const events = new EventSource("/events?after=" + journal.dataset.last);

function tell(state, words) {
  document.body.dataset.live = state;
  live.textContent = words;
}

// Drawing over a selection or a focused part would take it away from the reader: unchanged parts are left alone.
const drawn = {};
events.addEventListener("snapshot", (event) => {
  const { at, html } = JSON.parse(event.data);
  for (const [id, part] of Object.entries(html)) {
    if (drawn[id] !== part) {
      document.getElementById(id).innerHTML = part;
      drawn[id] = part;
    }
  }
  tell("yes", "live, " + at.slice(11, 19) + " UTC");
});

events.addEventListener("journal", (event) => {
  const { entry, html } = JSON.parse(event.data);
  if (document.getElementById("entry-" + entry.seq)) return;
  journal.insertAdjacentHTML("afterbegin", html);
  while (journal.children.length > Number(journal.dataset.max)) journal.lastElementChild.remove();
});

events.addEventListener("error", () => tell("lost", "connection lost; trying again"));

// A cause that has left the page is still in the journal.
journal.addEventListener("click", (event) => {
  const cause = event.target.dataset.cause;
  if (cause && !document.getElementById("entry-" + cause)) {
    event.preventDefault();
    location.href = "/api/journal?limit=1&after=" + (Number(cause) - 1);
  }
});
