"""Every fault of an input gives one sentence and exit code 2. Files prepared before stay, and no other file is changed."""

import bz2
import gzip
import io
import itertools
import lzma
import os
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from data.errors import EXIT_USER_ERROR, run_main
from data.prepare import main
from data.splits import Splitter
from tests.archives import PACKERS, link, openwebtext, seven_zipped, story, tar, zipped

STORIES = {f"{i}.txt": story(i) for i in range(30)}
ARCHIVE = tar(STORIES)
zstd = PACKERS["zst"]


def flipped(raw: bytes, at: int) -> bytes:
    """One bit is wrong; ``at`` may count from the end."""
    at %= len(raw)
    return raw[:at] + bytes([raw[at] ^ 0x10]) + raw[at + 1 :]


def xz_that_asks_for_4_gib() -> bytes:
    return lzma.compress(b"x" * 100, filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 30}])


def zstd_with_a_window_of_1_gib() -> bytes:
    """A frame of no known size, whose window is 2 to the power of 30."""
    return b"\x28\xb5\x2f\xfd" + bytes([0, (30 - 10) << 3]) + b"\1\0\0"


def seven_zip_that_keeps(dictionary: int) -> bytes:
    """A 7z archive whose header, which is not compressed, says that 300 MiB come out of it, and all of them may be referred to."""
    size = 300 << 20
    stream = b"x"
    number = b"\xf0" + struct.pack("<I", size)
    properties = b"\x5d" + struct.pack("<I", dictionary)
    header = b"".join([
        b"\1\4",
        b"\6\0\1\x09\1\0",  # one packed stream, of one byte
        b"\7\x0b\1\0\1\x23\3\1\1\5" + properties + b"\x0c" + number + b"\0",  # one folder: LZMA
        b"\x08\0\0",
        b"\5\1\x11\x0d\0" + "a.txt\0".encode("utf-16-le") + b"\0\0",
    ])  # fmt: skip
    start = struct.pack("<QQI", len(stream), len(header), zlib.crc32(header))
    return b"7z\xbc\xaf\x27\x1c\0\4" + struct.pack("<I", zlib.crc32(start)) + start + stream + header


def lzma_zip_that_keeps(dictionary: int) -> bytes:
    raw = zipped({"a.txt": b"a" * 1000}, zipfile.ZIP_LZMA)
    at = raw.index(b"a.txt") + len(b"a.txt") + 5
    return raw[:at] + struct.pack("<I", dictionary) + raw[at + 4 :]


def zip_that_counts(members: int, entries: int = 40) -> bytes:
    """Another number in the end record than there are entries in the table."""
    raw = zipped({f"{i}.txt": story(i) for i in range(entries)})
    return raw[:-12] + struct.pack("<H", members) + raw[-10:]


def zip_that_shows(entries: int, members: int = 40) -> bytes:
    """The end record calls only the last entries the table, and still counts all."""
    raw = zipped({f"{i}.txt": story(i) for i in range(members)})
    start = raw.index(b"PK\1\2")
    for _ in range(members - entries):
        start = raw.index(b"PK\1\2", start + 1)
    return raw[:-10] + struct.pack("<II", len(raw) - 22 - start, start) + raw[-2:]


def encrypted_zip() -> bytes:
    """The flag is set in both headers; what follows it no longer matters."""
    raw = bytearray(zipped({"secret.txt": b"secret"}))
    for magic, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        raw[raw.index(magic) + offset] |= 1
    return bytes(raw)


def zip_with_an_unknown_method() -> bytes:
    raw = bytearray(zipped({"a.txt": b"a" * 100}))
    for magic, offset in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        at = raw.index(magic) + offset
        raw[at : at + 2] = struct.pack("<H", 99)
    return bytes(raw)


