#!/usr/bin/env python3
"""Reads images of an ingot store. Written from docs/FORMAT.md alone: it shares nothing with the programs that write the store.

    read_image.py STORE list
    read_image.py STORE verify
    read_image.py STORE restore NAME[:TAG] DIR     into a directory that is new or empty
    read_image.py STORE compare NAME[:TAG] DIR     one line for each difference

Exit status: 0 done and equal, 1 damaged, different or not wholly restored, 2 wrong usage.
Needs Python's zstandard, or the program zstd.
"""
import argparse
import errno
import hashlib
import os
import stat
import sys

from ingot_store import BLOCK, CHAR, DIRECTORY, FIFO, FILE, SYMLINK, Damaged, Store, must, show

KIND = {stat.S_IFREG: FILE, stat.S_IFDIR: DIRECTORY, stat.S_IFLNK: SYMLINK, stat.S_IFCHR: CHAR, stat.S_IFBLK: BLOCK, stat.S_IFIFO: FIFO}
FORMAT = {kind: bits for bits, kind in KIND.items()}


class Walker:
    """One descriptor that moves about in a tree, a component at a time, and follows no links."""

    def __init__(self, top):
        self.at, self.fd = [], os.open(top, os.O_RDONLY | os.O_DIRECTORY)

    def parent(self, path):
        """The directory of a path as a descriptor, and the last component."""
        *parts, name = path.split(b"/")
        common = len(os.path.commonprefix([self.at, parts]))
        for step in [b".."] * (len(self.at) - common) + parts[common:]:
            below = os.open(step, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=self.fd)
            os.close(self.fd)
            self.fd = below
        self.at = parts
        return self.fd, name


def kept(name):
    """Whether a manifest holds the xattr (section 4)."""
    if name.startswith(b"system."):
        return name in (b"system.posix_acl_access", b"system.posix_acl_default")
    return not name.startswith(b"btrfs.") and name != b"security.evm"


def read_xattrs(fd, name):
    path = b"/proc/self/fd/%d/%s" % (fd, name)
    names = (os.fsencode(n) for n in os.listxattr(path, follow_symlinks=False))
    return sorted((n, os.getxattr(path, n, follow_symlinks=False)) for n in names if kept(n))


class Restore:
    def __init__(self, store, top):
        os.makedirs(top, exist_ok=True)
        must(not os.listdir(top), f"{top} is not empty")
        self.store, self.walk, self.first, self.lost = store, Walker(top), Walker(top), []

    def run(self, entries):
        made = []
        for e in entries:
            if self.attempt(e, "create", self.create) and not e.link:
                made.append(e)
                if e.type != DIRECTORY:
                    self.metadata(e)
        for e in reversed(made):
            if e.type == DIRECTORY:
                self.metadata(e)

    def attempt(self, e, what, step, *more):
        """Does a step; what this user or file system may not do is noted."""
        try:
            step(e, *self.walk.parent(e.path), *more)
            return True
        except OSError as why:
            if why.errno not in (errno.EPERM, errno.EACCES, errno.EOPNOTSUPP):
                raise
            self.lost.append(f"{show(e.path)}: {what}: {why.strerror}")
            return False

    def create(self, e, fd, name):
        if e.link:
            first, source = self.first.parent(e.link)
            os.link(source, name, src_dir_fd=first, dst_dir_fd=fd, follow_symlinks=False)
        elif e.type == DIRECTORY and e.path != b".":
            os.mkdir(name, 0o700, dir_fd=fd)
        elif e.type == FILE:
            self.content(e, os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=fd))
        elif e.type == SYMLINK:
            os.symlink(e.target, name, dir_fd=fd)
        elif e.type != DIRECTORY:
            os.mknod(name, FORMAT[e.type] | 0o600, os.makedev(e.major, e.minor), dir_fd=fd)

    def content(self, e, fd):
        with open(fd, "wb") as f:
            chunks, data = e.chunks(), b""
            for offset, length in e.extents():
                f.seek(offset)
                while length:
                    data = data or self.store.chunk(*next(chunks))
                    n = f.write(data[:length])
                    data, length = data[n:], length - n
            f.truncate(e.size)

    def metadata(self, e):
        self.attempt(e, "owner", lambda e, fd, name: os.chown(name, e.uid, e.gid, dir_fd=fd, follow_symlinks=False))
        self.attempt(e, "xattrs", self.xattrs)
        if e.type != SYMLINK:
            self.attempt(e, "mode", lambda e, fd, name: os.chmod(name, e.mode, dir_fd=fd))
        self.attempt(e, "times", lambda e, fd, name: os.utime(name, ns=(e.mtime, e.mtime), dir_fd=fd, follow_symlinks=False))

    def xattrs(self, e, fd, name):
        path = b"/proc/self/fd/%d/%s" % (fd, name)
        wanted = dict(e.xattrs)
        for old, _ in read_xattrs(fd, name):
            if old not in wanted:
                os.removexattr(path, old, follow_symlinks=False)
        for new, value in e.xattrs:
            os.setxattr(path, new, value, follow_symlinks=False)


