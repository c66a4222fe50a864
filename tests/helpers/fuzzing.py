"""Seeded bad inputs for test_fuzz.py, the same in every run and on every machine."""

import io
import json
import os
import pickle
import random
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save as to_safetensors
from skimage import data

from andfast.nn import RRDBNet

Case = tuple[str, bytes]
"""File name and contents."""


def mutations(name: str, content: bytes, count: int, rng: random.Random) -> Iterator[Case]:
    """Mutations of a file: truncated, bytes changed, zeroed, inserted, deleted."""
    stem, suffix = os.path.splitext(name)
    for number in range(count):
        changed = bytearray(content)
        for _ in range(rng.choice((1, 1, 3, 20))):
            at = rng.randrange(min(len(changed) + 1, rng.choice((200, 1 << 30))))
            length = rng.choice((1, 2, 4, 30, len(changed) // 4))
            kind = rng.randrange(6)
            if kind == 0:
                del changed[at:]
            elif kind == 1:
                changed[at : at + length] = rng.randbytes(min(length, len(changed) - at))
            elif kind == 2:
                changed[at : at + length] = bytes(min(length, len(changed) - at))
            elif kind == 3:
                changed[at:at] = rng.randbytes(length)
            elif kind == 4:
                del changed[at : at + length]
            else:
                changed[at : at + 4] = rng.choice((b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f"))
        yield f"{stem}-{number}{suffix}", bytes(changed)


# ------------------------------------------------------------------------------------------------------- pictures


def encoded(format_: str, mode: str = "RGB", size: int = 24, **options: Any) -> bytes:
    """A small photograph, encoded."""
    file = io.BytesIO()
    Image.fromarray(data.astronaut()[60 : 60 + size, 150 : 150 + size]).convert(mode).save(file, format_, **options)
    return file.getvalue()


def good_images() -> list[Case]:
    """One file of each supported kind."""
    exif = Image.Exif()
    exif[271], exif[274], exif[34665] = "Maker", 6, {33437: 2.8}
    frames = {"save_all": True, "append_images": [Image.new("RGB", (24, 24))]}
    return [
        ("rgb.png", encoded("PNG", exif=exif, icc_profile=b"\0" * 200)),
        ("palette.png", encoded("PNG", "P", transparency=3)),
        ("alpha.png", encoded("PNG", "LA")),
        ("deep.png", encoded("PNG", "I;16")),
        ("baseline.jpg", encoded("JPEG", exif=exif, icc_profile=b"\1" * 200)),
        ("progressive.jpg", encoded("JPEG", progressive=True)),
        ("cmyk.jpg", encoded("JPEG", "CMYK")),
        ("lossy.webp", encoded("WEBP", exif=exif)),
        ("lossless.webp", encoded("WEBP", "RGBA", lossless=True)),
        ("frames.webp", encoded("WEBP", **frames)),
        ("plain.tif", encoded("TIFF")),
        ("lzw.tif", encoded("TIFF", compression="tiff_lzw")),
        ("deflate.tif", encoded("TIFF", "RGBA", compression="tiff_adobe_deflate")),
        ("jpeg.tif", encoded("TIFF", compression="jpeg")),
        ("pages.tif", encoded("TIFF", **frames)),
        ("plain.bmp", encoded("BMP")),
        ("indexed.bmp", encoded("BMP", "P")),
    ]


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG with the given chunks and correct checksums."""
    parts = [
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        for name, content in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def header(width: int, height: int, bits: int = 8, kind: int = 2, *rest: int) -> tuple[bytes, bytes]:
    """An IHDR chunk."""
    return b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, *(rest or (0, 0, 0)))


def bad_images(rng: random.Random) -> Iterator[Case]:
    """Decompression bombs, inconsistent headers, other file types, and mutations of every good image."""
    end, pixels = (b"IEND", b""), (b"IDAT", zlib.compress(bytes(3 * 8 * 8 + 8)))
    huge = 0x7FFFFFFF
    for number, size in enumerate([(huge, huge), (huge, 1), (1, huge), (60000, 60000), (0, 8), (8, 0), (20000, 20000)]):
        yield f"bomb-{number}.png", png(header(*size), pixels, end)
        yield (
            f"bomb-{number}.bmp",
            b"BM" + struct.pack("<IIIIiiHHIIIIII", 999, 0, 54, 40, *size, 1, 24, 0, 0, 0, 0, 0, 0),
        )
        start = encoded("JPEG")
        at = start.index(b"\xff\xc0") + 5
        sides = struct.pack(">HH", *(min(65535, side) for side in size))
        yield f"bomb-{number}.jpg", start[:at] + sides + start[at + 4 :]
        yield f"bomb-{number}.tif", tiff(*size)
    yield "zeros.png", png(header(13000, 13000, 8, 0), (b"IDAT", zlib.compress(bytes(13001 * 100))), end)
    for bits in (0, 3, 5, 16, 255):
        for kind in (0, 1, 2, 3, 5, 7, 255):
            if (bits, kind) not in {(16, 0), (16, 2)}:
                yield f"kind-{bits}-{kind}.png", png(header(8, 8, bits, kind), pixels, end)
    yield "interlace.png", png(header(8, 8, 8, 2, 0, 0, 9), pixels, end)
    yield "no-pixels.png", png(header(8, 8), end)
    yield "no-palette.png", png(header(8, 8, 8, 3), (b"IDAT", zlib.compress(bytes(8 * 9))), end)
    yield "few-pixels.png", png(header(8, 8), (b"IDAT", zlib.compress(bytes(9))), end)
    yield "not-zlib.png", png(header(8, 8), (b"IDAT", b"\0" * 99), end)
    yield "no-end.png", png(header(8, 8), pixels)[:-9]
    yield "text-bomb.png", png(header(8, 8), (b"zTXt", b"k\0\0" + zlib.compress(bytes(1 << 26))), pixels, end)
    yield "long-chunk.png", png(header(8, 8))[:-4] + b"\x7f\xff\xff\xffIDAT"
    for name, content in good_images():
        suffix = rng.choice([".png", ".jpg", ".webp", ".tif", ".bmp"])
        yield f"cut-short-{name}{suffix}", content[: rng.randrange(1, 30)]
        yield f"empty-{name}", b""
        yield f"text-{name}", b"#!/bin/sh\necho no picture\n" * rng.randrange(1, 9)
        yield f"noise-{name}", rng.randbytes(rng.randrange(1, 999))
        for number in range(12):
            yield f"truncated-{number}-{name}", content[: rng.randrange(len(content) * 4 // 5)]
        yield from mutations(name, content, 24, rng)
    for number in range(20):  # intact pixels with absurd metadata: these should succeed
        block = rng.choice([b"II*\0", b"MM\0*"]) + rng.randbytes(rng.randrange(4, 300))
        loop = b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHII", 34665, 4, 1, 8)
        exif = (b"eXIf", rng.choice([block, loop]))
        profile = (b"iCCP", b"x\0\0" + zlib.compress(rng.randbytes(rng.randrange(900))))
        yield f"metadata-{number}.png", png(header(8, 8), profile, exif, pixels, end)


def tiff(width: int, height: int) -> bytes:
    """A TIFF whose only strip is missing."""
    entries = [
        (256, width),
        (257, height),
        (258, 8),
        (259, 1),
        (262, 1),
        (273, 8),
        (278, height),
        (279, width * height),
    ]
    packed = b"".join(struct.pack("<HHII", tag, 4, 1, value & 0xFFFFFFFF) for tag, value in entries)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + packed + bytes(4)


# -------------------------------------------------------------------------------------------------------- weights


class Payload:
    """Calls a function when unpickled."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


def network_state() -> dict[str, torch.Tensor]:
    """The state dict of a small RRDBNet."""
    torch.manual_seed(0)
    return RRDBNet(4, features=4, blocks=1, growth=2).state_dict()


def archive(content: object, **options: Any) -> bytes:
    """The bytes that torch.save writes."""
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def repacked(content: bytes, pickled: bytes, compression: int = zipfile.ZIP_STORED) -> bytes:
    """A torch.save archive with its pickle replaced."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(file, "w", compression) as new:
        for entry in old.infolist():
            body = pickled if entry.filename.endswith("data.pkl") else old.read(entry)
            new.writestr(entry.filename, body)
    return file.getvalue()


def safetensors(described: object, content: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file with the given header."""
    text = described if isinstance(described, bytes) else json.dumps(described).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + content


def bad_weights(rng: random.Random, mark: Path) -> Iterator[Case]:
    """Pickles that would create the file ``mark``, bombs, inconsistent headers, other state dicts, mutations."""
    state = network_state()
    good = archive(state)
    command = f"touch {mark}"
    calls = [(os.system, command), (eval, f"open({str(mark)!r}, 'w')"), (exec, f"open({str(mark)!r}, 'w')")]
    for number, (function, text) in enumerate(calls):
        for protocol in range(6):
            for wrap in (lambda x: x, lambda x: {"params_ema": {**state, "x": x}}, lambda x: [x]):
                evil = pickle.dumps(wrap(Payload(function, text)), protocol)
                name = f"payload-{number}-{protocol}-{wrap(0).__class__.__name__}"
                yield f"{name}.pth", evil
                yield f"{name}.ckpt", repacked(good, evil)
                yield f"{name}.pt", pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + evil
    yield "payload.safetensors", pickle.dumps(Payload(os.system, command))
    for text in (b"cposix\nsystem\n(S'%s'\ntR.", b"c__builtin__\neval\n(S'%s'\ntR.", b"ctorch\nload\n(S'%s'\ntR."):
        yield f"opcodes-{text[1:5].decode()}.pth", text % command.encode()
        yield f"opcodes-{text[1:5].decode()}.pt", repacked(good, text % command.encode())

    yield "compressed.pth", repacked(good, b"\x80\x02" + b"N0" * (1 << 24) + b"N.", zipfile.ZIP_DEFLATED)
    yield (
        "memo.pth",
        repacked(good, b"\x80\x02]q\0" + b"".join(b"]q%c(h%ch%ch%ce" % (i + 1, i, i, i) for i in range(60)) + b"."),
    )
    yield "deep.pth", repacked(good, b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".")
    yield "expanded.pth", archive({**state, "conv_first.weight": torch.zeros(1).expand(1 << 30, 3, 3, 3)})
    shared = torch.zeros(1 << 12)
    yield "shared.pth", archive({f"layer{i}.weight": shared for i in range(2000)})
    yield "sparse.pth", archive({**state, "conv_hr.bias": torch.ones(4).to_sparse()})
    yield "meta.pth", archive({**state, "conv_hr.bias": torch.ones(4, device="meta")})
    for number, content in enumerate(
        [None, 3, "text", [1, 2], {}, {"params": {}}, {1: shared}, {"x": 1}, shared, {"model": [0]}]
    ):
        yield f"content-{number}.pth", archive(content)
        yield f"legacy-{number}.pt", archive(content, _use_new_zipfile_serialization=False)

    for number in range(150):  # valid files with invalid networks
        changed = dict(state)
        for key in rng.sample(sorted(changed), rng.choice((1, 1, 5))):
            kind = rng.randrange(6)
            if kind == 0:
                del changed[key]
            elif kind == 1:
                changed[key] = torch.full_like(changed[key], rng.choice((torch.nan, torch.inf, -torch.inf)))
            elif kind == 2:
                changed[key] = torch.zeros([rng.choice((0, 1, 2, 3, 5)) for _ in range(rng.randrange(6))])
            elif kind == 3:
                changed[key] = changed[key].to(rng.choice((torch.int64, torch.bool, torch.uint8)))
            elif kind == 4:
                changed[rng.choice(("body.999999.rdb1.conv1.weight", "conv_up9.bias", "\x1b[31m\nred", ""))] = shared[
                    :4
                ]
            else:
                changed[key] = changed[key][:1, ...][..., :1]
        changed = {key: value.clone(memory_format=torch.contiguous_format) for key, value in changed.items()}
        if number % 2:
            yield f"network-{number}.safetensors", to_safetensors(changed)
        else:
            yield f"network-{number}.pth", archive(changed)

    whole = to_safetensors(state)
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    described: list[tuple[object, bytes, int | None]] = [
        ({"x": entry}, b"", None),
        ({"x": {**entry, "shape": [1 << 62, 8]}}, bytes(8), None),
        ({"x": {**entry, "shape": [-1]}}, bytes(8), None),
        ({"x": {**entry, "shape": 2}}, bytes(8), None),
        ({"x": {**entry, "dtype": "EVIL"}}, bytes(8), None),
        ({"x": {**entry, "data_offsets": [8, 0]}}, bytes(8), None),
        ({"x": {**entry, "data_offsets": [0, 1 << 60]}}, bytes(8), None),
        ({"x": entry, "y": entry}, bytes(8), None),
        ({"x": entry}, bytes(800), None),
        ({"__metadata__": {"a": 1}, "x": entry}, bytes(8), None),
        ({"x\n\x1b[31m": entry}, bytes(8), None),
        ({}, b"", None),
        ([], b"", None),
        (b"{" * 50_000, b"", None),
        (b'{"x":' * 50_000, b"", None),
        (b"\xff\xfe", b"", None),
        ({"x": entry}, bytes(8), 1 << 63),
        ({"x": entry}, bytes(8), 99_999_999),
        ({"x": entry}, bytes(8), 3),
    ]
    for number, (head, content, length) in enumerate(described):
        yield f"header-{number}.safetensors", safetensors(head, content, length)
    yield from mutations("zip.pth", good, 60, rng)
    yield from mutations("legacy.pt", archive(state, _use_new_zipfile_serialization=False), 60, rng)
    yield from mutations("tensors.safetensors", whole, 60, rng)
    for number in range(20):
        yield f"cut-{number}.safetensors", whole[: rng.randrange(len(whole))]
        yield f"cut-{number}.pth", good[: rng.randrange(len(good))]
        yield f"noise-{number}.pth", rng.randbytes(rng.randrange(1, 999))
        yield f"noise-{number}.safetensors", rng.randbytes(rng.randrange(1, 999))
    for ending in (".onnx", ".bin", ".PTH", "", ".pth.gz", ".yaml"):
        yield f"ending{ending}", good


# -------------------------------------------------------------------------------------------------- configurations


def bad_configurations(rng: random.Random, mark: Path, settings: list[str]) -> Iterator[Case]:
    """YAML with tags that would create the file ``mark``, bombs, invalid syntax, names and values."""
    command = f"touch {mark}"
    for number, tag in enumerate(
        [
            f"!!python/object/apply:os.system ['{command}']",
            f"!!python/object/new:os.system ['{command}']",
            f"!!python/object/apply:subprocess.check_output [['touch', '{mark}']]",
            f"!!python/object/apply:eval [\"open('{mark}', 'w')\"]",
            "!!python/name:os.system",
            "!!python/module:os",
            "!!python/tuple [1, 2]",
            "!unknown 3",
            "!!binary '%%%'",
            "!!timestamp nonsense",
            "!!int many",
            "!!float many",
            "!!bool maybe",
            "!!set [1]",
            "!!omap 3",
        ]
    ):
        for place in ("{tag}", "scale: {tag}", "net: {{steps: {tag}}}", "{tag}: 4", "data: {tag}", "- {tag}"):
            yield f"tag-{number}-{len(place)}.yaml", place.format(tag=tag).encode()
    laughs = "".join(f"a{i + 1}: &a{i + 1} [{', '.join([f'*a{i}'] * 9)}]\n" for i in range(30))
    for number, use in enumerate(
        ("", "scale: *a30\n", "net: {steps: *a30}\n", "data: {sources: *a30}\n", "*a30 : 3\n")
    ):
        yield f"laughs-{number}.yaml", f"a0: &a0 lol\n{laughs}{use}".encode()
        yield f"alias-{number}.yaml", f"data: {{sources: &a0 [lol, lol]}}\n{laughs}{use}".encode()
    nested = "&b0 lol"
    for level in range(1, 12):
        nested = f"&b{level} [{nested}, " + ", ".join([f"*b{level - 1}"] * 9) + "]"
    for number, place in enumerate(
        ("scale: {}", "data: {{sources: {}}}", "output: {}", "net: {{steps: {}}}", "loss: {}")
    ):
        yield f"nested-{number}.yaml", place.format(nested).encode()
    yield "loop.yaml", b"data: &d {sources: *d}\n"
    yield "loop-list.yaml", b"data: {sources: &d [*d]}\n"
    yield "loop-merge.yaml", b"net: &n\n  <<: *n\n"
    yield "deep.yaml", b"scale: " + b"[" * 5000
    yield "deep-map.yaml", b"{a: " * 5000
    yield "long-number.yaml", b"scale: " + b"9" * 10_000
    yield "hex-number.yaml", b"net: {steps: 0x" + b"f" * 9000 + b"}"
    yield "sexagesimal.yaml", b"scale: 1:2:3:4:5"
    yield "infinite.yaml", b"scale: .inf"
    yield "control.yaml", b"scale: 4\0"
    yield "latin.yaml", b"scale: \xe9\xff"
    yield "utf16.yaml", "scale: 4".encode("utf-16")
    yield "tab.yaml", b"net:\n\tsteps: 3"
    yield "two.yaml", b"scale: 4\n---\nscale: 2\n"
    yield "twice.yaml", b"scale: 4\nscale: 2\n"
    yield "binary.yaml", rng.randbytes(4000)
    values = [
        "[]",
        "{}",
        "[1, 2, 3]",
        "{a: 1}",
        "text",
        "-1",
        "1e400",
        ".nan",
        "null",
        "''",
        "[[[]]]",
        "2020-01-01",
        "'\\0'",
    ]
    for number in range(90):
        name, value = rng.choice(settings), rng.choice(values)
        keys = name.split(".")
        yield f"value-{number}.yaml", ("{" + ": {".join(keys) + f": {value}" + "}" * len(keys)).encode()
    for number in range(60):
        name = "".join(rng.choice("abcdefgh_.-\u00e9\u202e") for _ in range(rng.randrange(1, 12)))
        yield f"name-{number}.yaml", json.dumps({name: rng.choice([1, "x", None, [1], {"a": 2}])}).encode()
    sound = "scale: 4\nnet:\n  steps: 100\n  batch_size: 4\ndata:\n  sources: [photos]\n  patch: 128\n"
    for name, content in mutations("sound.yaml", sound.encode(), 100, rng):
        yield name, content


__all__ = ["Case", "bad_configurations", "bad_images", "bad_weights", "good_images", "network_state"]
