# What an interpreter has loaded before it forks lies in thousands of small pages. Each fork has a table of all of them, made when it begins and
# taken down when it ends, most of them never looked at. Where the kernel can put them together into huge pages (`MADV_COLLAPSE`, Linux 6.1),
# a fork has one entry for many. A place is put together when three quarters of it are in use, so it holds up to a third more then.
def prepare_pages(os, io, ctypes, symbol):
    """A function that puts together the memory there is by then; all that it needs is made here, before objects are told from later ones."""
    # With larger pages huge ones are of other sizes: there everything stays as it is.
    COLLAPSE, HUGE, PAGE = 25, 2 << 20, 4096
    ENTRY, PRESENT = 8, 1 << 63
    ENOUGH = HUGE // PAGE * 3 // 4

    class Word(ctypes._SimpleCData):
        _type_ = "L"

    class Function(ctypes.CFuncPtr):
        _flags_, _restype_ = 1, Word

    madvise = Function(symbol("madvise"))

    def own_places():
        """Writable memory of no file, from a huge page's beginning to another's."""
        with io.open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
            lines = [line.split(None, 5) for line in maps]
        for span, rights, *rest in lines:
            if rights == "rw-p" and (len(rest) < 4 or rest[3].strip() == "[heap]"):
                begin, end = (int(place, 16) for place in span.split("-"))
                yield from range(-(-begin // HUGE) * HUGE, end - HUGE + 1, HUGE)

    def collapse():
        if os.sysconf("SC_PAGESIZE") != PAGE:
            return
        try:
            # By proc(5) a word for each page, whose first bit says whether there is one.
            with io.open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
                for place in own_places():
                    pagemap.seek(place // PAGE * ENTRY)
                    words = memoryview(pagemap.read(HUGE // PAGE * ENTRY)).cast("Q")
                    if sum(word >= PRESENT for word in words) >= ENOUGH:
                        # Where that is not to be had everything stays as it is.
                        madvise(Word(place), Word(HUGE), COLLAPSE)
        except (OSError, TypeError):
            pass

    return collapse


