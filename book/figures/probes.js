// What one question can teach: one probe drives the objective to its minimum and leaves U wrong.
import { fmt } from "./numbers.js";
import { look } from "./palette.js";

export function probes({
  G = [
    [1.1, 0.9],
    [0.9, 1.1],
  ],
  turn = 50,
  T = 50,
  a = 0.05,
  size = 1,
  refits = 40,
  gamma = 0,
}) {
  const det = G[0][0] * G[1][1] - G[0][1] ** 2,
    inv = [
      [G[1][1] / det, -G[0][1] / det],
      [-G[0][1] / det, G[0][0] / det],
    ];
  const dist = X => Math.hypot(X[0][0] - inv[0][0], X[0][1] - inv[0][1], X[1][0] - inv[1][0], X[1][1] - inv[1][1]);
  let U = [
    [1, 0],
    [0, 1],
  ];
  const d0 = dist(U),
    hist = [];
  for (let r = 0; r < refits; r++) {
    const th = (r * turn * Math.PI) / 180,
      g = [size * Math.cos(th), size * Math.sin(th)];
    let V = U.map(row => [...row]),
      s;
    for (let t = 0; t < T; t++) {
      s = V.map(row => row[0] * g[0] + row[1] * g[1]);
      const z = [0, 1].map(i => G[i][0] * s[0] + G[i][1] * s[1] - g[i]);
      V = V.map((row, i) => row.map((v, j) => v - a * z[i] * g[j]));
    }
    U = U.map((row, i) => row.map((v, j) => gamma * v + (1 - gamma) * V[i][j]));
    s = U.map(row => row[0] * g[0] + row[1] * g[1]);
    hist.push({
      error: dist(U) / d0,
      J:
        -(g[0] * s[0] + g[1] * s[1]) +
        0.5 * (s[0] * (G[0][0] * s[0] + G[0][1] * s[1]) + s[1] * (G[1][0] * s[0] + G[1][1] * s[1])),
    });
  }
  return { U, hist };
}

const TRUTH = [
  [2.75, -2.25],
  [-2.25, 2.75],
]; // the inverse of G
const image = (X, r = 1) =>
  Array.from({ length: 121 }, (_, k) => {
    const t = (k * Math.PI) / 60;
    return X.map(row => r * (row[0] * Math.cos(t) + row[1] * Math.sin(t)));
  });

export const figure = {
  title: "What one question can teach",
  controls: [
    { name: "turn", label: "turn of the probe", min: 0, max: 180, step: 5, value: 50, words: v => `${fmt(v)}°` },
    { name: "refits", label: "refits", min: 1, max: 40, step: 1, value: 40 },
    { name: "steps", label: "inner steps T", min: 1, max: 200, step: 1, value: 50 },
    { name: "rate", label: "inner rate", min: 0.005, max: 0.5, log: true, value: 0.05 },
    { name: "size", label: "length of g", min: 0, max: 2, step: 0.1, value: 1 },
    { name: "gamma", label: "memory γ", min: 0, max: 0.95, step: 0.05, value: 0 },
  ],
  plays: [{ label: "Refit one by one", name: "refits", from: 1, to: 40, seconds: 8 }],
  height: (W, narrow) => (narrow ? W * 1.5 : (W * 410) / 720),
  calls: ({ turn, refits, steps, rate, size, gamma }) => [["probes", { turn, T: steps, a: rate, size, refits, gamma }]],

  draw(s, { turn, refits, size, narrow }, { U, hist }) {
    const { W, H } = s,
      side = narrow ? W - 30 : H - 40,
      p = s.plot([16, 18, side, narrow ? W * 0.72 : side], [-5.4, 5.4], narrow ? [-3.9, 3.9] : [-5.4, 5.4], {
        ticks: [0, 0],
        box: true,
      });
    p.line(image(TRUTH), "believed").line(image(U), "llqr", { width: 2.2 }).leaves(image(U).slice(0, 2), "llqr");
    const th = ((refits - 1) * turn * Math.PI) / 180,
      far = 9;
    if (size > 0)
      p.line(
        [
          [-far * Math.cos(th), -far * Math.sin(th)],
          [far * Math.cos(th), far * Math.sin(th)],
        ],
        "thin",
        { dash: "2 3" },
      )
        .arrow([0, 0], [size * Math.cos(th), size * Math.sin(th)], "ink", { hollow: true })
        .label([size * Math.cos(th), size * Math.sin(th)], "probe *g*", { side: "e" });
    p.label([-3.4, 3.4], "inverse of *G*", { side: "ne" });
    const tip = image(U).reduce((a, b) => (b[1] - b[0] < a[1] - a[0] ? b : a));
    if (Number.isFinite(tip[0]))
      p.label([Math.max(-5, Math.min(5, tip[0])), Math.max(-5, Math.min(5, tip[1]))], "*U*", {
        side: "sw",
        color: look("llqr").text,
        weight: 600,
      });
    const box = narrow ? [48, W * 0.72 + 58, W - 62, H - W * 0.72 - 112] : [side + 78, 30, W - side - 92, H - 84];
    const top = Math.max(2, ...hist.map(v => (Number.isFinite(v.error) ? Math.min(1e3, v.error) : 1e3))),
      q = s.plot(box, [0, 40], [1e-5, top, true], { xlabel: "refit", ylabel: "distance to the inverse, start = 1" });
    const points = [[0, 1], ...hist.map((v, i) => [i + 1, v.error])];
    q.line(points, "llqr").leaves(points, "llqr");
    points.forEach(v => q.mark("llqr", v, { r: 2.6 }));
    q.line(
      [
        [0, Math.SQRT1_2],
        [40, Math.SQRT1_2],
      ],
      "believed",
    ).label([22, Math.SQRT1_2], "one fixed probe ends here", { side: "s", size: 12 });
  },

  sentence: ({ turn, refits, size, rate, steps }, { hist }) => {
    const { error, J } = hist.at(-1);
    if (size === 0) return "A probe of length zero asks nothing: U stays the identity.";
    if (!Number.isFinite(error) || rate * size * size * 2 > 2)
      return `Inner rate too large: ${fmt(rate * size * size * 2)} is not below 2, and the inner loop diverges.`;
    const how = turn % 180 === 0 ? "without turning" : `with the probe turned by ${fmt(turn)} degrees each time`;
    return `After ${fmt(refits)} refits ${how}: distance ${fmt(error, 3)} of the start, objective ${fmt(J)}.`;
  },
  table: (_, { U, hist }) => ({
    head: ["refit", "distance", "objective"],
    rows: [...hist.map((v, i) => [i + 1, v.error, v.J]), ["U, first row", ...U[0]], ["U, second row", ...U[1]]],
  }),
};
