// Early stopping is damping: which curvatures T inner steps have learned.
import { fmt } from "./numbers.js";
import { look } from "./palette.js";

export function filter({ w = 0.1, T = 50, a = 0.05 }) {
  // what T inner steps from the identity do to curvature w
  return { s: w === 0 ? 1 + a * T : 1 / w + (1 - 1 / w) * (1 - a * w) ** T, newton: 1 / w, stable: a * w < 2 };
}

const LOW = 0.01,
  HIGH = 100,
  GRID = Array.from({ length: 161 }, (_, i) => LOW * (HIGH / LOW) ** (i / 160));

export const figure = {
  title: "Early stopping is damping",
  controls: [
    { name: "steps", label: "inner steps T", min: 1, max: 5000, log: true, whole: true, value: 50 },
    { name: "a", label: "rate times |g|²", min: 0.001, max: 0.2, log: true, value: 0.05 },
    { name: "w", label: "curvature w", min: LOW, max: HIGH, log: true, value: 0.1 },
  ],
  calls: ({ steps, a, w }) => [
    ["filter", { w, T: steps, a }],
    ["filter", { w: 10, T: steps, a }],
  ],

  draw(s, { steps, a, w, narrow }, { s: response, stable }) {
    const { W, H } = s,
      T = steps,
      p = s.plot([54, 30, W - 68, H - 84], [LOW, HIGH, true], [0.005, 200, true], {
        xlabel: "curvature *w*",
        ylabel: "response",
        ticks: [5, 6],
      });
    const at = v => filter({ w: v, T, a }).s,
      edge = 2 / a,
      inside = GRID.filter(v => v < edge),
      out = GRID.filter(v => v >= edge);
    p.line(
      GRID.map(v => [v, 1 / v]),
      "believed",
    )
      .line(
        [
          [LOW, 1],
          [HIGH, 1],
        ],
        "gd",
        { width: 1.2 },
      )
      .line(
        inside.map(v => [v, Math.abs(at(v))]),
        "llqr",
        { width: 2.4 },
      );
    if (out.length)
      p.line(
        [
          [edge, 0.005],
          [edge, 200],
        ],
        "sam",
      )
        .line(
          out.map(v => [v, Math.abs(at(v))]),
          "sam",
        )
        .label([edge, 60], narrow ? "diverges" : "inner loop diverges", { side: "w", color: look("sam").text });
    const knee = 1 / (a * T);
    if (knee > LOW && knee < HIGH)
      p.line(
        [
          [knee, 0.005],
          [knee, at(knee)],
        ],
        "thin",
        { dash: "2 3" },
      ).label([knee, 0.008], "knee", { side: "e", size: 12 });
    p.label([0.02, 50], "1/*w*", { side: "ne" }).label([60, 1], "identity", { side: "n", size: 12 });
    p.mark(stable ? "llqr" : "sam", [w, Math.abs(response)], { r: 6 }).handle(
      ["w", null],
      [w, Math.min(200, Math.max(0.005, Math.abs(response) || 0.005))],
      "curvature w",
    );
    p.label([w, Math.abs(response)], fmt(response), { side: "se", far: 12, weight: 600 });
  },

  sentence: ({ w, a, steps }, { s: response, newton, stable }) =>
    !stable
      ? `Rate times curvature is ${fmt(a * w)}, not below 2: the inner loop diverges.`
      : Math.abs(response / newton - 1) < 0.02
        ? `Curvature ${fmt(w)} is learned: response ${fmt(response)} against ${fmt(newton)}.`
        : `After ${fmt(steps)} inner steps curvature ${fmt(w)} is at ${fmt(response)}; Newton wants ${fmt(newton)}.`,
  table: ({ steps, a }) => ({
    head: ["curvature", "response", "1/w"],
    rows: [0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100].map(v => {
      const f = filter({ w: v, T: steps, a });
      return [v, f.stable ? f.s : "inner loop diverges", f.newton];
    }),
  }),
};
