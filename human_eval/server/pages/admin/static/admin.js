// Refresh the counts while the page is visible. Without scripts they change on reload only.
const live = document.querySelector("[data-live]");
setInterval(async () => {
  if (document.hidden) return;
  try {
    const reply = await fetch(live.dataset.live, { headers: { accept: "text/html" } });
    if (reply.ok) live.innerHTML = await reply.text();
  } catch (error) {
    // The server does not answer; try again in the next round.
  }
}, 5000);
