// Whose ruler? The unit ball, not the slope, turns the step.
import { norm, fmt, pair } from "./numbers.js";
import { look } from "./palette.js";

export function compass({ g = [3, 4], d = [1, 4], phi = 0, rho = 1 }) {
  // G = R(phi) diag(d) R(phi)^T, phi in radians
  const c = Math.cos(phi),
    s = Math.sin(phi);
  const a = (c * g[0] + s * g[1]) / d[0],
    b = (-s * g[0] + c * g[1]) / d[1]; // G^{-1} g in the metric's own axes
  const p = [c * a - s * b, s * a + c * b],
    gp = g[0] * p[0] + g[1] * p[1],
    q = Math.sqrt(gp); // q: dual norm of g
  return {
    eps: p.map(v => (q > 0 ? (rho * v) / q : 0)),
    gain: rho * q,
    angle: (Math.atan2(Math.abs(g[0] * p[1] - g[1] * p[0]), gp) * 180) / Math.PI,
  };
}

const BASE = { euclidean: "Euclidean", relative: "relative", fisher: "Fisher", monge: "Monge", learned: "learned" };
// Named metrics at the weights w = (2, 0.5); Monge's follows the slope.
const named = (metric, [g0, g1]) =>
  ({
    euclidean: { d: [1, 1], phi: 0 },
    relative: { d: [0.25, 4], phi: 0 },
    fisher: { d: [g0 * g0 + 0.1, g1 * g1 + 0.1], phi: 0 },
    monge: { d: [1, 1 + g0 * g0 + g1 * g1], phi: Math.atan2(g1, g0) - Math.PI / 2 },
    learned: { d: [10, 1], phi: 0 },
  })[metric];
const own = ({ metric, d1, d2, phi, g0, g1 }) =>
  metric === "own" ? { d: [d1, d2], phi: (phi * Math.PI) / 180 } : named(metric, [g0, g1]);
const arc = (r, { d, phi }) =>
  Array.from({ length: 121 }, (_, k) => {
    const t = (k * Math.PI) / 60,
      x = (r * Math.cos(t)) / Math.sqrt(d[0]),
      y = (r * Math.sin(t)) / Math.sqrt(d[1]);
    return [Math.cos(phi) * x - Math.sin(phi) * y, Math.sin(phi) * x + Math.cos(phi) * y];
  });

