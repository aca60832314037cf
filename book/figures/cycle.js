// SAM never stops: on a bowl it ends in a two-cycle whose size is geometry.
import { perturb, fmt } from "./numbers.js";
import { look } from "./palette.js";

export function cycle({ h = 4, eta = 0.1, rho = 0.1, x = 1, alpha = 0, n = 40 }) {
  const path = [x];
  for (let t = 0; t < n; t++) {
    const g = h * x;
    path.push((x = x - eta * h * (x + perturb([g], rho, alpha)[0])));
  }
  const c = (eta * rho * h) / (2 - eta * h); // SAM's amplitude, valid for 0 < eta h < 2
  const a = alpha > 0 && rho > 0 ? Math.sqrt((-1 + Math.sqrt(1 + 4 * (alpha * h * c) ** 2)) / 2) / (alpha * h) : c;
  return { path, amplitude: eta * h < 2 ? a : NaN };
}

const name = alpha => (alpha > 0 ? "msam" : "sam");

export const figure = {
  title: "SAM never stops",
  controls: [
    { name: "x", label: "start x", min: -1, max: 1, step: 0.02, value: 1 },
    { name: "h", label: "curvature h", min: 0.5, max: 20, step: 0.5, value: 4 },
    { name: "eta", label: "learning rate η", min: 0.01, max: 0.5, step: 0.005, value: 0.1 },
    { name: "rho", label: "radius ρ", min: 0, max: 0.5, step: 0.01, value: 0.1 },
    { name: "alpha", label: "rule", choose: { 0: "SAM", 1: "M-SAM" }, value: "0" },
    { name: "zoom", label: "zoom", min: 1, max: 32, log: true, value: 1 },
    { name: "plot", label: "show", choose: { map: "the map", steps: "the steps" }, value: "map", narrow: true },
  ],
  height: (W, narrow) => (narrow ? W * 0.96 : (W * 410) / 720),
  calls: ({ h, eta, rho, x, alpha }) => [["cycle", { h, eta, rho, x, alpha: Number(alpha) }]],

  draw(s, { h, eta, rho, x, alpha, zoom, plot, narrow }, { path, amplitude }) {
    const { W, H } = s,
      who = name(Number(alpha)),
      lim = 1.12 / zoom;
    if (!narrow || plot === "map") {
      const side = narrow ? Math.min(W - 64, H - 66) : H - 84;
      const p = s.plot([52, 30, side, side], [-lim, lim], [-lim, lim], { xlabel: "*x*", ylabel: "next *x*", ticks: [4, 4] });
      const image = v => cycle({ h, eta, rho, x: v, alpha: Number(alpha), n: 1 }).path[1];
      p.line(
        [
          [-lim, -lim],
          [lim, lim],
        ],
        "thin",
      );
      for (const sign of [-1, 1])
        p.line(
          Array.from({ length: 61 }, (_, i) => sign * lim * Math.max(i / 60, 1e-9)).map(v => [v, image(v)]),
          who,
          { width: 2 },
        );
      const web = [[path[0], path[0]]];
      for (let t = 1; t < path.length; t++) web.push([path[t - 1], path[t]], [path[t], path[t]]);
      p.line(web, "ink", { width: 1.1 }).leaves(web, "ink");
      if (amplitude > 0)
        p.line(
          [
            [amplitude, amplitude],
            [amplitude, -amplitude],
            [-amplitude, -amplitude],
            [-amplitude, amplitude],
            [amplitude, amplitude],
          ],
          "ink",
          { width: 2.4 },
        );
      p.label([-lim * 0.62, image(-lim * 0.62)], who === "sam" ? "SAM" : "M-SAM", { side: "se", color: look(who).text });
      p.label([lim * 0.8, lim * 0.8], "next *x* = *x*", { side: "se" });
      p.mark(who, [x, x], { r: 6 }).handle(["x", null], [x, x], "start x");
    }
    if (!narrow || plot === "steps") {
      const left = narrow ? 56 : H + 40,
        box = [left, 30, W - left - 14, narrow ? H - 66 : H - 84];
      const seen = path.map((v, t) => [t, Math.abs(v)]),
        top = amplitude >= 0 || rho === 0 ? 2 : 50;
      const low = 10 ** Math.floor(Math.log10(Math.max(amplitude > 0 ? amplitude / 2 : 1e-4, 1e-6)));
      const p = s.plot(box, [0, path.length - 1], [low, top, true], { xlabel: "step", ylabel: "distance |*x*|", ticks: [4, 5] });
      p.line(seen, who, { dash: "none", width: 1, faint: 0.6 });
      seen.forEach(point => p.mark(who, point, { r: 3.2 }));
      p.leaves(seen, who);
      if (amplitude > 0)
        p.line(
          [
            [0, amplitude],
            [path.length - 1, amplitude],
          ],
          "believed",
        ).label([path.length * 0.55, amplitude], `amplitude ${fmt(amplitude)}`, { side: "n", far: 12 });
    }
  },

  sentence: ({ h, eta, rho, x, alpha }, { amplitude }) => {
    if (x === 0) return "Starts exactly on the minimum: the gradient is zero and it rests for ever. No neighboring start does.";
    if (!(amplitude >= 0)) return `Learning rate times curvature is ${fmt(eta * h)}, not below 2: the path leaves the frame.`;
    if (rho === 0) return "Without a radius this is plain descent: it settles at 0.";
    return `${Number(alpha) ? "M-SAM" : "SAM"} settles between plus and minus ${fmt(amplitude)}.`;
  },
  table: (_, { path, amplitude }) => ({ head: ["step", "x"], rows: [...path.map((v, t) => [t, v]), ["amplitude", amplitude]] }),
};
