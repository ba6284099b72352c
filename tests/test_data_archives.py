"""Archives of all kinds are read in small pieces, and a member that cannot be read is named."""

import errno
import importlib
import io
import lzma
import os
import random
import struct
import sys
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import py7zr
import pytest

import data.sources.seven_zip
import data.sources.streams
from data.errors import DataError, run_main
from data.prepare import main
from data.sources import documents
from data.sources.streams import BLOCK, Budget, Reader, ZlibDecompressor, decompressed
from data.sources.tar import _pax
from data.sources.walk import PART, Tally
from tests.archives import PACKERS, seven_zipped, story, tar, zipped


def texts(path: Path, tally: Tally | None = None) -> dict[str, str]:
    found: dict[str, str] = {}
    for document in documents(path, tally=tally):
        found[document.name] = found.get(document.name, "") + document.text
    return found


def put(path: Path, raw: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(raw)
    return path


def prose(length: int, seed: int = 0) -> bytes:
    """Words in no order, which compress to about a third."""
    return " ".join(random.Random(seed).choices([f"word{i}" for i in range(5000)], k=length // 8)).encode()


# --- Zstandard ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["t.jsonl.zst", "T.JSONL.ZST"])
def test_zstandard_files_of_rows_are_read(name: str, tmp_path: Path) -> None:
    raw = b"".join(b'{"text": "%s"}\n' % story(i).strip() for i in range(500))
    assert list(texts(put(tmp_path / name, PACKERS["zst"](raw))).values()) == [story(i).decode().strip() for i in range(500)]


@pytest.mark.parametrize("name", ["t.tar.zst", "t.tzst", "anything"])
def test_a_tar_in_zstandard_is_read(name: str, tmp_path: Path) -> None:
    files = {f"{i}.txt": story(i) for i in range(50)}
    assert texts(put(tmp_path / name, PACKERS["zst"](tar(files)))) == {f"{name}!{file}": text.decode() for file, text in files.items()}


def test_skippable_frames_are_skipped(tmp_path: Path) -> None:
    """pzstd begins a file with one, and other programs end it with one."""
    skipped = b"\x50\x2a\x4d\x18\x04\0\0\0note", b"\x5f\x2a\x4d\x18\x04\0\0\0note"
    raw = skipped[0] + PACKERS["zst"](b"one ") + skipped[1] + PACKERS["zst"](b"two") + skipped[0]
    assert texts(put(tmp_path / "t.zst", raw)) == {"t.zst": "one two"}


def test_zstandard_inside_other_archives_is_read(tmp_path: Path) -> None:
    rows, inner = b'{"text": "a row"}\n', tar({"a.txt": b"a"})
    for name, pack in {"t.zip": zipped, "t.tar": tar, "t.7z": seven_zipped}.items():
        found = texts(put(tmp_path / name, pack({"r.jsonl.zst": PACKERS["zst"](rows), "i.tar.zst": PACKERS["zst"](inner)})))
        assert found == {f"{name}!r.jsonl.zst:1": "a row", f"{name}!i.tar.zst!a.txt": "a"}


def test_without_the_package_one_sentence_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = "compression" if sys.version_info >= (3, 14) else "backports"
    monkeypatch.setitem(sys.modules, f"{package}.zstd", None)
    # without `raising`: setuptools, if anything has imported it, has put a `backports` of its own in the place of the real one
    monkeypatch.delattr(importlib.import_module(package), "zstd", raising=False)
    with pytest.raises(DataError, match=r"^t.zst is compressed by Zstandard, which .*: pip install 'tensorlite\[data\]'\.$"):
        texts(put(tmp_path / "t.zst", PACKERS["zst"](b"text")))


# --- zip ----------------------------------------------------------------------------------------------

METHODS = [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]


@pytest.mark.parametrize("method", METHODS)
def test_zip_members_are_read(method: int, tmp_path: Path) -> None:
    files = {"a.txt": prose(600_000), "empty.txt": b"", "c.txt": b"c", "d.txt": prose(BLOCK)}
    path = put(tmp_path / "t.zip", zipped(files, method))
    assert texts(path) == {f"t.zip!{name}": raw.decode() for name, raw in files.items() if raw}


@pytest.mark.parametrize("pack", [PACKERS["zst"], lzma.compress], ids=["zstandard", "xz"])
def test_zip_methods_that_zipfile_lacks_are_read(pack, tmp_path: Path) -> None:
    text, method = prose(1_000_000), 93 if pack is PACKERS["zst"] else 95
    packed = pack(text)
    raw = bytearray(zipped({"a.txt": packed}, zipfile.ZIP_STORED))
    for magic, at in ((b"PK\1\2", 10), (b"PK\3\4", 8)):
        at += raw.index(magic)
        raw[at : at + 2] = struct.pack("<H", method)
        raw[at + 6 : at + 18] = struct.pack("<III", zlib.crc32(text), len(packed), len(text))
    assert texts(put(tmp_path / "t.zip", bytes(raw))) == {"t.zip!a.txt": text.decode()}


def test_a_member_may_have_no_name(tmp_path: Path) -> None:
    raw = bytearray(zipped({"n": story(1), "b.txt": story(2)}))
    for magic, at in ((b"PK\3\4", 26), (b"PK\1\2", 28)):  # its one letter becomes what there is else, behind the name
        at += raw.index(magic)
        raw[at : at + 4] = struct.pack("<HH", 0, 1)
    assert texts(put(tmp_path / "t.zip", bytes(raw))) == {"t.zip!": story(1).decode(), "t.zip!b.txt": story(2).decode()}


def many_members(folders: int, end: bytes) -> tuple[bytes, int, int]:
    """A zip of a text and many folders without its end: where its table begins, and how long it is."""
    raw = zipped({"a.txt": b"text"}, zipfile.ZIP_STORED)
    start, stop = raw.index(b"PK\1\2"), raw.index(b"PK\5\6")
    folder = struct.pack("<4s6H3I5H2I", b"PK\1\2", 20, 20, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0) + b"d/"
    return raw[:stop] + folder * folders + end, start, stop - start + len(folder) * folders


def test_a_zip_of_more_than_65535_members_is_read(tmp_path: Path) -> None:
    """The real number stands in the record before the last one; programs from before there was one count from 0 again."""
    raw, start, size = many_members(65_600, b"")
    locator = struct.pack("<4sIQI", b"PK\6\7", 0, len(raw), 1)
    for count in (65_601, 65_602, 65):
        record = struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, size, start)
        end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, size, start, 0)
        path = put(tmp_path / "t.zip", raw + record + locator + end)
        if count == 65_601:
            assert texts(path) == {"t.zip!a.txt": "text"}
        else:
            with pytest.raises(DataError, match=f"counts {count:,} members, its table has 65,601"):
                texts(path)
    old = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 65, 65, size, start, 0)
    assert texts(put(path, raw + old)) == {"t.zip!a.txt": "text"}