def overlapping_zip(copies: int = 4000) -> bytes:
    """Many entries in the table of contents, all for the same megabyte: the bomb of D. Fifield, in small."""
    raw = zipped({"a.txt": b"a" * (1 << 20)})
    start = raw.index(b"PK\x01\x02")
    end = raw.index(b"PK\x05\x06")
    entry = raw[start:end]
    table = b"".join(entry.replace(b"a.txt", b"%05d" % i) for i in range(copies))
    return raw[:start] + table + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, copies, copies, len(table), start, 0)


def nested(raw: bytes, times: int) -> bytes:
    for _ in range(times):
        raw = tar({"inner": raw})
    return raw


def tar_with_a_header(change: Callable[[bytearray], None]) -> bytes:
    """Change the second member's header, and leave its checksum wrong."""
    raw = bytearray(ARCHIVE)
    header = raw[1024:1536]
    change(header)
    raw[1024:1536] = header
    return bytes(raw)


def tar_with_a_size(size: bytes) -> bytes:
    """Another size in the first header, and a checksum that is right again."""
    raw = bytearray(ARCHIVE)
    raw[124:136] = size
    raw[148:156] = b" " * 8
    raw[148:156] = b"%06o\0 " % sum(raw[:512])
    return bytes(raw)


def sparse_tar() -> bytes:
    info = tarfile.TarInfo("sparse.txt")
    info.type, info.size = tarfile.GNUTYPE_SPARSE, 0
    return tar({}, [info])


