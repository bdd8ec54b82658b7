"""Damages files: bytes of any, and what JSON, tables and safetensors are made of.

Everything is drawn from the ``random.Random`` that is given, so that it can be drawn
again.
"""

import json
import os
import shutil
import struct

FORMULAS = ["=1+1", "+1", "-1+2", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "=cmd|' /C x'!A0"]
TEXTS = [
    *(
        "",
        " ",
        "\0",
        "\x1b[2J",
        "é",
        "\u202e",
        "😀",
        "None",
        "nan",
        "true",
        "../..",
        "/",
    ),
    *("..", "outside/precious.txt", "../outside/precious.txt", "/dev/zero", "a\nb"),
    *("{}", "%s%n", "$(touch made)", "__import__('os').mkdir('made')", "\ufeff"),
    *FORMULAS,
]
NUMBERS = [
    *(0, -1, 1, 2, 3, 255, 65_537, 10**6, 2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**63),
    *(2**64, -(2**63), 10**30, 10**400, 0.5, -0.0, 1e-300, 1e300, -1e300),
    *(float("nan"), float("inf"), -float("inf")),
]
FIELDS = [
    b"\0" * 4,
    b"\xff" * 4,
    b"\xff\xff\xff\x7f",
    b"\0\0\0\x80",
    b"\x7f\xff\xff\xff",
]
FIELDS += [b"\0" * 8, b"\xff" * 8, b"\xff" * 7 + b"\x7f", struct.pack("<Q", 10**12)]
LONG = 1 << 40  # bytes of a file of zeros
QUOTED = ['"', '""', ",", "\n", "\r", "\0", ";", "\t", "'", "\\"]


def spoil_bytes(rng, content, other=b""):
    """Damage bytes in one to four places; ``other`` is spliced in now and then."""
    content = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        rng.choice(_BYTES)(rng, content, other)
    return bytes(content)


def _flip(rng, content, other):
    for _ in range(rng.randint(1, 8)):
        if content:
            content[_place(rng, content)] ^= 1 << rng.randrange(8)


def _cut(rng, content, other):
    del content[_place(rng, content) :]


def _take_out(rng, content, other):
    start = _place(rng, content)
    del content[start : start + rng.randint(1, 64)]


def _repeat(rng, content, other):
    start = _place(rng, content)
    part = content[start : start + rng.randint(1, 256)]
    content[start:start] = part * rng.choice([1, 1, 2, 50])


def _insert(rng, content, other):
    start = _place(rng, content)
    content[start:start] = rng.randbytes(rng.randint(1, 32))


def _overwrite(rng, content, other):
    start, field = _place(rng, content), rng.choice(FIELDS)
    content[start : start + len(field)] = field


def _splice(rng, content, other):
    content[_place(rng, content) :] = other[_place(rng, other) :]


def _place(rng, content):
    """Anywhere, but every other time in the header."""
    end = min(128, len(content)) if rng.random() < 0.5 else len(content)
    return rng.randrange(end) if end else 0


_BYTES = [
    _flip,
    _flip,
    _cut,
    _take_out,
    _repeat,
    _insert,
    _overwrite,
    _overwrite,
    _splice,
]


def value(rng):
    """A JSON value of any kind; rarely deep or long."""
    kind = rng.random()
    if kind < 0.4:
        return rng.choice(NUMBERS)
    if kind < 0.7:
        return rng.choice(TEXTS)
    if kind < 0.73:
        return rng.choice("a9=") * rng.choice([5_000, 300_000])
    if kind < 0.75:
        return nested(rng.choice([50, 500, 900]), rng.choice([list, dict]))
    plain = [None, True, False, [], {}, [[]], [1], ["a"], {"a": 1}, [None], {"": {}}]
    return rng.choice(plain)


def nested(depth, kind):
    """A list in a list in a list ..., or a dict."""
    inner = kind()
    for _ in range(depth):
        inner = [inner] if kind is list else {"a": inner}
    return inner


def spoil_value(rng, content):
    """Damage a JSON value in one to three places."""
    for _ in range(rng.randint(1, 3)):
        places = list(_places(content))
        if not places:
            return value(rng)
        inside, key = rng.choice(places)
        _spoil_item(rng, inside, key)
    return content


def _places(content):
    """(container, key) of everything that a value is made of."""
    left = [content]
    while left:
        inside = left.pop()
        if isinstance(inside, (dict, list)):
            keys = list(inside) if isinstance(inside, dict) else range(len(inside))
            yield from ((inside, key) for key in keys)
            left += [inside[key] for key in keys]


