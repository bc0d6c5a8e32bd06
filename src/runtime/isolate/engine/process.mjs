// `node:process` for isolates: the same object as the global one.

const { process } = globalThis;
export default process;
export const { argv, env, execPath, stdout, stderr, exit, platform, arch, version, versions, pid, cwd, nextTick, hrtime, uptime, memoryUsage, on, once, off } = process;
