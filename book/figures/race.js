// Same rho, same radius, or same start? Four runners around the saddle of the two-weight network.
import { norm, add, perturb, banana, fmt } from "./numbers.js";
import { look } from "./palette.js";
import { bananaMap } from "./terrain.js";

export function race({ rule = "sam", w = [-1.5, 0.5], eta = 0.01, rho = 1, n = 200 }) {
  const path = [w],
    radius = [];
  for (let t = 0; t < n; t++) {
    const g = banana.g(w),
      s = norm(g);
    const e =
      rule === "gd"
        ? [0, 0]
        : rule === "clip"
          ? perturb(g, Math.min(rho, s > 0 ? rho / s : 0))
          : perturb(g, rho, rule === "monge" ? 1 : 0);
    radius.push(norm(e));
    path.push((w = add(w, banana.g(add(w, e)), -eta)));
  }
  return { path, radius };
}

// Of 100 starts on a grid from -3 to 3: how many end within 0.5 of the saddle. Written out, because it runs at every change.
export function stranded({ rule, eta, rho, n = 200 }) {
  let count = 0;
  for (let k = 0; k < 100; k++) {
    let x = (2 * Math.floor(k / 10) - 9) / 3,
      y = (2 * (k % 10) - 9) / 3;
    for (let t = 0; t < n; t++) {
      let r = 2 * (x * y - 1),
        a = x,
        b = y;
      const s = Math.abs(r) * Math.sqrt(x * x + y * y);
      if (s > 0 && rule !== "gd") {
        const k = rho / s / (rule === "monge" ? Math.sqrt(1 + s * s) : rule === "clip" ? Math.max(1, s) : 1);
        a += k * r * y;
        b += k * r * x;
        r = 2 * (a * b - 1);
      }
      x -= eta * r * b;
      y -= eta * r * a;
    }
    if (x * x + y * y < 0.25) count++;
  }
  return { count };
}

const RULES = ["gd", "sam", "monge", "clip"],
  WHO = { gd: "gd", sam: "sam", monge: "msam", clip: "believed" },
  NAME = { gd: "GD", sam: "SAM", monge: "M-SAM", clip: "clipped" };
const mean = v => v.reduce((a, b) => a + b, 0) / v.length,
  goal = w => Math.min(norm(add(w, [1, 1], -1)), norm(add(w, [-1, -1], -1)));
const PAIRS = { pair: ["sam", "monge"], rest: ["gd", "clip"] };

export const figure = {
  title: "Same rho, same radius, or same start?",
  slow: true,
  controls: [
    { name: "w0", label: "start w₀", min: -3, max: 3, step: 0.05, value: -1.5 },
    { name: "w1", label: "start w₁", min: -3, max: 3, step: 0.05, value: 0.5 },
    { name: "sam", label: "ρ of SAM", min: 0, max: 1.5, step: 0.005, value: 1 },
    { name: "rho", label: "ρ of M-SAM, clip", min: 0, max: 1.5, step: 0.05, value: 1 },
    { name: "steps", label: "steps shown", min: 1, max: 200, step: 1, value: 200 },
    { name: "lines", label: "runners", choose: { pair: "SAM and M-SAM", rest: "GD and clipped" }, value: "pair", narrow: true },
  ],
  plays: [{ label: "Run", name: "steps", from: 1, to: 200, seconds: 6 }],
  actions: [
    {
      label: "Give SAM M-SAM's mean radius",
      change: ({ w0, w1, rho }) => ({ sam: Math.round(200 * mean(race({ rule: "monge", w: [w0, w1], rho }).radius)) / 200 }),
    },
  ],
  height: (W, narrow) => (narrow ? W + 206 : 440),
  calls: ({ w0, w1, sam, rho }) =>
    RULES.flatMap(rule => {
      const r = rule === "sam" ? sam : rule === "gd" ? 0 : rho;
      return [
        ["race", { rule, w: [w0, w1], eta: 0.01, rho: r }],
        ["stranded", { rule, eta: 0.01, rho: r }],
      ];
    }),

  draw(s, { w0, w1, steps, lines, narrow }, ...found) {
    const { W, H } = s,
      shown = narrow ? PAIRS[lines] : RULES,
      side = narrow ? W - 40 : H - 48,
      p = s.plot([28, 12, side, side], [-2.4, 2.4], [-2.4, 2.4], { grid: false, box: true, ticks: [4, 4] });
    bananaMap(p, [0.05, 0.4, 1, 2.5, 6, 14, 30], { bold: 1.6 }).saddle([0, 0]).minimum([1, 1]).minimum([-1, -1]);
    shown.forEach(rule => {
      const { path } = found[2 * RULES.indexOf(rule)],
        who = WHO[rule],
        seen = path.slice(0, steps + 1);
      p.line(seen, who, { width: 2 })
        .mark(rule === "clip" ? "cross" : who, seen.at(-1), { r: 5 })
        .label(seen.at(-1), NAME[rule], { color: look(who).text, far: 11 });
      p.leaves(seen, who);
    });
    p.mark("disc", [w0, w1], { r: 5 }).handle(["w0", "w1"], [w0, w1], "start");
    const left = narrow ? 44 : side + 92,
      top = narrow ? W + 6 : 30,
      q = s.plot(
        [left, top, W - left - 16, narrow ? 90 : 190],
        [0, 200],
        [0, Math.max(0.5, ...shown.flatMap(r => found[2 * RULES.indexOf(r)].radius)) * 1.15],
        { xlabel: narrow ? undefined : "step", ylabel: narrow ? undefined : "radius in fact used", ticks: [4, 3] },
      );
    shown
      .filter(r => r !== "gd")
      .forEach(rule =>
        q.line(
          found[2 * RULES.indexOf(rule)].radius.slice(0, steps).map((v, t) => [t, v]),
          WHO[rule],
        ),
      );
    const y = narrow ? H - 50 : 304,
      x = narrow ? 16 : side + 60,
      room = W - x - 16;
    s.text(x, y - 8, "stranded at the saddle, of 100 starts", { size: 12 });
    shown.forEach((rule, i) => {
      const { count } = found[2 * RULES.indexOf(rule) + 1],
        yy = y + 14 + i * 26,
        at = x + 70;
      s.text(x, yy + 4, NAME[rule], { color: look(WHO[rule]).text })
        .line(
          [
            [at, yy],
            [at + ((room - 110) * count) / 60, yy],
          ],
          WHO[rule],
          { width: 10, dash: "none" },
        )
        .text(x + room, yy + 4, String(count), { anchor: "end" });
    });
  },

  sentence: ({ steps, w0, w1 }, ...found) => {
    if (norm(banana.g([w0, w1])) === 0) return "The gradient is zero at this start: nobody moves.";
    const end = i => found[2 * i].path[steps],
      say = (name, w) => {
        const a = norm(w),
          b = goal(w);
        return `${name} ${steps === 200 ? "ends" : "is"} ${a < b ? `${fmt(a, 2)} from the saddle` : `${fmt(b, 2)} from the minimum`}.`;
      };
    return `${say("SAM", end(1))} ${say("M-SAM", end(2))}${w0 === -w1 ? " On this diagonal even plain descent runs into the saddle: it cannot tell left from right." : ""}`;
  },
  table: ({ steps }, ...found) => ({
    head: ["method", "w₀", "w₁", "mean radius", "stranded of 100"],
    rows: RULES.map((r, i) => [NAME[r], ...found[2 * i].path[steps], mean(found[2 * i].radius), found[2 * i + 1].count]),
  }),
};
