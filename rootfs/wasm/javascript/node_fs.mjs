// The part of `node:fs` that works on whole files, by the file system calls of WASI.
import * as std from "qjs:std";
import * as os from "qjs:os";

function failed(errno, call, path) {
  // Numbers of WASI.
  const names = { 2: "EACCES", 20: "EEXIST", 31: "EISDIR", 44: "ENOENT", 51: "ENOSPC", 54: "ENOTDIR", 55: "ENOTEMPTY", 63: "EPERM", 69: "EROFS", 76: "ENOTCAPABLE" };
  const code = names[errno] ?? `E${errno}`;
  return Object.assign(new Error(`${code}: ${std.strerror(errno)}, ${call} '${path}'`), { code, errno, syscall: call, path });
}
const check = (result, call, path) => { if (result < 0) throw failed(-result, call, path); return result; };
const value = ([result, errno], call, path) => { if (errno !== 0) throw failed(errno, call, path); return result; };
const encodingOf = (options) => typeof options === "string" ? options : options?.encoding;
const FLAGS = {
  w: os.O_WRONLY | os.O_CREAT | os.O_TRUNC,
  wx: os.O_WRONLY | os.O_CREAT | os.O_EXCL,
  a: os.O_WRONLY | os.O_CREAT | os.O_APPEND,
  ax: os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND,
};

function utf8(text) {
  const bytes = [], plain = unescape(encodeURIComponent(text.toWellFormed()));
  for (let at = 0; at < plain.length; at += 1) bytes.push(plain.charCodeAt(at));
  return new Uint8Array(bytes);
}
const fromUtf8 = (bytes) => {
  let plain = "";
  for (const byte of bytes) plain += "%" + byte.toString(16).padStart(2, "0");
  return decodeURIComponent(plain);
};

export function readFileSync(path, options) {
  const { size } = statSync(path), file = check(os.open(path, os.O_RDONLY), "open", path);
  try {
    const parts = [];
    let length = 0;
    for (;;) {
      const part = new Uint8Array(Math.max(4096, size - length + 1));
      const got = check(os.read(file, part.buffer, 0, part.length), "read", path);
      if (got === 0) break;
      parts.push(part.subarray(0, got));
      length += got;
    }
    const all = new Uint8Array(length);
    let at = 0;
    for (const part of parts) { all.set(part, at); at += part.length; }
    return encodingOf(options) ? fromUtf8(all) : all;
  } finally { os.close(file); }
}
export function writeFileSync(path, data, options) {
  const flag = options?.flag ?? "w", bytes = typeof data === "string" ? utf8(data) : new Uint8Array(data.buffer ?? data);
  if (!(flag in FLAGS)) throw new TypeError(`the flag ${flag} is none of ${Object.keys(FLAGS).join(", ")}`);
  const file = check(os.open(path, FLAGS[flag], 0o644), "open", path);
  try {
    const { buffer, byteOffset } = bytes;
    for (let at = 0; at < bytes.length;) at += check(os.write(file, buffer, byteOffset + at, bytes.length - at), "write", path);
  } finally { os.close(file); }
}
export const appendFileSync = (path, data) => writeFileSync(path, data, { flag: "a" });
export const existsSync = (path) => os.stat(path)[1] === 0;
export function statSync(path) {
  const found = value(os.stat(path), "stat", path), kind = found.mode & os.S_IFMT;
  return { ...found, mtimeMs: found.mtime, isFile: () => kind === os.S_IFREG, isDirectory: () => kind === os.S_IFDIR };
}
export function mkdirSync(path, options) {
  if (!options?.recursive) { check(os.mkdir(path), "mkdir", path); return; }
  const parts = path.split("/");
  for (let count = 1; count <= parts.length; count += 1) {
    const parent = parts.slice(0, count).join("/");
    if (parent !== "" && !existsSync(parent)) check(os.mkdir(parent), "mkdir", parent);
  }
}
export const readdirSync = (path) => value(os.readdir(path), "scandir", path).filter((name) => name !== "." && name !== "..");
export const renameSync = (from, to) => { check(os.rename(from, to), "rename", from); };
export const unlinkSync = (path) => { check(os.remove(path), "unlink", path); };
export function rmSync(path, options) {
  if (!existsSync(path)) { if (options?.force) return; throw failed(44, "rm", path); }
  if (statSync(path).isDirectory()) {
    if (!options?.recursive) throw failed(31, "rm", path);
    for (const name of readdirSync(path)) rmSync(`${path}/${name}`, options);
  }
  check(os.remove(path), "rm", path);
}
export default { readFileSync, writeFileSync, appendFileSync, existsSync, statSync, mkdirSync, readdirSync, renameSync, unlinkSync, rmSync };
