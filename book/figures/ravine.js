// The cliff beside the optimum: the best learning rate sits next to divergence.
import { fmt } from "./numbers.js";

export function ravine({ h = [10, 1], eta = 0.18, u = [1, 1], w = [1, 3], n = 40 }) {
  const path = [w];
  for (let t = 0; t < n; t++) path.push((w = w.map((c, i) => (1 - eta * u[i] * h[i]) * c)));
  const m = h.map((hi, i) => Math.abs(1 - eta * u[i] * hi)),
    rate = Math.max(...m);
  return { path, rate, stepsToMillionth: rate < 1 ? Math.log(1e-6) / Math.log(rate) : Infinity };
}

const scale = ({ ruler, h1 }) => (ruler === "off" ? [1, 1] : ruler === "rough" ? [1 / 8, 1 / 1.5] : [1 / h1, 1]);
const rateOf = state => (state.ruler === "off" ? state.eta : state.etau);

export const figure = {
  title: "The cliff beside the optimum",
  controls: [
    { name: "eta", label: "learning rate η", min: 0, max: 0.25, step: 0.001, value: 0.18, when: state => state.ruler === "off" },
    { name: "etau", label: "learning rate η", min: 0, max: 2.5, step: 0.01, value: 1, when: state => state.ruler !== "off" },
    { name: "h1", label: "stiff curvature", min: 1, max: 50, step: 1, value: 10 },
    {
      name: "ruler",
      label: "preconditioner",
      choose: { off: "none", rough: "rough: 1/8, 1/1.5", exact: "exact: 1/h" },
      value: "off",
    },
    { name: "w0", label: "start, stiff", min: -2, max: 2, step: 0.1, value: 1 },
    { name: "w1", label: "start, flat", min: -3, max: 3, step: 0.1, value: 3 },
  ],
  height: (W, narrow) => (narrow ? W * 1.5 : 410),
  calls: state => [["ravine", { h: [state.h1, 1], eta: rateOf(state), u: scale(state), w: [state.w0, state.w1] }]],

  draw(s, state, { path, rate }) {
    const { W, H } = s,
      { narrow, h1, ruler, w0, w1 } = state,
      eta = rateOf(state),
      u = scale(state),
      who = ruler === "off" ? "gd" : "llqr";
    const p = s.plot(narrow ? [22, 10, W - 36, W * 0.7] : [30, 14, 330, 350], [-2.3, 2.3], narrow ? [-2.4, 3.3] : [-3.3, 3.3], {
      ticks: narrow ? [4, 4] : [4, 6],
      box: true,
      grid: false,
      xlabel: narrow ? undefined : "stiff *w*₀",
    });
    p.contour(([x, y]) => (h1 * x * x + y * y) / 2, [0.1, 0.5, 1.5, 4, 10, 25, 60, 150], { n: 44, m: 60 }).minimum([0, 0]);
    p.line(path, who, { width: 1.6 }).leaves(path, who);
    path.slice(1).forEach(v => p.mark(who, v, { r: 3 }));
    p.mark("disc", path[0], { r: 5.5 }).handle(["w0", "w1"], [w0, w1], "start");
    const top = narrow ? W * 0.7 + 66 : 30,
      left = narrow ? 40 : 424,
      most = ruler === "off" ? 0.25 : 2.5,
      q = s.plot([left, top, W - left - 16, narrow ? H - top - 52 : 316], [0, most], [0, 1.6], {
        xlabel: "learning rate η",
        ylabel: "a step multiplies the distance by",
        ticks: [5, 4],
      });
    const grid = Array.from({ length: 101 }, (_, i) => (most * i) / 100),
      factor = (i, e) => Math.abs(1 - e * u[i] * [h1, 1][i]),
      worst = e => Math.max(factor(0, e), factor(1, e));
    const [a, b] = [q.at([0, 1.6])[1], q.at([0, 1])[1]];
    s.put(
      `<rect x="${q.box[0]}" y="${a.toFixed(1)}" width="${q.box[2].toFixed(1)}" height="${(b - a).toFixed(1)}" fill="currentColor" fill-opacity="0.08"/>`,
    );
    q.label([most * 0.04, 1.5], "diverges", { side: "e", size: 12 });
    for (const i of [0, 1])
      q.line(
        grid.map(e => [e, factor(i, e)]),
        "thin",
        { dash: i ? "2 3" : "none" },
      );
    q.line(
      grid.map(e => [e, worst(e)]),
      who,
      { width: 2.4, dash: "none" },
    )
      .mark("disc", [eta, Math.min(1.6, rate)], { r: 6 })
      .label([eta, Math.min(1.55, rate)], fmt(rate, 3), { side: "nw", weight: 600 });
    q.label([most * 0.45, factor(0, most * 0.45)], "stiff", { side: "e", size: 12 }).label(
      [most * 0.6, factor(1, most * 0.6)],
      "flat",
      { side: "s", size: 12 },
    );
  },

  sentence: (state, { rate, stepsToMillionth }) => {
    const eta = fmt(rateOf(state));
    if (rateOf(state) === 0) return "Learning rate 0: it does not move.";
    if (rate > 1 + 1e-12) return `Learning rate ${eta}: grows by ${fmt(rate)} a step and leaves the frame.`;
    if (rate > 1 - 1e-12) return `Learning rate ${eta}: on the cliff, one direction never shrinks.`;
    return rate < 1e-12
      ? `Learning rate ${eta}: home in one step.`
      : `Learning rate ${eta}: shrinks by ${fmt(rate)} a step, ${fmt(Math.round(stepsToMillionth))} steps to one millionth.`;
  },
  table: (_, { path, rate, stepsToMillionth }) => ({
    head: ["step", "stiff", "flat"],
    rows: [
      ...path.map((v, t) => [t, ...v]),
      ["worst multiplier", rate, ""],
      ["steps to one millionth", Number.isFinite(stepsToMillionth) ? stepsToMillionth : "never", ""],
    ],
  }),
};
