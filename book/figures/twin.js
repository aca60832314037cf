// The same function at another place: the round ball meets another sharpness, the relative ball does not.
import { norm, add, perturb, banana, fmt, pair } from "./numbers.js";
import { look } from "./palette.js";
import { bananaMap, hyperbola } from "./terrain.js";

export function twin({ a = 5, rho = 0.1, K = 3600 }) {
  // the network (a, 1/a): same function for every a
  let worst = 0,
    adaptive = 0;
  for (let k = 0; k < K; k++) {
    const c = Math.cos((2 * Math.PI * k) / K),
      s = Math.sin((2 * Math.PI * k) / K);
    worst = Math.max(worst, banana.L([a + rho * c, 1 / a + rho * s]));
    adaptive = Math.max(adaptive, banana.L([a * (1 + rho * c), (1 + rho * s) / a]));
  }
  return { hmax: 2 * (a * a + 1 / (a * a)), worst, adaptive };
}

export function rename({ w = [2, 1], A = [10, 1], rho = 0.1, rule = "sam" }) {
  // w = A phi, A diagonal: perturb in w, and in phi carried back to w
  const e = (g, v) => {
    if (rule !== "relative") return perturb(g, rho, rule === "monge" ? 1 : 0);
    const t = v.map(Math.abs),
      n = norm(g.map((c, i) => t[i] * c));
    return g.map((c, i) => (n > 0 ? (rho * t[i] * t[i] * c) / n : 0));
  };
  const g = banana.g(w),
    here = e(g, w),
    there = e(
      g.map((c, i) => A[i] * c),
      w.map((c, i) => c / A[i]),
    ).map((c, i) => A[i] * c);
  return { here, there, change: norm(add(there, here, -1)) / norm(here) };
}

const LOSSES = [0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30];
const RULES = { sam: "SAM", monge: "M-SAM", relative: "relative" },
  WHO = { sam: "sam", monge: "msam", relative: "ink" };

