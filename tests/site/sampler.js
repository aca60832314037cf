// Runs in node after the served script, for test_live_figures.py.
let seed = 7;
const random = () => {
  seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
  return seed / 4294967296;
};

const at = (control, t) => {
  if (control.choose) {
    const names = Object.keys(control.choose);
    return names[Math.floor(t * 0.999 * names.length)];
  }
  if (control.check) return t > 0.5;
  return liveKit.state.valueAt(
    control,
    control.log ? Math.round(liveKit.state.range(control).max * t) : control.min + t * (control.max - control.min),
  );
};
const variants = figure =>
  Object.entries(figure.variants ?? {}).reduce(
    (all, [name, values]) => all.flatMap(o => values.map(v => ({ ...o, [name]: v }))),
    [{}],
  );

// Every control at its ends and in between, one at a time, then twenty mixed states; for every variant.
const states = figure =>
  variants(figure).flatMap(options => {
    const first = liveKit.state.initial(figure, options),
      out = [first];
    for (const control of figure.controls)
      for (const t of [0, 0.3, 0.8, 1]) out.push({ ...first, [control.name]: at(control, t) });
    for (let k = 0; k < 20; k++)
      out.push({ ...first, ...Object.fromEntries(figure.controls.map(c => [c.name, at(c, random())])) });
    return out;
  });

// Name, arguments and result of every call these states make, each once.
const sampled = kind => {
  const module = liveFigures[kind],
    found = new Map();
  for (const state of states(module.figure))
    for (const [name, given] of module.figure.calls(state)) {
      const key = JSON.stringify([name, given]);
      if (!found.has(key)) found.set(key, [name, given, module[name](given)]);
    }
  return [...found.values()];
};

// What is wrong with pictures, sentences and tables: broken numbers, ragged tables, handles that got lost.
const BROKEN = /NaN|Infinity|undefined(?! here)|null|\[object/;
const flaws = (kind, every) => {
  const module = liveFigures[kind],
    kit = liveKit.picture,
    out = [],
    kept = new Map();
  states(module.figure)
    .filter((_, i) => i % every === 0)
    .forEach(state =>
      [720, 330].forEach(width => {
        const found = kit.results(module, state, kept),
          { body, handles } = kit.picture(module, state, width, found);
        const table = module.figure.table(state, ...found),
          cells = table.rows.flat().map(v => (typeof v === "number" ? liveKit.numbers.fmt(v) : String(v)));
        const bad = [body, module.figure.sentence(state, ...found), ...cells].find(text => BROKEN.test(text));
        if (bad) out.push([state, width, bad.slice(Math.max(0, bad.search(BROKEN) - 80), bad.search(BROKEN) + 20)]);
        if (table.rows.some(row => row.length !== table.head.length)) out.push([state, "ragged table"]);
        if (handles.some(h => !h.at.every(Number.isFinite))) out.push([state, "lost handle"]);
      }),
    );
  return out.slice(0, 3);
};

// The opening state's picture at the width of a column, and its sentence.
const opening = kind => {
  const { figure } = liveFigures[kind],
    state = liveKit.state.initial(figure, {}),
    found = liveKit.picture.results(liveFigures[kind], state);
  return { body: liveKit.picture.picture(liveFigures[kind], state, 720, found).body, sentence: figure.sentence(state, ...found) };
};

// The opening state, and the state that its own text leads to.
const rewritten = kind => {
  const { figure } = liveFigures[kind],
    { initial, write } = liveKit.state,
    state = initial(figure, {});
  return [kind, [state, initial(figure, Object.fromEntries(Object.entries(state).map(([name, v]) => [name, write(v)])))]];
};