export const figure = {
  title: "Whose ruler?",
  controls: [
    { name: "metric", label: "ruler", choose: { own: "your own ellipse", ...BASE }, value: "own" },
    {
      name: "phi",
      label: "turned by φ",
      min: -90,
      max: 90,
      step: 1,
      value: 0,
      words: v => `${fmt(v)}°`,
      when: state => state.metric === "own",
    },
    { name: "d1", label: "ruler along, d₁", min: 0.1, max: 30, log: true, value: 1, when: state => state.metric === "own" },
    { name: "d2", label: "ruler across, d₂", min: 0.1, max: 30, log: true, value: 4, when: state => state.metric === "own" },
    { name: "g0", label: "slope g₀", min: -5, max: 5, step: 0.1, value: 3 },
    { name: "g1", label: "slope g₁", min: -5, max: 5, step: 0.1, value: 4 },
    { name: "rho", label: "radius ρ", min: 0.1, max: 2, step: 0.1, value: 1 },
  ],
  variants: { open: ["own", "named"] }, // "named" (chapter 21) opens on the list of metrics
  opens: ({ open }) => (open === "named" ? { metric: "relative" } : {}),
  height: (W, narrow) => (narrow ? W + 112 : (W * 430) / 720),
  calls: state => {
    const g = [state.g0, state.g1];
    return [
      ["compass", { g, ...own(state), rho: state.rho }],
      ["compass", { g, d: [1, 1], phi: 0, rho: state.rho }],
    ];
  },

  draw(s, state, here, round) {
    const { W, H } = s,
      { g0, g1, rho, narrow } = state,
      g = [g0, g1],
      ball = own(state),
      flat = norm(g) === 0;
    const reach = Math.max(rho, rho / Math.sqrt(Math.min(...ball.d))),
      half = [0.75, 1.5, 3, 6.5].find(v => v > 1.12 * reach) ?? 6.5;
    const w = narrow ? W - 20 : 470,
      h = narrow ? W - 20 : H - 20,
      ratio = h / w,
      p = s.plot([10, 10, w, h], [-half, half], [-half * ratio, half * ratio], { ticks: [0, 0], grid: false });
    if (!flat) {
      const u = [g0 / norm(g), g1 / norm(g)],
        far = 3 * half,
        level = (v, name, more) =>
          p.line(
            [
              [v * u[0] - far * u[1], v * u[1] + far * u[0]],
              [v * u[0] + far * u[1], v * u[1] - far * u[0]],
            ],
            name,
            more,
          );
      for (let k = -10; k <= 10; k++) level((k * half) / 5, "grid");
      level(round.gain / norm(g), "gd", { width: 1.2 });
      level(here.gain / norm(g), "llqr_sam", { width: 1.2 });
    }
    p.line(arc(rho, { d: [1, 1], phi: 0 }), "gd").line(arc(rho, ball), "llqr_sam", { width: 2.2 });
    if (!flat) {
      p.arrow([0, 0], round.eps, "gd", { hollow: true, dash: "none" }).arrow([0, 0], here.eps, "llqr_sam", {
        hollow: true,
        width: 2.4,
      });
      if (here.angle > 0.5 || Math.abs(norm(here.eps) - norm(round.eps)) > 0.05 * half)
        p.label(round.eps, "round ball", { color: look("gd").text, side: "n" });
      p.label(here.eps, state.metric === "own" ? "your ball" : `${BASE[state.metric]} ball`, {
        color: look("llqr_sam").text,
        side: "se",
      });
    }
    // The slope has a dial of its own: its length is not comparable with a step's.
    const dial = narrow ? [W - 106, W, 90, 90] : [512, 22, 150, 150],
      m = s.plot(dial, [-5.6, 5.6], [-5.6, 5.6], { ticks: [0, 0], box: true });
    m.arrow([0, 0], g, "ink", { hollow: true }).mark("disc", g, { r: 4 }).handle(["g0", "g1"], g, "slope g");
    s.text(dial[0], dial[1] + dial[3] + 16, "slope *g*", { size: 12 });
    p.mark("disc", [0, 0], { r: 5 });
    const rows = [
      ["gain of the round ball", fmt(round.gain)],
      ["gain of this ball", fmt(here.gain)],
      ["angle to the slope", `${here.angle.toFixed(1)}°`],
    ];
    if (narrow)
      rows.slice(1).forEach(([a, b], i) => s.text(12, W + 24 + 40 * i, a).text(12, W + 42 + 40 * i, b, { weight: 600 }));
    else rows.forEach(([a, b], i) => s.text(512, 236 + 44 * i, a).text(512, 256 + 44 * i, b, { weight: 600 }));
  },

  sentence: (state, { gain, angle }) =>
    state.g0 === 0 && state.g1 === 0
      ? "No slope, no direction."
      : `Gain ${fmt(gain)}. ${angle < 0.05 ? (own(state).d[0] === own(state).d[1] ? "The ball is round: the step follows the gradient." : "The step follows the gradient.") : `The step leans ${angle.toFixed(1)} degrees away from the gradient.`}`,
  table: (state, here, round) => ({
    head: ["quantity", "this ball", "round ball"],
    rows: [
      ["step", pair(here.eps), pair(round.eps)],
      ["gain", here.gain, round.gain],
      ["angle to the slope (degrees)", here.angle, round.angle],
      ["axes of G", pair(own(state).d), pair([1, 1])],
    ],
  }),
};
