// The page's Python, seen from the page: cells go in, events come out, and it can be stopped at any time.

export class Stopped extends Error {}

export class Interpreter {
  constructor(parts) {
    this.parts = parts;
    this.worker = null;
  }

  /** Run a cell, in a Python that is started if there is none.
   * @param source - of the cell.
   * @param name - for tracebacks.
   * @param hear - gets each event.
   * @returns whether it came to its end, and the seconds it took.
   */
  async run(source, name, hear) {
    if (!this.worker) {
      this.worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
      await this.ask(this.parts, hear);
    }
    return this.ask({ source, name }, hear);
  }

  /** End this Python with all its names; the next cell starts another. */
  stop() {
    this.worker?.terminate();
    this.worker = null;
    this.refuse?.(new Stopped("stopped"));
  }

  ask(message, hear) {
    return new Promise((accept, refuse) => {
      this.refuse = refuse;
      const fail = (text) => {
        refuse(new Error(text));
        this.stop();
      };
      this.worker.onerror = (event) => fail(event.message ?? "the browser cannot start it");
      this.worker.onmessage = ({ data }) => {
        if (data.event) hear(data.event);
        else if (data.failure !== undefined) fail(data.failure);
        else accept(data.answer);
      };
      this.worker.postMessage(message);
    });
  }
}
