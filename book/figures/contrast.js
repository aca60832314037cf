// Who is thrown out of which hole: absolute tests (GD, SAM) against contrast tests (LLQR, LLQR+SAM).
import { fmt } from "./numbers.js";
import { METHODS } from "./palette.js";

export function contrast({ eta = 0.05, rho = 0.4, beta = 0, mu = 0.05, hbar = 0.2, h = 3 }) {
  const lim = (2 * (1 + beta)) / eta,
    chi = rho > 0 ? (Math.sqrt(1 + 4 * rho * lim) - 1) / (2 * rho) : lim,
    U = 1 / (hbar + mu),
    x = h * U;
  return {
    chi,
    U,
    contrast: x,
    thresholds: { gd: lim, llqr: lim / U, sam: chi, both: chi / U },
    multipliers: { gd: 1 - eta * h, llqr: 1 - eta * x, sam: 1 - eta * h * (1 + rho * h), both: 1 - eta * x * (1 + rho * x) },
  };
}

const KEYS = { gd: "gd", llqr: "llqr", sam: "sam", both: "llqr_sam" };
const PAIRS = { sam: ["sam", "both"], plain: ["gd", "llqr"] };

export const figure = {
  title: "Who is thrown out of which hole",
  controls: [
    { name: "hbar", label: "believed h̄", min: 0.01, max: 100, log: true, value: 0.2 },
    { name: "h", label: "local h", min: 0.01, max: 1000, log: true, value: 3 },
    { name: "eta", label: "learning rate η", min: 0.005, max: 0.5, log: true, value: 0.05 },
    { name: "rho", label: "radius ρ", min: 0, max: 2, step: 0.05, value: 0.4 },
    { name: "mu", label: "damping μ", min: 0.001, max: 1, log: true, value: 0.05 },
    { name: "beta", label: "momentum β", min: 0, max: 0.95, step: 0.05, value: 0 },
    { name: "lines", label: "lines", choose: { sam: "with SAM", plain: "without SAM" }, value: "sam", narrow: true },
    { name: "hill", label: "a hilltop: local h below zero", check: true, value: false },
  ],
  height: (W, narrow) => (narrow ? W * 1.3 : (W * 440) / 720),
  calls: ({ eta, rho, beta, mu, hbar, h, hill }) => [["contrast", { eta, rho, beta, mu, hbar, h: hill ? -h : h }]],

  draw(s, { mu, hbar, h, beta, hill, lines, narrow }, { thresholds, multipliers }) {
    const { W, H } = s,
      shown = Object.keys(KEYS).filter(k => !narrow || PAIRS[lines].includes(k));
    const p = s.plot(narrow ? [48, 30, W - 62, H - 216] : [52, 30, 372, H - 82], [0.01, 100, true], [0.01, 1000, true], {
      xlabel: "believed curvature *h̄*",
      ylabel: hill ? "local curvature, minus *h*" : "local curvature *h*",
    });
    p.line(
      [
        [0.01, 0.01],
        [100, 100],
      ],
      "thin",
    ).label([0.045, 0.045], "*h* = *h̄*", { side: "se", size: 12 });
    if (!hill)
      for (const k of shown) {
        const tilt = k === "llqr" || k === "both",
          limit = v => (tilt ? (thresholds[k] * (v + mu)) / (hbar + mu) : thresholds[k]);
        p.line(
          Array.from({ length: 61 }, (_, i) => 0.01 * 1e4 ** (i / 60)).map(v => [v, limit(v)]),
          KEYS[k],
        );
        const at = tilt ? 12 : 0.02;
        p.label([at, limit(at)], METHODS[KEYS[k]].label, {
          side: k === "gd" ? "n" : k === "sam" ? "n" : k === "llqr" ? "nw" : "se",
          far: 7,
          color: METHODS[KEYS[k]].text,
        });
      }
    p.mark("disc", [hbar, h], { r: 6 }).handle(["hbar", "h"], [hbar, h], "believed and local curvature");

    // The four multipliers: between -1 and 1 the hole holds.
    const top = narrow ? H - 96 : 58,
      row = narrow ? 46 : 84,
      left = narrow ? 20 : 462,
      w = narrow ? W - 40 : W - left - 14;
    if (beta > 0) {
      ["With momentum a step has", "two multipliers a method:", "only the limits are drawn."].forEach((words, i) =>
        s.text(left, top + 20 * i, words),
      );
      return;
    }
    s.text(left, top - 28, "a step multiplies the distance by", { size: 12 });
    shown.forEach((k, i) => {
      const v = multipliers[k],
        { label, text } = METHODS[KEYS[k]],
        y = top + i * row,
        X = u => left + ((Math.max(-3.1, Math.min(1.6, u)) + 3.1) / 4.7) * w,
        out = Math.abs(v) > 1;
      s.text(left, y, label, { color: text, size: 13 }).text(left + w, y, `${fmt(v)}${out ? ", leaves" : ", stays"}`, {
        anchor: "end",
        weight: out ? 600 : undefined,
      });
      s.line(
        [
          [X(-3.1), y + 18],
          [X(1.6), y + 18],
        ],
        "thin",
      ).line(
        [
          [X(-1), y + 18],
          [X(1), y + 18],
        ],
        "ink",
        { width: 5, faint: 0.35 },
      );
      for (const u of narrow ? [] : [-3, -2, -1, 0, 1]) s.text(X(u), y + 38, fmt(u), { anchor: "middle", size: 12, faint: 0.8 });
      if (v < -3.1 || v > 1.6) s.arrow([X(v) + (v < 0 ? 18 : -18), y + 18], [X(v), y + 18], KEYS[k], { dash: "none" });
      else s.shape(METHODS[KEYS[k]].marker, X(v), y + 18, { r: 5.5, color: METHODS[KEYS[k]].color });
    });
  },

  sentence: ({ beta, hill }, { contrast: x, chi, multipliers }) => {
    if (hill)
      return `Curvature below zero, contrast ${fmt(x)}: plain descent leaves, but with a perturbation a hilltop may attract.`;
    const head = `Contrast ${fmt(x)}, limit ${fmt(chi, 3)}`;
    if (beta > 0) return `${head} with momentum ${fmt(beta)}: LLQR+SAM ${x > chi ? "leaves" : "stays in"} the hole.`;
    const out = Object.keys(KEYS).filter(k => Math.abs(multipliers[k]) > 1),
      name = k => METHODS[KEYS[k]].label,
      stay = Object.keys(KEYS)
        .filter(k => !out.includes(k))
        .reverse();
    const list = names => (names.length < 2 ? names.join("") : `${names.slice(0, -1).join(", ")} and ${names.at(-1)}`),
      order = ["both", "sam", "llqr", "gd"];
    const say = (keys, one, many) =>
      keys.length ? `${list(order.filter(k => keys.includes(k)).map(name))} ${keys.length > 1 ? many : one}` : "";
    return `${head}: ${[say(out, "leaves the hole", "leave the hole"), say(stay, "stays", "stay")].filter(Boolean).join("; ")}.`;
  },
  table: ({ beta }, { chi, U, contrast: x, thresholds, multipliers }) => ({
    head: ["method", "leaves above local curvature", "multiplier"],
    rows: [
      ...Object.keys(KEYS).map(k => [METHODS[KEYS[k]].label, thresholds[k], beta > 0 ? "two of them" : multipliers[k]]),
      ["contrast, its limit", x, chi],
      ["U = 1/(h̄ + μ)", U, ""],
    ],
  }),
};
