// Axes with their ticks, and contour lines.
const decades = (lo, hi) => {
  const out = [],
    span = Math.log10(hi / lo),
    faces = span > 2.2 ? [1] : span > 1 ? [1, 3] : [1, 2, 5];
  for (let e = Math.floor(Math.log10(lo)); e <= Math.log10(hi) + 1e-9; e++)
    for (const f of faces) {
      const v = f * 10 ** e;
      if (v >= lo * 0.9999 && v <= hi * 1.0001) out.push(+v.toPrecision(3));
    }
  const skip = Math.ceil(out.length / 6);
  return out.filter((_, i) => i % skip === 0);
};
const evenly = (lo, hi, most) => {
  const raw = (hi - lo) / most,
    ten = 10 ** Math.floor(Math.log10(raw)),
    step = [1, 2, 5, 10].find(f => f * ten >= raw * 0.999) * ten,
    out = [];
  for (let k = Math.ceil(lo / step - 1e-9); k * step <= hi + step * 1e-9; k++) out.push(+(k * step).toPrecision(12));
  return out;
};
// An axis from lo to hi on pixels a to b; `log` for a logarithmic one.
export const axis = (lo, hi, a, b, log = false) => {
  const f = log ? Math.log : v => v,
    to = v => (log && v <= 0 ? (a < b ? -1e4 : 1e4) : a + ((f(v) - f(lo)) / (f(hi) - f(lo))) * (b - a));
  const back = p => {
    const t = f(lo) + ((p - a) / (b - a)) * (f(hi) - f(lo));
    return log ? Math.exp(t) : t;
  };
  return { to, back, lo, hi, ticks: (most = 5) => (log ? decades(lo, hi) : evenly(lo, hi, most)) };
};

// Lines on which f is one of `levels`, by marching squares on an n x m grid of the two axes.
export const contours = (f, X, Y, levels, n = 64, m = 48) => {
  const grid = (A, k) => Array.from({ length: k + 1 }, (_, i) => A.to(A.lo) + ((A.to(A.hi) - A.to(A.lo)) * i) / k),
    out = levels.map(() => "");
  const xs = grid(X, n),
    ys = grid(Y, m),
    us = xs.map(X.back),
    F = ys.map(py => {
      const v = Y.back(py);
      return us.map(u => f([u, v]));
    });
  for (let j = 0; j < m; j++)
    for (let i = 0; i < n; i++) {
      const v = [F[j][i], F[j][i + 1], F[j + 1][i + 1], F[j + 1][i]],
        lo = Math.min(...v),
        hi = Math.max(...v);
      for (let l = 0; l < levels.length; l++) {
        const c = levels[l];
        if (!(lo < c && c <= hi)) continue;
        let pen = 0,
          d = "";
        for (let k = 0; k < 4; k++) {
          // the corners in turn: the edges on which f - c changes sign
          const a = v[k] - c,
            b = v[(k + 1) % 4] - c;
          if (a < 0 === b < 0) continue;
          const t = a / (a - b),
            p = k === 0 ? i + t : k === 1 ? i + 1 : k === 2 ? i + 1 - t : i,
            q = k === 0 ? j : k === 1 ? j + t : k === 2 ? j + 1 : j + 1 - t;
          d += `${pen++ % 2 ? "L" : "M"}${(xs[0] + ((xs[n] - xs[0]) * p) / n).toFixed(1)} ${(ys[0] + ((ys[m] - ys[0]) * q) / m).toFixed(1)}`;
        }
        out[l] += d;
      }
    }
  return out;
};

// The parts of a path inside a box, with a break (a point of NaN) where it is outside: a dashed line of a million
// pixels costs a second even where it is clipped away.
export const cropped = (points, [x, y, w, h]) => {
  const out = [];
  for (let i = 1; i < points.length; i++) {
    const [a, b] = [points[i - 1], points[i]];
    let from = 0,
      to = 1;
    for (const [k, lo, hi] of [
      [0, x, x + w],
      [1, y, y + h],
    ]) {
      const d = b[k] - a[k];
      if (d === 0) {
        if (a[k] < lo || a[k] > hi) to = -1;
        continue;
      }
      const [p, q] = d > 0 ? [(lo - a[k]) / d, (hi - a[k]) / d] : [(hi - a[k]) / d, (lo - a[k]) / d];
      from = Math.max(from, p);
      to = Math.min(to, q);
    }
    if (!(from <= to)) continue;
    const at = t => [a[0] + t * (b[0] - a[0]), a[1] + t * (b[1] - a[1])];
    if (from > 0 || i === 1 || out.at(-1) !== a) out.push([NaN, NaN], from > 0 ? at(from) : a);
    out.push(to < 1 ? at(to) : b);
  }
  return out;
};
