# The warm interpreter's part inside CPython. It is found as `sitecustomize`, so that it runs at the end of the interpreter's own
# start-up and before the script is looked at. It imports what the language preloads, then forks on request; only in a fork that
# was given a program does it return, and the interpreter goes on to run that script by itself, as a fresh one does.
# Everything that a program could notice is put back before that. Descriptors: 5 = init, 6 = the archive with this file.
def wait_for_program(sys, os):
    import io
    import _signal

    init, archive = 5, "/proc/self/fd/6"
    before = set(sys.modules)
    try:
        import gc
        import atexit
        import _socket
        import _ctypes
    except ImportError:
        os._exit(3)
    for name in set(sys.modules) - before:
        del sys.modules[name]
    # Before 3.10 `atexit` forgets all when it is imported anew, and a module that raises must be in `sys.modules` yet.
    if sys.implementation.name != "cpython" or sys.version_info < (3, 10) or not hasattr(os, "fork"):
        os._exit(3)
    libc = _ctypes.dlopen(None, 2)
    symbol = lambda name: _ctypes.dlsym(libc, name)
    prctl, syscall = symbol("prctl"), symbol("syscall")
    kept = []
    # The first that is registered is called last.
    measure_end, rehearse_end, arm_end = prepare_quick_end(sys, os, gc, atexit, _ctypes, symbol, kept)
    fork = prepare_fork(os, _ctypes, symbol)
    collapse = prepare_pages(os, io, _ctypes, symbol)

    def control(option, value):
        return _ctypes.call_function(prctl, (option, value, 0, 0, 0))

    PDEATHSIG, DUMPABLE, SUBREAPER = 1, 4, 36
    CLOEXEC, DONTWAIT = 0x40000000, 0x40
    RESTRICT_SELF = 446
    EPERM, EIO = 1, 5
    KILL = 9

    # Nothing of this file stays where a program would find it.
    sys.path[:] = [entry for entry in sys.path if entry != archive]
    sys.path_importer_cache.pop(archive, None)
    sys.modules["zipimport"]._zip_directory_cache.pop(archive, None)
    sys.modules.pop("sitecustomize", None)
    channel = _socket.socket(fileno=init)
    names = channel.recv(65536).decode().split("\0")

    # The image's own `sitecustomize`, as always at this point.
    real = None
    try:
        import sitecustomize as real
    except ImportError as error:
        if error.name != "sitecustomize":
            os._exit(4)
    started = set(sys.modules)

    # Modules come from the image alone: what a session installs or names may change under them.
    site = sys.modules.get("site")
    own_site = getattr(site, "USER_SITE", None)
    path = list(sys.path)
    own, colon, others = os.environ.get("PYTHONPATH", archive).partition(os.pathsep)
    named = {os.path.abspath(entry) for entry in others.split(os.pathsep)} if colon else set()
    # From here on as the session has it, so that a fork finds its program's environment there already.
    if own == archive and colon:
        os.environ["PYTHONPATH"] = others
    else:
        os.environ.pop("PYTHONPATH", None)
    foreign = [entry for entry in path if entry == own_site or os.path.abspath(entry) in named]
    sys.path[:] = [entry for entry in path if entry not in foreign]
    enabled = gc.isenabled()
    gc.disable()
    for name in filter(None, names):
        try:
            __import__(name)
        except ImportError:
            # One that the image lacks is not preloaded.
            pass
    sys.path[:] = path
    imported = {name.partition(".")[0] for name in set(sys.modules) - started}

    def state_of(place):
        try:
            found = os.stat(place)
        except OSError:
            return None
        # Unlike the time of a modification this one can't be set.
        return found.st_dev, found.st_ino, found.st_ctime_ns

    judged = {"/": False}

    def is_ours(place):
        """Whether a program could put something else there."""
        if place not in judged:
            try:
                ours = os.stat(place).st_uid == os.getuid() or os.access(place, os.W_OK)
            except OSError:
                ours = True
            judged[place] = ours or is_ours(os.path.dirname(place))
        return judged[place]

    # Where a fresh interpreter looks for modules and for what else runs at its start, and what it would load anew.
    places = set(path) | ({own_site} if own_site else set())
    files = {getattr(module, name, None) for module in list(sys.modules.values()) for name in ("__file__", "__cached__")}
    places.update(os.path.abspath(file) for file in files if isinstance(file, str) and is_ours(os.path.abspath(file)))
    known = {place: state_of(place) for place in places}
    if own_site and known.get(own_site):
        if any(entry.endswith(".pth") for entry in os.listdir(own_site)):
            os._exit(4)

    def hides(directory):
        """Whether something there would be imported in place of a module that is here already."""
        try:
            entries = os.listdir(directory)
        except OSError:
            return False
        return not imported.isdisjoint(entry.partition(".")[0] for entry in entries)

    def difference_for(script):
        """None where a fresh interpreter would do the same, else the byte that tells init whether a new start would help."""
        if any(state_of(place) != was for place, was in known.items()):
            return b"\x01"
        return b"\0" if any(map(hides, [os.path.dirname(script)] + foreign)) else None

    find_spec = getattr(sys.modules.get("_frozen_importlib"), "_find_spec", lambda name, path: None)

    def rehearse_start():
        """As the interpreter goes on when this file is through: it looks for the user's own file, and reads a script."""
        sys.path[:] = [entry for entry in path if entry not in foreign]
        find_spec("usercustomize", None)
        sys.path[:] = path
        exec(compile("pass", "", "exec"), {})

    def numbers_of(ancillary):
        data = ancillary[0][2] if ancillary else b""
        return [int.from_bytes(data[at : at + 4], sys.byteorder) for at in range(0, len(data) - 3, 4)]

    def take(message, fds):
        head, _, rest = message.partition(b"\n")
        counts = [int(number) for number in head.split()]
        words = rest.split(b"\0")
        argv = words[: counts[0]]
        environment = words[counts[0] : counts[0] + counts[1]]
        where = words[counts[0] + counts[1]]
        if len(fds) != 3:
            raise OSError(EIO, "not three streams")
        for number, fd in enumerate(fds):
            os.dup2(fd, number, True)
        for fd in fds:
            os.close(fd)
        return argv, environment, where

    def set_environment(entries):
        # In the order given, as programs that this one starts will see it.
        environ = os.environ
        if [key + b"=" + value for key, value in environ._data.items()] == entries:
            return
        for key in list(environ._data):
            os.unsetenv(key)
        environ._data.clear()
        for entry in entries:
            key, _, value = entry.partition(b"=")
            environ._data[key] = value
            os.putenv(key, value)

    def read_from_pipe():
        """Standard input anew: what kind of file it is decides some of its behaviour."""
        old = sys.stdin
        if old is None or state(0) == null:
            return
        buffer = io.open(0, "rb", -1, None, None, None, False)
        buffer.raw.name = "<stdin>"
        text = io.TextIOWrapper(
            buffer, old.encoding, old.errors, "\n", old.line_buffering, write_through=old.write_through
        )
        text.mode = "r"
        sys.stdin = sys.__stdin__ = text

    def state(fd):
        found = os.fstat(fd)
        return found.st_mode, found.st_rdev

    def begin(sock, rules):
        """In a fork: waits for its program and makes itself what a fresh interpreter is just before it runs one."""
        os.setsid()
        control(SUBREAPER, 1)
        if rules is not None:
            # The same once more, which makes it a domain of its own: as among other programs, none can trace another.
            if _ctypes.call_function(syscall, (RESTRICT_SELF, rules, 0)) != 0:
                raise OSError(EPERM, "Landlock refused")
            os.close(rules)
        threading = sys.modules.get("threading")
        if threading is not None and hasattr(threading.main_thread(), "_set_native_id"):
            threading.main_thread()._set_native_id()
        numpy = sys.modules.get("numpy.random")
        if numpy is not None:
            numpy.seed()
        try:
            # A program that waits already is not to wait for what would make its way shorter.
            message, ancillary, flags, _ = sock.recvmsg(1 << 16, 256, CLOEXEC | DONTWAIT)
        except BlockingIOError:
            rehearse_start()
            rehearse_end()
            difference_for(sys.argv[0])
            message, ancillary, flags, _ = sock.recvmsg(1 << 16, 256, CLOEXEC)
        if not message:
            os._exit(0)
        argv, environment, where = take(message, numbers_of(ancillary))
        try:
            os.chdir(where)
        except OSError as error:
            sock.send(b"\x02\0" + error.errno.to_bytes(4, sys.byteorder))
            os._exit(127)
        control(PDEATHSIG, KILL)
        control(DUMPABLE, 1)
        _signal.signal(_signal.SIGINT, _signal.default_int_handler)
        difference = difference_for(os.fsdecode(argv[script]))
        if difference is not None:
            sock.send(b"\x09" + difference + bytes(4))
            for number in (_signal.SIGPIPE, _signal.SIGXFSZ):
                _signal.signal(number, _signal.SIG_DFL)
            try:
                os.execve(sys.executable, argv, dict(entry.split(b"=", 1) for entry in environment))
            except OSError as error:
                sock.send(b"\x03\0" + error.errno.to_bytes(4, sys.byteorder))
                os._exit(127)
        set_environment(environment)
        read_from_pipe()
        more = [os.fsdecode(argument) for argument in argv[fixed:]]
        sys.argv.extend(more)
        if hasattr(sys, "orig_argv"):
            sys.orig_argv.extend(more)
        sock.close()
        arm_end(argv[script])
        if enabled:
            gc.enable()

    with io.open("/proc/self/cmdline", "rb") as file:
        fixed = file.read().count(b"\0")
    script = fixed - len(sys.argv)
    null = state(0)
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
    # What a fork does is done here once, so that functions are bound and tables made before there are forks.
    number = os.dup(init)
    os.dup2(init, number, True)
    os.close(number)
    os.chdir(".")
    int(b"0")
    if not measure_end():
        fork = None
    rehearse_start()
    rehearse_end()
    difference_for(sys.argv[0])
    del before, started, files, places, names
    kept.append((begin, known, judged, named, own_site, imported, real))
    gc.collect()
    gc.freeze()
    collapse()
    control(DUMPABLE, 0)
    os.close(6)

    def say(kind, number):
        channel.send(kind + number.to_bytes(4, sys.byteorder, signed=True))

    def become_program(fd, rules):
        channel.close()
        sock = _socket.socket(fileno=fd)
        try:
            begin(sock, rules)
        except BaseException as error:
            sock.send(b"\x04\0" + (getattr(error, "errno", None) or EIO).to_bytes(4, sys.byteorder))
            os._exit(127)

    say(b"r", 0)
    while True:
        word, ancillary, flags, _ = channel.recvmsg(16, 64, CLOEXEC)
        fds = numbers_of(ancillary)
        # A descriptor that there was no room for could be the rules.
        if not fds or flags & _socket.MSG_CTRUNC:
            os._exit(0)
        fd, rules = fds[0], fds[1] if len(fds) > 1 else None
        program = fork() if fork is not None else None
        if program == 0:
            become_program(fd, rules)
            return real
        if program is not None:
            say(b"p", program)
            say(b"d", 0)
            for number in fds:
                os.close(number)
            continue
        try:
            middle = os.fork()
        except OSError as error:
            for number in fds:
                os.close(number)
            say(b"e", error.errno)
            continue
        if middle == 0:
            # Its child becomes one of init's when this process ends.
            try:
                program = os.fork()
            except OSError as error:
                say(b"e", error.errno)
                os._exit(1)
            if program:
                say(b"p", program)
                os._exit(0)
            become_program(fd, rules)
            return real
        for number in fds:
            os.close(number)
        if os.waitpid(middle, 0)[1] == 0:
            say(b"d", 0)


def main():
    import sys
    import os

    try:
        real = wait_for_program(sys, os)
    except BaseException:
        # Whatever it is, the interpreter must not go on to the script, which is nobody's program here.
        os._exit(3)
    if real is None:
        raise ImportError("No module named 'sitecustomize'", name="sitecustomize")
    sys.modules["sitecustomize"] = real


main()
