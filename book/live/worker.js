// Python runs here, so that the page stays alive. First message: the parts. Each further one: a cell.
import { startPython } from "./python.js";

let run;
const hear = (event) => postMessage({ event });

onmessage = async ({ data }) => {
  try {
    if (!run) {
      run = await startPython(data.module, data.libraries, data.site, data.files, hear);
      postMessage({ answer: true });
    } else {
      const begun = performance.now();
      const ok = run(data.source, data.name);
      postMessage({ answer: { ok, seconds: (performance.now() - begun) / 1000 } });
    }
  } catch (error) {
    // Python itself has ended: the stack or the memory is used up, or the browser lacks something that it needs.
    postMessage({ failure: error.message });
  }
};
