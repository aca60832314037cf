// A ball of equal change: distance between models is not distance between weights.
import { fmt } from "./numbers.js";

export function rulers({ w = 0, kl = 0.05 }) {
  // Bernoulli with logit w; both ends of the KL ball
  const sig = z => 1 / (1 + Math.exp(-z)),
    sp = z => Math.max(z, 0) + Math.log1p(Math.exp(-Math.abs(z)));
  const D = v => sp(v) - sp(w) - sig(w) * (v - w); // KL(Bern(w) || Bern(v)) as a Bregman divergence
  const end = dir => {
    let lo = 0,
      hi = 1;
    while (D(w + dir * hi) < kl && hi < 1e6) hi *= 2;
    for (let k = 0; k < 80; k++) {
      const m = (lo + hi) / 2;
      if (D(w + dir * m) < kl) lo = m;
      else hi = m;
    }
    return w + dir * lo;
  };
  const F = sig(w) * sig(-w);
  return { left: end(-1), right: end(1), fisherHalf: Math.sqrt((2 * kl) / F), F, p: sig(w) };
}

const sig = z => 1 / (1 + Math.exp(-z)),
  EDGE = 15;

export const figure = {
  title: "A ball of equal change",
  controls: [
    { name: "w", label: "logit w", min: -8, max: 8, step: 0.1, value: 0 },
    { name: "kl", label: "change allowed", min: 0.001, max: 0.5, log: true, value: 0.05 },
  ],
  height: (W, narrow) => (narrow ? W * 1.05 : 400),
  calls: ({ w, kl }) => [["rulers", { w, kl }]],

  draw(s, { w, narrow }, { left, right, fisherHalf }) {
    const { W, H } = s,
      p = s.plot([narrow ? 40 : 56, 28, W - (narrow ? 54 : 76), H - 152], [-EDGE, EDGE], [0, 1], {
        ylabel: "probability",
        ticks: [narrow ? 4 : 6, 5],
      });
    p.line(
      Array.from({ length: 181 }, (_, i) => -EDGE + (2 * EDGE * i) / 180).map(v => [v, sig(v)]),
      "ink",
      { width: 2 },
    );
    // Each ball is a bar on the axis of weights, and the same ball a bar on the axis of probabilities.
    const bar = (lo, hi, y, name, words) => {
      const far = [lo < -EDGE, hi > EDGE],
        a = p.at([Math.max(-EDGE, lo), 0])[0],
        b = p.at([Math.min(EDGE, hi), 0])[0];
      s.line(
        [
          [a, y],
          [b, y],
        ],
        name,
        { width: 6 },
      );
      if (far[0]) s.arrow([a + 16, y], [a, y], "ink", { width: 1 });
      if (far[1]) s.arrow([b - 16, y], [b, y], "ink", { width: 1 });
      s.text(
        p.box[0],
        y + 20,
        `${words}: ${fmt(lo, narrow ? 3 : 4)} to ${fmt(hi, narrow ? 3 : 4)}${!narrow && (far[0] || far[1]) ? ", off the page" : ""}`,
        { size: 12 },
      );
      return [sig(lo), sig(hi)];
    };
    const y = H - 92,
      kl = bar(left, right, y, "llqr", "equal change"),
      fisher = bar(w - fisherHalf, w + fisherHalf, y + 48, "believed", "Fisher");
    const x = p.box[0];
    s.line(
      kl.map(v => [x + 7, p.at([0, v])[1]]),
      "llqr",
      { width: 6 },
    ).line(
      fisher.map(v => [x + 17, p.at([0, v])[1]]),
      "believed",
      { width: 4 },
    );
    for (const v of [left, right])
      if (Math.abs(v) <= EDGE)
        p.line(
          [
            [v, 0],
            [v, sig(v)],
          ],
          "llqr",
          { width: 1, dash: "2 3" },
        ).line(
          [
            [v, sig(v)],
            [-EDGE, sig(v)],
          ],
          "llqr",
          { width: 1, dash: "2 3" },
        );
    p.mark("disc", [w, sig(w)], { r: 6 }).handle(["w", null], [w, sig(w)], "logit w");
  },

  sentence: ({ w }, { left, right, fisherHalf }) =>
    `At logit ${fmt(w)} the ball reaches from ${fmt(left)} to ${fmt(right)}; Fisher says plus or minus ${fmt(fisherHalf)}.`,
  table: (_, { left, right, fisherHalf, F, p }) => ({
    head: ["quantity", "value"],
    rows: [
      ["probability", p],
      ["left end", left],
      ["right end", right],
      ["Fisher half-width", fisherHalf],
      ["Fisher information", F],
    ],
  }),
};
