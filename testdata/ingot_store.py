"""Reads the store of ingot: names, manifests, packs, chunks. Written from docs/FORMAT.md alone, whose sections it names."""
import hashlib
import json
import os
import re
import struct
import subprocess
import sys
from collections import OrderedDict
from dataclasses import dataclass, field, fields
from pathlib import Path

try:
    import zstandard
except ImportError:
    zstandard = None

MAX_MANIFEST, MAX_FRAME, MAX_PACK, MAX_CHUNK = 1 << 30, 8 << 20, 256 << 20, 4 << 20
FILE, DIRECTORY, SYMLINK, CHAR, BLOCK, FIFO = 1, 2, 3, 4, 5, 6


class Damaged(Exception):
    """What was read is not what the format says."""


def must(true, complaint):
    if not true:
        raise Damaged(complaint)


def digest(data):
    return hashlib.sha256(data).digest()


# --- zstd (RFC 8878) ---------------------------------------------------------

def content_size(frame):
    """What the header of a frame says that it holds, in bytes (RFC 8878, 3.1.1.1)."""
    must(len(frame) > 5 and frame[:4] == b"\x28\xb5\x2f\xfd", "no zstd frame")
    descriptor = frame[4]
    single, flag = descriptor >> 5 & 1, descriptor >> 6
    start = 5 + (0 if single else 1) + (0, 1, 2, 4)[descriptor & 3]
    width = (1 if single else 0, 2, 4, 8)[flag]
    must(width > 0 and len(frame) >= start + width, "the frame does not state its size")
    return int.from_bytes(frame[start:start + width], "little") + (256 if width == 2 else 0)


def decompress(frame, limit):
    size = content_size(frame)
    must(size <= limit, f"a frame of {size} bytes, more than the {limit} allowed")
    if zstandard:
        try:
            raw = zstandard.ZstdDecompressor().decompress(frame, max_output_size=size)
        except zstandard.ZstdError as e:
            raise Damaged(f"zstd: {e}") from None
    else:
        done = subprocess.run(["zstd", "-q", "-d", "-c"], input=frame, capture_output=True)
        must(done.returncode == 0, "zstd: " + done.stderr.decode(errors="replace").strip())
        raw = done.stdout
    must(len(raw) == size, f"a frame of {len(raw)} bytes says that it has {size}")
    return raw


# --- manifests: protocol buffers in their canonical encoding ---------------

