// Who leads depends on what you count: stored runs of six methods against steps, gradient evaluations and seconds.
import { fmt } from "./numbers.js";
import { METHODS, look } from "./palette.js";
import { peers } from "./stored.js";

// Mean training loss at a budget. Point i of a curve is the mean over its share of the steps, and stands at the middle of it.
export function fight({ curves, costs, steps, budget }) {
  const loss = {},
    done = {};
  for (const [name, curve] of Object.entries(curves)) {
    const n = curve.length,
      at = (n * budget) / (costs[name] * steps) - 0.5,
      i = Math.max(0, Math.min(n - 2, Math.floor(at))),
      t = Math.max(0, Math.min(1, at - i));
    loss[name] = curve[i] + t * (curve[i + 1] - curve[i]);
    done[name] = budget >= costs[name] * steps;
  }
  return { loss, done };
}

// Name of the figure's control, name in the study, look. Muon has the ink of plain descent with dashes of its own.
const WHO = [
  ["sgd", "sgd", "gd", "SGD"],
  ["adamw", "adamw", "adamw"],
  ["muon", "muon", "gd", "Muon", "8 2 1 2"],
  ["sam", "sam", "sam", "SAM over SGD"],
  ["llqr", "llqr", "llqr"],
  ["both", "llqr-sam", "llqr_sam"],
].map(([key, name, style, label = METHODS[style].label, dash]) => ({ key, name, style, label, dash }));
const COSTS = { steps: () => 1, evaluations: row => row.evaluations_per_step, seconds: row => row.seconds_per_step };
const UNITS = { steps: "steps", evaluations: "gradient evaluations", seconds: "seconds" };
const entry = ({ task, axis }, name) => COSTS[axis](peers[task].methods[name]);
const longest = state => Math.max(...WHO.map(who => entry(state, who.name))) * peers[state.task].steps;
const spent = state => state.budget * longest(state);
const shown = state => WHO.filter(who => state[who.key]);
const order = (state, { loss }) => shown(state).sort((a, b) => loss[a.name] - loss[b.name]);

export const figure = {
  title: "Who leads depends on what you count",
  controls: [
    {
      name: "task",
      label: "task",
      choose: Object.fromEntries(Object.entries(peers).map(([task, { about }]) => [task, about])),
      value: "decoder",
    },
    { name: "axis", label: "count", choose: UNITS, value: "steps" },
    { name: "budget", label: "budget", min: 0.01, max: 1, log: true, value: 0.2, words: (_, state) => fmt(spent(state), 3) },
    ...WHO.map(({ key, label }) => ({ name: key, label, check: true, value: key !== "sam" })),
  ],
  height: (W, narrow) => (narrow ? Math.round(W * 1.05) : 400),
  calls: state => [
    [
      "fight",
      {
        curves: Object.fromEntries(WHO.map(({ name }) => [name, peers[state.task].methods[name].curve])),
        costs: Object.fromEntries(WHO.map(({ name }) => [name, entry(state, name)])),
        steps: peers[state.task].steps,
        budget: spent(state),
      },
    ],
  ],

  draw(s, state, { loss, done }) {
    const { W, H } = s,
      { steps, methods } = peers[state.task],
      most = longest(state),
      curves = WHO.map(who => methods[who.name].curve),
      low = Math.min(...curves.flat()),
      high = Math.max(...curves.map(curve => curve[0])) * 1.15,
      p = s.plot([52, 26, W - 52 - (state.narrow ? 16 : 110), H - 76], [most / 100, most, true], [low * 0.92, high, true], {
        xlabel: UNITS[state.axis],
        ylabel: "training loss",
        ticks: [state.narrow ? 3 : 6, 5],
      });
    const now = spent(state);
    p.line(
      [
        [now, low * 0.92],
        [now, high],
      ],
      "believed",
    );
    for (const { name, style, label, dash } of shown(state)) {
      const cost = entry(state, name),
        curve = methods[name].curve,
        points = curve.map((v, i) => [(cost * steps * (i + 0.5)) / curve.length, v]),
        more = dash ? { dash } : {};
      p.line(points, style, { ...more, faint: 0.3 });
      p.line([...points.filter(([x]) => x < now), ...(done[name] ? [] : [[now, loss[name]]])], style, more);
      const place = [Math.min(now, points.at(-1)[0]), loss[name]];
      p.mark(dash ? "ring" : style, place, dash ? { hollow: true } : {});
      if (state.narrow) p.label(place, label, { color: look(style).text });
      else s.label(p.X.to(points.at(-1)[0]), p.Y.to(curve.at(-1)), label, { color: look(style).text, side: "e" });
    }
  },

  sentence: (state, found) => {
    const ranked = order(state, found),
      say = who => `${who.label} ${fmt(found.loss[who.name], 3)}`,
      budget = `With ${fmt(spent(state), 3)} ${UNITS[state.axis]}`;
    if (!ranked.length) return `${budget} nobody is shown.`;
    const ended = ranked.filter(who => found.done[who.name]).map(who => who.label);
    return `${budget} ${ranked[0].label} leads: ${ranked.map(say).join(", ")}.${ended.length ? ` At the end of the run: ${ended.join(", ")}.` : ""}`;
  },
  table: (state, found) => ({
    head: ["method", `loss with ${fmt(spent(state), 3)} ${UNITS[state.axis]}`, `${UNITS[state.axis]} a step`, "run over"],
    rows: order(state, found).map(({ name, label }) => [label, found.loss[name], entry(state, name), found.done[name]]),
  }),
};