# Name of the file, its bytes, what the sentence says.
BROKEN: list[tuple[str, Callable[[], bytes], str]] = [
    # cut short
    ("t.tar", lambda: ARCHIVE[:5000], "t.tar is cut short"),
    (
        "t.tar",
        lambda: ARCHIVE[: 1024 * 30],
        "t.tar is cut short, or was written without the blocks of zeros",
    ),  # exactly between two members
    ("t.tar", lambda: ARCHIVE[:700], "t.tar is cut short"),
    ("t.tar.xz", lambda: lzma.compress(ARCHIVE)[:-20], "t.tar.xz is cut short"),
    ("t.tar.gz", lambda: gzip.compress(ARCHIVE)[:500], "t.tar.gz is cut short"),
    ("t.tar.gz", lambda: gzip.compress(ARCHIVE)[:-4], "t.tar.gz is cut short"),
    ("t.tar.bz2", lambda: bz2.compress(ARCHIVE)[:500], "t.tar.bz2 is cut short"),
    ("t.xz", lambda: lzma.compress(ARCHIVE)[:6], "t.xz is cut short"),
    ("t.tar.zst", lambda: zstd(ARCHIVE)[:-20], "t.tar.zst is cut short: its zst data ends in the middle; fetch or copy it again"),
    ("t.jsonl.zst", lambda: zstd(b'{"text": "a"}\n')[:-1], "t.jsonl.zst is cut short"),
    ("t.zip", lambda: zipped(STORIES)[:1000], "t.zip is damaged or cut short"),
    ("t.7z", lambda: seven_zipped(STORIES)[:200], "t.7z is damaged"),
    ("t.7z", lambda: seven_zipped(STORIES)[:20], "t.7z is damaged"),
    ("o.tar.xz", lambda: openwebtext()[:-30], "o.tar.xz is cut short"),
    ("o.tar.xz", lambda: lzma.compress(tar({"o/1_data.xz": lzma.compress(ARCHIVE)[:-30]})), "o.tar.xz!o/1_data.xz is cut short"),
    # damaged
    ("t.tar", lambda: tar_with_a_header(lambda header: header.__setitem__(0, 120)), "tar header at byte 1,024 is not one"),
    ("t.tar", lambda: tar_with_a_header(lambda header: header.__setitem__(slice(0, 512), b"\x01" * 512)), "at byte 1,024 is not one"),
    ("t.tar", lambda: tar_with_a_size(b"\x80" + b"\xff" * 11), "has no possible size"),
    ("t.tar", lambda: tar_with_a_size(b"zzzzzzzzzzz\0"), "has no possible size"),
    ("t.tar", lambda: tar_with_a_size(b"77777777777\0"), "t.tar is cut short"),
    ("t.tar", lambda: ARCHIVE.rstrip(b"\0") + b"\0" * 1500 + b"garbage" * 100, "there is something that is not tar|is cut short"),
    ("t.tar.xz", lambda: flipped(lzma.compress(ARCHIVE), 200), "t.tar.xz is damaged|t.tar.xz is cut short"),
    ("t.tar.xz", lambda: flipped(lzma.compress(ARCHIVE), -30), "t.tar.xz is damaged|t.tar.xz is cut short"),
    ("t.tar.gz", lambda: flipped(gzip.compress(ARCHIVE, mtime=0), -6), "t.tar.gz is damaged"),  # the checksum
    ("t.tar.bz2", lambda: flipped(bz2.compress(ARCHIVE), 300), "t.tar.bz2 is damaged"),
    ("t.tar.xz", lambda: lzma.compress(ARCHIVE) + b"garbage", "t.tar.xz is damaged"),
    ("t.tar.zst", lambda: zstd(ARCHIVE) + b"garbage", "t.tar.zst is damaged: there is something else behind its zst data"),
    ("t.tar.zst", lambda: flipped(zstd(ARCHIVE), 300), "t.tar.zst is damaged: its zst data cannot be decompressed"),
    ("t.zst", lambda: b"\x28\xb5\x2f\xfd" + b"x" * 100, "t.zst is damaged"),
    ("t.gz", lambda: gzip.compress(b"text") + b"garbage", "t.gz is damaged"),
    ("t.zip", lambda: flipped(zipped({"a.txt": story(0, 200)}), 80), "t.zip!a.txt is damaged"),
    ("t.zip", lambda: zipped({"a": b"a"})[:4] + b"\0" * 40, "t.zip is damaged"),
    ("t.7z", lambda: flipped(seven_zipped({"a.txt": story(0, 200)}), 60), "t.7z is damaged"),
    ("t.7z", lambda: flipped(seven_zipped({"a.txt": story(0, 200)}), -10), "t.7z is damaged"),
    ("t.7z", lambda: b"7z\xbc\xaf\x27\x1c" + b"\0" * 26, "t.7z is damaged|yields no text"),
    ("t.zip", lambda: zip_that_counts(39), "t.zip is damaged: its end, at byte 8,.*, counts 39 members, its table has 40"),
    ("t.zip", lambda: zip_that_counts(41), "t.zip is damaged: .* counts 41 members, its table has 40"),
    ("t.zip", lambda: zip_that_shows(21), "t.zip is damaged: .* counts 40 members, its table has 21"),
    # encrypted, or packed in a way nobody here knows
    ("t.zip", encrypted_zip, "t.zip!secret.txt is encrypted"),
    ("t.7z", lambda: seven_zipped({"a.txt": b"secret"}, password="password"), "t.7z is encrypted"),
    ("t.zip", zip_with_an_unknown_method, "t.zip!a.txt cannot be read"),
    ("t.rar", lambda: b"Rar!\x1a\x07\x01\0" + b"x" * 100, "t.rar is a RAR file, which cannot be read here"),
    ("t.tar.lz4", lambda: b"\x04\x22\x4d\x18" + b"x" * 100, "t.tar.lz4 is a LZ4 file"),
    ("._a.txt", lambda: b"\0\5\x16\7" + b"x" * 100, "._a.txt is a Mac's AppleDouble file"),
    ("t.pdf", lambda: b"%PDF-1.4\n", "is a PDF file"),
    # not what the name says
    ("t.tar.xz", lambda: b"<html>404 Not Found</html>", "t.tar.xz is named like a xz archive, but is text"),
    ("t.zip", lambda: b"not a zip", "t.zip is named like a zip archive, but is text"),
    ("t.tar.gz", lambda: gzip.compress(b"<html>404 Not Found</html>"), "t.tar.gz is named like a gz archive, but is text"),
    ("t.tar", lambda: tar({"1_data.xz": b"<html>404</html>"}), "t.tar!1_data.xz is named like a xz archive, but is text"),
    ("t.txt", lambda: bytes(range(256)) * 20, "t.txt is neither text nor an archive"),
    ("t.txt", lambda: "UTF-16".encode("utf-16"), "t.txt is UTF-16 text"),
    ("t.xz", lambda: lzma.compress(bytes(range(256)) * 20), "t.xz is neither text nor an archive"),
    # bombs
    ("b.xz", lambda: lzma.compress(b"a" * 20_000_000), "b.xz expands to more than 10,000,000 bytes"),
    ("b.tar.gz", lambda: gzip.compress(tar({"a.txt": b"a" * 20_000_000})), "b.tar.gz expands to more than"),
    ("b.bz2", lambda: bz2.compress(bz2.compress(b"a" * 20_000_000)), "b.bz2 expands to more than"),
    ("b.zip", lambda: zipped({"a.txt": b"a" * 20_000_000}), "b.zip expands to more than"),
    ("b.7z", lambda: seven_zipped({"a.txt": b"a" * 20_000_000}), "b.7z expands to more than"),
    ("b.zip", lambda: zipped({f"{i}.zip": zipped({"a.txt": b"a" * 3_000_000}) for i in range(9)}), "b.zip expands to more than"),
    ("b.tar", lambda: tar({f"{i}.xz": lzma.compress(b"a" * 3_000_000) for i in range(9)}), "b.tar expands to more than"),
    ("b.zip", overlapping_zip, "b.zip expands to more than|is damaged"),
    ("b.zst", lambda: zstd(b"a" * 20_000_000), "b.zst expands to more than 10,000,000 bytes"),
    ("b.xz", xz_that_asks_for_4_gib, "asks for more than 192 MiB of memory"),
    ("b.zst", zstd_with_a_window_of_1_gib, "b.zst asks for more than 192 MiB of memory"),
    ("b.7z", lambda: seven_zip_that_keeps(1 << 30), "b.7z asks for more than 256 MiB of memory"),
    ("b.zip", lambda: lzma_zip_that_keeps(1 << 30), "b.zip!a.txt asks for more than 192 MiB of memory"),
    ("b.tar", lambda: nested(b"text", 12), "more than 8 archives deep"),
    # nothing in it
    ("e.txt", lambda: b"", "e.txt is empty"),
    ("e.txt", lambda: b" \n\t\n", "yields no text"),
    ("e.tar", lambda: tar({"a.txt": b"", "b.txt": b"\n"}), "yields no text .left out, empty: 2"),
    ("e.zip", lambda: zipped({}), "yields no text"),
    ("e.tar.xz", lambda: lzma.compress(tar({})), "is neither text nor an archive|yields no text"),
    (
        "e.tar",
        lambda: tar({}, [link("passwd", "/etc/passwd"), link("null", "", tarfile.CHRTYPE)]),
        "yields no text .left out, a link or device: 2",
    ),
    ("e.tar", sparse_tar, "yields no text"),
    ("e.jsonl", lambda: b"\n\n", "yields no text"),
    # text that is none
    ("t.txt", lambda: b"good\xff bad", "is not UTF-8 text: byte 0xff"),
    ("t.txt", lambda: b"cut in a char\xc3", "is not UTF-8 text: byte 0xc3"),
    ("t.txt", lambda: b"a NUL in the middle of a text: \0", "has NUL bytes in its text"),
    ("t.tar", lambda: tar({"ok.txt": b"ok", "late.txt": b"x" * 5000 + b"\0"}), "t.tar!late.txt has NUL bytes"),
    ("t.jsonl", lambda: b'{"no text": 1}\n', "has no field 'text'"),
    ("t.csv", lambda: b"a,b\n1,2\n", "has no field 'text'"),
]


