// The page's Python: a WebAssembly CPython whose files live in memory. Runs where nobody waits for it, in a Worker.
import { ConsoleStdout, Directory, File, OpenFile, PreopenDirectory, WASI } from "./shim/index.js";

const LIBRARY = "/usr/local/lib/python315.zip"; // where this Python looks for its library; here a folder
const SITE = "/site"; // our package, and what the page reads of the repository
const ENVIRONMENT = ["HOME=/tmp", "TMPDIR=/tmp", "PYTHONTZPATH=", "MPLCONFIGDIR=/tmp", "MPLBACKEND=module://page_backend"];
const BEGIN = `
import json, os, sys
sys.path.insert(0, "${SITE}")
os.chdir("${SITE}")
from cell_runner import CellRunner
_said = sys.stdout
_run = CellRunner(lambda event: print(json.dumps(event), file=_said, flush=True)).run
`;

const ALL_RIGHTS = (1n << 30n) - 1n;

// A folder in which Python may write, and is told so when it asks.
class Writable extends PreopenDirectory {
  fd_fdstat_get() {
    const answer = super.fd_fdstat_get();
    Object.assign(answer.fdstat, { fs_rights_base: ALL_RIGHTS, fs_rights_inherited: ALL_RIGHTS });
    return answer;
  }
}

function place(root, path, bytes) {
  const names = path.split("/").filter(Boolean);
  const name = names.pop();
  let folder = root;
  for (const step of names) {
    if (!folder.has(step)) folder.set(step, new Directory(new Map()));
    folder = folder.get(step).contents;
  }
  folder.set(name, new File(bytes));
}

// A TAR is a row of blocks of 512 bytes: a head with name and size, then the content.
export function layOut(archive, root) {
  const text = (at, length) => new TextDecoder().decode(archive.subarray(at, at + length)).replace(/\0.*$/s, "");
  for (let at = 0; archive[at]; ) {
    const size = parseInt(text(at + 124, 12), 8);
    place(root, `${text(at + 345, 155)}/${text(at, 100)}`, archive.subarray(at + 512, at + 512 + size));
    at += 512 + Math.ceil(size / 512) * 512;
  }
}

/** Start Python.
 * @param module - compiled.
 * @param libraries - archives of packages, unpacked.
 * @param site - archive of our package, unpacked.
 * @param files - texts by path, which the page reads of the repository.
 * @param hear - gets each event of the cells that run.
 * @returns a function that runs a cell of a source and a name, and says whether it came to its end.
 */
export async function startPython(module, libraries, site, files, hear) {
  const library = new Map();
  const local = new Map();
  libraries.forEach((archive) => layOut(archive, library));
  layOut(site, local);
  for (const [path, text] of Object.entries(files)) place(local, path, new TextEncoder().encode(text));
  const complaints = [];
  const output = ConsoleStdout.lineBuffered((line) => hear(line.startsWith("{") ? JSON.parse(line) : { kind: "text", text: `${line}\n` }));
  const errors = ConsoleStdout.lineBuffered((line) => complaints.push(line));
  const root = new Map([["tmp", new Directory(new Map())], ["site", new Directory(local)]]);
  const descriptors = [new OpenFile(new File([])), output, errors, new PreopenDirectory(LIBRARY, library), new Writable("/", root)];
  const system = new WASI(["python"], ENVIRONMENT, descriptors, { debug: false });
  const instance = await WebAssembly.instantiate(module, { wasi_snapshot_preview1: system.wasiImport, host: { call: () => -1 } });
  const { memory, host_alloc, turn } = instance.exports;
  system.initialize(instance);

  // 0 when the source ran to its end.
  const execute = (source) => {
    const bytes = new TextEncoder().encode(source);
    const at = host_alloc(bytes.length) >>> 0;
    new Uint8Array(memory.buffer).set(bytes, at);
    return turn(at, bytes.length);
  };
  if (execute(BEGIN) !== 0) throw new Error(complaints.join("\n"));
  // What JSON writes of a text, Python reads as the same text.
  return (source, name) => execute(`assert _run(${JSON.stringify(source)}, ${JSON.stringify(name)})`) === 0;
}