def scan(top):
    """Everything below a directory in tree order: (path, parent's descriptor, name, lstat)."""
    walk, stack = Walker(top), [b"."]
    while stack:
        path = stack.pop()
        fd, name = walk.parent(path)
        st = os.stat(name, dir_fd=fd, follow_symlinks=False)
        if stat.S_ISSOCK(st.st_mode):
            continue
        yield path, fd, name, st
        if stat.S_ISDIR(st.st_mode):
            below = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=fd)
            names = sorted(map(os.fsencode, os.listdir(below)), reverse=True)
            os.close(below)
            stack += [n if path == b"." else path + b"/" + n for n in names]


def holes_of(fd, size):
    holes, at = [], 0
    while at < size:
        start = os.lseek(fd, at, os.SEEK_HOLE)
        if start >= size:
            break
        try:
            at = os.lseek(fd, start, os.SEEK_DATA)
        except OSError as e:
            if e.errno != errno.ENXIO:
                raise
            at = size
        holes += [start, min(at, size) - start]
    return holes


def same_content(e, fd):
    chunks = list(e.chunks())[::-1]
    want, left, h = None, 0, None
    for offset, length in e.extents():
        while length:
            if not left:
                (want, left), h = chunks.pop(), hashlib.sha256()
            data = os.pread(fd, min(length, left), offset)
            if not data:
                return False
            h.update(data)
            offset, length, left = offset + len(data), length - len(data), left - len(data)
            if not left and h.digest() != want:
                return False
    return True


def compare(entries, top):
    """Yields a line for each difference between an image and a directory."""
    wanted = {e.path: e for e in entries}
    firsts = {}
    for path, fd, name, st in scan(top):
        e = wanted.pop(path, None)
        if e is None:
            yield f"{show(path)}: is not in the image"
            continue
        kind, found = KIND[stat.S_IFMT(st.st_mode)], {}
        if kind != e.type:
            yield f"{show(path)}: has another type"
            continue
        found.update(uid=st.st_uid, gid=st.st_gid, mtime=st.st_mtime_ns, xattrs=read_xattrs(fd, name))
        if kind != SYMLINK:
            found["mode"] = stat.S_IMODE(st.st_mode)
        else:
            found["target"] = os.fsencode(os.readlink(name, dir_fd=fd))
        if kind in (CHAR, BLOCK):
            found.update(major=os.major(st.st_rdev), minor=os.minor(st.st_rdev))
        if kind != DIRECTORY:
            first = firsts.setdefault((st.st_dev, st.st_ino), path)
            found.update(link=first if first != path else b"")
        if kind == FILE:
            found.update(size=st.st_size)
        for what, is_now in found.items():
            if is_now != getattr(e, what):
                yield f"{show(path)}: {what}: {is_now!r}, in the image {getattr(e, what)!r}"
        if kind == FILE and not e.link:
            content = os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=fd)
            if holes_of(content, st.st_size) != e.holes:
                yield f"{show(path)}: its holes are elsewhere"
            if st.st_size == e.size and not same_content(e, content):
                yield f"{show(path)}: content"
            os.close(content)
    for path in wanted:
        yield f"{show(path)}: is missing"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("list")
    verbs.add_parser("verify")
    for verb in ("restore", "compare"):
        p = verbs.add_parser(verb)
        p.add_argument("image")
        p.add_argument("dir")
    args = parser.parse_args()
    try:
        store = Store(args.store)
        complaints = []
        if args.verb == "list":
            for name in store.names():
                record = store.record(name)
                print(name, record["digest"], record.get("created", "-"))
        elif args.verb == "verify":
            complaints = store.verify()
        elif args.verb == "restore":
            restore = Restore(store, args.dir)
            restore.run(store.image(args.image))
            complaints = restore.lost
        else:
            complaints = compare(store.image(args.image), args.dir)
        status = 0
        for line in complaints:
            print(line)
            status = 1
        return status
    except (Damaged, OSError, ValueError) as e:
        print(f"read_image: {args.store}: {e}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
