// Prices backwards, steering forwards: the two passes of LQR, with Fibonacci as the surprise.
import { fmt } from "./numbers.js";
import { look } from "./palette.js";

export function steer({ A = 1, B = 1, Q = 1, R = 1, QN = 1, N = 5, x = 1 }) {
  const P = Array(N + 1),
    K = Array(N);
  P[N] = QN;
  for (let i = N - 1; i >= 0; i--) {
    const Rt = R + B * P[i + 1] * B,
      Mt = B * P[i + 1] * A;
    K[i] = -Mt / Rt;
    P[i] = Q + A * P[i + 1] * A - (Mt * Mt) / Rt;
  }
  const xs = [x],
    us = [];
  for (let i = 0; i < N; i++) {
    us.push(K[i] * xs[i]);
    xs.push(A * xs[i] + B * us[i]);
  }
  return { P, K, xs, us, cost: (P[0] * x * x) / 2 };
}

// Three who do not look ahead: nothing, everything at once, and the best for the next stage only.
export function rival({ A = 1, B = 1, Q = 1, R = 1, QN = 1, N = 5, x = 1, plan = "greedy" }) {
  const xs = [x],
    us = [];
  let cost = 0;
  for (let i = 0; i < N; i++) {
    const next = i === N - 1 ? QN : Q,
      k = plan === "nothing" ? 0 : plan === "once" ? (i === 0 ? -A / B : 0) : (-B * next * A) / (R + B * next * B);
    us.push(k * xs[i]);
    cost += (Q * xs[i] ** 2 + R * us[i] ** 2) / 2;
    xs.push(A * xs[i] + B * us[i]);
  }
  return { xs, us, cost: cost + (QN * xs[N] ** 2) / 2 };
}

const FRACTIONS = Array.from({ length: 26 }, () => 0).reduce(f => [...f, f.at(-1) + f.at(-2)], [1, 1]),
  PLANS = { nothing: "nothing", once: "all at once", greedy: "greedy" };
const fibonacci = v => {
  for (let i = 2; i < 26; i += 2)
    if (Math.abs(v - FRACTIONS[i + 1] / FRACTIONS[i]) < 1e-12) return `${FRACTIONS[i + 1]}/${FRACTIONS[i]}`;
  return null;
};

