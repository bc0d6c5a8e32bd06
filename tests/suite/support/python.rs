//! Python that hostile and probing tests run inside a session: system calls by number with their errno.

/// Definitions for probes: `call(nr, …)` gives `(result, errno name)`, `forked(f)` runs `f` in a child and gives what it
/// returned or how it died.
const PRELUDE: &str = r#"
import ctypes, errno, json, os, signal, sys
_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
def call(nr, *args):
    ctypes.set_errno(0)
    args = [ctypes.c_char_p(a) if isinstance(a, bytes) else ctypes.c_long(a) if isinstance(a, int) else a for a in args]
    result = _libc.syscall(ctypes.c_long(nr), *args)
    return [result, errno.errorcode.get(ctypes.get_errno(), "0") if result == -1 else "ok"]
def forked(function):
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            answer = function()
        except OSError as error:
            answer = errno.errorcode[error.errno]
        os.write(writer, json.dumps(answer).encode())
        os._exit(0)
    os.close(writer)
    text = b""
    while True:
        part = os.read(reader, 65536)
        if not part: break
        text += part
    os.close(reader)
    status = os.waitpid(child, 0)[1]
    return json.loads(text) if text else "died:%d" % status
"#;

/// The prelude followed by `code`.
pub fn probe(code: &str) -> String {
    format!("{PRELUDE}\n{code}")
}
