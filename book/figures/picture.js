// From a state to a picture: the same functions run in the page and in the build.
import { scene } from "./scene.js";

// What a figure computes in a state. `kept` holds the last results, so that a call whose arguments stay is not made again.
export const results = (module, state, kept = new Map()) => {
  const calls = module.figure.calls(state).map(([name, args]) => [name, args, JSON.stringify([name, args])]);
  const found = calls.map(([name, args, key]) => kept.get(key) ?? module[name](args));
  kept.clear();
  calls.forEach(([, , key], i) => kept.set(key, found[i]));
  return found;
};
export const size = (figure, state, width) => {
  const narrow = width < 560;
  return {
    W: width,
    narrow,
    H: Math.round(figure.height ? figure.height(width, narrow, state) : narrow ? width : (width * 420) / 720),
  };
};
// One picture: {svg text, handles}. The same function runs in the page and in the build.
export const picture = (module, state, width, found) => {
  const { W, H, narrow } = size(module.figure, state, width),
    s = scene(W, H);
  module.figure.draw(s, { ...state, narrow }, ...found);
  return { W, H, body: s.body(), handles: s.handles };
};
