//! Programs that are run both ways: what a Python program can find out about how it began, how it can end, and what it can do
//! that depends on its process.

use serde_json::{Value, json};

/// What must be equal: all of a result but times, ids, amounts of memory, and where objects lie.
pub fn essence(answer: &Value) -> Value {
    let result = &answer["result"];
    let of = |name: &str| result.get(name).cloned();
    let stderr = result["stderr"].as_str().map(without_addresses);
    json!({
        "stdout": of("stdout"), "stderr": stderr, "exitCode": of("exitCode"), "signal": of("signal"),
        "timedOut": of("timedOut"), "oomKilled": of("oomKilled"), "blocked": of("blockedSyscalls"),
        "success": answer["success"], "errorKind": answer["errorKind"], "error": answer["error"],
    })
}

fn without_addresses(text: &str) -> String {
    let mut pieces = text.split(" at 0x");
    let first = pieces.next().unwrap_or_default().to_owned();
    pieces.fold(first, |told, piece| told + " at 0x…" + piece.trim_start_matches(|letter: char| letter.is_ascii_hexdigit()))
}

fn with(text: &str, more: &Value) -> Value {
    let mut command = json!({"type": "execute_code", "language": "python", "code": text, "timeoutSeconds": 30});
    for (name, value) in more.as_object().expect("an object") {
        command[name] = value.clone();
    }
    command
}

/// Name and command of each.
pub fn programs() -> Vec<(&'static str, Value)> {
    let plain = PLAIN.iter().map(|(name, text)| (*name, with(text, &json!({}))));
    plain
        .chain([
            ("arguments", with("import sys; print(sys.argv, sys.orig_argv)", &json!({"args": ["a", "", "b c", "é", "-x"]}))),
            ("an option as an argument", with("import sys; print(sys.argv)", &json!({"args": ["-c", "print(2)"]}))),
            ("standard input of bytes", with(STDIN, &json!({"stdin": "one\ntwo\nthree"}))),
            ("standard input that is empty", with(STDIN, &json!({}))),
            ("variables", with(VARIABLES, &json!({"env": {"ZED": "z", "A": "ä", "EMPTY": ""}}))),
            (
                "a time that is over",
                with("import time; print('begun', flush=True); time.sleep(60)", &json!({"timeoutSeconds": 1})),
            ),
            ("a time that is over, and a program that ignores signals", with(DEAF, &json!({"timeoutSeconds": 1}))),
        ])
        .collect()
}

const STDIN: &str = r"
import sys, os
print(sys.stdin, sys.stdin.seekable(), sys.stdin.line_buffering, sys.stdin.write_through, sys.stdin.buffer, sys.stdin.mode)
print(repr(sys.stdin.readline()), repr(sys.stdin.read()), os.fstat(0).st_mode, sys.stdin is sys.__stdin__)
try: print(repr(input()))
except EOFError as error: print('end', error)";

const VARIABLES: &str = r"
import os, subprocess, sys
print(list(os.environ.items()))
print(subprocess.run(['env'], capture_output=True, text=True).stdout)
print(os.environb[b'A'], os.getenv('PYTHONPATH'))
os.environ['NEW'] = '1'; del os.environ['ZED']
print(subprocess.run([sys.executable, '-c', 'import os, sys; print(sorted(os.environ), sys.path, sys.flags)'], capture_output=True, text=True).stdout)";

const DEAF: &str = r"
import signal, time
for number in range(1, 65):
    try: signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError): pass
print('deaf', flush=True)
while True: time.sleep(1)";

