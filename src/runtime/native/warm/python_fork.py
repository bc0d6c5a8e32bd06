# A fork that init is the parent of, as it is of every program, in one step. Else the interpreter forks twice and the one between ends, which
# copies the page tables of all that was loaded, and takes them down, once more. It is what `fork(3)` does but for its parent, and but for the
# handlers that libraries of C have registered: it is used where the libraries are known, and while there is one thread.
def prepare_fork(os, ctypes, symbol):
    """A function that gives a pid, 0 in the fork, or None where there is none; or None where it can't be made here."""
    # clone, set_robust_list and get_robust_list, by arch/*/syscalls of Linux.
    calls = {"x86_64": (56, 273, 274), "aarch64": (220, 99, 100)}.get(os.uname().machine)
    # An older one keeps the pid in memory of its own.
    if calls is None or "CS_GNU_LIBC_VERSION" not in os.confstr_names or glibc(os) < (2, 25):
        return None
    CLONE, SET_ROBUST_LIST, GET_ROBUST_LIST = calls
    PARENT, CHILD_CLEARTID, CHILD_SETTID, SIGCHLD = 0x8000, 0x200000, 0x1000000, 17
    GET_TID_ADDRESS = 40
    # The C convention, and without letting go of the interpreter's lock: between the steps no other code of Python runs.
    FLAGS = 1 | 4

    class Int(ctypes._SimpleCData):
        _type_ = "i"

    class Long(ctypes._SimpleCData):
        _type_ = "l"

    class Function(ctypes.CFuncPtr):
        _flags_, _restype_ = FLAGS, Long

    class Procedure(ctypes.CFuncPtr):
        _flags_, _restype_ = FLAGS, None

    try:
        names = ("PyOS_BeforeFork", "PyOS_AfterFork_Parent", "PyOS_AfterFork_Child")
        before, after_in_parent, after_in_child = (Procedure(symbol(name)) for name in names)
    except OSError:
        return None
    syscall, prctl = Function(symbol("syscall")), Function(symbol("prctl"))
    # Where the C library keeps the thread's number, and what the kernel is to look at when the thread ends: both are for `fork(3)` to set anew.
    place, robust, size = Long(), Long(), Long()
    if prctl(GET_TID_ADDRESS, ctypes.byref(place), 0, 0, 0) != 0 or Int.from_address(place.value).value != os.getpid():
        return None
    if syscall(GET_ROBUST_LIST, 0, ctypes.byref(robust), ctypes.byref(size)) != 0:
        return None
    none = Long()
    last = (place, none) if CLONE == 56 else (none, place)
    arguments = (Long(CLONE), Long(PARENT | CHILD_CLEARTID | CHILD_SETTID | SIGCHLD), none, none) + last

    def fork():
        try:
            alone = len(os.listdir("/proc/self/task")) == 1
        except OSError:
            return None
        if not alone:
            return None
        before()
        pid = syscall(*arguments)
        if pid != 0:
            after_in_parent()
            return pid if pid > 0 else None
        after_in_child()
        syscall(SET_ROBUST_LIST, robust, size)
        return 0

    return fork


def glibc(os):
    """Its version, as far as it is told."""
    words = (os.confstr("CS_GNU_LIBC_VERSION") or "").split()
    numbers = words[1].split(".") if words[:1] == ["glibc"] and len(words) > 1 else []
    return tuple(int(number) for number in numbers[:2] if number.isdigit())


