// `node:fs` for isolates: paths as the session sees them, `/workspace` and `/tmp`, become those below its directory. This is no
// wall: what a path may reach is decided by the permissions of the cell, whatever is written here.

import real from "node:fs";
import { posix } from "node:path";

let root = "", emit = () => {};
export function setPlace(directory, output) { root ||= directory; emit = output; }

function place(path) {
  if (path instanceof URL) path = decodeURIComponent(path.pathname);
  if (path instanceof Uint8Array) path = Buffer.from(path).toString();
  if (typeof path !== "string") return path;
  const whole = posix.resolve("/workspace", path);
  return whole === root || whole.startsWith(`${root}/`) ? whole : root + (whole === "/" ? "" : whole);
}
const shown = (value) => typeof value === "string" && value.startsWith(root) ? value.slice(root.length) || "/" : value;
function plain(error) {
  if (error instanceof Error) {
    error.message = error.message.replaceAll(root, "");
    for (const field of ["path", "dest"]) if (error[field]) error[field] = shown(error[field]);
  }
  return error;
}
// `places` leading arguments are paths; a promise and a callback get the same words as an exception.
const moved = (of, name, places) => function (...args) {
  for (let at = 0; at < places; at++) args[at] = place(args[at]);
  const last = args.at(-1);
  if (typeof last === "function") args[args.length - 1] = (error, ...rest) => last(plain(error), ...rest.map(shown));
  try {
    const result = of[name](...args);
    return result instanceof Promise ? result.then(shown, (error) => { throw plain(error); }) : shown(result);
  } catch (error) { throw plain(error); }
};

const ONE = ["access", "appendFile", "chmod", "mkdir", "mkdtemp", "open", "opendir", "readFile", "readdir", "readlink", "realpath", "rm", "rmdir", "stat", "lstat", "truncate", "unlink", "utimes", "writeFile"];
const TWO = ["copyFile", "cp", "link", "rename"];
const OPEN = ["close", "fdatasync", "fstat", "fsync", "ftruncate", "read", "readv", "write", "writev"];
const api = { constants: real.constants, promises: { constants: real.constants } };
for (const [names, places] of [[ONE, 1], [TWO, 2]]) {
  for (const name of names) {
    for (const form of [name, `${name}Sync`]) if (real[form]) api[form] = moved(real, form, places);
    if (real.promises[name]) api.promises[name] = moved(real.promises, name, places);
  }
}
for (const name of OPEN) for (const form of [name, `${name}Sync`]) if (real[form]) api[form] = (...args) => real[form](...args);
api.existsSync = (path) => { try { real.accessSync(place(path)); return true; } catch { return false; } };
api.createReadStream = moved(real, "createReadStream", 1);
api.createWriteStream = moved(real, "createWriteStream", 1);
const write = api.writeSync;
api.writeSync = (descriptor, data, ...rest) => {
  if (descriptor !== 1 && descriptor !== 2) return write(descriptor, data, ...rest);
  const bytes = typeof data === "string" ? Buffer.from(data) : data;
  emit(descriptor, bytes);
  return bytes.length;
};

// The namespace `Deno`, which the engine's own modules use too: files, words for errors, and nothing that acts on the process.
const DENO_ONE = ["chmod", "create", "lstat", "mkdir", "open", "readDir", "readFile", "readLink", "readTextFile", "realPath", "remove", "stat", "truncate", "utime", "writeFile", "writeTextFile"];
const DENO_TWO = ["copyFile", "link", "rename"];
export function namespace(whole, more) {
  const { FsFile, SeekMode, build, errors, inspect, noColor, version } = whole;
  const part = { FsFile, SeekMode, build, errors, inspect, noColor, version, ...more };
  for (const [names, places] of [[DENO_ONE, 1], [DENO_TWO, 2]]) {
    for (const name of names) for (const form of [name, `${name}Sync`]) if (whole[form]) part[form] = moved(whole, form, places);
  }
  return Object.freeze(part);
}

export default api;
export const {
  constants, promises, access, accessSync, appendFile, appendFileSync, chmod, chmodSync, close, closeSync, copyFile, copyFileSync, cp, cpSync,
  createReadStream, createWriteStream, existsSync, fdatasync, fdatasyncSync, fstat, fstatSync, fsync, fsyncSync, ftruncate, ftruncateSync, link,
  linkSync, lstat, lstatSync, mkdir, mkdirSync, mkdtemp, mkdtempSync, open, openSync, opendir, opendirSync, read, readSync, readFile, readFileSync,
  readdir, readdirSync, readlink, readlinkSync, readv, readvSync, realpath, realpathSync, rename, renameSync, rm, rmSync, rmdir, rmdirSync, stat,
  statSync, truncate, truncateSync, unlink, unlinkSync, utimes, utimesSync,  writeSync, writeFile, writeFileSync, writev, writevSync,
} = api;
