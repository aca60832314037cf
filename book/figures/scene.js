// A small drawing kit. A figure is text: the page puts it into its SVG, the build writes it into the HTML.
import { INK, GRID, PAGE, METHODS, look } from "./palette.js";
import { fmt } from "./numbers.js";
import { axis, contours, cropped } from "./axes.js";

const digits = v => (typeof v === "number" ? (Number.isFinite(v) ? +v.toFixed(2) : 0) : v);
const esc = text => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/"/g, "&quot;");
export const el = (name, attributes, inner = "") =>
  `<${name}${Object.entries(attributes)
    .map(([k, v]) => (v === undefined ? "" : ` ${k}="${esc(digits(v))}"`))
    .join("")}>${inner}</${name}>`;
// *x* is italic; everything else is plain text.
const rich = text => esc(text).replace(/\*([^*]+)\*/g, '<tspan font-style="italic">$1</tspan>');
const wide = (text, size) =>
  [...text.replace(/\*/g, "")].reduce(
    (s, c) => s + (/[il.,:;' |()]/.test(c) ? 0.32 : /[A-ZmwMW−+=<>≤≥∞]/.test(c) ? 0.68 : 0.54),
    0,
  ) *
  size *
  1.05;

const SHAPES = {
  dot: r => [[0, 0, r * 0.8]],
  disc: r => [[0, 0, r]],
  ring: r => [[0, 0, r]],
  triangle: r => [
    [0, -1.25 * r],
    [1.1 * r, 0.75 * r],
    [-1.1 * r, 0.75 * r],
  ],
  diamond: r => [
    [0, -1.3 * r],
    [1.3 * r, 0],
    [0, 1.3 * r],
    [-1.3 * r, 0],
  ],
  square: r => [
    [-r, -r],
    [r, -r],
    [r, r],
    [-r, r],
  ],
};

export function scene(W, H) {
  const parts = [],
    labels = [],
    taken = [],
    handles = [];
  const put = text => {
    parts.push(text);
    return api;
  };
  const stroke = (name, more = {}) => {
    const { color, dash, width, faint } = { ...look(name), ...more };
    return {
      fill: "none",
      stroke: color,
      "stroke-width": width,
      "stroke-dasharray": dash === "none" ? undefined : dash,
      "stroke-opacity": faint,
      "stroke-linejoin": "round",
      "stroke-linecap": dash === "1 3" ? "round" : undefined,
    };
  };
  const trace = points => {
    // a non-finite point ends the piece
    let d = "",
      pen = "M";
    for (const [x, y] of points) {
      if (!Number.isFinite(x) || !Number.isFinite(y)) {
        pen = "M";
        continue;
      }
      d += `${pen}${Math.max(-9999, Math.min(9999, x)).toFixed(1)} ${Math.max(-9999, Math.min(9999, y)).toFixed(1)}`;
      pen = "L";
    }
    return d;
  };
  const text = (x, y, words, { anchor = "start", size = 13, color = INK, weight, halo = true, faint } = {}) =>
    put(
      el(
        "text",
        {
          x,
          y,
          "text-anchor": anchor,
          "font-size": size,
          fill: color,
          "font-weight": weight,
          "fill-opacity": faint,
          ...(halo ? { stroke: PAGE, "stroke-width": 4, "stroke-linejoin": "round", "paint-order": "stroke" } : {}),
        },
        rich(words),
      ),
    );
  const block = (x0, y0, x1, y1, weight = 1) =>
    taken.push([Math.min(x0, x1), Math.min(y0, y1), Math.max(x0, x1), Math.max(y0, y1), weight]);
  // A label looks for a free place around its point; `side` is tried first.
  const label = (x, y, words, { side = "e", size = 13, far = 9, color = INK, weight, box = [0, 0, W, H] } = {}) => {
    labels.push({ x, y, words, side, size, far, color, weight, box });
    return api;
  };
  const place = () => {
    for (const { x, y, words, side, size, far, color, weight, box } of labels) {
      const w = wide(words, size),
        h = size,
        sides = ["e", "w", "n", "s", "ne", "nw", "se", "sw"];
      const reach = far * 4 + size * 2,
        near = taken.filter(t => t[0] < x + w + reach && t[2] > x - w - reach && t[1] < y + reach && t[3] > y - reach);
      let best = null;
      for (const [rank, s] of [side, ...sides.filter(o => o !== side)].entries())
        for (const d of [far, far * 2.2, far * 4]) {
          const dx = s.includes("e") ? d : s.includes("w") ? -d - w : -w / 2,
            dy = s.includes("n") ? -d - (s === "n" ? 0 : 2) : s.includes("s") ? d + h * 0.8 : h * 0.35;
          const x0 = x + dx,
            y0 = y + dy - h * 0.8,
            r = [x0 - 2, y0 - 1, x0 + w + 2, y0 + h + 1];
          let cost =
            rank * 2 +
            d / 3 +
            40 *
              (Math.max(0, box[0] - r[0]) +
                Math.max(0, r[2] - box[0] - box[2]) +
                Math.max(0, box[1] - r[1]) +
                Math.max(0, r[3] - box[1] - box[3]));
          for (const t of near) {
            const a = Math.min(r[2], t[2]) - Math.max(r[0], t[0]),
              b = Math.min(r[3], t[3]) - Math.max(r[1], t[1]);
            if (a > 0 && b > 0) cost += t[4] * Math.min(a, b) * 4 + t[4] * 4;
          }
          if (!best || cost < best.cost) best = { cost, x: x0, y: y + dy, r };
        }
      block(...best.r, 4);
      text(best.x, best.y, words, { size, color, weight });
    }
  };
  const shape = (kind, x, y, { r = 5, color = INK, hollow = false, width = 1.8 } = {}) => {
    block(x - r - 2, y - r - 2, x + r + 2, y + r + 2, 2);
    const paint = { fill: hollow ? PAGE : color, stroke: hollow ? color : PAGE, "stroke-width": hollow ? width : 1 };
    if (kind === "cross")
      return put(
        el("path", {
          d: `M${x - r} ${y - r}L${x + r} ${y + r}M${x - r} ${y + r}L${x + r} ${y - r}`,
          stroke: color,
          "stroke-width": width,
        }),
      );
    const points = SHAPES[kind](r);
    return put(
      points.length === 1
        ? el("circle", { cx: x, cy: y, r: points[0][2], ...paint })
        : el("path", { d: trace(points.map(([a, b]) => [x + a, y + b])) + "Z", "stroke-linejoin": "round", ...paint }),
    );
  };
  const line = (points, name = "ink", more) => {
    let last = [NaN, NaN]; // labels keep away from lines: a block every few pixels
    for (let i = 1; i < points.length; i++) {
      const [a, b] = [points[i - 1], points[i]],
        n = Math.min(60, Math.ceil(Math.hypot(b[0] - a[0], b[1] - a[1]) / 8));
      for (let k = 0; k < n; k++) {
        const x = a[0] + ((b[0] - a[0]) * k) / n,
          y = a[1] + ((b[1] - a[1]) * k) / n;
        if (Math.abs(x - last[0]) + Math.abs(y - last[1]) < 6) continue;
        block(x - 2, y - 2, x + 2, y + 2, 0.25);
        last = [x, y];
      }
    }
    return put(el("path", { d: trace(points), ...stroke(name, more) }));
  };
  // Ascent arrows have hollow heads (what is asked), descent arrows filled ones (what is done).
  const arrow = (a, b, name = "ink", { hollow = false, head = 9, ...more } = {}) => {
    const L = Math.hypot(b[0] - a[0], b[1] - a[1]);
    if (!(L > 0.5)) return api;
    const k = Math.min(head, L * 0.7),
      ux = (b[0] - a[0]) / L,
      uy = (b[1] - a[1]) / L,
      base = [b[0] - k * ux, b[1] - k * uy],
      { color, width } = { ...look(name), ...more };
    line([a, base], name, more);
    return put(
      el("path", {
        d:
          trace([b, [base[0] - 0.42 * k * uy, base[1] + 0.42 * k * ux], [base[0] + 0.42 * k * uy, base[1] - 0.42 * k * ux]]) +
          "Z",
        fill: hollow ? PAGE : color,
        stroke: color,
        "stroke-width": hollow ? Math.min(width, 1.6) : 0.5,
        "stroke-linejoin": "round",
      }),
    );
  };
  const minimum = (x, y) => {
    shape("ring", x, y, { r: 6, hollow: true, width: 1.6 });
    return put(el("circle", { cx: x, cy: y, r: 2, fill: INK }));
  };
  const saddle = (x, y) => {
    shape("ring", x, y, { r: 6, hollow: true, width: 1.6 });
    return put(el("path", { d: `M${x - 3.5} ${y - 3.5}l7 7m0 -7l-7 7`, stroke: INK, "stroke-width": 1.4 }));
  };

  // A plot: a box with two axes; its methods take the data's own coordinates and clip to the box.
  const plot = (
    [x, y, w, h],
    [x0, x1, xlog],
    [y0, y1, ylog],
    { xlabel, ylabel, grid = true, ticks = [5, 5], box = false, xticks, yticks, name = fmt } = {},
  ) => {
    const X = axis(x0, x1, x, x + w, xlog),
      Y = axis(y0, y1, y + h, y, ylog),
      size = 12;
    const tx = xticks ?? (ticks[0] ? X.ticks(ticks[0]) : []),
      ty = yticks ?? (ticks[1] ? Y.ticks(ticks[1]) : []);
    const rule = (a, b, more) =>
      put(el("path", { d: trace([a, b]), stroke: INK, "stroke-opacity": 0.6, "stroke-width": 1, fill: "none", ...more }));
    for (const v of tx) {
      if (grid) rule([X.to(v), y], [X.to(v), y + h], { stroke: GRID, "stroke-opacity": undefined, "stroke-width": 0.7 });
      text(X.to(v), y + h + 16, name(v), { anchor: "middle", size });
    }
    for (const v of ty) {
      if (grid) rule([x, Y.to(v)], [x + w, Y.to(v)], { stroke: GRID, "stroke-opacity": undefined, "stroke-width": 0.7 });
      text(x - 6, Y.to(v) + 4, name(v), { anchor: "end", size });
    }
    if (box) put(el("rect", { x, y, width: w, height: h, fill: "none", stroke: INK, "stroke-opacity": 0.6 }));
    else if (ticks[0] || ticks[1] || xticks || yticks) (rule([x, y], [x, y + h]), rule([x, y + h], [x + w, y + h]));
    if (xlabel) text(x + w / 2, y + h + (tx.length ? 33 : 17), xlabel, { anchor: "middle" });
    if (ylabel) text(x, y - 9, ylabel);
    // What is drawn inside is clipped by a nested <svg>; neighbors in the drawing order share one.
    const open = `<svg x="${digits(x)}" y="${digits(y)}" width="${digits(w)}" height="${digits(h)}" viewBox="${digits(x)} ${digits(y)} ${digits(w)} ${digits(h)}">`;
    const inside = draw => {
      const from = parts.length;
      draw();
      const body = parts.splice(from).join(""),
        last = parts.at(-1);
      if (last?.startsWith(open)) parts[parts.length - 1] = `${last.slice(0, -6)}${body}</svg>`;
      else put(`${open}${body}</svg>`);
      return p;
    };
    const at = ([a, b]) => [X.to(a), Y.to(b)],
      within = ([a, b]) => a >= x - 0.5 && a <= x + w + 0.5 && b >= y - 0.5 && b <= y + h + 0.5;
    const p = {
      X,
      Y,
      at,
      box: [x, y, w, h],
      inside,
      line: (points, name, more) => inside(() => line(cropped(points.map(at), [x - 9, y - 9, w + 18, h + 18]), name, more)),
      contour: (f, levels, { n, m, ...more } = {}) =>
        inside(() =>
          contours(f, X, Y, levels, n, m).forEach((d, i) =>
            put(el("path", { d, ...stroke("grid", more), ...(more.each?.(i) ?? {}) })),
          ),
        ),
      mark: (name, point, more = {}) => {
        const [a, b] = at(point),
          m = METHODS[name];
        return within([a, b]) ? (shape(m ? m.marker : name, a, b, { color: m ? m.color : INK, ...more }), p) : p;
      },
      minimum: point => (within(at(point)) && minimum(...at(point)), p),
      saddle: point => (within(at(point)) && saddle(...at(point)), p),
      arrow: (a, b, name, more) => inside(() => arrow(at(a), at(b), name, more)),
      label: (point, words, more = {}) => {
        const [a, b] = at(point);
        label(Math.max(x, Math.min(x + w, a)), Math.max(y, Math.min(y + h, b)), words, { box: [x, y, w, h], ...more });
        return p;
      },
      circle: (c, r, name, more) => {
        const q = [];
        for (let k = 0; k <= 90; k++)
          q.push([c[0] + (r[0] ?? r) * Math.cos((k * Math.PI) / 45), c[1] + (r[1] ?? r) * Math.sin((k * Math.PI) / 45)]);
        return p.line(q, name, more);
      },
      // Where a path leaves the box for good, an arrow says so.
      leaves: (points, name, words = "leaves the frame") => {
        const q = points.map(at),
          out = q.findIndex((v, i) => i > 0 && !within(v) && (i === q.length - 1 || q.slice(i).every(u => !within(u))));
        if (out < 1 || !within(q[out - 1])) return p;
        let [a, b] = [q[out - 1], q[out]];
        if (!Number.isFinite(b[0] + b[1]))
          b = [
            Number.isNaN(b[0]) ? a[0] : Math.max(-1e6, Math.min(1e6, b[0])),
            Number.isNaN(b[1]) ? a[1] : Math.max(-1e6, Math.min(1e6, b[1])),
          ];
        let t = 1;
        for (const [k, lo, hi] of [
          [0, x + 3, x + w - 3],
          [1, y + 3, y + h - 3],
        ]) {
          if (b[k] > hi) t = Math.min(t, (hi - a[k]) / (b[k] - a[k]));
          if (b[k] < lo) t = Math.min(t, (lo - a[k]) / (b[k] - a[k]));
        }
        const e = [a[0] + Math.max(0, t) * (b[0] - a[0]), a[1] + Math.max(0, t) * (b[1] - a[1])];
        inside(() => arrow(a, e, name));
        label(e[0], e[1], words, { color: look(name).text, box: [x, y, w, h] });
        return p;
      },
      handle: (names, point, words) => {
        handles.push({ names, at: at(point), words, back: (a, b) => [X.back(a), Y.back(b)] });
        return p;
      },
    };
    return p;
  };
  const api = {
    W,
    H,
    put,
    text,
    label,
    block,
    shape,
    line,
    arrow,
    minimum,
    saddle,
    plot,
    handles,
    body: () => {
      place();
      return parts.join("");
    },
  };
  return api;
}
