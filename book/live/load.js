// What a page needs to run, fetched once: its cells, Python, the packages that it imports, ours.

// The bytes of a response, told to `hear` as they arrive, unpacked.
async function unpacked(url, options, hear) {
  const response = await fetch(url, options);
  if (!response.ok) throw new Error(`${url} answers ${response.status}`);
  const counted = new TransformStream({
    transform(chunk, controller) {
      hear(chunk.byteLength);
      controller.enqueue(chunk);
    },
  });
  return response.body.pipeThrough(counted).pipeThrough(new DecompressionStream("gzip"));
}

/** The cells of a page and what to fetch for them.
 * @param base - address of the folder of scripts.
 * @param page - its name, for instance "book/sam/cycle".
 */
export async function loadPage(base, page) {
  // A page changes under the same address; ask whether it has.
  const stream = await unpacked(new URL(`pages/${page}.json.gzip`, base), { cache: "no-cache" }, () => {});
  return new Response(stream).json();
}

/** Everything else.
 * @param base - address of the folder of scripts.
 * @param page - what loadPage gave.
 * @param hear - gets how many bytes have come and how many will.
 */
export async function loadParts(base, page, hear) {
  const total = page.parts.reduce((sum, [, bytes]) => sum + bytes, 0);
  let come = 0;
  const part = async ([name]) =>
    new Response(await unpacked(new URL(name, base), {}, (bytes) => hear((come += bytes), total)), {
      headers: { "Content-Type": "application/wasm" },
    });
  const [python, ...archives] = page.parts;
  const compiled = part(python).then((response) => WebAssembly.compileStreaming(response));
  const bytes = archives.map(async (entry) => new Uint8Array(await (await part(entry)).arrayBuffer()));
  const [module, site, ...libraries] = await Promise.all([compiled, ...bytes]);
  return { module, site, libraries, files: page.files };
}
