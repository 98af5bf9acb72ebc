// Dialogs: a `data-open` button opens one; a `data-close` button, Escape or its form closes it.

/** Connect every `data-open` and `data-close` button; a dialog that changes calls `onToggle`. */
export function connectDialogs(onToggle) {
  document.addEventListener("click", (event) => {
    const opener = event.target.closest("[data-open]");
    if (opener) openDialog(opener.dataset.open);
    const closer = event.target.closest("[data-close]");
    if (closer) closer.closest("dialog").close();
  });
  for (const dialog of document.querySelectorAll("dialog")) {
    dialog.addEventListener("toggle", () => onToggle(dialog.open));
  }
}

export function openDialog(name) {
  const dialog = document.getElementById(name);
  if (!dialog.open) dialog.showModal();
}

export function anyDialogOpen() {
  return document.querySelector("dialog[open]") !== null;
}