def _spoil_item(rng, inside, key):
    what = rng.random()
    if what < 0.6:
        inside[key] = value(rng)
    elif what < 0.75:
        del inside[key]
    elif isinstance(inside, dict):
        name = rng.choice(TEXTS) if rng.random() < 0.7 else str(key) * 3
        inside[name] = inside[key] if rng.random() < 0.5 else value(rng)
    else:
        inside.extend(inside[:3] if rng.random() < 0.5 else [value(rng)])


def spoil_json(rng, content, other=b""):
    """Damage what a JSON file says; now and then its bytes."""
    whole = _known_json(content)
    if whole is None or rng.random() < 0.2:
        return spoil_bytes(rng, content, other)
    if rng.random() < 0.03:
        opening = rng.choice(["[", '{"a":'])
        return (opening * 100_000).encode()
    return _dumped(spoil_value(rng, whole), rng.random() < 0.5)


def _known_json(content):
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def _dumped(content, ascii_only):
    try:
        text = json.dumps(content, ensure_ascii=ascii_only)
    except RecursionError:  # deep put into deep
        text = "[" * 100_000
    return text.encode("utf-8", "surrogatepass")


def spoil_safetensors(rng, content, other=b""):
    """Damage the table of contents of a safetensors file, or its bytes."""
    size = struct.unpack("<Q", content[:8])[0]
    head = _known_json(content[8 : 8 + size])
    if head is None or rng.random() < 0.4:
        return spoil_bytes(rng, content, other)
    table = _dumped(spoil_value(rng, head), True)
    table += b" " * (-len(table) % 8)
    return struct.pack("<Q", len(table)) + table + content[8 + size :]


def spoil_table(rng, content, other=b""):
    """Damage a CSV file's cells, rows, columns or encoding; now and then its bytes."""
    if rng.random() < 0.3:
        return spoil_bytes(rng, content, other)
    rows = [line.split(",") for line in content.decode().splitlines()]
    for _ in range(rng.randint(1, 3)):
        rng.choice(_TABLES)(rng, rows)
    text = rng.choice(["\n", "\r\n", "\r"]).join(map(",".join, rows))
    encoding = rng.choice(["utf-8"] * 6 + ["utf-8-sig", "latin-1", "utf-16"])
    return text.encode(encoding, "replace")


def _spoil_cell(rng, rows):
    row = rng.choice(rows)
    if row:
        long = "a" * rng.choice([200, 200_000, 200_000, 10_000_000])
        cells = [rng.choice(TEXTS), rng.choice(QUOTED), str(rng.choice(NUMBERS)), "é"]
        cell = long if rng.random() < 0.03 else rng.choice(cells)
        row[rng.randrange(len(row))] = cell


def _drop_column(rng, rows):
    column = rng.randrange(max(1, len(rows[0])))
    for row in rows:
        del row[column : column + 1]


def _repeat_column(rng, rows):
    column = rng.randrange(max(1, len(rows[0])))
    for row in rows:
        row.extend(row[column : column + 1])


def _repeat_row(rng, rows):
    rows.insert(rng.randrange(len(rows)), list(rng.choice(rows)))


def _drop_row(rng, rows):
    if len(rows) > 1:
        del rows[rng.randrange(len(rows))]


def _uneven_row(rng, rows):
    row = rng.choice(rows)
    if rng.random() < 0.5:
        row.extend([rng.choice(TEXTS)] * rng.randint(1, 5))
    else:
        del row[rng.randrange(len(row) + 1) :]


_TABLES = [_spoil_cell, _spoil_cell, _spoil_cell, _drop_column, _repeat_column]
_TABLES += [_repeat_row, _drop_row, _uneven_row]

_BY_KIND = {
    ".json": spoil_json,
    ".safetensors": spoil_safetensors,
    ".csv": spoil_table,
}


def spoil_file(rng, path, other=b""):
    """Damage a file as befits its kind; rarely something else takes its place."""
    if rng.random() < 0.03:
        return replace_file(rng, path)
    content = path.read_bytes()
    path.write_bytes(_BY_KIND.get(path.suffix, spoil_bytes)(rng, content, other))


def replace_file(rng, path):
    """Nothing, a folder, a pipe or a link where a file should be."""
    # Weights are mapped, not read; a disk may well have a TiB of them.
    long = [] if path.suffix == ".safetensors" else ["long"]
    path.unlink()
    what = rng.choice(["nothing", "empty", "folder", "pipe", "no end", "loop", *long])
    if what == "empty":
        path.touch()
    elif what == "folder":
        path.mkdir()
    elif what == "pipe":
        os.mkfifo(path)
    elif what == "no end":
        path.symlink_to("/dev/zero")
    elif what == "loop":
        path.symlink_to(path)
    elif what == "long":
        with open(path, "wb") as file:  # of which a disk keeps nothing
            file.truncate(LONG)


def fresh(whole, folder):
    """A copy of a folder in the place of what was there before."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole, folder)
