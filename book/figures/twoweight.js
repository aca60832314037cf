// Backpropagation, curvature, Newton's step and its certificate on one track of two layers.
import { banana, fmt, pair } from "./numbers.js";
import { look } from "./palette.js";
import { bananaMap } from "./terrain.js";

export function twoweight({ w0 = 2, w1 = 1, mu = 2, newton = true }) {
  // x0 = 1, target 1, loss (x2 - 1)^2
  const x1 = w0,
    x2 = w1 * x1,
    l2 = 2 * (x2 - 1),
    l1 = w1 * l2,
    P2 = 2,
    p2 = l2,
    M = newton ? l2 : 0;
  const tidy = (v, size) => (Math.abs(v) < 1e-13 * size ? 0 : v); // a stage that is zero up to rounding is singular
  const R1 = mu + x1 * P2 * x1,
    M1 = M + x1 * P2 * w1,
    K1 = -M1 / R1,
    k1 = (-x1 * p2) / R1; // stage 1: A = w1, B = x1
  const P1 = w1 * P2 * w1 - (M1 * M1) / R1,
    p1 = w1 * p2 - (M1 * x1 * p2) / R1;
  const R0 = tidy(mu + P1, mu + w1 * P2 * w1 + (M1 * M1) / R1),
    u0 = -p1 / R0,
    u1 = K1 * u0 + k1; // stage 0: B = x0 = 1
  return {
    x: [1, x1, x2],
    lambda: [l1, l2],
    g: [l1, x1 * l2],
    stages: [R0, R1],
    M1,
    P1,
    p1,
    K1,
    k1,
    step: [u0, u1],
    minimum: R0 > 0 && R1 > 0,
    det: R0 * R1,
    next: [w0 + u0, w1 + u1],
    Lnext: banana.L([w0 + u0, w1 + u1]),
  };
}

const clean = v => (Math.abs(v) < 1e-12 ? 0 : v); // what rounding leaves of a zero is written as zero
const short = v => fmt(clean(v), 3);