const PLAIN: &[(&str, &str)] = &[
    (
        "how it began",
        r"
import sys, os
print(sys.argv, sys.orig_argv, sys.path, sys.flags, sys.executable, sys.prefix, sys.exec_prefix, sys.warnoptions, sys._xoptions)
print(__name__, __file__, __spec__, __loader__.__class__, __builtins__, __package__, __doc__, sorted(globals()))
print(os.getcwd(), os.getppid(), os.getsid(0) == os.getpid(), os.getpgrp() == os.getpid(), os.umask(0), os.nice(0))
print(sys.stdout, sys.stderr, sys.stdout.line_buffering, sys.stdout.write_through, sys.stdout.buffer.__class__, sys.stderr.errors)
print(sys.getfilesystemencoding(), sys.getdefaultencoding(), sys.getrecursionlimit(), sys.getswitchinterval(), sys.excepthook, sys.displayhook)
print([name for name in sys.modules if 'customize' in name or name in ('gc', '_ctypes', '_socket')], [getattr(f, '__name__', type(f).__name__) for f in sys.meta_path], len(sys.path_hooks))
import locale, time, gc
print(locale.setlocale(locale.LC_ALL, None), locale.getpreferredencoding(), time.tzname, gc.isenabled(), gc.get_threshold())",
    ),
    (
        "what its process is",
        r"
import os, resource
status = dict(line.rstrip().split(':\t', 1) for line in open('/proc/self/status') if ':\t' in line)
for name in ('Name', 'Umask', 'State', 'PPid', 'TracerPid', 'Uid', 'Gid', 'FDSize', 'Groups', 'Threads', 'SigQ', 'SigPnd', 'SigBlk', 'SigIgn', 'SigCgt', 'CapInh',
             'CapPrm', 'CapEff', 'CapBnd', 'CapAmb', 'NoNewPrivs', 'Seccomp', 'Seccomp_filters'):
    if name not in ('State', 'FDSize', 'SigQ'): print(name, status.get(name))
print(sorted(os.listdir('/proc/self/fd'))[:3], len(os.listdir('/proc/self/fd')))
for number in range(16): print(number, resource.getrlimit(number))
print(open('/proc/self/oom_score_adj').read(), open('/proc/self/cgroup').read().count('\n'), open('/proc/self/cmdline').read(), open('/proc/self/comm').read())
print(os.stat('/proc/self/environ').st_uid, os.stat('/proc/self/mem').st_uid == os.getuid(), os.sched_getaffinity(0) == os.sched_getaffinity(1), os.sched_getscheduler(0))
print([os.get_inheritable(fd) for fd in (0, 1, 2)], [os.get_blocking(fd) for fd in (0, 1, 2)])",
    ),
    (
        "what prctl tells",
        r"
import ctypes
prctl = ctypes.CDLL(None).prctl
value = ctypes.c_int()
for option in (2, 37): print(option, prctl(option, ctypes.byref(value), 0, 0, 0), value.value)
for option in (3, 7, 21, 27, 30, 39): print(option, prctl(option, 0, 0, 0, 0))",
    ),
    (
        "frames",
        "import sys, traceback, inspect\ntraceback.print_stack()\nprint(len(inspect.stack()), sys._getframe().f_back)\nsys._getframe(1)",
    ),
    (
        "how deep it can go",
        "import sys\ndef f(n):\n    global deep\n    deep = n\n    f(n + 1)\ntry: f(1)\nexcept RecursionError as error: print(deep, error)",
    ),
    (
        "an exception",
        "def f():\n    raise ValueError('é', 1)\ndef g():\n    try: f()\n    except ValueError as error: raise KeyError('k') from error\ng()",
    ),
    ("an exception of its own hook", "import sys\nsys.excepthook = lambda *a: print('hook', a[0], file=sys.stderr)\n1/0"),
    (
        "an exception with a note and a group",
        "try:\n    raise ExceptionGroup('g', [ValueError(1), TypeError(2)])\nexcept* ValueError: print('value')",
    ),
    ("a syntax error", "print(1)\nif True\n    pass"),
    ("an indentation error and a tab", "if True:\n\tprint(1)\n        print(2)"),
    ("no code", ""),
    ("a comment with an encoding", "# -*- coding: latin-1 -*-\nprint(ascii('\u{e9}'))"),
    ("a NUL in the source", "print(1)\0\nprint(2)"),
    ("exit codes", "import sys; sys.exit(3)"),
    ("exit without a code", "import sys; print('x', end=''); sys.exit()"),
    ("exit with a text", "import sys; sys.exit('bye é')"),
    ("exit with an object", "import sys; sys.exit([1, 2])"),
    ("exit with a large number", "import sys; sys.exit(2**70)"),
    ("exit with minus one", "import sys; sys.exit(-1)"),
    (
        "exit from a thread",
        "import sys, threading\nt = threading.Thread(target=sys.exit, args=(4,)); t.start(); t.join(); print('on')",
    ),
    ("raise SystemExit in a function", "def f(): raise SystemExit(5)\ntry: f()\nfinally: print('finally')"),
    ("quit", "quit(6)"),
    ("os._exit", "import os, sys\nsys.stdout.write('unflushed?'); os._exit(7)"),
    ("os.abort", "import os; os.abort()"),
    ("a signal of its own", "import os, signal; os.kill(os.getpid(), signal.SIGTERM); import time; time.sleep(5)"),
    ("SIGKILL", "import os; os.kill(os.getpid(), 9)"),
    ("SIGSEGV", "import ctypes; ctypes.string_at(0)"),
    ("faulthandler", "import faulthandler\nprint(faulthandler.is_enabled())"),
    ("KeyboardInterrupt", "raise KeyboardInterrupt"),
    ("SIGINT", "import os, signal, time\nprint(signal.getsignal(2))\nos.kill(os.getpid(), 2)\ntime.sleep(5)"),
    (
        "SIGINT that is caught",
        "import os, time\ntry:\n    os.kill(os.getpid(), 2); time.sleep(5)\nexcept KeyboardInterrupt: print('caught')",
    ),
    (
        "all handlers",
        "import signal\nprint([(n, str(signal.getsignal(n))) for n in range(1, 65)], signal.pthread_sigmask(signal.SIG_BLOCK, []))",
    ),
    (
        "SIGPIPE in a child",
        "import subprocess; print(subprocess.run('yes | head -1; echo ${PIPESTATUS[0]}', shell=True, executable='/bin/bash', capture_output=True))",
    ),
    (
        "an alarm",
        "import signal\nsignal.signal(signal.SIGALRM, lambda *a: print('alarm'))\nsignal.setitimer(signal.ITIMER_REAL, 0.05); signal.pause()",
    ),
    (
        "atexit and finalisers",
        r"
import atexit, sys, threading, weakref
class C:
    def __del__(self): print('del', sys.is_finalizing() if sys else None)
keep = C(); cycle = [C()]; cycle.append(cycle)
atexit.register(print, 'atexit 1'); atexit.register(lambda: print('atexit 2', sys.is_finalizing()))
weakref.finalize(keep, print, 'finalize')
def late():
    import time; time.sleep(0.1); print('thread')
threading.Thread(target=late).start()
print('end')",
    ),
    // One object each: in which order the collector comes by several is not promised.
    (
        "an object that a class of a loaded module holds at the end",
        "import json\nclass C:\n    def __del__(self): print('del')\njson.JSONEncoder.held = C()\nprint('end')",
    ),
    (
        "a file that a class of a loaded module holds at the end",
        "import json, os\njson.JSONDecoder.held = open(os.dup(1), 'w')\njson.JSONDecoder.held.write('kept')\nprint('end', flush=True)",
    ),
    ("a file that is never closed", "f = open('out', 'w')\nf.write('kept')\nimport os, atexit\nprint(os.stat('out').st_size)"),
    ("what that file holds", "print(open('out').read())"),
    (
        "a weak reference with a callback",
        "import weakref\nclass C: pass\nc = C()\nc.me = c\nw = weakref.ref(c, lambda w: print('gone'))\nprint('end')",
    ),
    (
        "a generator that is not at its end",
        "def g():\n    try: yield 1\n    finally: print('finally')\nheld = g(); next(held)\nheld2 = [held]; held2.append(held2)\nprint('end')",
    ),
    ("a coroutine that nobody awaits", "async def f(): pass\nheld = f()\nprint('end')"),
    (
        "a class that was loaded and gets a finaliser",
        "import random\nrandom.Random.__del__ = lambda self: print('del')\nprint('end')",
    ),
    (
        "a class that was loaded and gets a finaliser by a name that is not written",
        "import json\nsetattr(json.JSONEncoder, '__d' + 'el__', lambda self: print('del'))\nheld = json.JSONEncoder()\nprint('end')",
    ),
    (
        "a loaded module that is taken out and put in again",
        "import sys, json\nsys.modules['json'] = sys.modules.pop('json')\nimport array\nprint(sys.modules['json'] is json, 'array' in sys.modules)",
    ),
    (
        "an exception whose trace its hook takes away",
        "import sys\ndef hook(*_): del sys.last_type\nsys.excepthook = hook\n1 / 0",
    ),
    (
        "an object that was loaded and gets a class with a finaliser",
        "import json\nclass C(json.JSONEncoder):\n    def __del__(self): print('del')\njson._default_encoder.__class__ = C\nprint('end')",
    ),
    (
        "a module that is loaded anew behind one of C",
        "import _asyncio, importlib, random\nimportlib.reload(random)\nprint('end')",
    ),
    ("what C has not written yet", "import ctypes\nctypes.CDLL(None).printf(b'from C')\nprint('end', flush=True)"),
    (
        "a finaliser of a metaclass",
        "class M(type):\n    def __del__(cls): print('del', cls.__name__)\nclass C(metaclass=M): pass\nprint('end')",
    ),
    (
        "a finaliser in a base class",
        "class A:\n    def __del__(self): print('del')\nclass B(dict, A): pass\nheld = B()\nprint('end')",
    ),
    (
        "a finaliser behind an exception that is kept",
        "class C:\n    def __del__(self): print('del')\ndef f():\n    c = C()\n    raise ValueError\ntry: f()\nexcept ValueError as error: held = error\nprint('end')",
    ),
    (
        "a finaliser that a cache holds",
        "import functools\nclass C:\n    def __del__(self): print('del')\n@functools.lru_cache\ndef f(): return C()\nf()\nprint('end')",
    ),
    (
        "a finaliser of a thread's own",
        "import threading\nclass C:\n    def __del__(self): print('del')\nhere = threading.local()\nhere.c = C()\nprint('end')",
    ),
    (
        "a finaliser of a context",
        "import contextvars\nclass C:\n    def __del__(self): print('del')\nv = contextvars.ContextVar('v')\nv.set(C())\nprint('end')",
    ),
    (
        "a finaliser that speaks of a module",
        "import os\nclass C:\n    def __del__(self): print(os, print)\nos.held = C()\nprint('end')",
    ),
    (
        "a stream of its own with a `close`",
        "import io\nclass S(io.StringIO):\n    def close(self): print('close'); super().close()\nheld = S()\nprint('end')",
    ),
    (
        "a raw stream of its own",
        "import io\nclass R(io.RawIOBase):\n    def close(self): print('close'); super().close()\nheld = R()\nprint('end')",
    ),
    (
        "a directory that goes at the end",
        "import tempfile, os\nheld = tempfile.TemporaryDirectory(dir='.')\nprint(len(os.listdir(held.name)))",
    ),
    (
        "a scan that is not at its end, with warnings",
        "import os, warnings\nwarnings.simplefilter('always')\nos.dup2(os.open('said', os.O_CREAT | os.O_WRONLY), 2)\nheld = os.scandir('/')",
    ),
    ("what it was warned of", "print('unclosed scandir' in open('said').read())"),
    (
        "a socket that stays open, with warnings",
        "import socket, warnings\nwarnings.simplefilter('always')\nwarnings.showwarning = lambda message, kind, *more, **others: print(kind)\nheld = socket.socketpair()\nprint('end')",
    ),
    ("a child that nobody waits for", "import subprocess\nheld = subprocess.Popen(['true'])\nprint('end')"),
    (
        "output that another object holds",
        "import sys, io\nsys.stdout = io.TextIOWrapper(io.BufferedWriter(io.FileIO(1, 'w', closefd=False)))\nprint('end')",
    ),
    ("output without a line's end", "import sys\nsys.stdout.write('end')\nsys.stderr.write('fin')"),
    (
        "output that can't be flushed",
        "import os, sys\nsys.stdout.reconfigure(line_buffering=False, write_through=False)\nsys.stdout.write('x' * 10)\nos.close(1)",
    ),
    (
        "garbage that the collector is asked for",
        "import gc\nclass C:\n    def __del__(self): print('del')\nc = C(); c.me = c; del c\nprint(gc.collect() > 0, gc.garbage, gc.isenabled())",
    ),
    ("an exit behind its own names", "import sys\ndel __file__, __cached__\nsys.exit(3)"),
    (
        "all names gone, and an exit",
        "import sys\nleave = sys.exit\nfor name in list(globals()):\n    if name != 'leave' and name != 'name': del globals()[name]\nleave(3)",
    ),
    (
        "a hook of audit that speaks at the end",
        "import sys\nsys.addaudithook(lambda event, args: event.startswith('cpython.PyI') and print(event))\nprint('end')",
    ),
    (
        "an end in a fork",
        "import os\nif os.fork():\n    print(os.wait()[1])\nelse:\n    class C:\n        def __del__(self): print('del')\n    c = C(); print('child')",
    ),
    (
        "a library of C that is loaded late",
        "import sqlite3\nheld = sqlite3.connect('data'); held.execute('create table if not exists t (a)'); held.execute('insert into t values (1)'); print(held.in_transaction)",
    ),
    (
        "classes of all kinds and no finaliser",
        "import collections, enum, dataclasses, functools\nclass A: pass\nclass E(enum.Enum): X = 1\n@dataclasses.dataclass\nclass D: a: int\nN = collections.namedtuple('N', 'a')\nheld = [A(), D(1), N(2), collections.deque([A()]), functools.partial(print), E.X, {1: A}, {A()}, (A(),)]\nheld.append(held)\nprint(len(held))",
    ),
    (
        "a closed file, a thread that is over, values of its own",
        "import threading\nwith open('closed', 'w') as f: f.write('a')\nhere = threading.local(); here.a = [1]\nt = threading.Thread(target=print, args=(1,)); t.start(); t.join()\nprint(f.closed)",
    ),
    (
        "a closed file of its own kind",
        "import io\nclass F(io.FileIO):\n    def __del__(self): print('del', self.closed)\nf = F('closed'); f.close()\nprint('end')",
    ),
    (
        "a set of weak references to what has a finaliser",
        "import weakref\nclass C:\n    def __del__(self): print('del')\nc = C(); s = weakref.WeakSet([c])\nprint('end')",
    ),
    (
        "a finaliser of what has no room for more",
        "class C:\n    __slots__ = ()\n    def __del__(self): print('del')\nclass I(int):\n    __slots__ = ()\n    def __del__(self): print('del')\nheld = C(); number = I(3)\nprint('end')",
    ),
    (
        "a finaliser that an iterator of iterators holds",
        "import functools, itertools\nclass C:\n    def __del__(self): print('del')\nheld = zip(itertools.chain([C()]), map(functools.partial(print), [1]))\nprint('end')",
    ),
    ("an exception in atexit", "import atexit\natexit.register(int, 'x')\nprint('end')"),
    (
        "output that can't be written at the end",
        "import os, sys\nprint('x', end='')\nos.close(1)\nsys.stdout = open(os.dup(2), 'w')\nsys.stdout.write('y')",
    ),
    ("standard output closed", "import sys, os\nsys.stdout.flush(); os.close(1); print('lost')"),
    ("standard output closed by its object", "import sys\nsys.stdout.close()\nsys.exit(0)"),
    ("buffered output of C", "import ctypes, os\nlibc = ctypes.CDLL(None)\nlibc.puts(b'from c')\nprint('from python')"),
    (
        "writes of both streams",
        "import sys\nfor n in range(3):\n    print('o', n); print('e', n, file=sys.stderr)\nsys.stdout.buffer.write(b'\\xff\\n')",
    ),
    ("much output", "print('x' * 300000)\nimport sys\nprint('y' * 100000, file=sys.stderr)"),
    ("warnings", "import warnings\nwarnings.warn('w')\nwarnings.warn('d', DeprecationWarning)\nimport imp"),
    (
        "a resource warning",
        "import warnings, sys\nwarnings.simplefilter('always')\nopen('/dev/null')\nprint(warnings.filters[:2], sys.warnoptions)",
    ),
    ("fork", "import os\nchild = os.fork()\nif child == 0: print('child'); os._exit(3)\nprint(os.waitpid(child, 0)[1] >> 8)"),
    (
        "fork that ends as an interpreter",
        "import os, sys, atexit\natexit.register(lambda: print('atexit'))\nif os.fork() == 0: sys.exit(2)\nprint(os.wait()[1])",
    ),
    ("nobody else to wait for", "import os\ntry: os.wait()\nexcept ChildProcessError as error: print(error)"),
    (
        "threads",
        r"
import threading, os
names = []
threads = [threading.Thread(target=lambda: names.append((threading.current_thread().name, threading.get_native_id() != os.getpid()))) for _ in range(5)]
for t in threads: t.start(); t.join()
print(names, threading.main_thread() is threading.current_thread(), threading.active_count(), threading.main_thread().native_id == os.getpid(), threading.get_native_id() == os.getpid())",
    ),
    (
        "a signal to the first thread from another",
        r"
import signal, threading, time
signal.signal(signal.SIGUSR1, lambda *a: print('got it'))
main = threading.main_thread().ident
t = threading.Thread(target=lambda: signal.pthread_kill(main, signal.SIGUSR1)); t.start(); t.join(); time.sleep(0.05)",
    ),
    (
        "a thread that is a daemon",
        "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()\nprint('end')",
    ),
    (
        "processes that are forked",
        "import multiprocessing as m, os\nwith m.get_context('fork').Pool(2) as pool: print(pool.map(abs, [-1, -2]), m.current_process().name, m.parent_process())",
    ),
    (
        "processes that are spawned",
        r"
import multiprocessing as m, sys
def work(n): return n * 2
if __name__ == '__main__':
    with m.get_context('spawn').Pool(1) as pool: print(pool.map(work, [1, 2]))",
    ),
    (
        "processes of a server that forks",
        r"
import multiprocessing as m
def work(n): return n + 1
if __name__ == '__main__':
    with m.get_context('forkserver').Pool(1) as pool: print(pool.map(work, [1, 2]))",
    ),
    (
        "executors",
        // The pools are shut down before the end: CPython 3.11 closes a pool's pipe beside the thread that writes to it then.
        "from concurrent.futures import ThreadPoolExecutor as T, ProcessPoolExecutor as P\nfrom math import sqrt\nwith T(2) as t, P(1) as p: print(list(t.map(sqrt, [1, 4])), list(p.map(sqrt, [9])))",
    ),
    (
        "asyncio",
        "import asyncio\nasync def f():\n    p = await asyncio.create_subprocess_exec('echo', 'hi', stdout=-1)\n    return await p.communicate()\nprint(asyncio.run(f()))",
    ),
    (
        "a child and its descriptors",
        "import subprocess\nprint(subprocess.run(['ls', '/proc/self/fd'], capture_output=True, text=True).stdout)",
    ),
    ("exec of another program", "import os; print('before', flush=True); os.execvp('echo', ['echo', 'after'])"),
    (
        "modules that are loaded already",
        r"
import json, re, math, datetime, collections, itertools, functools, random, os, sys
print(json.dumps({'a': [1, 2.5, None]}), re.sub('a+', 'b', 'caat'), math.pi, datetime.date(2020, 1, 2), collections.Counter('aab'), functools.reduce(max, [3, 1]))
random.seed(5); print(random.random(), json.__file__, json.__spec__.origin, json.__cached__ is not None)",
    ),
    ("a module that is not there", "import nothing_of_that_name"),
    ("a module that is not there, in one that is", "import json.nothing"),
    ("itself as a module", "import __main__, sys\nprint(__main__ is sys.modules['__main__'], __main__.__dict__ is globals())"),
    (
        "running as another",
        "import runpy, sys\nopen('other.py', 'w').write('import sys; print(__name__, __file__, sys.argv)')\nrunpy.run_path('other.py', run_name='__main__')",
    ),
    ("pickling what is defined in it", "import pickle\nclass C: pass\nprint(pickle.dumps(C()))"),
    ("its source", "import inspect, linecache\ndef f(): return 1\nprint(inspect.getsource(f), linecache.getline(__file__, 1))"),
    (
        "dataclasses, enums, typing",
        "import dataclasses, enum, typing\n@dataclasses.dataclass\nclass D: a: int = 1\nprint(D(), enum.Enum('E', 'A B').A, typing.get_type_hints(D))",
    ),
    (
        "secrets and uuids are not those of another",
        "import secrets, uuid, os, ssl, tempfile\nprint(len({secrets.token_hex(8), uuid.uuid4().hex, os.urandom(8).hex()}), ssl.RAND_status(), os.path.dirname(tempfile.mktemp()))",
    ),
    ("sockets", "import socket\na, b = socket.socketpair(); a.send(b'x'); print(b.recv(1))"),
    (
        "a library of C",
        "import ctypes, _ctypes, _socket, gc\nprint(ctypes.sizeof(ctypes.c_long), _ctypes.__name__, _socket.__name__, ctypes.CDLL(None).getppid())",
    ),
    (
        "a site module",
        "import site, sysconfig\nprint(site.ENABLE_USER_SITE, site.getusersitepackages(), site.getsitepackages(), sysconfig.get_path('purelib'))",
    ),
    (
        "sitecustomize",
        "import sys\nprint('usercustomize' in sys.modules)\ntry:\n    import sitecustomize; print(sitecustomize.__file__)\nexcept ImportError as error: print(error)",
    ),
    ("inspect at the end", "import os\nos.environ['PYTHONINSPECT'] = ''\nprint(1)"),
    (
        "a hook of audit and a trace",
        "import sys\nsys.addaudithook(lambda *a: None)\nsys.settrace(lambda *a: None)\nprint(sys.gettrace() is not None)",
    ),
    (
        "calls that are refused",
        "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\nprint(libc.mount(b'n', b'/tmp', b'tmpfs', 0, None), ctypes.get_errno())",
    ),
];
