# How a program may end in a fork of the warm interpreter: quickly, where nobody can tell the difference. Taking an interpreter down costs a
# fork most of its time, because it writes to all memory that it shares. What can be seen of that is what objects do when they go: finalisers,
# callbacks of weak references, suspended generators, buffers that are flushed. So the last thing before it, after threads and `atexit`, looks
# at every object that has come since the fork. When all are of kinds that go silently the process ends; otherwise, and in any doubt, all goes its way.
#
# Reading costs a fork too: to look at an object is to count a reference to it, which writes to its page, and each page that is written to is
# copied. So what is looked at is what has come since the fork, and of what was there before only what can be read without looking at objects.
def prepare_quick_end(sys, os, gc, atexit, ctypes, symbol, kept):
    import _io
    import _thread
    import _warnings
    import _weakref

    HEAP_TYPE = 1 << 9
    # In a type object: the function that takes its instances down. It is the same for all classes that Python code has made.
    DEALLOC = 48
    # A class has more words than this in any CPython so far. And pieces that are read at once (`IOV_MAX`).
    TYPE_WORDS, PIECES_MAX = 64, 1024
    # Above this a list of all objects could itself be what memory runs out for.
    BLOCKS_MAX = 250_000
    SOURCE_MAX = 1 << 20
    # A program that names one of these could tell, or have its end mistaken.
    WORDS = (b"__cached__", b"audit", b"settrace", b"setprofile", b"monitoring", b"_clear", b"_ncallbacks", b"INSPECT", b"last_type")
    SPEAKING = {
        "generator", "coroutine", "coroutine_wrapper", "async_generator", "async_generator_asend", "async_generator_athrow",
        "PyCapsule", "weakref", "weakproxy", "weakcallableproxy",
    }
    SILENT_MODULES = {"itertools", "operator", "datetime", "types"}
    SILENT = {
        "Struct", "_abc._abc_data", "_collections._deque_iterator", "_collections._deque_reverse_iterator",
        "_collections._tuplegetter", "_csv.Dialect", "_csv.reader", "_csv.writer", "_json.Encoder", "_json.Scanner",
        "_random.Random", "_sre.SRE_Scanner", "_sre.SRE_Template", "_struct.Struct", "_thread.RLock", "_thread._ThreadHandle",
        "_thread._local", "_thread._localdummy", "_thread.lock", "abc.SignalDict", "array.array", "collections.OrderedDict",
        "collections._tuplegetter", "collections.defaultdict", "collections.deque", "decimal.Context", "decimal.Decimal",
        "functools.KeyWrapper", "functools._lru_cache_wrapper", "functools._lru_list_elem", "functools.partial", "re.Match",
        "re.Pattern", "re.Scanner", "typing.Generic", "typing.ParamSpec", "typing.TypeAliasType", "typing.TypeVar",
        "typing.TypeVarTuple",
    }
    # Only these themselves: a class below them has a `close` that is called when they go.
    SILENT_ALONE = {"_io.StringIO", "_io.BytesIO"}
    # Written in C, and without anything that speaks when it goes.
    MODULES_OF_C = {
        "_abc", "_ast", "_bisect", "_blake2", "_bz2", "_codecs", "_collections", "_contextvars", "_csv", "_datetime", "_decimal",
        "_functools", "_hashlib", "_heapq", "_json", "_locale", "_lzma", "_md5", "_opcode", "_operator", "_pickle",
        "_posixsubprocess", "_random", "_sha1", "_sha2", "_sha256", "_sha3", "_sha512", "_signal", "_sre", "_stat", "_statistics",
        "_string", "_struct", "_symtable", "_tokenize", "_typing", "_uuid", "_zoneinfo", "array", "atexit", "binascii", "cmath",
        "errno", "fcntl", "grp", "itertools", "math", "posix", "pwd", "resource", "select", "time", "unicodedata", "zlib",
    }
    # Libraries of C whose own end (`atexit`, destructors) gives memory back and does nothing else, by name or by directory.
    QUIET_LIBRARIES = {
        "ld", "ld-linux-x86-64", "ld-linux-aarch64", "libatlas", "libblas", "libbz2", "libc", "libcblas", "libcrypt", "libcrypto", "libdl", "libexpat",
        "libf77blas", "libffi", "libgcc_s", "libgfortran", "liblapack", "liblapack_atlas", "liblzma", "libm", "libpthread", "libquadmath", "librt",
        "libssl", "libstdc++", "libutil", "libuuid", "libz",
    }
    # numexpr and bottleneck are what pandas uses where they are; they have nothing of an end of their own.
    QUIET_DIRECTORIES = ("/lib-dynload/", "/numpy/", "/numpy.libs/", "/pandas/", "/numexpr/", "/bottleneck/")
    flush, leave, writev = symbol("fflush"), symbol("exit"), symbol("writev")
    flags_of = type.__dict__["__flags__"].__get__
    mro_of = type.__dict__["__mro__"].__get__
    dict_of = type.__dict__["__dict__"].__get__
    module_of = type.__dict__["__module__"].__get__
    name_of = type.__dict__["__name__"].__get__
    callback_of = _weakref.ReferenceType.__dict__["__callback__"].__get__
    Generator = type(entry for entry in ())
    Builtin = type(len)
    Module = type(sys)
    FILES = (_io.FileIO, _io.BufferedReader, _io.BufferedWriter, _io.BufferedRandom, _io.TextIOWrapper)
    main = sys.modules["__main__"].__dict__
    streams, filters = [], list(_warnings.filters)
    # Classes that were there before, kept so that their numbers stay theirs; the numbers of all, and of those of Python code.
    classes, known, of_python = [], set(), set()
    # Where each of these classes has its finaliser (`iovec`s), and what stands there.
    places, finalisers = [], []
    # Judgements by number, of types that stay.
    judged = {}
    # The names of the last modules of before, the very last first.
    last_modules = ()
    libraries_are_quiet = is_armed = False
    # Words of the C library's list of what is loaded, by their places, that are others when something has been loaded since.
    marks = {}

    def is_silent_c(kind):
        module, name = module_of(kind), name_of(kind)
        if module == "builtins":
            return name not in SPEAKING
        return module in SILENT_MODULES or f"{module}.{name}" in SILENT

    def is_silent(kind):
        """Whether an instance can go without anybody noticing."""
        if id(kind) in judged:
            return judged[id(kind)]
        if not is_new(kind) and id(kind) not in of_python and f"{module_of(kind)}.{name_of(kind)}" in SILENT_ALONE:
            return True
        for base in mro_of(kind):
            if id(base) in of_python or is_new(base):
                if "__del__" in dict_of(base):
                    return False
            elif not is_silent_c(base):
                return False
        return True

    def is_new(kind):
        # All classes of C have come before, but for those of modules that are known to be silent.
        return flags_of(kind) & HEAP_TYPE and id(kind) not in known

    class Word(ctypes._SimpleCData):
        _type_ = "P"

    def read(place):
        return Word.from_address(place).value

    def measure():
        """Looks at what is there before any program. True when the libraries that are loaded are known."""
        nonlocal libraries_are_quiet

        def word(kind, at):
            return read(id(kind) + at)

        class One:
            pass

        class Two:
            __slots__ = ()

        class Three:
            def __del__(self):
                pass

        class Four:
            def __del__(self):
                pass

        if word(One, DEALLOC) != word(Two, DEALLOC) or word(One, DEALLOC) == word(object, DEALLOC):
            return False
        # A class gets something in this word, and so do all below it, when it gets a `__del__`.
        at = [
            at
            for at in range(0, 8 * TYPE_WORDS, 8)
            if not word(One, at) and not word(Two, at) and word(Three, at) and word(Three, at) == word(Four, at)
        ]
        if len(at) != 1:
            return False
        classes.extend(kind for kind in gc.get_objects() if issubclass(type(kind), type) and flags_of(kind) & HEAP_TYPE)
        known.update(map(id, classes))
        of_python.update(id(kind) for kind in classes if word(kind, DEALLOC) == word(One, DEALLOC))
        for first in range(0, len(classes), PIECES_MAX):
            some = classes[first : first + PIECES_MAX]
            Pieces = type("Pieces", (ctypes.Array,), {"_type_": Word, "_length_": 2 * len(some)})
            places.append((Pieces(*(number for kind in some for number in (id(kind) + at[0], 8))), len(some)))
        try:
            finalisers.extend(read_finalisers())
        except OSError:
            return False
        libraries_are_quiet = all_are_quiet()
        marks.update(end_of_list())
        streams.extend([sys.stdout, sys.stderr])
        filters[:] = sys.modules.get("warnings", _warnings).filters
        return libraries_are_quiet

    def all_are_quiet():
        with _io.open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
            mapped = [line.split(None, 5)[-1].strip() for line in maps if " r-xp " in line]
        return all(is_quiet(file) for file in mapped if ".so" in file)

    def end_of_list():
        """As <link.h> has it: the list's version, which is another when there is a second list (`dlmopen`), and where the last one's
        successor would be named, for what is loaded comes last."""
        VERSION, FIRST, NEXT = 0, 8, 24
        # Older ones keep their other lists to themselves.
        if "CS_GNU_LIBC_VERSION" not in os.confstr_names or glibc(os) < (2, 35):
            return {}
        try:
            debug = symbol("_r_debug")
        except OSError:
            return {}
        last = read(debug + FIRST)
        if sys.maxsize < 1 << 32 or read(debug + VERSION) != 1 or not last:
            return {}
        while read(last + NEXT):
            last = read(last + NEXT)
        return {debug + VERSION: 1, last + NEXT: None}

    def none_was_loaded():
        """What comes as a module is known; `ctypes` can load whatever there is."""
        if "ctypes" not in sys.modules:
            return True
        return bool(marks) and all(read(place) == was for place, was in marks.items()) or all_are_quiet()

    def is_quiet(library):
        # `libc.so.6`, `libc-2.31.so`, `libopenblas64_p-r0-5007b62f.3.23.so`
        name = library.rpartition("/")[2].partition(".so")[0]
        known = name in QUIET_LIBRARIES or name.partition("-")[0] in QUIET_LIBRARIES or name.startswith(("libpython3", "libopenblas"))
        return known or any(part in library for part in QUIET_DIRECTORIES)

    def read_finalisers():
        """By way of a pipe, which copies memory without looking at objects."""
        found = []
        source, target = os.pipe()
        try:
            for pieces, count in places:
                if ctypes.call_function(writev, (target, pieces, count)) != 8 * count:
                    raise OSError
                found.append(os.read(source, 8 * count))
        finally:
            os.close(source)
            os.close(target)
        return found

    def arm(source):
        """In a fork, before its program: from now on new objects are told from those that were there."""
        nonlocal is_armed
        try:
            with _io.FileIO(source) as file:
                # A buffer of the greatest size would be taken from the kernel and given back. What grows meanwhile is in doubt.
                size = file.seek(0, 2)
                file.seek(0)
                text = file.read(size + 1) if size < SOURCE_MAX else None
            is_whole = text is not None and len(text) == size
            is_armed = bool(streams) and is_whole and not any(word in text for word in WORDS)
        except OSError:
            pass
        if not is_armed:
            atexit.unregister(end)
            # Frozen objects would never be finalised, the script's own module among them.
            gc.unfreeze()

    def all_came_quietly():
        """Whether no module has come since that could speak. A dictionary has in the order of their coming what it has."""
        names = reversed(sys.modules)
        for name in names:
            if name is last_modules[0]:
                # It could have been taken out and put in again behind others, of which the one before it is then one.
                return next(names) is last_modules[1]
            if name == "gc" or not came_quietly(name, sys.modules[name]):
                return False
        return False

    def came_quietly(name, module):
        if type(module) is not Module:
            # Names that `typing` puts there for itself.
            return name in ("typing.io", "typing.re") and issubclass(type(module), type)
        origin = getattr(module.__dict__.get("__spec__"), "origin", None)
        if not isinstance(origin, str):
            return False
        if name in MODULES_OF_C and (origin == "built-in" or "/lib-dynload/" in origin):
            return True
        return origin == "frozen" or origin.endswith(".py")

    def is_over():
        """Whether the script has come to its end: only then has CPython taken these out of its namespace again."""
        whole = "__name__" in main and "__builtins__" in main and "__spec__" in main
        return whole and "__file__" not in main and "__cached__" not in main and not hasattr(sys, "last_type")

    def stands_as_before():
        return (
            sys.stdout is streams[0]
            and sys.stderr is streams[1]
            and sys.gettrace() is None
            and sys.getprofile() is None
            and _thread._count() == 0
            and sys.modules.get("warnings", _warnings).filters == filters
            and sys.getallocatedblocks() < BLOCKS_MAX
            and all_came_quietly()
            and read_finalisers() == finalisers
        )

    def goes_silently(entry):
        kind = type(entry)
        if kind is Generator:
            return Generator.gi_frame.__get__(entry) is None
        if kind is _weakref.ReferenceType:
            callback = callback_of(entry)
            return callback is None or is_silent_callback(callback)
        if any(kind is file for file in FILES):
            return dict_of(kind)["closed"].__get__(entry) is True
        if issubclass(kind, type) and any("__del__" in dict_of(base) for base in mro_of(entry)):
            # An object that was there may be of this class by now.
            return False
        silent = is_silent(kind)
        if id(kind) in known or not flags_of(kind) & HEAP_TYPE:
            judged[id(kind)] = silent
        return silent

    def is_silent_callback(callback):
        """Those of registers of abstract base classes, of a thread's own values and of a `WeakSet`: they take the reference out, no more."""
        if type(callback) is Builtin:
            return callback.__name__ in ("_destroy", "_localdummy_destroyed")
        own = getattr(sys.modules.get("_weakrefset"), "__dict__", None)
        return type(callback) is type(end) and callback.__name__ == "_remove" and callback.__globals__ is own

    def end(kept=kept):
        # What `kept` holds stays until here: to let go of it, piece by piece, would write to all of it.
        if not is_armed:
            return
        try:
            if is_over() and stands_as_before() and all(map(goes_silently, gc.get_objects())):
                for stream in streams:
                    stream.flush()
                if libraries_are_quiet and none_was_loaded():
                    # Nothing of theirs is left to be done but this.
                    ctypes.call_function(flush, (None,))
                    os._exit(0)
                ctypes.call_function(leave, (0,))
        except BaseException:
            pass
        gc.unfreeze()

    def rehearse():
        """In a fork that waits: writes to the memory that the end of a program would write to, so that it is its own by then. In the
        interpreter itself: what is called for the first time is looked up and made ready once, and not in each fork."""
        nonlocal last_modules
        if streams:
            names = reversed(sys.modules)
            last_modules = next(names), next(names)
            is_over()
            stands_as_before()
            all(map(goes_silently, gc.get_objects()))

    # The numbers of classes that are looked at must stay theirs.
    kept.append((classes, measure))
    atexit.register(end)
    return measure, rehearse, arm
