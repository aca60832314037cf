// The book's colors, dashes and markers: the same table as llqr_sam_ref/figures/style.py (a test holds the two together).
// Colors are variables of the page, so that the theme switches them; the value after the comma is the light page's.
const TABLE = {
  gd: ["GD", "#090b10", "#090b10", "1 3", "dot", 1.8],
  adamw: ["AdamW", "#487571", "#487571", "10 4", "cross", 1.6],
  sam: ["SAM", "#8b280c", "#8b280c", "6 3", "triangle", 1.6],
  msam: ["M-SAM", "#d17901", "#8f5200", "6 3 1 3", "diamond", 1.6],
  llqr: ["LLQR", "#003093", "#003093", "none", "square", 1.6],
  llqr_sam: ["LLQR+SAM", "#ad76fa", "#7d3fd8", "none", "disc", 2.8],
};
export const METHODS = Object.fromEntries(
  Object.entries(TABLE).map(([key, [label, color, text, dash, marker, width]]) => {
    const name = `--method-${key.replace("_", "-")}`;
    return [key, { label, color: `var(${name}, ${color})`, text: `var(${name}-text, ${text})`, dash, marker, width }];
  }),
);
export const INK = "currentColor";
export const GRID = "var(--figure-grid, #c9ced6)";
export const PAGE = "var(--pst-color-background, #ffffff)";

// How a line looks: a method's name, or "ink", "thin", "believed" (dashed) or "grid".
export const look = name => {
  if (METHODS[name]) {
    const { color, text, dash, width } = METHODS[name];
    return { color, text, dash, width };
  }
  return {
    ink: { color: INK, text: INK, dash: "none", width: 1.6 },
    thin: { color: INK, text: INK, dash: "none", width: 1, faint: 0.6 },
    believed: { color: INK, text: INK, dash: "5 4", width: 1.4, faint: 0.8 },
    grid: { color: GRID, text: INK, dash: "none", width: 1 },
  }[name];
};
