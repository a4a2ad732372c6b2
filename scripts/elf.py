"""What a program of Linux needs from the machine that it runs on, and where it looks for its libraries.

Reads 64-bit little-endian ELF files (x86-64, ARM) with the standard library alone. Layouts: the System V ABI, chapter
5, and the Linux Standard Base, "Symbol Versioning".
"""
import struct

MACHINES = {62: "x86_64", 183: "aarch64"}

DYNAMIC_SEGMENT, LOADED_SEGMENT = 2, 1
NEEDED, STRINGS, RPATH, RUNPATH, VERSIONS, VERSION_COUNT = 1, 5, 15, 29, 0x6FFFFFFE, 0x6FFFFFFF


class NotElf(ValueError):
    """The file is none that this reads."""


class Elf:
    """One program or library.

    `machine`: as in `MACHINES`. `needed`: names of the libraries that it is linked against. `runpath`: folders where it
    looks for them first. `versions`: for each of those libraries the symbol versions that it must have, such as
    `GLIBC_2.34`.
    """

    def __init__(self, path):
        self.path = path
        with open(path, "rb") as file:
            self.data = file.read()
        if self.data[:6] != b"\x7fELF\x02\x01":
            raise NotElf(f"{path} is not a 64-bit little-endian ELF file")
        machine, = struct.unpack_from("<H", self.data, 18)
        if machine not in MACHINES:
            raise NotElf(f"{path} is for a processor that is not known here (number {machine})")
        self.machine = MACHINES[machine]
        start, = struct.unpack_from("<Q", self.data, 32)
        size, count = struct.unpack_from("<HH", self.data, 54)
        segments = [struct.unpack_from("<IIQQQQ", self.data, start + i * size) for i in range(count)]
        self._loaded = [(address, offset, length) for kind, _, offset, address, _, length in segments
                        if kind == LOADED_SEGMENT]
        self._entries = []
        for kind, _, offset, _, _, length in segments:
            if kind == DYNAMIC_SEGMENT:
                pairs = (struct.unpack_from("<QQ", self.data, offset + i) for i in range(0, length, 16))
                for tag, value in pairs:
                    if tag == 0:
                        break
                    self._entries.append((tag, value))
        if not self._entries:
            raise NotElf(f"{path} is linked statically")
        self._strings = self._offset(self._value(STRINGS))
        self.needed = [self._string(value) for tag, value in self._entries if tag == NEEDED]
        paths = [self._string(value) for tag, value in self._entries if tag in (RPATH, RUNPATH)]
        self.runpath = ":".join(paths).split(":") if paths else []
        self.versions = self._versions()

    def _value(self, tag):
        return next((value for own, value in self._entries if own == tag), None)

    def _offset(self, address):
        """Where in the file that lies which is loaded to this address."""
        for start, offset, length in self._loaded:
            if start <= address < start + length:
                return offset + address - start
        raise NotElf(f"{self.path} is damaged: nothing is loaded to {address:#x}")

    def _string(self, index):
        start = self._strings + index
        return self.data[start:self.data.index(b"\0", start)].decode()

    def _versions(self):
        found = {}
        address = self._value(VERSIONS)
        if address is None:
            return found
        library = self._offset(address)
        for _ in range(self._value(VERSION_COUNT)):
            _, count, name, first, following = struct.unpack_from("<HHIII", self.data, library)
            symbol = library + first
            names = found.setdefault(self._string(name), set())
            for _ in range(count):
                _, _, _, version, step = struct.unpack_from("<IHHII", self.data, symbol)
                names.add(self._string(version))
                symbol += step
            library += following
        return found

    def newest(self, family):
        """The newest version of a family of symbols (`GLIBC`, `GLIBCXX`, `CXXABI`) that is needed, as numbers."""
        found = [()]
        for names in self.versions.values():
            for name in names:
                own, _, number = name.partition("_")
                if own == family and all(part.isdigit() for part in number.split(".")):
                    found.append(tuple(int(part) for part in number.split(".")))
        return max(found)

    def with_runpath(self, folders):
        """The file's bytes with another run path. It must not be longer than the one that is there."""
        where = [value for tag, value in self._entries if tag in (RPATH, RUNPATH)]
        wanted = ":".join(folders).encode()
        if len(where) != 1 or len(wanted) > len(self._string(where[0])):
            raise NotElf(f"{self.path} has no room for the run path {wanted.decode()}: build it with build.rs as it is")
        start = self._strings + where[0]
        end = self.data.index(b"\0", start)
        return self.data[:start] + wanted.ljust(end - start, b"\0") + self.data[end:]
