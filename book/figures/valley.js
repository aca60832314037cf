// Rolling along a level floor: a swing across a bending valley is a push along it.
import { perturb, add, fmt } from "./numbers.js";
import { METHODS, look } from "./palette.js";

export function valley({ w = [1.5, 0.5], eta = 0.1, rho = 0.2, alpha = 0, n = 500 }) {
  // L = (1 + x^2) y^2 / 2
  const grad = ([x, y]) => [x * y * y, (1 + x * x) * y],
    path = [w];
  for (let t = 0; t < n; t++) path.push((w = add(w, grad(add(w, perturb(grad(w), rho, alpha))), -eta)));
  return { path };
}

const WHO = { sam: "sam", monge: "msam", gd: "gd" };

export const figure = {
  title: "Rolling along a level floor",
  controls: [
    { name: "rule", label: "rule", choose: { sam: "SAM", monge: "M-SAM", gd: "GD" }, value: "sam" },
    { name: "rho", label: "radius ρ", min: 0, max: 0.5, step: 0.01, value: 0.2, when: state => state.rule !== "gd" },
    { name: "eta", label: "learning rate η", min: 0.01, max: 0.3, step: 0.01, value: 0.1 },
    { name: "steps", label: "steps", min: 1, max: 4000, log: true, whole: true, value: 500 },
    { name: "x", label: "start x", min: 0, max: 2, step: 0.05, value: 1.5 },
    { name: "y", label: "start y", min: -0.6, max: 0.6, step: 0.05, value: 0.5 },
  ],
  plays: [{ label: "Run", name: "steps", from: 1, to: 1000, seconds: 6 }],
  height: (W, narrow) => (narrow ? W * 1.45 : 420),
  calls: ({ rule, rho, eta, steps, x, y }) =>
    [
      [rule === "monge" ? 1 : 0, rule === "gd" ? 0 : rho],
      [0, 0],
    ].map(([alpha, r]) => ["valley", { w: [x, y], eta, rho: r, alpha, n: steps }]),

  draw(s, { rule, x, y, narrow }, { path }, plain) {
    const { W, H } = s,
      who = WHO[rule],
      p = s.plot(narrow ? [44, 28, W - 58, W * 0.62] : [50, 28, W - 66, 208], [-0.15, 2.1], [-0.68, 0.68], {
        xlabel: narrow ? undefined : "along the floor *x*",
        ylabel: "across *y*",
        ticks: [5, 4],
        grid: false,
        box: true,
      });
    p.contour(([u, v]) => ((1 + u * u) * v * v) / 2, [0.002, 0.01, 0.03, 0.07, 0.14, 0.25, 0.42, 0.7], { n: 40, m: 40 });
    for (let i = 0; i < 40; i++) {
      const u = -0.15 + (2.25 * i) / 40;
      p.line(
        [
          [u, 0],
          [u + 0.06, 0],
        ],
        "grid",
        { width: 2 + 2 * (1 + u * u) },
      );
    } // the floor, as wide as it is curved
    if (rule !== "gd") p.line(plain.path, "gd");
    p.line(path, who, { width: 1.1, dash: "none" }).leaves(path, who);
    const end = path.at(-1),
      rest = plain.path.at(-1);
    if (rule !== "gd") p.mark("gd", rest, { r: 4.5 }).label(rest, "GD", { side: "s", color: look("gd").text, far: 14 });
    p.mark(who, end, { r: 6 }).label(end, METHODS[who].label, { side: "n", far: 16, color: look(who).text });
    p.mark("disc", [x, y], { r: 5 }).handle(["x", "y"], [x, y], "start");
    // The last forty steps under the loupe.
    const tail = path.slice(-41).filter(v => Number.isFinite(v[0] + v[1])),
      xs = tail.map(v => v[0]),
      amp = Math.max(1e-4, ...tail.map(v => Math.abs(v[1]))) * 1.5,
      lo = Math.min(...xs),
      hi = Math.max(...xs),
      pad = Math.max(1e-4, (hi - lo) * 0.12);
    const top = narrow ? W * 0.62 + 84 : 300,
      q = s.plot([narrow ? 44 : 66, top, W - (narrow ? 58 : 82), H - top - 40], [lo - pad, hi + pad], [-amp, amp], {
        ylabel: "the last 40 steps, magnified",
        ticks: [4, narrow ? 0 : 3],
        xlabel: narrow ? undefined : "*x*",
        grid: false,
        box: true,
      });
    q.line(
      [
        [lo - pad, 0],
        [hi + pad, 0],
      ],
      "grid",
      { width: 2 },
    ).line(tail, who, { width: 1.2, dash: "none" });
    tail.forEach(v => q.mark(who, v, { r: 2.4 }));
  },

  sentence: ({ rule, steps, y }, { path }, plain) => {
    if (y === 0) return "Starts on the floor: the gradient is zero and nobody moves, SAM neither.";
    const end = path.at(-1)[0],
      rest = `GD stopped at ${fmt(plain.path.at(-1)[0])}.`,
      n = fmt(steps);
    return rule === "gd"
      ? `After ${n} steps GD stands at x = ${fmt(end)}, and stays.`
      : `After ${n} steps ${METHODS[WHO[rule]].label} stands at x = ${fmt(end)}; ${rest}`;
  },
  table: (_, { path }, plain) => {
    const at = [0, 1, 2, 3, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 4000].filter(t => t < path.length);
    return { head: ["step", "x", "y", "GD x", "GD y"], rows: at.map(t => [t, ...path[t], ...plain.path[t]]) };
  },
};
