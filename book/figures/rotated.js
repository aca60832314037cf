// What rotation breaks: a diagonal sees axes, not shapes.
import { fmt } from "./numbers.js";
import { look } from "./palette.js";

export function rotated({ theta = 30, k = 10 }) {
  // H = R diag(k, 1) R^T; condition number left by each structure
  const c = Math.cos((theta * Math.PI) / 180),
    s = Math.sin((theta * Math.PI) / 180);
  const a = k * c * c + s * s,
    b = (k - 1) * c * s,
    d = k * s * s + c * c,
    r = Math.abs(b) / Math.sqrt(a * d);
  return { H: [a, b, d], scalar: k, diagonal: (1 + r) / (1 - r), dense: 1 };
}

// Level line v' X v = 1 of X = [[a, b], [b, d]], scaled to fit a circle of radius one.
const level = ([a, b, d]) => {
  const small = (a + d) / 2 - Math.hypot((a - d) / 2, b),
    all = Array.from({ length: 121 }, (_, i) => (i * Math.PI) / 60);
  return all.map(t => {
    const c = Math.cos(t),
      s = Math.sin(t),
      r = Math.sqrt(small / (a * c * c + 2 * b * c * s + d * s * s));
    return [r * c, r * s];
  });
};

export const figure = {
  title: "What rotation breaks",
  controls: [
    { name: "theta", label: "angle θ", min: 0, max: 90, step: 1, value: 30, words: v => `${fmt(v)}°` },
    { name: "k", label: "stiffness k", min: 1, max: 100, log: true, value: 10 },
  ],
  height: (W, narrow) => (narrow ? W / 3 + 332 : 360),
  calls: ({ theta, k }) => [["rotated", { theta, k }]],

  draw(s, { k, narrow }, { H, scalar, diagonal, dense }) {
    const { W } = s,
      b = H[1] / Math.sqrt(H[0] * H[2]),
      left = [
        ["scalar", H, scalar],
        ["diagonal", [1, b, 1], diagonal],
        ["dense", [1, 0, 1], dense],
      ];
    const big = narrow ? 150 : 216,
      p = s.plot([narrow ? (W - big) / 2 : 24, narrow ? 24 : 40, big, big], [-1.1, 1.1], [-1.1, 1.1], { ticks: [0, 0] });
    p.line(
      [
        [-1.1, 0],
        [1.1, 0],
      ],
      "grid",
    )
      .line(
        [
          [0, -1.1],
          [0, 1.1],
        ],
        "grid",
      )
      .line(level(H), "ink", { width: 2 })
      .minimum([0, 0]);
    s.text(narrow ? W / 2 : 24 + big / 2, narrow ? 16 : 28, "the bowl", { anchor: "middle" });
    const cell = narrow ? (W - 24) / 3 : 138,
      x0 = narrow ? 12 : 284,
      y = narrow ? 196 : 48,
      size = narrow ? cell - 12 : 122;
    left.forEach(([name, X], i) => {
      const q = s.plot([x0 + i * cell, y + 20, size, size], [-1.1, 1.1], [-1.1, 1.1], { ticks: [0, 0] });
      q.line(
        [
          [-1.1, 0],
          [1.1, 0],
        ],
        "grid",
      )
        .line(
          [
            [0, -1.1],
            [0, 1.1],
          ],
          "grid",
        )
        .line(level(X), "llqr", { width: 2 });
      s.text(x0 + i * cell + size / 2, y + 10, name, { anchor: "middle", color: look("llqr").text });
    });
    // Bars of the condition number that is left, on a logarithmic scale from 1 to 100.
    const by = y + size + (narrow ? 62 : 66),
      bar = narrow ? 12 : 284,
      room = narrow ? W - 24 : W - 284 - 20,
      top = Math.max(10, k) * 1.05;
    s.text(bar, by - 18, "condition number left (log scale)", { size: 12 });
    left.forEach(([name, , v], i) => {
      const yy = by + i * (narrow ? 30 : 34),
        at = 70 + (room - 130) * Math.max(0.004, Math.log(v) / Math.log(top));
      s.text(bar, yy + 5, name)
        .line(
          [
            [bar + 70, yy],
            [bar + at, yy],
          ],
          "llqr",
          { width: 12 },
        )
        .text(bar + at + 8, yy + 5, fmt(v, 3), { weight: 600 });
    });
  },

  sentence: ({ theta, k }, { diagonal }) =>
    k === 1
      ? "Stiffness 1: every level line is a circle, and nothing can be broken."
      : `${fmt(theta)} degrees: condition ${fmt(k)}, after the diagonal ${fmt(diagonal, 3)}, dense 1.`,
  table: (_, { H, scalar, diagonal, dense }) => ({
    head: ["structure", "condition number left"],
    rows: [
      ["scalar", scalar],
      ["diagonal", diagonal],
      ["dense", dense],
      ["H, first entry", H[0]],
      ["H, off the diagonal", H[1]],
      ["H, last entry", H[2]],
    ],
  }),
};