@pytest.mark.parametrize("method", METHODS)
def test_a_damaged_zip_member_is_an_error(method: int, tmp_path: Path) -> None:
    raw = bytearray(zipped({"a.txt": prose(100_000)}, method))
    for at in (raw.index(b"a.txt") + 1000, raw.index(b"PK\1\2") + 16):  # in the data; the checksum
        damaged = bytes(raw[:at]) + bytes([raw[at] ^ 0x10]) + bytes(raw[at + 1 :])
        with pytest.raises(DataError, match=r"^t.zip!a.txt is damaged or cut short: .*; fetch or copy t.zip again"):
            texts(put(tmp_path / "t.zip", damaged))
    for size in (99_000, 101_000):  # less than what comes out, and more
        at = raw.index(b"PK\1\2") + 24
        with pytest.raises(DataError, match=r"^t.zip!a.txt is damaged or cut short"):
            texts(put(tmp_path / "t.zip", bytes(raw[:at]) + struct.pack("<I", size) + bytes(raw[at + 4 :])))


# --- 7z -----------------------------------------------------------------------------------------------

FILTERS = {
    "lzma2": [{"id": py7zr.FILTER_LZMA2, "preset": 1}],
    "lzma": [{"id": py7zr.FILTER_LZMA, "preset": 1}],
    "bcj": [{"id": py7zr.FILTER_X86}, {"id": py7zr.FILTER_LZMA2, "preset": 1}],
    "bcj and lzma": [{"id": py7zr.FILTER_X86}, {"id": py7zr.FILTER_LZMA, "preset": 1}],
    "delta": [{"id": py7zr.FILTER_DELTA, "dist": 4}, {"id": py7zr.FILTER_LZMA2, "preset": 1}],
    "bzip2": [{"id": py7zr.FILTER_BZIP2}],
    "deflate": [{"id": py7zr.FILTER_DEFLATE}],
    "zstd": [{"id": py7zr.FILTER_ZSTD, "level": 3}],
    "copy": [{"id": py7zr.FILTER_COPY}],
}


