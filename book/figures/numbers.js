// Arithmetic that several figures share, and how a number is written on the screen.
export const norm = v => Math.sqrt(v.reduce((s, c) => s + c * c, 0));
export const unit = v => {
  const n = norm(v);
  return n > 0 ? v.map(c => c / n) : v.map(() => 0);
};
export const add = (a, b, k = 1) => a.map((c, i) => c + k * b[i]);

// One perturbation. alpha = 0 is SAM, alpha > 0 Monge SAM; rho = 0 is none; a zero gradient gives a zero perturbation.
export const perturb = (g, rho, alpha = 0) => {
  const s = norm(g);
  return unit(g).map(c => (rho * c) / Math.sqrt(1 + alpha * alpha * s * s));
};

// The two-weight network x2 = w1 w0 with input 1 and target 1.
export const banana = {
  L: ([x, y]) => (1 - x * y) ** 2,
  g: ([x, y]) => {
    const r = 2 * (x * y - 1);
    return [r * y, r * x];
  },
};

const RAISED = { "-": "⁻", 0: "⁰", 1: "¹", 2: "²", 3: "³", 4: "⁴", 5: "⁵", 6: "⁶", 7: "⁷", 8: "⁸", 9: "⁹" };

// Four significant digits (or `digits`), a true minus sign, powers of ten only below 0.001 and from 10 million.
export const fmt = (v, digits = 4) => {
  if (v === true || v === false) return v ? "yes" : "no";
  if (typeof v === "string") return v;
  if (Number.isNaN(v)) return "undefined here";
  if (!Number.isFinite(v)) return "leaves the frame";
  const size = Math.abs(v);
  let text;
  if (size >= 9999.5 && size < 1e7) text = String(Number.isInteger(v) ? v : Number(v.toPrecision(digits)));
  else if (size !== 0 && (size < 0.001 || size >= 9999.5)) {
    const [head, tail] = v.toExponential(digits - 1).split("e"),
      ten = `10${[...String(Number(tail))].map(c => RAISED[c]).join("")}`;
    text = Math.abs(head) === 1 ? (v < 0 ? "-" : "") + ten : `${Number(head)} × ${ten}`;
  } else text = String(Number(v.toPrecision(digits)) || 0);
  return text.replace("-", "−");
};
export const pair = (v, digits = 4) => `(${v.map(c => fmt(c, digits)).join(", ")})`;
// What a voice says: "minus 1" instead of a sign that some readers swallow.
export const speak = text =>
  text.replace(/−(?=[\d.])/g, "minus ").replace(
    /10([⁻⁰¹²³⁴-⁹]+)/g,
    (_, up) =>
      "10 to the " +
      [...up]
        .map(c => Object.keys(RAISED).find(k => RAISED[k] === c))
        .join("")
        .replace("-", "minus "),
  );
