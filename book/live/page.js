// The cells of a page as a notebook. Python has seen the first `done` of them as they stand; to run a cell is to run those
// above it that it has not seen, those that the page does not show among them, and then the cell.
import { Bar } from "./bar.js";
import { Editor } from "./editor.js";
import { Interpreter, Stopped } from "./interpreter.js";
import { loadPage, loadParts } from "./load.js";
import { Output } from "./output.js";

/** Make the cells editable and fetch Python.
 * @param base - address of the folder of scripts.
 * @param name - of the page.
 * @param tools - of each cell that the page shows: the cell, the box of its buttons, and the Run button.
 */
export async function openPage(base, name, tools) {
  const bar = new Bar();
  try {
    const page = await loadPage(base, name);
    const parts = await loadParts(base, page, (come, total) => bar.progress(come, total));
    return new Page(page.cells, new Interpreter(parts), bar, tools);
  } catch (error) {
    bar.remove();
    throw error;
  }
}

class Page {
  constructor(cells, interpreter, bar, tools) {
    this.interpreter = interpreter;
    this.bar = bar;
    this.done = 0;
    this.queue = Promise.resolve();
    this.running = null;
    this.shown = [];
    this.steps = cells.map(({ source, shown }, place) => {
      if (!shown) return { place, text: source };
      const step = new Shown(this, place, source, this.shown.length, tools[this.shown.length]);
      this.shown.push(step);
      return step;
    });
    bar.ready({
      all: () => this.run(this.shown.at(-1)),
      stop: () => this.stop(),
      reset: () => this.reset(),
    });
  }

  /** The Run button of a cell: runs it, or stops it. */
  press(index) {
    const step = this.shown[index];
    if (step === this.running) this.stop();
    else this.run(step);
  }

  /** Run a cell when those that wait have run. */
  run(step) {
    step.state("waits");
    this.queue = this.queue.then(() => this.runUpTo(step));
  }

  async runUpTo(target) {
    if (!target.waits) return; // stopped meanwhile
    let seconds = 0;
    for (let place = Math.min(this.done, target.place); place <= target.place; place += 1) {
      const result = await this.execute(this.steps[place], target);
      if (!result) {
        target.state("idle");
        return;
      }
      seconds += result.seconds;
    }
    this.bar.say(`Cell ${target.number} has run, ${seconds.toFixed(1)} seconds.`);
  }

  // One cell. What a hidden one has to say, an error above all, is shown at the cell for which it runs.
  async execute(step, target) {
    const seen = step.number ? step : target;
    const text = step.text;
    const name = step.number ? `cell ${step.number}` : "a cell that the page does not show";
    this.running = seen;
    this.done = Math.min(this.done, step.place);
    seen.begin();
    this.bar.busy(`Running ${name}.`);
    let error = "";
    try {
      const result = await this.interpreter.run(text, name, (event) => {
        if (event.kind === "error") error = event.text.trim().split("\n").pop();
        seen.show(event);
      });
      if (!result.ok) throw new Error(error);
      if (this.done === step.place && step.text === text) this.done += 1; // unless something was edited meanwhile
      if (step.number) seen.end();
      return result;
    } catch (failure) {
      if (failure instanceof Stopped) {
        this.done = 0;
        seen.show({ kind: "text", text: "Stopped.\n" });
        seen.end();
        this.bar.say("Stopped. Python starts anew at the next cell.");
      } else {
        if (!error) {
          this.done = 0; // not the cell: Python itself
          seen.show({ kind: "error", text: `Python has ended (${failure.message}). It starts anew at the next cell.` });
        }
        seen.end();
        this.bar.say(`${name[0].toUpperCase()}${name.slice(1)} failed. ${failure.message}`);
      }
      return null;
    } finally {
      this.running = null;
      seen.state("idle");
      this.bar.idle();
    }
  }

  stop() {
    this.shown.forEach((step) => step.state("idle"));
    this.interpreter.stop();
    this.done = 0;
  }

  /** Everything as the build left it. */
  reset() {
    this.stop();
    this.queue = this.queue.then(() => {
      this.shown.forEach((step) => step.reset());
      this.bar.say("Code and outputs are those of the book again.");
    });
  }

  /** A cell has been edited: what Python has seen from there on is no longer what stands there. */
  changed(step) {
    this.done = Math.min(this.done, step.place);
  }
}

// A cell that the page shows: its editor, its output, its buttons.
class Shown {
  constructor(page, place, source, index, { cell, box, button }) {
    this.page = page;
    this.place = place;
    this.number = index + 1;
    this.source = source;
    this.button = button;
    this.output = new Output(cell);
    const pre = cell.querySelector(".cell_input pre");
    const label = `Code of cell ${this.number}. Shift+Enter runs it.`;
    this.editor = pre && new Editor(pre, source, label, () => this.edited(), () => page.run(this));
    this.back = document.createElement("button");
    Object.assign(this.back, { type: "button", className: "live-reset", textContent: "Reset", hidden: true, title: "The book's code and output" });
    this.back.setAttribute("aria-label", `Reset cell ${this.number}`);
    this.back.addEventListener("click", () => {
      this.reset();
      page.changed(this);
      button.focus();
    });
    box.append(this.back);
  }

  get text() {
    return this.editor?.text ?? this.source;
  }

  edited() {
    this.back.hidden = false;
    this.page.changed(this);
  }

  begin() {
    this.state("runs");
    this.back.hidden = false;
    this.output.begin();
  }

  show(event) {
    this.output.show(event, Boolean(this.editor?.edited));
  }

  end() {
    this.output.end();
  }

  reset() {
    this.editor?.reset();
    this.output.reset();
    this.back.hidden = true;
  }

  state(now) {
    this.waits = now !== "idle";
    this.button.textContent = { idle: "Run", waits: "Waiting", runs: "Stop" }[now];
    this.button.setAttribute("aria-label", `${{ idle: "Run", waits: "Waiting to run", runs: "Stop" }[now]} cell ${this.number}`);
    this.button.dataset.state = now;
  }
}