export const figure = {
  title: "Riccati by hand",
  controls: [
    { name: "w0", label: "weight w₀", min: -3, max: 3, step: 0.1, value: 2 },
    { name: "w1", label: "weight w₁", min: -3, max: 3, step: 0.1, value: 1 },
    { name: "mu", label: "damping μ", min: 0, max: 12, step: 0.1, value: 2, when: state => state.stage === "full" },
    {
      name: "curvature",
      label: "curvature",
      choose: { newton: "Newton", gauss: "Gauss-Newton" },
      value: "newton",
      when: state => state.stage === "full",
    },
    {
      name: "sweep",
      label: "passes shown",
      min: 0,
      max: 4,
      step: 1,
      value: 4,
      when: state => state.stage === "full",
      words: v => ["forward", "and prices λ", "and stage 1", "and stage 0", "and the step"][v],
    },
    {
      name: "pass",
      label: "passes shown",
      min: 0,
      max: 1,
      step: 1,
      value: 1,
      when: state => state.stage === "network",
      words: v => (v ? "both" : "forward"),
    },
  ],
  variants: { stage: ["full", "network"] }, // "network" (chapter 14): forward and backward pass only
  plays: [
    {
      label: "Forth and back",
      run: ({ stage }) =>
        stage === "full" ? { name: "sweep", from: 0, to: 4, seconds: 4 } : { name: "pass", from: 0, to: 1, seconds: 1.5 },
    },
  ],
  height: (W, narrow, { stage }) => (narrow ? W + (stage === "full" ? 346 : 254) : (W * 396) / 720),
  calls: ({ w0, w1, mu, curvature, stage }) => [
    ["twoweight", { w0, w1, mu: stage === "full" ? mu : 0, newton: curvature === "newton" }],
  ],

  draw(s, { w0, w1, mu, curvature, stage, sweep, pass, narrow }, found) {
    const { W, H } = s,
      { x, lambda, g, stages, M1, P1, p1, K1, k1, step, minimum, det, next } = found,
      full = stage === "full",
      newton = curvature === "newton";
    const done = full ? sweep : pass,
      left = narrow ? 26 : 34,
      right = narrow ? W - 26 : 350,
      y = narrow ? 86 : full ? 92 : 140,
      at = i => left + ((right - left) * i) / 2;
    s.line(
      [
        [left, y],
        [right, y],
      ],
      "ink",
      { width: 3 },
    );
    s.text(left - 12, y - 62, "forward", { size: 12, faint: 0.75 }).text(left - 12, y + 34, "backward", {
      size: 12,
      faint: 0.75,
    });
    for (const i of [0, 1, 2]) {
      s.shape("disc", at(i), y, { r: 7 });
      s.text(at(i), y - 16, `*x*${"₀₁₂"[i]} = ${short(x[i])}`, { anchor: i === 0 ? "start" : i === 2 ? "end" : "middle" });
      if (i && done >= 1) s.text(at(i), y + 34, `λ${"₀₁₂"[i]} = ${short(lambda[i - 1])}`, { anchor: i === 2 ? "end" : "middle" });
    }
    for (const i of [0, 1]) {
      const mid = (at(i) + at(i + 1)) / 2;
      s.text(mid, y - 40, `*w*${"₀₁"[i]} = ${short([w0, w1][i])}`, { anchor: "middle", weight: 600 });
      s.arrow([mid - 16, y - 9], [mid + 16, y - 9], "thin", { head: 6 });
      if (done >= 1) s.arrow([mid + 16, y + 9], [mid - 16, y + 9], "thin", { head: 6, hollow: true });
      if (done >= 1) s.text(mid, y + 58, `*g*${"₀₁"[i]} = ${short(g[i])}`, { anchor: "middle" });
    }
    if (full) {
      const rows = [
        [
          ["*R̃*₀", stages[0]],
          ["*u*₀", step[0]],
        ],
        [
          ["*R̃*₁", stages[1]],
          ["*M̃*₁", M1],
          ["*K*₁", K1],
          ["*k*₁", k1],
          ["*P*₁", P1],
          ["*p*₁", p1],
        ],
      ];
      for (const i of [0, 1])
        if (sweep >= 3 - i) {
          const x0 = at(i) + (narrow ? 4 : 8),
            top = y + 88,
            w = at(1) - at(0) - (narrow ? 14 : 22);
          s.text(x0, top, `stage ${i}`, { size: 12, faint: 0.75 });
          const list = [...rows[i], ...(i === 0 || sweep < 4 ? [] : [["*u*₁", step[1]]])];
          list.forEach(([name, v], k) => {
            const bad = name.startsWith("*R̃") && !(v > 0);
            s.text(x0, top + 22 + 21 * k, name).text(x0 + w, top + 22 + 21 * k, short(v), {
              anchor: "end",
              weight: bad || name.startsWith("*u") ? 600 : undefined,
            });
            if (bad)
              s.line(
                [
                  [x0, top + 27 + 21 * k],
                  [x0 + w, top + 27 + 21 * k],
                ],
                "ink",
                { width: 2 },
              );
          });
          if (i === 0)
            (det === 0
              ? ["singular:", "add damping"]
              : minimum
                ? ["both positive:", "a minimum"]
                : ["not all positive:", "no minimum"]
            ).forEach((line, k) => s.text(x0, top + 84 + 20 * k, line));
        }
    } else if (pass >= 1)
      s.text(left - 12, y + 90, "slope = price behind it × number before it:", { size: 12 })
        .text(left - 12, y + 112, `*g*₀ = *x*₀ λ₁ = ${short(g[0])},  *g*₁ = *x*₁ λ₂ = ${short(g[1])}`, { size: 12 })
        .text(left - 12, y + 144, `curvature: *M*₁ = λ₂ = ${short(lambda[1])}, *Q*₂ = 2${narrow ? "" : " at the end"}`, {
          size: 12,
        });

    const side = narrow ? W - 40 : 316,
      box = narrow ? [28, full ? 346 : 254, side, side] : [W - side - 12, 22, side, side];
    const p = s.plot(box, [-3.5, 3.5], [-3.5, 3.5], { xlabel: "*w*₀", ticks: [4, 4], grid: false, box: true });
    bananaMap(p, [0.05, 0.4, 1, 2.5, 6, 14, 30, 60]).saddle([0, 0]);
    if (full && sweep >= 4 && Number.isFinite(step[0] + step[1])) {
      // Where the believed model has the value it has at w, through w and around its own resting point.
      const r = w0 * w1 - 1,
        H00 = 2 * w1 * w1 + mu,
        H11 = 2 * w0 * w0 + mu,
        H01 = 2 * w0 * w1 + (newton ? 2 * r : 0);
      const model = ([a, b]) => {
          const u = a - w0,
            v = b - w1;
          return g[0] * u + g[1] * v + 0.5 * (H00 * u * u + 2 * H01 * u * v + H11 * v * v);
        },
        low = model(next);
      p.contour(model, [0, low * 0.75, low * 0.4, ...(minimum ? [] : [low * 1.3])], {
        n: 40,
        m: 40,
        dash: "5 4",
        width: 1.2,
        color: "currentColor",
        faint: 0.75,
      });
      p.arrow([w0, w1], next, "llqr", { width: 2.2 }).leaves([[w0, w1], next], "llqr");
      if (minimum) p.mark("llqr", next).label(next, "next", { color: look("llqr").text });
      else p.mark("cross", next).label(next, "the model's saddle", { color: look("llqr").text });
    }
    if (!full && pass >= 1 && Math.hypot(...g) > 0) {
      const k = 0.9 / Math.hypot(...g);
      p.arrow([w0, w1], [w0 - k * g[0], w1 - k * g[1]], "gd", { dash: "none" }).label([w0 - k * g[0], w1 - k * g[1]], "−*g*", {
        side: "sw",
      });
    }
    p.mark("disc", [w0, w1], { r: 6 }).handle(["w0", "w1"], [w0, w1], "weights");
  },

  sentence: ({ stage, w0, w1, mu }, { g, x, lambda, stages, step, minimum, det, Lnext }) => {
    if (stage === "network")
      return g[0] === 0 && g[1] === 0
        ? "The gradient is zero here."
        : `Output ${fmt(x[2])}, price behind it ${fmt(lambda[1])}; the gradient is ${pair(g)}.`;
    if (det === 0 || Number.isNaN(det)) return `Stages ${fmt(stages[0])} and ${fmt(stages[1])}: singular, add damping.`;
    const L = banana.L([w0, w1]),
      change = Math.abs(Lnext - L) < 1e-9 * Math.max(1, L) ? `Loss stays ${fmt(L)}` : `Loss goes from ${fmt(L)} to ${fmt(Lnext)}`;
    if (g[0] === 0 && g[1] === 0)
      return `Zero gradient at damping ${fmt(mu)}: no step. Stages ${fmt(stages[0])} and ${fmt(stages[1])}: ${minimum ? "a minimum" : "not a minimum"}.`;
    return `Stages ${fmt(stages[0])} and ${fmt(stages[1])}: ${minimum ? "a minimum" : "not a minimum"}. Step ${fmt(clean(step[0]))}, ${fmt(clean(step[1]))}. ${change}.`;
  },
  table: ({ stage }, f) => ({
    head: ["quantity", "layer 0", "layer 1"],
    rows: [
      ["state after the layer", f.x[1], f.x[2]],
      ["price λ behind the layer", ...f.lambda],
      ["gradient", ...f.g],
      ...(stage === "network"
        ? []
        : [
            ["stage R̃", ...f.stages],
            ["K, k of layer 1", f.K1, f.k1],
            ["P₁, p₁", f.P1, f.p1],
            ["step u", ...f.step.map(clean)],
            ["next weights", ...f.next],
            ["determinant, loss after", f.det, f.Lnext],
          ]),
    ],
  }),
};