def snapshot(folder: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


def refused(arguments: list[str], capsys) -> str:
    """Run the program, which has to fail, and return its sentence."""
    capsys.readouterr()
    assert run_main(lambda: main(arguments)) == EXIT_USER_ERROR
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
    assert not captured.out
    return captured.err


@pytest.mark.parametrize("name, make, words", BROKEN, ids=[f"{i}-{name}" for i, (name, _, _) in enumerate(BROKEN)])
def test_every_hostile_source_gets_one_sentence(name, make, words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "out"
    (tmp_path / "before.txt").write_text("what was prepared before " * 10)
    assert run_main(lambda: main(["before.txt", "--out", str(out), "--workers", "1"])) == 0
    (tmp_path / name).write_bytes(make())
    before = snapshot(tmp_path)
    error = refused([name, "--out", str(out), "--workers", "1", "--max-expanded-size", "10MB"], capsys)
    assert re.search(words, error), error
    assert snapshot(tmp_path) == before


def test_there_are_at_least_25_broken_archives():
    assert len([name for name, _, _ in BROKEN if not name.endswith((".txt", ".jsonl", ".csv"))]) >= 25


@pytest.mark.parametrize("name, make, words", [BROKEN[3], BROKEN[12], BROKEN[18], BROKEN[30]], ids=itertools.count())
def test_a_hostile_source_gets_one_sentence_from_workers(name, make, words, tmp_path, capsys):
    (tmp_path / name).write_bytes(make())
    assert re.search(words, refused([str(tmp_path / name), "--out", str(tmp_path / "out"), "--workers", "2"], capsys))
    assert sorted(os.listdir(tmp_path)) == [name]


def test_member_names_that_point_outside_write_nothing_there(tmp_path, capsys, monkeypatch):
    """Nothing is ever extracted, so a name cannot lead anywhere: it only is part of the document's name."""
    inside = tmp_path / "a" / "b"
    inside.mkdir(parents=True)
    monkeypatch.chdir(inside)
    names = [
        "../../evil.txt",
        "/tmp/evil.txt",
        "/etc/evil",
        "..\\..\\evil.txt",
        "C:\\evil.txt",
        "a/../../evil",
        "nul\u202e.txt",
        "-rf",
        "~/.evil",
    ]
    files = {name: story(i) for i, name in enumerate(names)}
    (inside / "t.tar").write_bytes(tar(files, [link("link", "../../.."), link("hard", "/etc/passwd", tarfile.LNKTYPE)]))
    (inside / "t.zip").write_bytes(zipped(files))
    for archive in ("t.tar", "t.zip"):
        assert run_main(lambda archive=archive: main([archive, "--out", "out", "--val-fraction", "0.3", "--workers", "1"])) == 0
        assert f"{len(names)} documents" in capsys.readouterr().out
        text = (inside / "out" / "train.bin").read_bytes() + (inside / "out" / "val.bin").read_bytes()
        assert text
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")} == {
        "a", "a/b", "a/b/t.tar", "a/b/t.zip", "a/b/out",
        *(f"a/b/out/{name}" for name in ("train.bin", "val.bin", "tokenizer.json", "meta.json")),
    }  # fmt: skip


def test_names_that_are_not_utf8(tmp_path, capsys):
    raw = ARCHIVE.replace(b"0.txt\0", b"\xff.txt\0", 1)
    fixed = bytearray(raw)
    fixed[148:156] = b" " * 8
    fixed[148:156] = b"%06o\0 " % sum(fixed[:512])
    path = tmp_path / "t.tar"
    path.write_bytes(bytes(fixed))
    assert run_main(lambda: main([str(path), "--out", str(tmp_path / "out"), "--workers", "2"])) == 0
    assert "30 documents" in capsys.readouterr().out
    bad = tar({"x.txt": b"\xff"}).replace(b"x.txt", b"\xfe.txt")
    fixed = bytearray(bad)
    fixed[148:156] = b" " * 8
    fixed[148:156] = b"%06o\0 " % sum(fixed[:512])
    path.write_bytes(bytes(fixed))
    assert r"t.tar!\udcfe.txt is not UTF-8" in refused([str(path), "--out", str(tmp_path / "out")], capsys)


def test_control_characters_in_a_name_are_escaped_in_the_message(tmp_path, capsys):
    path = tmp_path / "t.tar"
    path.write_bytes(tar({"evil\n\x1b[31mname" + "x" * 900: b"\xff"}, format=tarfile.GNU_FORMAT))
    error = refused([str(path), "--out", str(tmp_path / "out")], capsys)
    assert "\x1b" not in error and len(error) < 700


def test_a_folder_of_files_with_strange_names(tmp_path, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in (b"\xff.txt", b"new\nline.txt", b" .txt", b"-o.txt", *(b"%d.txt" % i for i in range(20))):
        (Path(os.fsdecode(os.fsencode(folder) + b"/" + name))).write_bytes(story(len(name)) + name.replace(b"\xff", b"y"))
    assert run_main(lambda: main([str(folder), "--out", str(tmp_path / "out"), "--val-fraction", "0.5", "--workers", "2"])) == 0
    assert "24 documents" in capsys.readouterr().out


def test_a_member_too_large_for_a_worker_is_read_within_the_limit(tmp_path, capsys):
    """Too large for one batch, so it goes back to be read in pieces; within the limit it is read, beyond it refused."""
    text = b"some words and " * 3_000_000  # 45 MB
    path = tmp_path / "t.tar"
    path.write_bytes(tar({"big.xz": lzma.compress(text, preset=0), "small.txt": story(1)}))
    apart = next(seed for seed in range(99) if len({Splitter(seed, 0.5)(f"t.tar!{name}") for name in ("big.xz", "small.txt")}) == 2)
    for workers in ("1", "2"):
        out = tmp_path / workers
        arguments = [str(path), "--out", str(out), "--workers", workers, "--seed", str(apart), "--val-fraction", "0.5"]
        assert run_main(lambda arguments=arguments: main(arguments)) == 0
        assert "45,0" in capsys.readouterr().out
        assert "expands to more than" in refused([*arguments, "--max-expanded-size", "40MB"], capsys)
    assert (tmp_path / "1" / "train.bin").read_bytes() == (tmp_path / "2" / "train.bin").read_bytes()


def test_a_missing_extra_is_named(tmp_path, capsys, monkeypatch):
    (tmp_path / "t.7z").write_bytes(seven_zipped({"a.txt": b"a"}))
    monkeypatch.setitem(__import__("sys").modules, "py7zr", None)
    error = refused([str(tmp_path / "t.7z"), "--out", str(tmp_path / "out")], capsys)
    assert "pip install 'tensorlite[data]'" in error


def test_a_source_that_is_no_file_or_folder_is_refused(tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty").mkdir()
    for source, words in [
        (tmp_path / "missing.txt", "there is no file or folder"),
        (tmp_path / "pipe", "neither a file nor a folder"),
        (tmp_path / "empty", "yields no text"),
        ("/dev/null", "neither a file nor a folder"),
        ("/dev/zero", "neither a file nor a folder"),
    ]:
        assert words in refused([str(source), "--out", str(tmp_path / "out")], capsys)
    assert not (tmp_path / "out").exists()


def test_zip_entries_that_are_links(tmp_path, capsys):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        info = zipfile.ZipInfo("link.txt")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
        archive.writestr("a.txt", story(1))
    (tmp_path / "t.zip").write_bytes(buffer.getvalue())
    assert run_main(lambda: main([str(tmp_path / "t.zip"), "--out", str(tmp_path / "out"), "--workers", "1"])) == 0
    assert "left out, a link or device: 1" in capsys.readouterr().out
