// The road with potholes: twenty flat coordinates in a bowl full of pits, five stiff ones, four methods.
import { unit, add, fmt } from "./numbers.js";
import { METHODS, look } from "./palette.js";

export function road({
  P = true,
  eta = 0.005,
  rho = 1.5,
  steps = 3000,
  seed = 1,
  h1 = 100,
  h2 = 0.1,
  k = 20,
  l = 1,
  sigma = 1,
  dx = 5,
  dy = 20,
  y0 = 4,
  every = 20,
}) {
  let a = seed >>> 0; // mulberry32 uniform, cosine branch of Box-Muller
  const u = () => {
    a = (a + 0x6d2b79f5) >>> 0;
    let t = a;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
  const gauss = () => Math.sqrt(-2 * Math.log(1 - u())) * Math.cos(2 * Math.PI * u());
  const d = dx + dy,
    om = (2 * Math.PI) / l,
    F = k / om,
    h = [...Array(d)].map((_, i) => (i < dx ? h1 : h2)),
    U = h.map(v => (P ? 1 / v : 1));
  let w = h.map((_, i) => (i < dx ? 0 : y0));
  const frames = [w];
  for (let t = 1; t <= steps; t++) {
    const xi = w.map(() => sigma * gauss()); // the same noise in both passes
    const grad = v => v.map((c, i) => h[i] * c + (i < dx ? 0 : F * Math.sin(om * c)) + xi[i]);
    let g = grad(w);
    if (rho > 0) {
      const p = g.map((c, i) => U[i] * c);
      g = grad(add(w, unit(p), rho));
    }
    w = w.map((c, i) => c - eta * U[i] * g[i]);
    if (t % every === 0) frames.push(w);
  }
  return { w, frames };
}

const LANES = ["gd", "sam", "llqr", "llqr_sam"],
  EVERY = 20,
  STIFF = 5,
  H1 = 100,
  H2 = 0.1,
  Y0 = 4;
// How many flat coordinates are more than half a pit away from the start, and the two losses without the pits.
export const count = w => w.slice(STIFF).filter(c => Math.abs(c - Y0) > 0.5).length;
export const loss = (w, stiff) => (stiff ? w.slice(0, STIFF) : w).reduce((s, c, i) => s + 0.5 * (i < STIFF ? H1 : H2) * c * c, 0);
const now = (found, step) => found.map(f => f.frames[Math.round(step / EVERY)]);

export const figure = {
  title: "The road with potholes",
  slow: true,
  controls: [
    { name: "step", label: "step", min: 0, max: 3000, step: EVERY, value: 3000 },
    { name: "rho", label: "radius ρ", min: 0, max: 3, step: 0.1, value: 1.5 },
    { name: "raw", label: "η of GD, SAM", min: 0.001, max: 0.02, step: 0.0001, value: 0.01 },
    { name: "plain", label: "η of LLQR", min: 0.001, max: 0.02, step: 0.0001, value: 0.005 },
    { name: "both", label: "η of LLQR+SAM", min: 0.001, max: 0.02, step: 0.0001, value: 0.005 },
    { name: "sigma", label: "noise σ", min: 0, max: 3, step: 0.1, value: 1 },
    { name: "k", label: "pit curvature k", min: 0, max: 40, step: 1, value: 20 },
    { name: "seed", label: "seed", min: 1, max: 8, step: 1, value: 1 },
    {
      name: "lane",
      label: "method",
      choose: Object.fromEntries(LANES.map(m => [m, METHODS[m].label])),
      value: "llqr_sam",
      narrow: true,
    },
  ],
  plays: [{ label: "Play", name: "step", from: 0, to: 3000, seconds: 7 }],
  height: (W, narrow) => (narrow ? 250 : 470),
  calls: ({ rho, raw, plain, both, sigma, k, seed }) =>
    [
      [false, 0, raw],
      [false, rho, raw],
      [true, 0, plain],
      [true, rho, both],
    ].map(([P, r, eta]) => ["road", { P, eta, rho: r, seed, k, sigma, every: EVERY }]),

  draw(s, { step, k, lane, narrow }, ...found) {
    const { W } = s,
      shown = narrow ? [lane] : LANES,
      om = 2 * Math.PI,
      lo = -5.4,
      hi = 6.2,
      at = now(found, step);
    const height = y => 0.5 * H2 * y * y + (k / om ** 2) * (1 - Math.cos(om * y)),
      top = height(hi) + (2 * 20) / om ** 2;
    shown.forEach((m, row) => {
      const w = at[LANES.indexOf(m)],
        flat = w.slice(STIFF),
        tall = narrow ? 150 : 78,
        y = narrow ? 60 : 24 + row * 108,
        left = narrow ? 12 : 118,
        wide = narrow ? W - 24 : W - left - 128;
      const p = s.plot([left, y, wide, tall], [lo, hi], [-0.1, top], { ticks: [0, 0] });
      p.line(
        Array.from({ length: 300 }, (_, i) => lo + ((hi - lo) * i) / 299).map(v => [v, height(v)]),
        "ink",
        { width: 1.6, faint: 0.8 },
      );
      // Cars that would stand on one another are piled up, so that they can be counted.
      const size = narrow ? 4.6 : 4,
        piles = {};
      for (const c of [...flat].sort((a, b) => a - b)) {
        const v = Math.max(lo, Math.min(hi, c)),
          bin = Math.round(p.X.to(v) / (2 * size)),
          n = (piles[bin] = (piles[bin] ?? 0) + 1),
          [px, py] = p.at([v, height(v)]);
        const most = Math.floor((py - y + (narrow ? 20 : 14)) / (2 * size)),
          tower = Math.floor((n - 1) / most);
        s.shape(
          METHODS[m].marker,
          px + (tower % 2 ? 1 : -1) * Math.ceil(tower / 2) * 2.1 * size,
          py - size - ((n - 1) % most) * 2 * size,
          { r: size * (m === "llqr_sam" || m === "gd" ? 1 : 0.82), color: METHODS[m].color },
        );
      }
      if (flat.some(c => !(c >= lo && c <= hi))) s.text(left + wide, y - 4, "some leave the frame", { anchor: "end", size: 12 });
      const name = { color: look(m).text, weight: 600 },
        out = `${count(w)} of ${flat.length} out`,
        wall = loss(w, true);
      if (narrow)
        s.text(12, 22, METHODS[m].label, name)
          .text(W - 12, 22, out, { anchor: "end" })
          .text(12, y + tall + 26, "loss on the stiff wall")
          .text(W - 12, y + tall + 26, fmt(wall, 3), { anchor: "end" });
      else {
        s.text(8, y + 36, METHODS[m].label, name).text(8, y + 56, out);
        // A thermometer for the five stiff coordinates, on a logarithmic scale from 0.01 to 1000.
        const x = W - 106,
          full = 92,
          share = Math.max(0, Math.min(1, (Math.log10(Math.max(wall, 1e-9)) + 2) / 5));
        if (row === 0) s.text(x, 12, "stiff wall's loss", { size: 12 });
        s.line(
          [
            [x, y + 44],
            [x + full, y + 44],
          ],
          "grid",
          { width: 8 },
        )
          .line(
            [
              [x, y + 44],
              [x + full * share, y + 44],
            ],
            m,
            { width: 8, dash: "none" },
          )
          .text(x, y + 32, fmt(wall, 3));
      }
      if (row === shown.length - 1) {
        const foot = y + tall + (narrow ? 0 : 20);
        if (!narrow) for (const v of [-4, -2, 0, 2, 4, 6]) s.text(p.X.to(v), foot, fmt(v), { anchor: "middle", size: 12 });
        if (!narrow)
          s.text(left + wide / 2, foot + 20, "one flat coordinate (twenty cars; all start at 4)", { anchor: "middle", size: 12 });
      }
    });
  },

  sentence: ({ step, sigma, k, rho }, ...found) => {
    const at = now(found, step),
      [, sam, , both] = at,
      say = w => `${count(w)} of ${w.length - STIFF}`;
    const note =
      sigma === 0
        ? " Without noise, what shook the cars loose is missing."
        : k === 0
          ? " There are no pits."
          : rho === 0
            ? " Without a radius SAM is plain descent."
            : "";
    return `After ${fmt(step)} steps LLQR+SAM: ${say(both)} coordinates out. SAM: ${say(sam)}, with a loss of ${fmt(loss(sam, true), 3)} on the stiff wall. LLQR: ${say(at[2])}. GD: ${say(at[0])}.${note}`;
  },
  table: ({ step }, ...found) => ({
    head: ["method", "coordinates out", "bowl loss", "stiff wall's loss"],
    rows: now(found, step).map((w, i) => [METHODS[LANES[i]].label, count(w), loss(w), loss(w, true)]),
  }),
};
