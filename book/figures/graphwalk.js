// The same radius, measured on the map (SAM) or along the surface (M-SAM).
import { fmt } from "./numbers.js";
import { look } from "./palette.js";

export function graphwalk({ c = 1, x = 1, rho = 0.5 }) {
  // L = c x^2 / 2
  const s = c * x,
    L = v => (c * v * v) / 2,
    k = 1 / Math.sqrt(1 + s * s),
    d = Math.sign(s);
  const sam = x + rho * d,
    monge = x + rho * k * d;
  return {
    slope: s,
    sam,
    monge,
    riseSam: L(sam) - L(x),
    riseMonge: L(monge) - L(x),
    linearSam: rho * Math.abs(s),
    linearMonge: rho * Math.abs(s) * k,
  };
}

export const figure = {
  title: "500 meters on a slope",
  controls: [
    { name: "x", label: "place x", min: -2, max: 2, step: 0.05, value: 1 },
    { name: "rho", label: "radius ρ", min: 0, max: 1, step: 0.05, value: 0.5 },
    { name: "c", label: "loss scale c", min: 0.1, max: 10, log: true, value: 1 },
  ],
  height: (W, narrow) => (narrow ? W * 1.12 : (W * 430) / 720),
  calls: ({ c, x, rho }) => [["graphwalk", { c, x, rho }]],

  draw(s, { c, x, rho, narrow }, { slope, sam, monge, riseSam, riseMonge }) {
    const { W, H } = s,
      L = v => (c * v * v) / 2,
      d = Math.sign(slope),
      y = L(x),
      k = Math.hypot(1, slope),
      inset = narrow ? [16, 10, 130, 84] : [24, 14, 190, 116];
    const o = s.plot(inset, [-2.4, 2.4], [0, c * 2.9], { ticks: [0, 0], box: true }); // the whole curve, for the handle
    const curve = (lo, hi) => Array.from({ length: 161 }, (_, i) => lo + ((hi - lo) * i) / 160).map(v => [v, L(v)]);
    o.line(curve(-2.4, 2.4), "ink").minimum([0, 0]).mark("disc", [x, y], { r: 4 }).handle(["x", null], [x, y], "place x");

    // The loupe keeps one scale on both axes, or the two sticks would not look equally long.
    const left = 16,
      w = W - 32,
      top = narrow ? 104 : 14,
      map = H - 74,
      h = map - top,
      unit = w / ((narrow ? 2.2 : 2.9) + (rho > 0.5 ? 0.9 : 0)),
      back = narrow ? 0.9 : 1.3;
    const x0 = x - (d < 0 ? w / unit - back : back),
      y0 = y - (0.42 * h) / unit;
    const p = s.plot([left, top, w, h], [x0, x0 + w / unit], [y0, y0 + h / unit], { ticks: [0, 0] });
    const at = v => p.at([v, y])[0],
      ground = map + 26;
    if (slope !== 0)
      p.line(
        [
          [x - 3, y - 3 * slope],
          [x + 3, y + 3 * slope],
        ],
        "thin",
        { dash: "2 3" },
      );
    p.line(curve(x0, x0 + w / unit), "ink", { width: 2 });
    s.line(
      [
        [left, ground],
        [left + w, ground],
      ],
      "thin",
    );
    if (slope !== 0 && rho > 0) {
      const stick = [x + (d * rho) / k, y + (Math.abs(slope) * rho) / k];
      p.line(
        [
          [x, y],
          [x + d * rho, y],
        ],
        "sam",
        { width: 5, dash: "none" },
      ).line([[x, y], stick], "msam", { width: 5, dash: "none" });
      for (const [who, end, from, v, rise, row] of [
        ["sam", [sam, y], [sam, y], sam, riseSam, 0],
        ["msam", [monge, stick[1]], stick, monge, riseMonge, 1],
      ]) {
        const px = at(v),
          floor = ground + 1 + row * 9;
        s.line(
          [
            [px, p.at(from)[1]],
            [px, floor],
          ],
          who,
          { width: 1 },
        );
        s.line(
          [
            [at(x), floor + 4],
            [px, floor + 4],
          ],
          who,
          { width: 4, dash: "none" },
        );
        const hit = [v, L(v)],
          seen = p.at(hit)[1] > top + 6;
        if (seen) p.line([end, hit], who, { width: 1 }).mark(who, hit, { hollow: true });
        else p.arrow([v, end[1]], [v, y0 + h / unit], who, { head: 8 });
        p.label(seen ? hit : [v, y0 + (h / unit) * 0.97], `${who === "sam" ? "SAM" : "M-SAM"} rises ${fmt(rise)}`, {
          side: d < 0 ? "w" : "e",
          far: 12,
          color: look(who).text,
        });
      }
      s.text(
        left,
        ground + 40,
        `${narrow ? "" : "the map, height removed; "}shadows ${fmt(Math.abs(sam - x), 3)} and ${fmt(Math.abs(monge - x), 3)}`,
        { size: 12 },
      );
    }
    p.mark("disc", [x, y], { r: 5.5 }).label([x, y], "*x*", { side: "s", far: 12 });
    s.line(
      [
        [at(x), p.at([x, y])[1] + 6],
        [at(x), ground + 14],
      ],
      "thin",
      { width: 0.8 },
    );
  },

  sentence: ({ x, rho }, { slope, sam, monge }) =>
    slope === 0
      ? "Flat here: no slope, no direction, and neither method moves."
      : rho === 0
        ? "Radius zero: nobody moves."
        : `Slope ${fmt(slope)}: SAM moves ${fmt(Math.abs(sam - x))}, M-SAM ${fmt(Math.abs(monge - x))}.`,
  table: (_, { slope, sam, monge, riseSam, riseMonge, linearSam, linearMonge }) => ({
    head: ["quantity", "SAM", "M-SAM"],
    rows: [
      ["arrives at", sam, monge],
      ["rise of the loss", riseSam, riseMonge],
      ["rise on the straight line", linearSam, linearMonge],
      ["slope", slope, slope],
    ],
  }),
};