export const figure = {
  title: "Same function, another sharpness",
  controls: [
    { name: "a", label: "first weight a", min: 1, max: 20, log: true, value: 5, when: state => state.view === "twin" },
    { name: "rule", label: "rule", choose: RULES, value: "sam", when: state => state.view === "rename" },
    { name: "a0", label: "rename factor A₀", min: 1, max: 20, step: 0.5, value: 10, when: state => state.view === "rename" },
    { name: "rho", label: "radius ρ", min: 0, max: 0.3, step: 0.005, value: 0.1 },
  ],
  variants: { view: ["twin", "rename"] }, // "rename" (chapter 11): one step in two sets of names
  height: (W, narrow, { view }) => (view === "rename" ? (narrow ? W * 1.1 : 430) : narrow ? W + 170 : 430),
  calls: ({ view, a, rho, rule, a0 }) =>
    view === "rename" ? [["rename", { w: [2, 1], A: [a0, 1], rho, rule }]] : [["twin", { a, rho }]],

  draw(s, { view, a, rho, rule, a0, narrow }, found) {
    const { W, H } = s;
    if (view === "rename") {
      const { here, there, change } = found,
        w = [2, 1],
        who = WHO[rule],
        wide = narrow ? W - 48 : 448,
        p = s.plot([40, 14, wide, H - (narrow ? 130 : 60)], [1.6, 3.4], narrow ? [0.5, 1.9] : [0.3, 1.8], {
          xlabel: "*w*₀",
          ticks: [4, 4],
          grid: false,
          box: true,
        });
      bananaMap(p, LOSSES, { n: 24 });
      for (const [e, words, name, side, width] of [
        [there, "in the new names", "believed", "se", 2],
        [here, "in the old names", who, "nw", 2.4],
      ])
        if (norm(e) > 0) {
          const tip = add(w, e);
          p.arrow(w, tip, name, { hollow: true, width, dash: name === "believed" ? "5 4" : "none", faint: undefined });
          if (name !== "believed" || change > 1e-9) p.label(tip, words, { side, color: look(name).text, far: 11 });
        }
      p.mark("disc", w, { r: 6 });
      const x = narrow ? 16 : 512,
        y = narrow ? H - 56 : 90;
      (narrow
        ? [
            `old names: ε = ${pair(here, 3)}`,
            `new names: ε = ${pair(there, 3)}`,
            `change: ${change > 1e-9 ? fmt(100 * change, 3) + " %" : "none"}`,
          ]
        : [
            RULES[rule],
            "",
            "ε in the old names",
            pair(here, 3),
            "",
            `ε with *w*₀ = ${fmt(a0)} φ₀,`,
            "carried back",
            pair(there, 3),
            "",
            change > 1e-9 ? `changed by ${fmt(100 * change, 3)} %` : "nothing changed",
          ]
      ).forEach((words, i) =>
        s.text(x, y + (narrow ? 20 : 22) * i, words, {
          weight: /^(change|nothing)/.test(words) ? 600 : undefined,
          color: !narrow && i === 0 ? look(who).text : undefined,
        }),
      );
      return;
    }
    const { hmax, worst, adaptive } = found,
      w = [a, 1 / a],
      half = 1.15 * Math.max(rho * a, 0.12 * Math.sqrt(a)),
      side = narrow ? W - 52 : H - 60,
      x0 = narrow ? 40 : 44;
    const z = s.plot([x0, 14, side, side], [a - half, a + half], [1 / a - half, 1 / a + half], {
      xlabel: narrow ? undefined : "*w*₀",
      ticks: [3, 4],
      grid: false,
      box: true,
    });
    bananaMap(z, LOSSES, { n: 26 });
    if (rho > 0) {
      z.circle(w, rho, "sam", { width: 2 }).circle(w, [rho * a, rho / a], "ink", { width: 1.6 });
      z.label([a, 1 / a + rho], "round ball", { side: "n", color: look("sam").text }).label(
        [a - rho * a * 0.7, 1 / a - (0.7 * rho) / a],
        "relative ball",
        { side: "sw", far: 12 },
      );
    }
    z.mark("disc", w, { r: 5 });
    // Every minimum on logarithmic axes is a straight line, and the handle runs along it.
    const right = narrow ? 16 : 476,
      top = narrow ? W + 8 : 30,
      size = narrow ? W * 0.34 : 150;
    const m = s.plot([right + (narrow ? 0 : 22), top, size, size], [0.7, 28, true], [0.036, 1.4, true], {
      ticks: narrow ? [0, 0] : [3, 3],
      grid: false,
      box: true,
      xlabel: narrow ? undefined : "all minima (log axes)",
    });
    m.line(hyperbola(0.72, 27), "ink", { width: 2 }).mark("disc", w, { r: 5 }).handle(["a", null], w, "first weight a");
    const bx = narrow ? W * 0.34 + 34 : 476,
      by = narrow ? top + 8 : 258,
      room = narrow ? W - bx - 14 : 230;
    [
      ["top curvature", hmax, 4, 802, "thin"],
      [narrow ? "worst, round" : "worst in the round ball", worst, 0.001, 10, "sam"],
      [narrow ? "worst, relative" : "worst in the relative ball", adaptive, 0.001, 10, "ink"],
    ].forEach(([words, v, lo, hi, name], i) => {
      const y = by + i * (narrow ? 36 : 40),
        share = v > 0 ? Math.max(0.01, Math.min(1, Math.log(v / lo) / Math.log(hi / lo))) : 0;
      s.text(bx, y, words, { size: 12 }).text(bx + room, y, fmt(v, narrow ? 3 : 4), { anchor: "end" });
      s.line(
        [
          [bx, y + 11],
          [bx + room, y + 11],
        ],
        "grid",
        { width: 5 },
      ).line(
        [
          [bx, y + 11],
          [bx + room * share, y + 11],
        ],
        name,
        { width: 5, dash: "none", faint: undefined },
      );
    });
    s.text(narrow ? 16 : 476, narrow ? H - 6 : by + 130, "output = *x* for every *a*", { size: 12 });
  },

  sentence: ({ view, a, rho, rule, a0 }, { hmax, worst, adaptive, change }) =>
    view === "rename"
      ? rho === 0
        ? "Radius zero: nothing to compare."
        : `${RULES[rule]}, first weight renamed by ${fmt(a0)}: the perturbation ${change > 1e-9 ? `changes by ${fmt(100 * change, 3)} percent` : "does not change"}.`
      : `a = ${fmt(a)}: top curvature ${fmt(hmax)}, worst loss in the ball ${fmt(worst)}, relative ball ${fmt(adaptive)}.`,
  table: ({ view, a }, f) =>
    view === "rename"
      ? {
          head: ["perturbation", "first", "second"],
          rows: [
            ["in the old names", ...f.here],
            ["in the new names, carried back", ...f.there],
            ["relative change", f.change, ""],
          ],
        }
      : {
          head: ["quantity", "value"],
          rows: [
            ["weights", pair([a, 1 / a])],
            ["top curvature", f.hmax],
            ["worst loss in the round ball", f.worst],
            ["worst loss in the relative ball", f.adaptive],
          ],
        },
};
