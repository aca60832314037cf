// A Run button on every code cell; everything else is loaded at the first press. A page that was opened from a disk may
// not load it (browsers forbid it), so there is no button there.
(() => {
  const { src, dataset } = document.currentScript;
  if (!location.protocol.startsWith("http") || !window.DecompressionStream || !window.WebAssembly) return;
  const base = new URL(".", src);
  let opened;
  let tries = 0; // a browser remembers that a module could not be loaded, and asks no second time by the same name
  const tools = [...document.querySelectorAll("div.cell")].map((cell, index) => {
    const box = document.createElement("div");
    const button = document.createElement("button");
    const says = document.createElement("span");
    box.className = "live-tools";
    button.type = "button";
    button.className = "live-run";
    button.textContent = "Run";
    button.title = "Run this cell in the page (Shift+Enter)";
    button.setAttribute("aria-label", `Run cell ${index + 1}`);
    says.setAttribute("role", "alert");
    box.append(says, button);
    const output = cell.querySelector(":scope > .cell_output");
    cell.insertBefore(box, output);
    button.addEventListener("click", async () => {
      try {
        if (!opened) Object.assign(button, { textContent: "Waiting", title: "" });
        const name = tries ? `page.js?try=${tries}` : "page.js";
        opened ??= import(new URL(name, base)).then(({ openPage }) => openPage(base, dataset.page, tools));
        (await opened).press(index);
        says.textContent = "";
      } catch (error) {
        opened = undefined;
        tries += 1;
        button.textContent = "Run";
        says.textContent = `Python could not be loaded: ${error.message}`;
      }
    });
    return { cell, box, button };
  });
})();