def varint(value):
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def read_varint(data, at):
    value = shift = 0
    while True:
        must(at < len(data) and shift < 64, "a number that does not end")
        value |= (data[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 0x80:
            must(value < 1 << 64, "a number of more than 64 bits")
            return value, at


def messages(data):
    """The fields of a message: (number, value), a value being an int or bytes."""
    at = 0
    while at < len(data):
        tag, at = read_varint(data, at)
        if tag & 7 == 0:
            value, at = read_varint(data, at)
        else:
            must(tag & 7 in (1, 2), f"field {tag >> 3} has the unknown wire type {tag & 7}")
            length, at = read_varint(data, at) if tag & 7 == 2 else (8, at)
            must(length <= len(data) - at, f"field {tag >> 3} is cut off")
            value, at = data[at:at + length], at + length
            if tag & 7 == 1:
                value = struct.unpack("<q", value)[0]
        yield tag >> 3, value


def encode(number, kind, value):
    """One field, or nothing where it has its default value."""
    if not value:
        return b""
    if kind in ("uint32", "uint64"):
        must(value < 1 << int(kind[4:]), f"field {number} exceeds {kind}")
        return varint(number << 3) + varint(value)
    if kind == "sfixed64":
        return varint(number << 3 | 1) + struct.pack("<q", value)
    if kind == "xattrs":
        parts = (encode(1, "bytes", name) + encode(2, "bytes", content) for name, content in value)
        return b"".join(varint(number << 3 | 2) + varint(len(p)) + p for p in parts)
    if kind == "packed":
        value = b"".join(map(varint, value))
    return varint(number << 3 | 2) + varint(len(value)) + value


def proto(number, kind, default=None):
    if default is None:
        return field(default_factory=list, metadata={"number": number, "kind": kind})
    return field(default=default, metadata={"number": number, "kind": kind})


@dataclass
class Header:
    magic: bytes = proto(1, "bytes", b"")
    version: int = proto(2, "uint32", 0)
    count: int = proto(3, "uint64", 0)


@dataclass
class Entry:
    path: bytes = proto(1, "bytes", b"")
    type: int = proto(2, "uint32", 0)
    mode: int = proto(3, "uint32", 0)
    uid: int = proto(4, "uint32", 0)
    gid: int = proto(5, "uint32", 0)
    mtime: int = proto(6, "sfixed64", 0)
    size: int = proto(7, "uint64", 0)
    target: bytes = proto(8, "bytes", b"")
    major: int = proto(9, "uint32", 0)
    minor: int = proto(10, "uint32", 0)
    xattrs: list = proto(11, "xattrs")
    link: bytes = proto(12, "bytes", b"")
    holes: list = proto(13, "packed")
    chunk_ids: bytes = proto(14, "bytes", b"")
    chunk_sizes: list = proto(15, "packed")

    def chunks(self):
        for n, size in enumerate(self.chunk_sizes):
            yield self.chunk_ids[32 * n:32 * n + 32], size

    def extents(self):
        """What is not a hole: (offset, length)."""
        at = 0
        for offset, length in zip(self.holes[::2] + [self.size], self.holes[1::2] + [0]):
            if offset > at:
                yield at, offset - at
            at = offset + length


def decode(message, data):
    known = {f.metadata["number"]: f for f in fields(message)}
    for number, value in messages(data):
        must(number in known, f"the unknown field {number}")
        f = known[number]
        kind = f.metadata["kind"]
        must(isinstance(value, int) == (kind in ("uint32", "uint64", "sfixed64")), f"{f.name} has the wrong wire type")
        if kind == "packed":
            numbers, at = getattr(message, f.name), 0
            while at < len(value):
                n, at = read_varint(value, at)
                numbers.append(n)
        elif kind == "xattrs":
            pair = dict(messages(value))
            message.xattrs.append((pair.get(1, b""), pair.get(2, b"")))
        else:
            setattr(message, f.name, value)
    again = b"".join(encode(f.metadata["number"], f.metadata["kind"], getattr(message, f.name)) for f in fields(message))
    must(again == data, "an encoding that is not canonical")
    return message


def show(path):
    return ascii(path.decode("utf-8", "surrogateescape"))


def read_manifest(data):
    """The entries of a manifest, every rule of section 4 checked."""
    parts, at = [], 0
    for number, value in messages(data):
        must(number == (2 if parts else 1) and isinstance(value, bytes), "a header and entries were expected")
        parts.append(value)
        at += len(encode(number, "bytes", value) or varint(number << 3 | 2) + b"\0")
    must(at == len(data) and parts, "an encoding that is not canonical")
    header = decode(Header(), parts[0])
    must(header.magic == b"ingot manifest", "no manifest")
    must(header.version == 1, f"version {header.version} of the format is unknown")
    must(header.count == len(parts) - 1, f"{len(parts) - 1} entries, not {header.count}")
    seen, before = {}, None
    for part in parts[1:]:
        e = decode(Entry(), part)
        try:
            check_entry(e, seen, before)
        except Damaged as why:
            raise Damaged(f"entry {show(e.path)}: {why}") from None
        seen[e.path] = before = e
    must(seen, "no entry")
    return list(seen.values())


def check_entry(e, seen, before):
    must(FILE <= e.type <= FIFO and e.mode <= 0o7777, f"type {e.type} or mode {e.mode:o} is unknown")
    if before is None:
        must(e.path == b"." and e.type == DIRECTORY, "the first entry is not the directory '.'")
    else:
        parts = e.path.split(b"/")
        must(len(e.path) <= 32768 and b"\0" not in e.path, "a path too long or with NUL")
        must(all(1 <= len(p) <= 255 and p not in (b".", b"..") for p in parts), "not a path")
        must(before.path == b"." or before.path.split(b"/") < parts, f"not after {show(before.path)}")
        parent = seen.get(b"/".join(parts[:-1]) or b".")
        must(parent and parent.type == DIRECTORY, "its parent is no directory")
    must(1 <= len(e.target) <= 4095 and b"\0" not in e.target if e.type == SYMLINK else not e.target, "target")
    must(e.type in (CHAR, BLOCK) or e.major == e.minor == 0, "device numbers, but no device")
    must(e.type == FILE or not (e.size or e.holes or e.chunk_ids or e.chunk_sizes), "content, but no file")
    names = [name for name, _ in e.xattrs]
    must(names == sorted(set(names)), "xattrs are not sorted")
    must(all(1 <= len(n) <= 255 and b"\0" not in n and len(v) <= 65536 for n, v in e.xattrs), "an xattr out of bounds")
    if e.link:
        first = seen.get(e.link)
        must(first and first.type == e.type != DIRECTORY and not first.link, f"linked to {show(e.link)}, no earlier first name")
        alike = ("mode", "uid", "gid", "mtime", "size", "target", "major", "minor", "xattrs")
        must(all(getattr(e, a) == getattr(first, a) for a in alike), "differs from its first name")
        must(not (e.holes or e.chunk_ids or e.chunk_sizes), "a link with content")
        return
    must(e.size < 1 << 63 and len(e.holes) % 2 == 0, "holes or size out of bounds")
    end = -1
    for offset, length in zip(e.holes[::2], e.holes[1::2]):
        must(offset > end and length > 0 and offset + length <= e.size, "holes out of order")
        end = offset + length
    must(len(e.chunk_ids) == 32 * len(e.chunk_sizes), "chunks without sizes")
    must(all(1 <= n <= MAX_CHUNK for n in e.chunk_sizes), "a chunk out of bounds")
    must(sum(e.holes[1::2]) + sum(e.chunk_sizes) == e.size, "holes and chunks do not add up to the size")


# --- the store ----------------------------------------------------------------

def read_block(block):
    """The frames of a pack: [(offset, length, raw length, [(digest, size), ...]), ...] (section 5)."""
    must(len(block) >= 52 and block[-8:] == b"INGOTIX1", "no pack index")
    body, check, length = block[:-48], block[-48:-16], int.from_bytes(block[-16:-8], "little")
    must(length == len(body) and digest(body) == check, "the checksum does not fit")
    out, at, offset = [], 4, 8
    try:
        for _ in range(struct.unpack_from("<I", body)[0]):
            size, raw, count = struct.unpack_from("<III", body, at)
            must(size and count and raw <= MAX_FRAME, "a frame out of bounds")
            chunks = [struct.unpack_from("<32sI", body, at + 12 + 36 * n) for n in range(count)]
            must(sum(n for _, n in chunks) == raw and all(0 < n <= MAX_CHUNK for _, n in chunks), "chunks that do not fill their frame")
            out.append((offset, size, raw, chunks))
            at, offset = at + 12 + 36 * count, offset + size
    except struct.error:
        raise Damaged("the body is cut off") from None
    must(out and at == len(body) and offset + len(block) <= MAX_PACK, "numbers that do not add up")
    return out


class Store:
    def __init__(self, top):
        self.top = Path(top)
        config = json.loads((self.top / "config.json").read_bytes())
        must(config.get("format") == "ingot store", "config.json: no ingot store")
        must(config.get("version") == 1, f"config.json: version {config.get('version')} is unknown")
        self.where = {}             # chunk -> [(pack, frame, offset in the frame, size), ...]
        self.frames = OrderedDict()  # the frames that were read last
        for index in sorted((self.top / "index").glob("[0-9a-f]*")):
            self.add(index.name)

    def pack(self, name):
        return self.top / "packs" / name[:2] / name

    def trailer(self, name):
        """The block at the end of a pack."""
        with open(self.pack(name), "rb") as f:
            size = f.seek(0, os.SEEK_END)
            must(size >= 60, "too short for a pack")
            f.seek(size - 16)
            length = int.from_bytes(f.read(8), "little")
            must(length <= size - 56, "too short for its index")
            f.seek(size - 48 - length)
            return f.read()

    def add(self, name):
        try:
            frames = read_block((self.top / "index" / name).read_bytes())
        except Damaged:
            try:
                frames = read_block(self.trailer(name))
            except (OSError, Damaged) as e:
                print(f"pack {name} is left out: {e}", file=sys.stderr)
                return
        for frame in frames:
            at = 0
            for chunk, size in frame[3]:
                self.where.setdefault(chunk, []).append((name, frame[:3], at, size))
                at += size

    def frame(self, name, offset, length, raw):
        key = name, offset
        if key not in self.frames:
            with open(self.pack(name), "rb") as f:
                f.seek(offset)
                self.frames[key] = decompress(f.read(length), raw)
            must(len(self.frames[key]) == raw, "a frame of the wrong size")
            while len(self.frames) > 16:
                self.frames.popitem(last=False)
        self.frames.move_to_end(key)
        return self.frames[key]

    def chunk(self, wanted, size):
        why = "it is in no pack"
        for name, frame, at, length in self.where.get(wanted, []):
            try:
                data = self.frame(name, *frame)[at:at + length]
                must(digest(data) == wanted and length == size, "it has other bytes")
                return data
            except (OSError, Damaged) as e:
                why = f"pack {name}: {e}"
        raise Damaged(f"chunk {wanted.hex()}: {why}")

    def names(self):
        for path in sorted((self.top / "names").glob("*/*")):
            if not path.name.startswith(".tmp-"):
                yield f"{path.parent.name}:{path.name}"

    def record(self, image):
        name, _, tag = image.partition(":")
        tag = tag or "latest"
        word = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
        must(re.fullmatch(f"{word}:{word}", f"{name}:{tag}"), f"{image!r} is no name of an image")
        try:
            data = (self.top / "names" / name / tag).read_bytes()
            record = json.loads(data)
        except FileNotFoundError:
            raise Damaged(f"there is no image {name}:{tag}") from None
        except ValueError as e:
            raise Damaged(f"the name {name}:{tag}: {e}") from None
        must(isinstance(record, dict) and re.fullmatch("[0-9a-f]{64}", str(record.get("digest"))), f"the name {name}:{tag} has no digest")
        if "check" in record:
            check = str(record["check"]).encode()
            must(len(check) == 64, f"the name {name}:{tag} has a check that is none")
            before, _, after = data.rpartition(check)
            must(digest(before + b"0" * 64 + after).hex() == record["check"], f"the name {name}:{tag} does not fit its check")
        return record

    def manifest(self, name):
        frame = (self.top / "manifests" / name[:2] / f"{name}.zst").read_bytes()
        try:
            if frame[-40:-32] == b"\x50\x2a\x4d\x18\x20\0\0\0":
                must(digest(frame[:-40]) == frame[-32:], "it does not fit its check")
                frame = frame[:-40]
            data = decompress(frame, MAX_MANIFEST)
            must(digest(data).hex() == name, "it has another digest")
            return read_manifest(data)
        except Damaged as e:
            raise Damaged(f"manifest {name}: {e}") from None

    def image(self, image):
        return self.manifest(self.record(image)["digest"])

    def verify(self):
        """Yields a line for each thing that is damaged, having read every byte."""
        for path in sorted(self.top.glob("packs/*/[0-9a-f]*")):
            try:
                self.verify_pack(path.name)
            except (OSError, Damaged) as e:
                yield f"pack {path.name}: {e}"
        for index in sorted((self.top / "index").glob("[0-9a-f]*")):
            if not self.pack(index.name).exists():
                yield f"index {index.name}: its pack is missing"
        for path in sorted(self.top.glob("manifests/*/[0-9a-f]*.zst")):
            try:
                for e in self.manifest(path.stem):
                    for chunk, size in e.chunks():
                        must(any(size == w[3] for w in self.where.get(chunk, [])), f"{path.stem}: {show(e.path)}: chunk {chunk.hex()} is in no pack")
            except (OSError, Damaged) as e:
                yield str(e)
        for name in self.names():
            try:
                self.image(name)
            except (OSError, Damaged) as e:
                yield f"{name}: {e}"

    def verify_pack(self, name):
        data = self.pack(name).read_bytes()
        must(digest(data).hex() == name, "it has another digest")
        must(data[:8] == b"INGOTPK1", "no pack")
        block = self.trailer(name)
        frames = read_block(block)
        end = frames[-1][0] + frames[-1][1]
        must(end + len(block) == len(data), "it is longer or shorter than its index says")
        index = self.top / "index" / name
        must(not index.exists() or index.read_bytes() == block, "its index file differs")
        for offset, length, raw, chunks in frames:
            content, at = decompress(data[offset:offset + length], raw), 0
            must(len(content) == raw, "a frame of the wrong size")
            for chunk, size in chunks:
                must(digest(content[at:at + size]) == chunk, f"chunk {chunk.hex()} has other bytes")
                at += size
