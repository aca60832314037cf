// The hilltop that holds: around a saddle there is a strip in which the pull points inward.
import { perturb, add, fmt } from "./numbers.js";
import { METHODS, look } from "./palette.js";

const grad =
  h =>
  ([x, y]) => [h * x, h * (y ** 3 - y)];

export function trap({ w = [0.5, 0.3], h = 20, eta = 0.0025, rho = 0.5, alpha = 0, n = 400 }) {
  // L = h (x^2/2 - y^2/2 + y^4/4)
  const slope = grad(h),
    path = [w];
  for (let t = 0; t < n; t++) path.push((w = add(w, slope(add(w, perturb(slope(w), rho, alpha))), -eta)));
  const basin = alpha > 0 && rho > 0 ? Math.sqrt((Math.sqrt(1 + 4 * (alpha * rho * h) ** 2) - 1) / 2) / (alpha * h) : rho;
  return { path, basin }; // basin: |y| below which the pull is inward at x = 0
}

// Sixty starts on a fixed grid: which of them stand more than half-way to a minimum after n steps.
export const STARTS = [-1, -0.5, 0, 0.5, 1].flatMap(x =>
  [-1, 1].flatMap(side => [1, 2, 3, 4, 5, 6].map(k => [x, side * k * 0.115])),
);
export function escapes({ h, eta, rho, alpha, n = 400 }) {
  return {
    left: STARTS.map(([x, y]) => {
      // written out, because it runs at every change
      for (let t = 0; t < n; t++) {
        const a = h * x,
          b = h * (y * y * y - y),
          s = Math.sqrt(a * a + b * b),
          k = s > 0 ? rho / s / Math.sqrt(1 + alpha * alpha * s * s) : 0,
          u = x + k * a,
          v = y + k * b;
        x -= eta * h * u;
        y -= eta * h * (v * v * v - v);
      }
      return Math.abs(y) > 0.5;
    }),
  };
}

const WHO = { gd: "gd", sam: "sam", monge: "msam" },
  half = ({ rule }) => (rule === "monge" ? 1 : 0),
  size = ({ rule, rho }) => (rule === "gd" ? 0 : rho);

export const figure = {
  title: "The hilltop that holds",
  controls: [
    { name: "rule", label: "rule", choose: { gd: "GD", sam: "SAM", monge: "M-SAM" }, value: "sam" },
    { name: "rho", label: "radius ρ", min: 0, max: 1.5, step: 0.05, value: 0.5, when: state => state.rule !== "gd" },
    { name: "h", label: "curvature h", min: 1, max: 50, log: true, value: 20 },
    { name: "x", label: "start x", min: -1, max: 1, step: 0.05, value: 0.5 },
    { name: "y", label: "start y", min: -1, max: 1, step: 0.05, value: 0.3 },
  ],
  height: (W, narrow) => (narrow ? W + 60 : 430),
  calls: state => {
    const { h, x, y } = state,
      args = { h, eta: 0.05 / h, rho: size(state), alpha: half(state) };
    return [
      ["trap", { w: [x, y], ...args }],
      ["escapes", args],
    ];
  },

  draw(s, state, { path, basin }, { left }) {
    const { W, H } = s,
      { rule, h, x, y, narrow } = state,
      who = WHO[rule],
      side = narrow ? W - 48 : H - 46,
      p = s.plot([36, 12, narrow ? side : 470, side], narrow ? [-1.3, 1.3] : [-1.6, 1.6], [-1.35, 1.35], {
        ticks: [4, 4],
        grid: false,
        box: true,
        xlabel: narrow ? undefined : "*x*",
      });
    const [, a] = p.at([0, Math.min(1.35, basin)]),
      [, b] = p.at([0, -Math.min(1.35, basin)]);
    if (basin > 0)
      s.put(
        `<rect x="${p.box[0]}" y="${a.toFixed(1)}" width="${p.box[2]}" height="${(b - a).toFixed(1)}" fill="${look(who).color}" fill-opacity="0.16"/>`,
      );
    if (basin > 0)
      for (const v of [-basin, basin])
        p.line(
          [
            [-1.6, v],
            [1.6, v],
          ],
          who,
          { width: 1.2 },
        );
    p.contour(([u, v]) => (u * u) / 2 - (v * v) / 2 + v ** 4 / 4, [-0.2, -0.1, -0.03, 0, 0.06, 0.2, 0.45, 0.8, 1.2], {
      n: 40,
      m: 40,
    });
    if (!narrow) STARTS.forEach((w, i) => p.mark("ring", w, left[i] ? { r: 3.4 } : { hollow: true, r: 3, width: 1.2 }));
    p.saddle([0, 0]).minimum([0, 1]).minimum([0, -1]);
    p.line(path, who, { width: 1.6, dash: "none" });
    const end = path.at(-1);
    p.mark(who, end, { r: 5.5, hollow: false })
      .label(end, "end", { color: look(who).text, far: 12 })
      .mark("disc", [x, y], { r: 5.5 })
      .handle(["x", "y"], [x, y], "start");
    const out = left.filter(Boolean).length,
      lines = [
        [METHODS[who].label, look(who).text],
        [basin > 0 ? `strip: half-width ${fmt(basin, 3)}` : "no strip"],
        [`${out} of 60 starts leave`],
        [`ρ h = ${fmt(size(state) * h, 3)}`],
      ];
    if (narrow) lines.slice(1, 3).forEach(([t], i) => s.text(16, W + 4 + 22 * i, t, { weight: i ? 600 : undefined }));
    else {
      lines.forEach(([t, color], i) => s.text(536, 60 + 30 * i, t, { color, weight: i === 2 || i === 0 ? 600 : undefined }));
      s.shape("ring", 543, 200, { hollow: true, r: 3.4, width: 1.2 })
        .text(556, 204, "a start that is held", { size: 12 })
        .shape("ring", 543, 224, { r: 3.4 })
        .text(556, 228, "a start that leaves", { size: 12 });
    }
  },

  sentence: (state, { path, basin }) => {
    const { rule, y, rho } = state,
      end = path.at(-1),
      name = METHODS[WHO[rule]].label;
    if (y === 0) return "Starts on the ridge y = 0: no rule ever leaves it.";
    const held = Math.abs(end[1]) <= 0.5;
    return size(state) === 0
      ? `${name}: no strip; it ${held ? "is still on its way" : "leaves"}.`
      : `${name}, rho ${fmt(rho)}: ${Math.abs(y) < basin ? "inside" : "outside"} the strip of half-width ${fmt(basin, 3)}; ${held ? "trapped" : "it leaves"}.`;
  },
  table: (_, { path, basin }, { left }) => ({
    head: ["step", "x", "y"],
    rows: [
      ...[0, 1, 2, 5, 10, 20, 50, 100, 200, 300, 400].map(t => [t, ...path[t]]),
      ["half-width of the strip", "", basin],
      ["starts that leave, of 60", "", left.filter(Boolean).length],
    ],
  }),
};
