// <live-figure kind="...">: the picture, its controls, its voice, one element whole (hence the length). What is special to a
// kind lives in the kind's module.
import { box } from "./ask.js";
import { fmt, speak } from "./numbers.js";
import { results, picture } from "./picture.js";
import { snap, position, valueAt, range, initial, fromAddress, toAddress } from "./state.js";

const make = (name, attributes = {}, ...children) => {
  const node = document.createElement(name);
  for (const [k, v] of Object.entries(attributes))
    if (k.startsWith("on")) node.addEventListener(k.slice(2), v);
    else if (v === true) node.setAttribute(k, "");
    else if (v !== undefined && v !== false) node.setAttribute(k, v);
  node.append(...children);
  return node;
};
const SVG = "http://www.w3.org/2000/svg";
let count = 0;
const still = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

export const element = figures =>
  class extends HTMLElement {
    connectedCallback() {
      this.start();
    }
    disconnectedCallback() {
      this.pause();
      this.watcher?.disconnect();
      removeEventListener("hashchange", this.listen);
    }

    start() {
      const kind = this.getAttribute("kind");
      if (this.ready || !figures[kind] || !this.isConnected) return;
      this.module = figures[kind];
      this.figure = this.module.figure;
      this.ready = true;
      const skip = ["kind", "id", "class", "style", "role", "autoplay"];
      try {
        this.first = initial(
          this.figure,
          Object.fromEntries(
            [...this.attributes].filter(a => !skip.includes(a.name) && !a.name.startsWith("data-")).map(a => [a.name, a.value]),
          ),
        );
      } catch (error) {
        console.error(`live-figure ${kind}: ${error.message}`);
        return;
      }
      this.names = [this.id, this.closest("figure")?.id, kind].filter(Boolean);
      this.shared = fromAddress(this.figure, location.hash, this.names);
      this.state = { ...this.first, ...this.shared };
      const run = () => {
        this.build();
        if (!this.asking) this.begin();
      };
      if (this.figure.slow)
        setTimeout(run, 30); // until a long first computation is done the built-in picture stands
      else run();
    }

    begin() {
      if (this.getAttribute("autoplay") === "yes" && !still()) this.whenSeen(() => this.play(this.figure.plays[0]));
    }

    // The reader has said what will happen, or does not want to. An address that brings a state is beyond the question.
    answered(said) {
      if (!this.asking) return;
      const inside = this.asking.contains(document.activeElement);
      this.asking.remove();
      this.asking = null;
      this.panel.classList.remove("lf-waits");
      this.said_.textContent = said ? `You said: ${said}` : "";
      if (inside) this.panel.querySelector("input, select, button").focus();
      this.draw();
      this.begin();
    }

    whenSeen(then) {
      const eye = new IntersectionObserver(entries => {
        if (entries.some(e => e.isIntersecting)) {
          eye.disconnect();
          then();
        }
      });
      eye.observe(this);
    }

    build() {
      const id = `lf${++count}`,
        { title, controls, plays = [], actions = [] } = this.figure;
      this.id_ = id;
      this.svg = document.createElementNS(SVG, "svg");
      this.svg.setAttribute("role", "img");
      this.svg.setAttribute("aria-labelledby", `${id}-words`);
      this.grips = new Map();
      this.stage = make("div", { class: "lf-picture" }, this.svg);
      this.words = make("p", { class: "lf-sentence", id: `${id}-words` });
      this.voice = make("p", { class: "lf-voice", "aria-live": "polite" });
      this.inputs = {};
      this.kept = new Map();
      const rows = controls.filter(c => !c.hidden).map(control => this.control(control, `${id}-${control.name}`));
      this.buttons = plays.map(p =>
        make("button", { type: "button", onclick: () => (this.playing ? this.pause() : this.play(p)) }, p.label),
      );
      const table = make(
        "button",
        {
          type: "button",
          "aria-expanded": "false",
          "aria-controls": `${id}-table`,
          onclick: () => {
            this.table.hidden = !this.table.hidden;
            table.setAttribute("aria-expanded", String(!this.table.hidden));
            this.tabulate();
          },
        },
        "Values as a table",
      );
      this.table = make("div", {
        class: "lf-table",
        id: `${id}-table`,
        role: "region",
        "aria-label": `${title}: values`,
        tabindex: "0",
      });
      this.table.hidden = true;
      this.said_ = make("p", { class: "lf-said", role: "status" });
      const question = this.dataset.ask;
      this.asking = question && !this.shared ? box(make, id, question, said => this.answered(said)) : null;
      this.panel = make(
        "div",
        { class: this.asking ? "lf-panel lf-waits" : "lf-panel" },
        make("div", { class: "lf-controls" }, ...rows),
        make(
          "div",
          { class: "lf-buttons" },
          ...this.buttons,
          ...actions.map(a => make("button", { type: "button", onclick: () => this.set(a.change(this.state)) }, a.label)),
          make("button", { type: "button", onclick: () => this.reset() }, "Reset"),
          table,
          this.said_,
        ),
      );
      this.setAttribute("role", "group");
      this.setAttribute("aria-label", title);
      this.classList.add("lf-on");
      this.replaceChildren(
        this.stage,
        this.words,
        this.voice,
        make("div", { class: "lf-board" }, this.panel, ...(this.asking ? [this.asking] : [])),
        this.table,
      );
      this.addEventListener("keydown", event => this.key(event));
      this.listen = () => {
        const given = fromAddress(this.figure, location.hash, this.names);
        if (given) {
          this.answered("");
          this.state = { ...this.first, ...given };
          this.show();
          this.scrollIntoView({ block: "nearest" });
        }
      };
      addEventListener("hashchange", this.listen);
      const t = performance.now();
      this.draw();
      this.firstDraw = performance.now() - t;
      this.watcher = new ResizeObserver(() => {
        if (Math.abs(this.width() - this.drawn) >= 1) this.draw();
      });
      this.watcher.observe(this.stage);
    }

    control(control, id) {
      const { name, label, choose, check } = control,
        output = make("output", { for: id });
      const changed = value => this.set({ [name]: value });
      let input;
      if (choose)
        input = make(
          "select",
          { id, onchange: () => changed(input.value) },
          ...Object.entries(choose).map(([k, v]) => make("option", { value: k }, v)),
        );
      else if (check) input = make("input", { id, type: "checkbox", onchange: () => changed(input.checked) });
      else
        input = make("input", {
          id,
          type: "range",
          ...range(control),
          oninput: () => changed(valueAt(control, Number(input.value))),
        });
      const row = make(
        "div",
        { class: `lf-control lf-${choose ? "choose" : check ? "check" : "slide"}` },
        ...(check
          ? [input, make("label", { for: id }, label)]
          : [make("label", { for: id }, label), input, ...(choose ? [] : [output])]),
      );
      this.inputs[name] = { control, input, output, row };
      return row;
    }

    width() {
      return Math.max(260, Math.min(720, Math.floor(this.stage.clientWidth || 720)));
    }
    set(change) {
      this.pause();
      this.change(change);
    }
    change(change) {
      Object.assign(this.state, this.figure.settle?.({ ...this.state, ...change }, change) ?? change);
      this.show();
    }
    show() {
      // at most one drawing a frame
      if (!this.queued)
        this.queued = requestAnimationFrame(() => {
          this.queued = 0;
          this.draw();
        });
    }

    draw() {
      const { state, figure, module } = this;
      this.found = results(module, state, this.kept);
      this.drawn = this.width();
      const { W, H, body, handles } = picture(module, state, this.drawn, this.found);
      this.svg.setAttribute("viewBox", `0 0 ${W} ${H}`);
      this.svg.setAttribute("width", W);
      this.svg.setAttribute("height", H);
      this.svg.innerHTML = body;
      this.grip(this.asking ? [] : handles, W, H);
      for (const { control, input, output, row } of Object.values(this.inputs)) {
        const v = state[control.name];
        row.hidden = (control.narrow && W >= 560) || control.when?.(state) === false;
        if (control.check) {
          input.checked = v;
          continue;
        }
        input.value = String(control.choose ? v : position(control, v));
        if (!control.choose) {
          output.textContent = control.words?.(v, state) ?? fmt(v);
          input.setAttribute("aria-valuetext", speak(output.textContent));
        }
      }
      const sentence = figure.sentence(state, ...this.found);
      if (sentence !== this.words.textContent) this.words.textContent = sentence;
      if (!this.table.hidden) this.tabulate();
      if (this.said === undefined) {
        this.said = sentence;
        return;
      } // the first picture is not announced
      clearTimeout(this.later);
      if (!this.playing)
        this.later = setTimeout(() => {
          if (sentence !== this.said) {
            this.said = sentence;
            this.voice.textContent = speak(sentence);
          }
          this.remember();
        }, 400);
    }

    remember() {
      const name = this.names[0],
        changed = Object.entries(this.state).some(([k, v]) => v !== this.first[k]);
      if (!changed && !fromAddress(this.figure, location.hash, this.names)) return;
      try {
        history.replaceState(null, "", changed ? toAddress(name, this.state, this.first) : location.pathname + location.search);
      } catch {
        /* some file:// pages may not */
      }
    }

    // Handles are page elements over the picture: a finger that starts elsewhere still scrolls the page.
    grip(handles, W, H) {
      const seen = new Set();
      for (const h of handles) {
        const key = h.names.join(),
          [cx, cy] = h.names.map(n => this.inputs[n]?.control ?? (n && this.figure.controls.find(c => c.name === n)));
        let grip = this.grips.get(key);
        seen.add(key);
        if (!grip) {
          grip = make("div", { class: "lf-handle", role: "slider", tabindex: "0" });
          this.grips.set(key, grip);
          this.stage.append(grip);
          grip.addEventListener("pointerdown", event => {
            grip.setPointerCapture(event.pointerId);
            grip.focus();
            grip.held = true;
            event.preventDefault();
          });
          grip.addEventListener("pointermove", event => {
            if (!grip.held) return;
            const box = this.svg.getBoundingClientRect(),
              at = grip.info.back(
                ((event.clientX - box.left) * this.drawn) / box.width,
                ((event.clientY - box.top) * this.drawn) / box.width,
              ),
              change = {};
            h.names.forEach((n, i) => {
              if (n && Number.isFinite(at[i])) change[n] = snap(i ? grip.cy : grip.cx, at[i]);
            });
            this.set(change);
          });
          for (const end of ["pointerup", "pointercancel"])
            grip.addEventListener(end, () => {
              grip.held = false;
            });
        }
        Object.assign(grip, { info: h, cx, cy });
        grip.style.left = `${(h.at[0] / W) * 100}%`;
        grip.style.top = `${(h.at[1] / H) * 100}%`;
        const main = cx ?? cy,
          values = h.names.filter(Boolean).map(n => fmt(this.state[n]));
        for (const [k, v] of Object.entries({
          "aria-label": h.words,
          "aria-valuemin": main.min,
          "aria-valuemax": main.max,
          "aria-valuenow": this.state[main.name],
          "aria-valuetext": speak(values.join(", ")),
          "aria-orientation": cx ? undefined : "vertical",
        }))
          if (v !== undefined) grip.setAttribute(k, v);
      }
      for (const [key, grip] of this.grips)
        if (!seen.has(key)) {
          grip.remove();
          this.grips.delete(key);
        }
    }

    key(event) {
      const { key, target } = event,
        grip = target.classList.contains("lf-handle") ? target : null;
      if (event.ctrlKey || event.metaKey || event.altKey || this.asking) return;
      const done = change => {
        event.preventDefault();
        if (change) this.set(change);
      };
      if ((key === "r" || key === "R") && target.tagName !== "SELECT") return done(this.reset());
      if (key === " " && this.buttons.length && (grip || target.type === "range"))
        return done(this.playing ? this.pause() : this.play(this.figure.plays[0]));
      const slide = target.type === "range" ? Object.values(this.inputs).find(i => i.input === target)?.control : null;
      const way = {
        ArrowLeft: [0, -1],
        ArrowRight: [0, 1],
        ArrowDown: [1, -1],
        ArrowUp: [1, 1],
        Home: [0, -Infinity],
        End: [0, Infinity],
        PageDown: [1, -Infinity],
        PageUp: [1, Infinity],
      }[key];
      if (!way) return;
      let control = slide;
      if (grip) {
        control = [grip.cx, grip.cy][way[0]];
        if (!control && !(grip.cx && grip.cy)) control = grip.cx ?? grip.cy;
      } else if (!slide || !(event.shiftKey && Number.isFinite(way[1]))) return; // the browser moves a slider by one step itself
      if (!control) return;
      const by = way[1] * (event.shiftKey ? 10 : 1),
        now = this.state[control.name];
      const to = !Number.isFinite(by)
        ? by < 0
          ? control.min
          : control.max
        : control.log
          ? valueAt(control, Math.max(0, Math.min(range(control).max, position(control, now) + by)))
          : snap(control, now + by * control.step);
      done({ [control.name]: to });
    }

    reset() {
      this.pause();
      this.state = { ...this.first };
      this.show();
    }

    play(p) {
      // moves one control from one value to another
      const plan = typeof p.run === "function" ? p.run(this.state) : p,
        control = this.figure.controls.find(c => c.name === plan.name);
      this.pause();
      if (still()) {
        this.change({ [plan.name]: plan.to });
        return;
      }
      const begin = performance.now();
      const tick = now => {
        const t = Math.max(0, Math.min(1, (now - begin) / (1000 * plan.seconds)));
        if (t >= 1) this.pause();
        const value = snap(control, plan.from + t * (plan.to - plan.from));
        if (value !== this.state[plan.name] || t >= 1) this.change({ [plan.name]: value });
        if (t < 1) this.playing = requestAnimationFrame(tick);
      };
      this.change({ [plan.name]: plan.from });
      this.playing = requestAnimationFrame(tick);
      this.buttons.forEach(b => {
        b.textContent = "Pause";
      });
    }
    pause() {
      if (!this.playing) return;
      cancelAnimationFrame(this.playing);
      this.playing = 0;
      this.buttons.forEach((b, i) => {
        b.textContent = this.figure.plays[i].label;
      });
      this.show();
    }

    tabulate() {
      const { head, rows } = this.figure.table(this.state, ...this.found),
        cell = (v, i) => make(i ? "td" : "th", i ? {} : { scope: "row" }, typeof v === "number" ? fmt(v) : String(v));
      this.table.replaceChildren(
        make(
          "table",
          {},
          make("caption", {}, this.figure.title),
          make("thead", {}, make("tr", {}, ...head.map(h => make("th", { scope: "col" }, h)))),
          make("tbody", {}, ...rows.map(r => make("tr", {}, ...r.map(cell)))),
        ),
      );
    }
  };

// Called at the end of every bundle; a second bundle on a page adds its kinds to the first one's element.
export const register = figures => {
  if (!globalThis.customElements) return;
  if (!customElements.get("live-figure")) customElements.define("live-figure", element(figures));
  document.querySelectorAll("live-figure").forEach(node => node.start?.());
};
