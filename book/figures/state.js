// A figure's state: one value per control (plus its variants), from attributes and from the address.
const clamp = (v, lo, hi) => Math.min(hi, Math.max(lo, v));
const STEPS = 120; // of a logarithmic slider

// Nearest value that the control can show. Linear sliders snap to their step, logarithmic ones to three digits or a whole number.
export const snap = (control, v) => {
  const { min, max, step, log, whole } = control;
  if (log) return clamp(Number(whole ? Math.round(v).toPrecision(3) : v.toPrecision(3)), min, max);
  return Number(clamp(min + Math.round((v - min) / step) * step, min, max).toPrecision(12));
};
// A logarithmic slider moves along a ladder of distinct values; a linear one along the values themselves.
const ladders = new WeakMap();
const ladder = control => {
  if (!ladders.has(control)) {
    const rungs = Array.from({ length: STEPS + 1 }, (_, p) =>
      snap(control, control.min * (control.max / control.min) ** (p / STEPS)),
    );
    ladders.set(
      control,
      rungs.filter((v, i) => v !== rungs[i - 1]),
    );
  }
  return ladders.get(control);
};
const nearest = (rungs, v) =>
  rungs.reduce((best, rung, i) => (Math.abs(Math.log(rung / v)) < Math.abs(Math.log(rungs[best] / v)) ? i : best), 0);
export const position = (control, v) => (control.log ? nearest(ladder(control), v) : v);
export const valueAt = (control, p) =>
  control.log ? ladder(control)[clamp(p, 0, ladder(control).length - 1)] : snap(control, p);
export const range = control =>
  control.log ? { min: 0, max: ladder(control).length - 1, step: 1 } : { min: control.min, max: control.max, step: control.step };

// The value that a text stands for, or an error that says what is allowed.
export const read = (control, text) => {
  const { name, choose, check, min, max } = control;
  if (choose) {
    if (!(text in choose))
      throw new RangeError(`${name}=${JSON.stringify(text)} is not one of ${Object.keys(choose).join(", ")}`);
    return text;
  }
  if (check) {
    if (!["yes", "no"].includes(text)) throw new RangeError(`${name}=${JSON.stringify(text)} must be yes or no`);
    return text === "yes";
  }
  const v = Number(text);
  if (String(text).trim() === "" || !(v >= min && v <= max))
    throw new RangeError(`${name}=${JSON.stringify(text)} must be a number from ${min} to ${max}`);
  if (control.whole && !Number.isInteger(v)) throw new RangeError(`${name}=${JSON.stringify(text)} must be a whole number`);
  return v;
};
export const write = v => (v === true ? "yes" : v === false ? "no" : String(v));

// The state that a figure opens with. Unknown options are errors: a misspelled attribute must not pass in silence.
export const initial = (figure, options) => {
  const state = {},
    names = [...figure.controls.map(c => c.name), ...Object.keys(figure.variants ?? {})];
  for (const name of Object.keys(options))
    if (!names.includes(name)) throw new RangeError(`unknown option ${name}; choose from ${names.join(", ")}`);
  for (const [name, allowed] of Object.entries(figure.variants ?? {}))
    state[name] =
      name in options ? read({ name, choose: Object.fromEntries(allowed.map(a => [a, a])) }, options[name]) : allowed[0];
  Object.assign(state, figure.opens?.(state)); // a variant may bring its own defaults
  for (const control of figure.controls)
    state[control.name] = control.name in options ? read(control, options[control.name]) : (state[control.name] ?? control.value);
  return state;
};

// "#fig=cycle&h=4" -> {h: 4} when `names` holds "cycle"; anything that does not fit is left out.
export const fromAddress = (figure, hash, names) => {
  const given = new URLSearchParams(hash.replace(/^#/, "")),
    out = {};
  if (!names.includes(given.get("fig"))) return null;
  for (const control of figure.controls)
    if (given.has(control.name))
      try {
        out[control.name] = read(control, given.get(control.name));
      } catch {
        /* keep the old value */
      }
  return out;
};
export const toAddress = (name, state, first) =>
  "#" +
  [["fig", name], ...Object.entries(state).filter(([k, v]) => v !== first[k])]
    .map(([k, v]) => `${k}=${encodeURIComponent(write(v))}`)
    .join("&");
