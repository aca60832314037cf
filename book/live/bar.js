// The strip below the page while Python is there: what it does, how much of it has come, and what concerns all cells.

const megabytes = (bytes) => (bytes / 1e6).toFixed(1);

export class Bar {
  constructor() {
    this.box = document.createElement("section");
    this.box.className = "live-bar";
    this.box.setAttribute("aria-label", "Python in this page");
    this.status = document.createElement("p");
    this.status.setAttribute("role", "status");
    this.status.textContent = "Fetching Python for this page.";
    this.count = document.createElement("p");
    this.meter = document.createElement("progress");
    this.meter.setAttribute("aria-label", "Fetching Python");
    this.box.append(this.status, this.count, this.meter);
    document.querySelector("article").append(this.box);
  }

  progress(come, total) {
    this.meter.max = total;
    this.meter.value = come;
    this.count.textContent = `${megabytes(come)} of ${megabytes(total)} MB, ${Math.floor((100 * come) / total)} %`;
  }

  /** Python is there: buttons instead of the meter. */
  ready(actions) {
    this.count.remove();
    this.meter.remove();
    const labels = { all: "Run all", stop: "Stop", reset: "Reset all" };
    this.buttons = Object.fromEntries(
      Object.entries(labels).map(([key, label]) => {
        const button = document.createElement("button");
        button.type = "button";
        button.textContent = label;
        button.addEventListener("click", actions[key]);
        return [key, button];
      }),
    );
    this.box.append(...Object.values(this.buttons));
    this.idle();
  }

  say(text) {
    this.status.textContent = text;
  }

  busy(text) {
    this.say(text);
    this.buttons.stop.disabled = false;
  }

  idle() {
    this.buttons.stop.disabled = true;
  }

  remove() {
    this.box.remove();
  }
}
