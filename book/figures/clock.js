// Why did nothing happen? Four settings make three times and one bill.
import { fmt } from "./numbers.js";

export function clock({
  T = 50,
  every = 1000,
  product = 4 / 3,
  probe = 1,
  gamma = 0.95,
  lrU = 1e-3,
  clip = 5,
  beta = 0.9,
  perturbed = true,
}) {
  const overhead = (T * product * probe) / every,
    base = perturbed ? 2 : 1;
  let travel = 0;
  for (let t = 1; t <= T; t++) travel += (lrU * clip * (1 - beta ** t)) / (1 - beta);
  return {
    overhead,
    total: base + overhead,
    memory: every / (1 - gamma),
    travelPerRefit: travel,
    keptPerRefit: (1 - gamma) * travel,
  };
}

const LEAF = { bias: ["bias, 512", 512], factor: ["factor, 4608", 4608], convolution: ["diagonal, 2359296", 2359296] };
const KIND = { ggn: 4 / 3, hessian: 2 };
const share = v => `${fmt(100 * v, 2)} %`;

export const figure = {
  title: "Why did nothing happen?",
  controls: [
    { name: "run", label: "run length", min: 1000, max: 1e6, log: true, whole: true, value: 78125 },
    { name: "every", label: "steps a refit", min: 10, max: 5000, log: true, whole: true, value: 1000 },
    { name: "steps", label: "inner steps T", min: 1, max: 200, step: 1, value: 50 },
    { name: "gamma", label: "average γ", min: 0, max: 1, step: 0.01, value: 0.95 },
    { name: "rate", label: "inner rate", min: 1e-4, max: 0.1, log: true, value: 1e-3 },
    {
      name: "leaf",
      label: "array",
      choose: Object.fromEntries(Object.entries(LEAF).map(([k, v]) => [k, v[0]])),
      value: "convolution",
    },
    { name: "product", label: "product", choose: { ggn: "Gauss-Newton", hessian: "Hessian" }, value: "ggn" },
    { name: "probe", label: "probe batch", min: 0.0625, max: 1, step: 0.0625, value: 1, words: v => `${fmt(v)} of B` },
    { name: "perturbed", label: "with SAM's second gradient", check: true, value: true },
  ],
  height: (W, narrow) => (narrow ? 420 : 400),
  calls: ({ steps, every, product, probe, gamma, rate, perturbed }) => [
    ["clock", { T: steps, every, product: KIND[product], probe, gamma, lrU: rate, clip: 5, beta: 0.9, perturbed }],
  ],

  draw(s, { run, every, gamma, leaf, perturbed, narrow }, { overhead, memory, travelPerRefit, keptPerRefit, total }) {
    const { W } = s,
      left = narrow ? 12 : 24,
      room = W - 2 * left,
      ticks = Math.ceil(run / every), // the first is at step 0
      head = (y, words, value) =>
        s.text(left, y, words, { size: 12 }).text(left + room, y, value, { anchor: "end", weight: 600 });
    // 1. The run, its refits, and what the average remembers of the first one.
    head(
      24,
      narrow ? "the run and its refits" : "the run, one tick a refit, and how the memory of the first refit fades",
      `${fmt(ticks)} refits`,
    );
    s.line(
      [
        [left, 56],
        [left + room, 56],
      ],
      "grid",
      { width: 18 },
    );
    for (let i = 0; i < 60; i++) {
      const t = i / 60,
        keep = Number.isFinite(memory) ? Math.exp((-t * run) / memory) : 1;
      s.line(
        [
          [left + t * room, 56],
          [left + (t + 1 / 60) * room + 0.5, 56],
        ],
        "llqr",
        { width: 18, faint: 0.85 * keep },
      );
    }
    if (ticks <= 400)
      for (let i = 0; i < ticks; i++)
        s.line(
          [
            [left + ((i * every) / run) * room, 43],
            [left + ((i * every) / run) * room, 69],
          ],
          "thin",
          { width: ticks > 120 ? 0.5 : 1 },
        );
    s.text(
      left,
      90,
      Number.isFinite(memory)
        ? `memory ${fmt(memory, 3)} steps: ${memory > run ? "outlasts the run" : `${fmt(run / memory, 3)} in a run`}`
        : "memory without end: U is frozen",
      { weight: memory > run ? 600 : undefined },
    );
    // 2. The purse: how far one array can move, against how far away it is.
    const size = Math.sqrt(LEAF[leaf][1]),
      whole = keptPerRefit * ticks,
      y = 140,
      at = v => Math.max(0, Math.min(1, (Math.log10(Math.max(v, 1e-9)) + 3) / 7)) * room;
    head(
      y,
      narrow ? "travel of U (log scale)" : "how far U can travel, against the size of the identity it starts from (log scale)",
      "",
    );
    [
      ["one refit", travelPerRefit, "llqr"],
      ["kept of it", keptPerRefit, "llqr"],
      ["whole run", whole, "llqr"],
      ["array's norm", size, "ink"],
    ].forEach(([words, v, name], i) => {
      const yy = y + 24 + i * 27,
        x = left + 96;
      s.text(left, yy + 4, words)
        .line(
          [
            [x, yy],
            [x + ((room - 96 - 76) * at(v)) / room, yy],
          ],
          name,
          { width: 10, dash: "none", faint: undefined },
        )
        .text(left + room, yy + 4, fmt(v), { anchor: "end" });
    });
    // 3. The bill, in gradients of the training batch.
    const by = y + 158,
      scale = (room - 4) / Math.max(2.5, total);
    head(by, narrow ? "one step, in gradients" : "what a step costs, in gradients of the training batch", fmt(total));
    let x = left;
    for (const [words, v, name] of [
      ["gradient", 1, "gd"],
      ...(perturbed ? [["SAM's second", 1, "sam"]] : []),
      ["refits", overhead, "llqr"],
    ]) {
      s.line(
        [
          [x, by + 24],
          [x + v * scale - 1, by + 24],
        ],
        name,
        { width: 20, dash: "none" },
      );
      if (v * scale > 7 * words.length) s.text(x, by + 52, words, { size: 12 });
      x += v * scale;
    }
    s.text(left, by + 76, `refits add ${share(overhead / (perturbed ? 2 : 1))}`, { weight: 600 });
  },

  sentence: ({ gamma, perturbed }, { overhead, memory, keptPerRefit }) =>
    gamma === 1
      ? "With γ = 1 nothing of a refit is kept: U is frozen."
      : `Memory ${fmt(memory)} steps. Overhead ${fmt(100 * overhead, 2)} percent of a gradient. Kept travel ${fmt(keptPerRefit, 3)} per refit.`,
  table: ({ run, every, leaf }, f) => ({
    head: ["quantity", "value"],
    rows: [
      ["memory (steps)", f.memory],
      ["refits in the run", Math.ceil(run / every)],
      ["travel of one refit", f.travelPerRefit],
      ["kept of it", f.keptPerRefit],
      ["norm of the array", Math.sqrt(LEAF[leaf][1])],
      ["overhead (gradients a step)", f.overhead],
      ["cost of a step (gradients)", f.total],
    ],
  }),
};
