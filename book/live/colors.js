// Python in color, in the classes that Pygments gives its tokens, so that changed code looks like the page's.

const WORDS = {
  k: "as assert async await break class continue def del elif else except finally for global if lambda nonlocal pass raise return try while with yield",
  kn: "from import",
  kc: "False None True",
  ow: "and in is not or",
  nb: "abs all any bool dict enumerate filter float format int isinstance len list map max min next print range repr reversed round set sorted str sum tuple type zip",
};
const KIND = new Map(Object.entries(WORDS).flatMap(([kind, words]) => words.split(" ").map((word) => [word, kind])));
const TOKEN = new RegExp(
  [
    String.raw`(?<c1>#.*)`,
    String.raw`(?<s2>\b[rbfu]{0,2}(?:"""[^]*?(?:"""|$)|'''[^]*?(?:'''|$)|"(?:\\.|[^"\\\n])*"?|'(?:\\.|[^'\\\n])*'?)|"""[^]*?(?:"""|$)|'''[^]*?(?:'''|$)|"(?:\\.|[^"\\\n])*"?|'(?:\\.|[^'\\\n])*'?)`,
    String.raw`(?<mi>\b\d[\d_]*\.?\d*(?:[eE][-+]?\d+)?j?)`,
    String.raw`(?<n>[^\W\d]\w*)`,
    String.raw`(?<o>[-+*/%@&|^~<>=!]+)`,
  ].join("|"),
  "gu",
);

const escaped = (text) => text.replace(/[&<>]/g, (letter) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;" })[letter]);

/** Source as HTML. */
export function colored(source) {
  let html = "";
  let at = 0;
  for (const found of source.matchAll(TOKEN)) {
    const [kind] = Object.entries(found.groups).find(([, text]) => text !== undefined);
    html += `${escaped(source.slice(at, found.index))}<span class="${KIND.get(found[0]) ?? kind}">${escaped(found[0])}</span>`;
    at = found.index + found[0].length;
  }
  return html + escaped(source.slice(at));
}
