// What a cell shows, where the page shows what the build computed: text, tables, figures in their captions, an error.

const CLASSES = {
  text: "output stream highlight-myst-ansi notranslate",
  error: "output traceback highlight-ipythontb notranslate live-error",
  html: "output text_html",
  svg: "output image_svg",
};

function element(kind, text) {
  const box = document.createElement("div");
  box.className = CLASSES[kind];
  if (kind === "html" || kind === "svg") {
    box.innerHTML = text;
  } else {
    const pre = document.createElement("pre");
    const frame = document.createElement("div");
    pre.textContent = text;
    frame.className = "highlight";
    frame.append(pre);
    box.append(frame);
  }
  return box;
}

export class Output {
  constructor(cell) {
    this.cell = cell;
    this.box = cell.querySelector(":scope > .cell_output");
    this.built = this.box ? [...this.box.childNodes] : null;
  }

  /** A run begins: what stands there stays, pale, until something takes its place. */
  begin() {
    if (!this.box) {
      this.box = document.createElement("div");
      this.box.className = "cell_output docutils container";
      this.cell.append(this.box);
    }
    this.box.classList.add("live-old");
    this.box.setAttribute("aria-busy", "true");
    this.fresh = [];
    this.frames = (this.built ?? []).filter((node) => node.matches?.("figure, svg"));
  }

  /** Show an event of the run.
   * @param edited - whether the code is no longer the page's, whose description of a figure then does not hold.
   */
  show({ kind, text }, edited) {
    const last = this.fresh.at(-1);
    if (kind === "text" && last?.dataset?.kind === "text") {
      last.querySelector("pre").append(text);
    } else {
      const shown = kind === "svg" || kind === "html" ? this.framed(kind, text, edited) : element(kind, text);
      shown.dataset.kind = kind;
      this.fresh.push(shown);
    }
    this.box.replaceChildren(...this.fresh);
    this.box.classList.remove("live-old");
  }

  /** The run is over. */
  end() {
    if (!this.built && !this.fresh.length) {
      this.reset();
      return;
    }
    this.box.replaceChildren(...this.fresh);
    this.box.classList.remove("live-old");
    this.box.removeAttribute("aria-busy");
  }

  /** Again what the build computed. */
  reset() {
    this.box?.classList.remove("live-old");
    this.box?.removeAttribute("aria-busy");
    if (this.built) {
      this.box.replaceChildren(...this.built);
    } else {
      this.box?.remove();
      this.box = null;
    }
  }

  // A figure or a table, in a copy of the frame in which the page has it.
  framed(kind, text, edited) {
    const frame = this.frames.shift();
    const fresh = element(kind, text);
    const svg = fresh.querySelector("svg");
    const built = frame?.matches("svg") ? frame : frame?.querySelector("svg");
    if (svg) svg.setAttribute("aria-label", (!edited && built?.getAttribute("aria-label")) || "Figure drawn by the code above, as changed");
    if (!frame?.matches("figure")) return fresh;
    const copy = frame.cloneNode(true);
    copy.querySelectorAll(":scope > :not(figcaption)").forEach((node) => node.remove());
    copy.prepend(...fresh.childNodes);
    return copy;
  }
}
