// The sliders' seam follows the hand; keys press the buttons that name them, unless somebody is typing.
document.addEventListener("input", (event) => {
  if (event.target.matches(".seam input"))
    event.target.closest(".seam").style.setProperty("--at", event.target.value + "%");
});
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  if (event.target.closest("input, textarea, select, [contenteditable], [role=listbox]")) return;
  const read = event.target.closest(".scrolled");  // a long answer that somebody clicked into is scrolled, not decided on
  if (event.key === "ArrowDown" && read && read.scrollHeight > read.clientHeight) return;
  const name = { ArrowLeft: "left", ArrowRight: "right", ArrowDown: "tie", u: "undo", 1: "veto-left", 2: "veto-right" }[event.key];
  const button = name && document.querySelector("button#key-" + name + ", #key-" + name + " button");
  if (button && !button.disabled) {
    event.preventDefault();
    button.click();
  }
});
// A window that closes says so, and what it waited for is not drawn.
addEventListener("pagehide", () => {
  const waiting = document.querySelector("[data-ticket]"), config = window.gradio_config;
  if (waiting && config)
    fetch(config.root + config.api_prefix + "/run/leave", {
      method: "POST", keepalive: true, headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ data: [waiting.dataset.ticket] }),
    });
});
