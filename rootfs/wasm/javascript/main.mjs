// What a JavaScript program finds on the WebAssembly runtime besides the language itself: `process`, timers, `console.error`.
// The engine goes on until nothing is left to do, and ends with 1 when a rejected promise was handled by nobody.
import * as std from "qjs:std";
import * as os from "qjs:os";

const timers = new Map();
let lastTimer = 0;
const clear = (id) => { os.clearTimeout(timers.get(id)); timers.delete(id); };
const later = (id, work, time) => timers.set(id, os.setTimeout(() => guarded(work), Math.max(0, Number(time) || 0)));
globalThis.setTimeout = (work, time, ...args) => {
  const id = ++lastTimer;
  later(id, () => { timers.delete(id); work(...args); }, time);
  return id;
};
globalThis.setInterval = (work, time, ...args) => {
  const id = ++lastTimer, turn = () => { later(id, turn, time); work(...args); };
  later(id, turn, time);
  return id;
};
globalThis.setImmediate = (work, ...args) => globalThis.setTimeout(work, 0, ...args);
globalThis.clearTimeout = globalThis.clearInterval = globalThis.clearImmediate = (id) => { if (timers.has(id)) clear(id); };

const text = (value) => typeof value === "string" ? value : value instanceof Error ? `${value}\n${value.stack ?? ""}` : String(value);
const complain = (...values) => { std.err.puts(values.map(text).join(" ") + "\n"); std.err.flush(); };
console.error = console.warn = complain;
console.info = console.debug = console.log;
function fail(error) { complain(error instanceof Error ? `Uncaught ${text(error).trimEnd()}` : `Uncaught ${String(error)}`); std.out.flush(); std.exit(1); }
function guarded(work) { try { work(); } catch (error) { fail(error); } }

// Read whole when somebody listens: there is one thread, and nothing else to do meanwhile.
const listeners = { data: [], end: [] };
let reading = false;
const stdin = {
  setEncoding() { return stdin; },
  resume() { return stdin; },
  on(event, listener) {
    if (listeners[event]) listeners[event].push(listener);
    if (!reading && (event === "data" || event === "end")) {
      reading = true;
      globalThis.setTimeout(() => {
        const all = std.in.readAsString();
        if (all.length > 0) for (const listener of listeners.data) listener(all);
        for (const listener of listeners.end) listener();
      }, 0);
    }
    return stdin;
  },
  async *[Symbol.asyncIterator]() { const all = std.in.readAsString(); if (all.length > 0) yield all; },
};
stdin.once = stdin.on;
const writer = (file) => ({ isTTY: false, write(data) { file.puts(String(data)); file.flush(); return true; } });

const [, main, ...rest] = scriptArgs;
globalThis.process = {
  argv: ["qjs", main, ...rest],
  env: std.getenviron(),
  execPath: "qjs",
  platform: "wasi",
  stdin,
  stdout: writer(std.out),
  stderr: writer(std.err),
  cwd: () => "/workspace",
  exit(code) { std.out.flush(); std.exit(code ?? 0); },
  nextTick: (work, ...args) => queueMicrotask(() => work(...args)),
};
globalThis.global = globalThis;
// What belongs to the engine's own command line is nobody else's.
delete globalThis.scriptArgs;

// Not awaited: while a module waits, the engine looks at its timers between two promises, and not only when no promise is left.
import(main).catch(fail);
