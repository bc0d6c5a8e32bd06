// `node:os` for isolates: what tells nothing of the host.

const { platform: system, arch: machine } = globalThis.process;
export const EOL = "\n", devNull = "/dev/null";
export const tmpdir = () => "/tmp", homedir = () => "/workspace", platform = () => system, arch = () => machine;
export const type = () => "Linux", endianness = () => "LE", hostname = () => "isolate", availableParallelism = () => 1;
export default { EOL, devNull, tmpdir, homedir, platform, arch, type, endianness, hostname, availableParallelism };
