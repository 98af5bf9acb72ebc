// The counts stay fresh while the page is seen. Without scripts they are as of the last reload.
const live = document.querySelector("[data-live]");
setInterval(async () => {
  if (document.hidden) return;
  try {
    const reply = await fetch(live.dataset.live, { headers: { accept: "text/html" } });
    if (reply.ok) live.innerHTML = await reply.text();
  } catch (error) {
    // The server is away; the next round tells whether it is back.
  }
}, 5000);