def seven(path: Path, files: dict[str, bytes], filters: list | None = None, again: dict[str, bytes] | None = None) -> Path:
    """A 7z archive; ``again`` is added to it, which makes a second folder."""
    for mode, some in (("w", files), ("a", again)):
        if some:
            with py7zr.SevenZipFile(path, mode, filters=filters) as archive:
                archive.set_encoded_header_mode(False)
                for name, raw in some.items():
                    archive.writestr(raw, name)
    return path


@pytest.mark.parametrize("method", FILTERS)
def test_7z_members_are_read(method: str, tmp_path: Path) -> None:
    files = {"a.txt": prose(700_000), "empty.txt": b"", "b.txt": b"b", "c.txt": prose(BLOCK, 1)}
    path = seven(tmp_path / "t.7z", files, FILTERS[method], {"d.txt": prose(300_000, 2), "e.txt": b"e"})
    expected = files | {"d.txt": prose(300_000, 2), "e.txt": b"e"}
    assert texts(path) == {f"t.7z!{name}": raw.decode() for name, raw in expected.items() if raw}


def test_skipped_7z_members_are_not_read_but_checked(tmp_path: Path) -> None:
    """A member that is skipped comes before one that is read, and its checksum is verified, too."""
    noise = random.Random(0).randbytes(300_000)
    path = seven(tmp_path / "t.7z", {"a.png": b"\x89PNG\r\n\x1a\n\0\0\0\r" + noise, "b.txt": b"text"})
    tally = Tally()
    assert texts(path, tally) == {"t.7z!b.txt": "text"}
    assert tally.counts == {"left out, not text": 1}
    raw = path.read_bytes()
    for content, words in ((b"text", "t.7z!b.txt"), (b"\x89PNG\r\n\x1a\n\0\0\0\r" + noise, "t.7z!a.png")):
        damaged = bytearray(raw.replace(struct.pack("<I", zlib.crc32(content)), struct.pack("<I", 7)))
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"^t.7z is damaged"):  # by the header's own checksum
            texts(path)
        header = 32 + struct.unpack_from("<Q", raw, 12)[0]
        struct.pack_into("<I", damaged, 28, zlib.crc32(damaged[header:]))
        struct.pack_into("<I", damaged, 8, zlib.crc32(damaged[12:32]))
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=f"^{words} is damaged: its checksum is another; fetch or copy t.7z again"):
            texts(path)


@pytest.mark.parametrize("streams", [None, 4])
def test_an_unsupported_7z_is_not_reported_as_damaged(streams: int | None, tmp_path: Path, monkeypatch) -> None:
    raw = bytearray(seven(tmp_path / "t.7z", {"a.txt": b"a" * 1000}).read_bytes())
    if streams is None:  # a method that there is not
        header = 32 + struct.unpack_from("<Q", raw, 12)[0]
        at = raw.index(b"\x21\x21\1", header)
        raw[at + 1] = 0x7E
        struct.pack_into("<I", raw, 28, zlib.crc32(raw[header:]))
        struct.pack_into("<I", raw, 8, zlib.crc32(raw[12:32]))
        (tmp_path / "t.7z").write_bytes(raw)
    else:  # as BCJ2 has
        starts = data.sources.seven_zip._starts

        def several(opened):
            opened.header.main_streams.unpackinfo.folders[0].coders[0]["numinstreams"] = streams
            return starts(opened)

        monkeypatch.setattr("data.sources.seven_zip._starts", several)
    with pytest.raises(DataError, match=r"^t.7z cannot be read by py7zr: .*; unpack it with 7z x and give the folder instead\.$"):
        texts(tmp_path / "t.7z")


# --- tar ----------------------------------------------------------------------------------------------