export const figure = {
  title: "Prices backwards, steering forwards",
  controls: [
    { name: "n", label: "stages N", min: 1, max: 12, step: 1, value: 5 },
    { name: "a", label: "drift A", min: 0.5, max: 1.5, step: 0.05, value: 1 },
    { name: "q", label: "position cost Q", min: 0, max: 5, step: 0.1, value: 1 },
    { name: "r", label: "effort cost R", min: 0, max: 5, step: 0.1, value: 1 },
    { name: "qn", label: "end cost", min: 0, max: 5, step: 0.1, value: 1 },
    {
      name: "shown",
      label: "passes shown",
      min: 0,
      max: 24,
      step: 1,
      value: 24,
      words: (v, { n }) => (v <= n ? `${fmt(v)} back` : v < 2 * n ? `${fmt(v - n)} forth` : "both"),
    },
    { name: "rivals", label: "show the rivals", check: true, value: false },
  ],
  plays: [{ label: "Back, then forth", run: ({ n }) => ({ name: "shown", from: 0, to: 2 * n, seconds: 1 + 0.7 * n }) }],
  height: (W, narrow, { n, rivals }) => (narrow ? 66 + 50 * (n + 1) + (rivals ? 90 : 0) : 430),
  calls: ({ a, q, r, qn, n }) => [
    ["steer", { A: a, B: 1, Q: q, R: r, QN: qn, N: n, x: 1 }],
    ...Object.keys(PLANS).map(plan => ["rival", { A: a, B: 1, Q: q, R: r, QN: qn, N: n, x: 1, plan }]),
  ],

  draw(s, { n, shown, rivals, narrow }, { P, K, xs, us, cost }, ...others) {
    const { W, H } = s,
      back = Math.min(shown, n),
      forth = Math.max(0, Math.min(n, shown - n)),
      ok = K.every(Number.isFinite),
      price = i => (n > 8 && !narrow ? null : fibonacci(P[i])) ?? fmt(P[i], n > 8 ? 3 : 4);
    const top = Math.max(1, ...P.filter(Number.isFinite)),
      cap = Math.min(top, 8),
      reach = Math.max(1, ...xs.filter(Number.isFinite).map(Math.abs));
    if (narrow) {
      // a vertical timeline: prices climb, states descend
      s.text(14, 20, "price ↑", { size: 12 }).text(W - 14, 20, "state and effort ↓", { size: 12, anchor: "end" });
      for (let i = 0; i <= n; i++) {
        const y = 46 + 50 * i,
          mid = W * 0.42;
        s.text(mid, y + 4, `${i}`, { anchor: "middle", size: 12 });
        if (i >= n - back && Number.isFinite(P[i]))
          s.line(
            [
              [mid - 16, y],
              [mid - 16 - 70 * Math.min(1, P[i] / cap), y],
            ],
            "ink",
            { width: 10, faint: 0.5 },
          ).text(14, y - 10, price(i), { size: 13 });
        if (i <= forth && back === n && ok)
          s.line(
            [
              [mid + 16, y],
              [mid + 16 + (80 * Math.abs(xs[i])) / reach, y],
            ],
            "llqr",
            { width: 8 },
          ).text(W - 14, y + 4, fmt(xs[i], 3), { anchor: "end" });
        if (i < forth && ok) s.text(W - 14, y + 28, `effort ${fmt(us[i], 3)}`, { anchor: "end", size: 12 });
      }
    } else {
      const p = s.plot(
        [56, 190, W - 96, 180],
        [-0.35, n + 0.35],
        [Math.min(0, ...us.filter(Number.isFinite)) * 1.15 - 0.05, reach * 1.1],
        { xticks: Array.from({ length: n + 1 }, (_, i) => i), ticks: [0, 4], xlabel: "stage" },
      );
      s.text(12, 24, "prices, filled from right to left", { size: 12 }).text(
        12,
        180,
        "position (line) and effort (bars), filled from left to right",
        { size: 12 },
      );
      for (let i = 0; i <= n; i++)
        if (i >= n - back && Number.isFinite(P[i])) {
          const x = p.at([i, 0])[0],
            height = 84 * Math.min(1, P[i] / cap);
          s.put(
            `<rect x="${(x - 13).toFixed(1)}" y="${(142 - height).toFixed(1)}" width="26" height="${height.toFixed(1)}" fill="currentColor" fill-opacity="0.35"/>`,
          );
          s.text(x, 136 - height, P[i] > cap ? `${price(i)} ↑` : price(i), {
            anchor: "middle",
            weight: i === 0 ? 600 : undefined,
            size: n > 8 ? 12 : 13,
          });
        }
      s.line(
        [
          [56, 142],
          [W - 40, 142],
        ],
        "thin",
      );
      p.line(
        [
          [-0.35, 0],
          [n + 0.35, 0],
        ],
        "thin",
      );
      if (back === n && ok) {
        if (rivals)
          others.forEach((o, k) =>
            p
              .line(
                o.xs.map((v, i) => [i, v]),
                "believed",
                { dash: ["1 3", "6 4", "2 3"][k] },
              )
              .label(
                [[n, 1.6, 0.8][k] > n ? n : [n, 1.6, 0.8][k], [o.xs[n], 0, (o.xs[0] + o.xs[1]) / 2][k]],
                Object.values(PLANS)[k],
                { side: ["nw", "n", "ne"][k], size: 12 },
              ),
          );
        for (let i = 0; i < forth; i++) {
          const [x, y] = p.at([i + 0.5, us[i]]),
            z = p.at([0, 0])[1];
          s.put(
            `<rect x="${(x - 8).toFixed(1)}" y="${Math.min(y, z).toFixed(1)}" width="16" height="${Math.abs(y - z).toFixed(1)}" fill="${look("llqr").color}" fill-opacity="0.65"/>`,
          );
        }
        p.line(
          xs.slice(0, forth + 1).map((v, i) => [i, v]),
          "llqr",
          { width: 2 },
        );
        xs.slice(0, forth + 1).forEach((v, i) => p.mark("llqr", [i, v], { r: 5 }));
      }
    }
    if (!ok) s.text(W / 2, narrow ? H - 12 : 250, "this stage cannot be steered", { anchor: "middle", weight: 600 });
    if (rivals) {
      const words = [`plan ${fmt(cost)}`, ...others.map((o, k) => `${Object.values(PLANS)[k]} ${fmt(o.cost)}`)];
      if (narrow) words.forEach((t, i) => s.text(14, H - 66 + 20 * i, `cost: ${t}`));
      else s.text(W - 40, 24, `cost: ${words.join(", ")}`, { anchor: "end" });
    }
  },

  sentence: ({ n, r, q, a }, { P, K, cost }) =>
    !K.every(Number.isFinite)
      ? "Effort is free and no position has a price: this stage cannot be steered, undefined here."
      : `${n === 1 ? "One stage" : `${fmt(n)} stages`}, price at the start ${fmt(P[0])}, cost ${fmt(cost)}.${r === 0 ? " Effort is free: home in one step." : ""}`,
  table: ({ n }, { P, K, xs, us, cost }, ...others) => ({
    head: ["stage", "price P", "gain K", "position", "effort"],
    rows: [
      ...xs.map((v, i) => [i, P[i], i < n ? K[i] : "", v, i < n ? us[i] : ""]),
      ["cost of the plan", cost, "", "", ""],
      ...others.map((o, k) => [`cost: ${Object.values(PLANS)[k]}`, o.cost, "", "", ""]),
    ],
  }),
};
