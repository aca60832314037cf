// The map of the two-weight network, (1 - xy)^2: four figures walk on it.
const product = ([x, y]) => x * y;

// One branch of the minima, xy = 1, from x = lo to x = hi (both positive).
export const hyperbola = (lo, hi, sign = 1) =>
  Array.from({ length: 81 }, (_, i) => lo * (hi / lo) ** (i / 80)).map(x => [sign * x, sign / x]);

// Contour lines of the given losses are lines of constant xy; the minima are drawn bold.
export const bananaMap = (plot, losses, { n = 30, width, bold = 2 } = {}) => {
  plot.contour(
    product,
    losses.map(Math.sqrt).flatMap(r => [1 - r, 1 + r]),
    { n, m: n, width },
  );
  for (const sign of [-1, 1]) {
    const [lo, hi] = sign > 0 ? [plot.X.lo, plot.X.hi] : [-plot.X.hi, -plot.X.lo];
    if (hi > 0.05) plot.line(hyperbola(Math.max(0.05, lo), hi, sign), "ink", { width: bold });
  }
  return plot;
};
