// `node:fs/promises` for isolates: see fs.mjs.

import api from "./fs.mjs";

const { promises } = api;
export default promises;
export const {
  constants, access, appendFile, chmod, copyFile, cp, link, lstat, mkdir, mkdtemp, open, opendir, readFile, readdir, readlink, realpath, rename,
  rm, rmdir, stat, truncate, unlink, utimes, writeFile,
} = promises;
