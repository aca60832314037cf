// Anatomy of one SAM step on the two-weight network: the neighbor, the slope there, the step.
import { norm, add, perturb, banana, fmt } from "./numbers.js";
import { look } from "./palette.js";
import { bananaMap } from "./terrain.js";

export function samstep({ w = [2, 1], rho = 0.1, eta = 0.05, alpha = 0, K = 3600 }) {
  const g = banana.g(w),
    e = perturb(g, rho, alpha),
    wp = add(w, e),
    gp = banana.g(wp),
    r = norm(e);
  let worst = -Infinity,
    at = 0;
  for (let k = 0; k < K; k++) {
    const th = (2 * Math.PI * k) / K,
      L = banana.L([w[0] + r * Math.cos(th), w[1] + r * Math.sin(th)]);
    if (L > worst) {
      worst = L;
      at = th;
    }
  }
  return {
    g,
    e,
    wp,
    gp,
    L: banana.L(w),
    Lp: banana.L(wp),
    linear: banana.L(w) + r * norm(g),
    worst,
    worstAngle: (at * 180) / Math.PI,
    next: add(w, gp, -eta),
    plain: add(w, g, -eta),
  };
}

const LOSSES = [0.02, 0.1, 0.4, 1, 2, 4, 9, 20, 45],
  FINER = [...LOSSES, 1.5, 3, 5.5];

export const figure = {
  title: "Anatomy of one step",
  controls: [
    { name: "w0", label: "weight w₀", min: -3, max: 3, step: 0.05, value: 2 },
    { name: "w1", label: "weight w₁", min: -3, max: 3, step: 0.05, value: 1 },
    { name: "rho", label: "radius ρ", min: 0, max: 0.6, step: 0.01, value: 0.1 },
    { name: "eta", label: "learning rate η", min: 0, max: 0.2, step: 0.005, value: 0.05 },
    { name: "alpha", label: "Monge weight α", min: 0, max: 2, step: 0.1, value: 0, when: state => state.monge === "yes" },
    { name: "steps", label: "show the step", check: true, value: false, narrow: true },
  ],
  variants: { monge: ["no", "yes"] }, // "yes" from the chapter on that introduces M-SAM
  height: (W, narrow) => (narrow ? 150 + W : (W * 430) / 720),
  calls: ({ w0, w1, rho, eta, alpha }) => [["samstep", { w: [w0, w1], rho, eta, alpha }]],

  draw(s, { w0, w1, rho, alpha, narrow, steps, eta }, found) {
    const { W, H } = s,
      w = [w0, w1],
      { g, e, wp, next, plain, worst, worstAngle, L, Lp, linear } = found,
      who = alpha > 0 ? "msam" : "sam",
      r = norm(e);
    const all = !narrow || steps,
      reach = Math.max(0.1, rho, all ? Math.min(1.6, Math.max(norm(add(next, w, -1)), norm(add(plain, w, -1)))) : 0) * 1.15;
    const half = [0.15, 0.3, 0.6, 1.2, 2.4].find(v => v >= reach) ?? 2.4; // the loupe changes its power in steps
    const small = narrow ? Math.min(128, W * 0.36) : 236,
      map = s.plot([narrow ? 18 : 30, narrow ? 8 : 14, small, small], [-3, 3], [-3, 3], {
        ticks: narrow ? [0, 0] : [4, 4],
        grid: false,
        box: true,
      });
    bananaMap(map, LOSSES, { width: 0.8, bold: 1.6 }).saddle([0, 0]);
    const [bx, by] = map.at([w0 - half, w1 + half]),
      side = (2 * half * small) / 6;
    map.inside(() =>
      s.put(
        `<rect x="${bx.toFixed(1)}" y="${by.toFixed(1)}" width="${side.toFixed(1)}" height="${side.toFixed(1)}" fill="none" stroke="currentColor"/>`,
      ),
    );
    map.mark("disc", w, { r: 4 }).handle(["w0", "w1"], w, "weights");

    const big = narrow ? W - 56 : H - 58,
      z = s.plot([narrow ? 48 : W - big - 12, narrow ? 150 : 14, big, big], [w0 - half, w0 + half], [w1 - half, w1 + half], {
        grid: false,
        box: true,
        ticks: [4, 4],
        xlabel: narrow ? undefined : "*w*₀",
      });
    bananaMap(z, FINER, { n: 22 });
    if (r > 0) z.circle(w, r, "believed");
    if (all) {
      z.arrow(w, plain, "gd").arrow(w, next, who, { width: 2.2, dash: "none" });
      z.mark("gd", plain)
        .label(plain, "GD's next", { color: look("gd").text, side: "nw" })
        .mark(who, next)
        .label(next, `${alpha > 0 ? "M-SAM" : "SAM"}'s next`, { color: look(who).text, side: "se" });
    }
    if (r > 0) {
      const th = (worstAngle * Math.PI) / 180,
        at = add(w, [Math.cos(th), Math.sin(th)], r);
      z.arrow(w, wp, who, { hollow: true, dash: "none" });
      z.mark("ring", at, { hollow: true, r: 8, width: 1.6 }).mark(who, wp, { hollow: true, r: 4.5 });
      z.label(wp, "neighbor", { side: "ne", far: 12, color: look(who).text });
      if (Math.hypot(...add(z.at(at), z.at(wp), -1)) > 9) z.label(at, "true worst", { side: "n", far: 11 });
    }
    z.mark("disc", w, { r: 5.5 }).label(w, "*w*", { side: "w" });

    const x = narrow ? small + 32 : 30,
      y = narrow ? 26 : 300,
      gap = narrow ? 24 : 25;
    const rows = [
      ["loss here", L],
      [narrow ? "neighbor" : "at the neighbor", Lp],
      [narrow ? "straight line" : "straight-line guess", linear],
      ["true worst", worst],
      ["slope ‖*g*‖", norm(g)],
    ];
    rows.forEach(([words, v], i) =>
      s
        .text(x, y + i * gap, words, { size: narrow ? 12 : 13 })
        .text(narrow ? W - 8 : 266, y + i * gap, fmt(v), { anchor: "end", size: 13, weight: i === 1 ? 600 : undefined }),
    );
  },

  sentence: (_, { g, Lp, linear, worst, worstAngle, e }) =>
    norm(g) === 0
      ? "The gradient is zero here: no direction, so no perturbation, and both methods rest."
      : norm(e) === 0
        ? "Radius zero: the neighbor is the point itself, and SAM's step is plain descent."
        : `Neighbor loss ${fmt(Lp)}, straight-line guess ${fmt(linear)}, worst ${fmt(worst)} at ${fmt(worstAngle, 3)} degrees.`,
  table: (_, { g, e, wp, gp, L, Lp, linear, worst, worstAngle, next, plain }) => ({
    head: ["quantity", "first", "second"],
    rows: [
      ["gradient g", ...g],
      ["perturbation ε", ...e],
      ["neighbor", ...wp],
      ["gradient there", ...gp],
      ["next point", ...next],
      ["next point of plain descent", ...plain],
      ["loss here, at the neighbor", L, Lp],
      ["straight-line guess, true worst", linear, worst],
      ["angle of the worst (degrees)", worstAngle, ""],
    ],
  }),
};
