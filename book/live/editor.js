// The code of a cell, to be changed where it stands: the page's own colored code with a text field on top that shows nothing
// but the cursor and the selection.
import { colored } from "./colors.js";

// So that letters lie on letters.
const SAME = ["font", "lineHeight", "letterSpacing", "tabSize", "padding", "borderWidth", "whiteSpace", "overflowWrap"];

export class Editor {
  /**
   * @param pre - the page's code.
   * @param source - the same as text.
   * @param label - for those who do not see it.
   * @param change - called when the text has changed.
   * @param run - called at Shift+Enter.
   */
  constructor(pre, source, label, change, run) {
    this.pre = pre;
    this.source = source;
    this.built = [...pre.childNodes];
    this.field = document.createElement("textarea");
    Object.assign(this.field, { value: source, spellcheck: false, autocapitalize: "off", autocomplete: "off", className: "live-code" });
    this.field.setAttribute("aria-label", label);
    const box = document.createElement("div");
    box.className = "live-editor";
    pre.replaceWith(box);
    box.append(pre, this.field);
    const look = getComputedStyle(pre);
    for (const part of SAME) this.field.style[part] = look[part];
    this.field.addEventListener("input", () => {
      this.color();
      change();
    });
    this.field.addEventListener("keydown", (event) => {
      if (event.key !== "Enter") return;
      if (event.shiftKey || event.ctrlKey) {
        event.preventDefault();
        run();
      } else if (!event.isComposing) {
        event.preventDefault();
        this.breakLine();
      }
    });
  }

  get text() {
    return this.field.value;
  }

  get edited() {
    return this.text !== this.source;
  }

  reset() {
    this.field.value = this.source;
    this.color();
  }

  color() {
    if (this.edited) this.pre.innerHTML = `${colored(this.text)}\n`;
    else this.pre.replaceChildren(...this.built);
  }

  // A new line begins below the one before, four further in after a colon.
  breakLine() {
    const line = this.text.slice(0, this.field.selectionStart).split("\n").pop();
    const indent = line.match(/^ */)[0] + (/:\s*$/.test(line) ? "    " : "");
    document.execCommand("insertText", false, `\n${indent}`); // unlike a change of the value this can be undone
  }
}