def test_a_tar_without_its_end_gets_advice(tmp_path: Path) -> None:
    whole = tar({f"{i}.txt": story(i) for i in range(5)}).rstrip(b"\0")
    whole += bytes(-len(whole) % 512)
    for raw, words in ((whole, "if tar -tf lists all that should be in it, unpack it"), (whole[:-512], "fetch or copy it again.$")):
        with pytest.raises(DataError, match=words):
            texts(put(tmp_path / "t.tar", raw))


class Counted(bytes):
    """Bytes that count what is copied out of them."""

    copied = 0

    def __getitem__(self, part):
        found = Counted(super().__getitem__(part)) if isinstance(part, slice) else super().__getitem__(part)
        Counted.copied += len(found) if isinstance(part, slice) else 1
        return found


def test_a_pax_header_takes_no_longer_than_its_length() -> None:
    header = Counted(b"6 a=b\n" * 50_000 + b"17 path=name.txt\n")
    Counted.copied = 0
    found = list(_pax(header, "t.tar", 0))
    assert len(found) == 50_001
    assert found[-1] == ("path", b"name.txt")
    assert Counted.copied < 4 * len(header)


@pytest.mark.parametrize(
    "raw", [b"path=a\n", b"9 path=a", b"3 a\n", b"99 path=a\n", b" 9 path=a\n", b"9 path=a\n9", b"0000000009 path=a\n"]
)
def test_an_invalid_pax_header_is_refused(raw: bytes) -> None:
    with pytest.raises(DataError, match="the pax header at byte 512 is not one"):
        list(_pax(raw, "t.tar", 512))


# --- what is passed over, and said --------------------------------------------------------------------

DOUBLE = b"\0\5\x16\7\0\2\0\0Mac OS X        " + bytes(60)


def test_apple_double_files_are_left_out(tmp_path: Path) -> None:
    rows = PACKERS["gz"](b'{"text": "a"}\n')
    files = {"x.jsonl.gz": rows, "__MACOSX/._x.jsonl.gz": DOUBLE, "deep/__MACOSX/a/._y.zip": b"something else", "._z.txt": DOUBLE}
    for path in (put(tmp_path / "t.zip", zipped(files)), put(tmp_path / "t.tar", tar(files)), put(tmp_path / "t.7z", seven_zipped(files))):
        tally = Tally()
        assert list(texts(path, tally).values()) == ["a"]
        assert tally.counts == {"left out, Mac's AppleDouble": 3}
    for name, raw in files.items():
        put(tmp_path / "folder" / name, raw)
    tally = Tally()
    assert list(texts(tmp_path / "folder", tally).values()) == ["a"]
    assert tally.counts == {"left out, Mac's AppleDouble": 3}
    put(tmp_path / "own" / "._mine.txt", b"a text of one's own")
    assert list(texts(tmp_path / "own").values()) == ["a text of one's own"]


def test_a_link_to_a_folder_is_counted(tmp_path: Path) -> None:
    put(tmp_path / "elsewhere" / "b.txt", b"b")
    put(tmp_path / "source" / "a.txt", b"a")
    os.symlink(tmp_path / "elsewhere", tmp_path / "source" / "link")
    os.symlink(tmp_path / "source", tmp_path / "source" / "itself")
    tally = Tally()
    assert texts(tmp_path / "source", tally) == {"a.txt": "a"}
    assert tally.counts == {"left out, a link or device": 2}
    assert tally.examples == {"left out, a link or device": "itself"}


def test_temporary_files_of_a_killed_preparation_are_not_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whichever folder it was for, and whichever is asked for now."""
    source = tmp_path / "source"
    for i in range(20):
        put(source / f"{i}.txt", story(i))
    put(source / "old" / ".preparing" / "tmpabc.txt", b"".join(story(i) for i in range(20)))
    put(source / ".preparing" / "tmpdef.txt", b"".join(story(i) for i in range(20)))
    for out in (tmp_path / "out", source / "new", source, source / "old"):
        capsys.readouterr()
        assert run_main(lambda out=out: main([str(source), "--out", str(out), "--workers", "1"])) == 0
        said = capsys.readouterr().out
        assert "20 documents" in said
        left = {source: 1, source / "old": 0}.get(out, 2 if out == tmp_path / "out" or out == source / "new" else 0)
        assert (f"left out, what a preparation that was ended left behind: {left}" in said) == bool(left)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """A disk that fails says a number and no name."""

    class Failing(io.BytesIO):
        def read(self, size=-1):
            data = super().read(size if 0 <= size <= BLOCK else BLOCK)
            if 100_000 < self.tell() < 700_000:  # in the texts, and not in a table of contents
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return data

    noise = {"a.txt": random.Random(0).randbytes(450_000).hex().encode(), "b.txt": random.Random(1).randbytes(450_000).hex().encode()}
    packed = {"zip": zipped(noise), "7z": seven_zipped(noise), "tar": tar(noise), "txt": noise["a.txt"]}
    packed["tar.xz"] = lzma.compress(packed["tar"], preset=0)
    opened, raws = open, {}
    for suffix, raw in packed.items():
        path = put(tmp_path / suffix / "sub" / f"t.{suffix}", raw)
        raws[path] = raw
        monkeypatch.setattr(
            "builtins.open",
            lambda name, *how, path=path, **more: Failing(raws[path]) if name == path else opened(name, *how, **more),
        )
        for source in (path, tmp_path / suffix):
            capsys.readouterr()
            assert run_main(lambda source=source: main([str(source), "--out", str(tmp_path / "out"), "--workers", "1"])) == 2
            assert capsys.readouterr().err == f"error: {path} cannot be read: {os.strerror(errno.EIO).lower()}.\n"


@pytest.mark.parametrize("before", [b"", b"a", b"ab", b"a\r\n"])
def test_a_line_end_at_the_cut_of_a_long_text_is_kept_whole(before: bytes, tmp_path: Path) -> None:
    text = before + b"\r\n" * (PART // 2 + 100) + b"end"
    parts = list(documents(put(tmp_path / "t.txt", text)))
    assert len(parts) == 2
    assert "".join(part.text for part in parts) == text.decode().replace("\r\n", "\n")


# --- memory and time ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["t.xz", "t.gz", "t.bz2", "t.zst", *(f"{method}.zip" for method in METHODS[1:]), "lzma2.7z", "bzip2.7z", "zstd.7z", "deflate.7z"],
)
def test_decompression_works_in_small_pieces(name: str, tmp_path: Path) -> None:
    """60 MB of one letter: a reader that decompresses to the end at once holds all of them in memory."""
    size, (stem, _, suffix) = 60_000_000, name.rpartition(".")
    if suffix == "zip":
        put(tmp_path / name, zipped({"a.txt": b"a" * size}, int(stem)))
    elif suffix == "7z":
        seven(tmp_path / name, {"a.txt": b"a" * size}, FILTERS[stem])
    else:
        put(tmp_path / name, PACKERS[suffix](b"a" * size))
    tracemalloc.start()
    try:
        assert sum(len(document.text) for document in documents(tmp_path / name)) == size
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 12 * PART  # a part as bytes, twice, as text, and the reader's


def test_many_short_streams_take_no_longer_than_a_long_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each end hands back what was fed too many; so little is fed at first."""
    fed = 0

    class Fed(ZlibDecompressor):
        def decompress(self, data: bytes, max_length: int) -> bytes:
            nonlocal fed
            fed += len(data)
            return super().decompress(data, max_length)

    monkeypatch.setitem(data.sources.streams._ENGINES, "gz", lambda: Fed(31))
    raw = PACKERS["gz"](b"a") * 3000
    assert decompressed(Reader(io.BytesIO(raw).read), "gz", "t.gz", Budget(10**9, "t.gz")).read(10**6) == b"a" * 3000
    assert fed <= 3000 * 512


def test_a_stream_is_read_as_it_is_needed() -> None:
    packed = PACKERS["gz"](prose(2_000_000))
    asked = io.BytesIO(packed)
    decompressed(Reader(asked.read), "gz", "t.gz", Budget(10**9, "t.gz")).read(1000)
    assert asked.tell() <= BLOCK < len(packed)


@pytest.mark.parametrize("packer", ["gz", "bz2", "xz", "zst"])
def test_a_stream_without_output_for_long_is_read(packer: str, tmp_path: Path) -> None:
    """A block of bzip2 takes hundreds of kilobytes before anything comes out of it."""
    text = random.Random(0).randbytes(1_500_000).hex()
    assert texts(put(tmp_path / "t", PACKERS[packer](text.encode()))) == {"t": text}
