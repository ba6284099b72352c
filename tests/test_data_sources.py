"""Documents are read from every container unchanged, under stable names, and nothing is written to disk."""

import io
import itertools
import lzma
import os
import tarfile
from pathlib import Path

import pytest

from data.errors import DataError
from data.sources import documents
from data.sources.kinds import kind_of
from data.sources.rows import LONGEST_ROW
from data.sources.streams import Reader
from data.sources.tar import tar_members
from data.sources.walk import PART, Tally
from tests.archives import PACKERS, link, openwebtext, seven_zipped, story, tar, zipped

TEXTS = {"a.txt": b"alpha\r\nbeta\n", "deep/er/b.txt": "β – ü".encode(), "c.txt": b"\xef\xbb\xbfwith a mark"}
READ = {"a.txt": "alpha\nbeta\n", "deep/er/b.txt": "β – ü", "c.txt": "with a mark"}


def read(path: Path, **options) -> dict[str, str]:
    found: dict[str, str] = {}
    for document in documents(path, **options):
        assert document.part or document.name not in found
        found[document.name] = found.get(document.name, "") + document.text
    return found


def put(path: Path, raw: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(raw)
    return path


@pytest.mark.parametrize("packer", PACKERS)
def test_tar(packer, tmp_path):
    path = put(tmp_path / "t.archive", PACKERS[packer](tar(TEXTS)))
    assert read(path) == {f"t.archive!{name}": text for name, text in READ.items()}


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tar_formats_and_long_names(form, tmp_path):
    long = "/".join(["folder" * 8] * (4 if form == tarfile.USTAR_FORMAT else 9)) + "/näme.txt"
    path = put(tmp_path / "t", tar({long: b"one", "b.txt": b"two" * 1000}, format=form))
    assert read(path) == {f"t!{long}": "one", "t!b.txt": "two" * 1000}


def test_tar_members_agree_with_the_standard_library():
    raw = tar({f"{i}.txt": story(i) for i in range(50)} | {"empty": b"", "x" * 300: b"y" * 511, "z": b"z" * 512})
    with tarfile.open(fileobj=io.BytesIO(raw)) as archive:
        expected = [(info.name, archive.extractfile(info).read()) for info in archive]
    assert [(m.name, m.content.read(10**6)) for m in tar_members(Reader(io.BytesIO(raw).read), "t")] == expected


def test_two_concatenated_tars_are_both_read(tmp_path):
    path = put(tmp_path / "t", tar({"a": b"one"}) + tar({"b": b"two"}))
    assert read(path) == {"t!a": "one", "t!b": "two"}


@pytest.mark.parametrize("pack", [zipped, seven_zipped])
def test_zip_and_7z(pack, tmp_path):
    path = put(tmp_path / "archive", pack(TEXTS))
    assert read(path) == {f"archive!{name}": text for name, text in READ.items()}


@pytest.mark.parametrize("packer", PACKERS)
def test_one_compressed_text(packer, tmp_path):
    path = put(tmp_path / f"t.txt.{packer}", PACKERS[packer](b"only this"))
    assert read(path) == {path.name: "only this"}


@pytest.mark.parametrize("packer", ["gz", "bz2", "xz"])
def test_concatenated_streams_are_one_text(packer, tmp_path):
    pack = PACKERS[packer]
    padding = b"\0" * 8 if packer == "xz" else b""
    path = put(tmp_path / "t", pack(b"one ") + padding + pack(b"two ") + pack(b"") + pack(b"three"))
    assert read(path) == {"t": "one two three"}


def test_archives_inside_archives(tmp_path):
    inner = tar(TEXTS)
    nested = {"1.xz": lzma.compress(inner), "2.zip": zipped({"3.tar": inner}), "4.7z": seven_zipped({"5.zip": zipped(TEXTS)})}
    for name, raw in {"t.tar.xz": lzma.compress(tar(nested)), "t.zip": zipped(nested), "t.7z": seven_zipped(nested)}.items():
        found = read(put(tmp_path / name, raw))
        ways = ("1.xz", "2.zip!3.tar", "4.7z!5.zip")
        assert found == {f"{name}!{way}!{text}": READ[text] for way in ways for text in READ}


def test_openwebtext(tmp_path):
    found = read(put(tmp_path / "openwebtext.tar.xz", openwebtext()))
    assert len(found) == 48
    assert found["openwebtext.tar.xz!openwebtext/urlsf_subset01-2_data.xz!0000047-abc.txt"] == story(47).decode()


def test_a_folder_is_read_in_the_order_of_names(tmp_path):
    for name in ("b.txt", "a/z.txt", "a/b/c.txt", "a.txt", "Ä.txt"):
        put(tmp_path / name, name.encode())
    put(tmp_path / "sub/more.tar.gz", PACKERS["gz"](tar({"m.txt": b"member"})))
    put(tmp_path / "program.py", b"print()")
    os.symlink("/etc/hostname", tmp_path / "link.txt")
    os.mkfifo(tmp_path / "pipe.txt")
    tally = Tally()
    found = read(tmp_path, tally=tally)
    assert list(found) == ["a/b/c.txt", "a/z.txt", "a.txt", "b.txt", "sub/more.tar.gz!m.txt", "Ä.txt"]
    assert tally.counts == {"left out, a link or device": 2, "left out, neither .txt, .jsonl or .csv nor an archive": 1}


def test_rows(tmp_path):
    jsonl = put(tmp_path / "r.jsonl", b'{"text": "one\\ntwo", "n": 1}\r\n\n{"n": 2, "text": "\\u00e4"}')
    assert read(jsonl) == {"r.jsonl:1": "one\ntwo", "r.jsonl:3": "ä"}
    csv = put(tmp_path / "r.csv", b'\xef\xbb\xbfid,body\r\n1,"a, ""b""\r\nc"\r\n2,d\r\n')
    assert read(csv, text_field="body") == {"r.csv:2": 'a, "b"\nc', "r.csv:4": "d"}
    packed = put(tmp_path / "r.jsonl.gz", PACKERS["gz"](jsonl.read_bytes()))
    assert list(read(packed).values()) == ["one\ntwo", "ä"]


@pytest.mark.parametrize(
    "name, raw, words",
    [
        ("r.jsonl", b'{"text": "a"}\nnot json', "line 2 of r.jsonl is not JSON"),
        ("r.jsonl", b'["text"]', "is not a JSON object but list"),
        ("r.jsonl", b'{"txt": "a"}', "has no field 'text'; its fields are 'txt'"),
        ("r.jsonl", b'{"text": null}', "is not text but NoneType"),
        ("r.jsonl", b"[" * 100_000, "is not JSON"),
        ("r.jsonl", b'{"text": "' + b"a" * LONGEST_ROW, "has a line of more than 64 MiB"),
        ("r.csv", b"a,b\n1,2\n", "has no field 'text'; its fields are 'a', 'b'"),
        ("r.csv", b'text\n"never closed\n', "line 2 of r.csv begins no record"),
        ("r.csv", b"id,text\n1\n", "line 2 of r.csv has 1 field, but the header names 2"),
    ],
    ids=itertools.count(),
)
def test_broken_rows_are_refused(name, raw, words, tmp_path):
    with pytest.raises(DataError, match=words):
        read(put(tmp_path / name, raw))


def test_a_row_that_is_not_unicode_is_treated_like_such_a_text(tmp_path):
    for name, raw in {"r.jsonl": b'{"text": "a\\ud800b"}', "s.jsonl": b'{"text": "a\xffb"}', "t.csv": b"text\na\xffb\n"}.items():
        path = put(tmp_path / name, raw)
        with pytest.raises(DataError, match="is not UTF-8 text"):
            read(path)
        assert not read(path, encoding_errors="skip")
        (text,) = read(path, encoding_errors="replace").values()
        assert text.strip("ab") in ("�", "���")


def test_text_that_is_not_utf8(tmp_path):
    path = put(tmp_path / "t.tar", tar({"good": b"good", "bad": b"caf\xe9 au lait", "nul": b"in the mid\0dle of it"}))
    with pytest.raises(DataError, match=r"t\.tar!bad is not UTF-8 text: byte 0xe9"):
        read(path)
    tally = Tally()
    assert list(read(path, encoding_errors="replace", tally=tally).values()) == ["good", "caf� au lait", "in the mid�dle of it"]
    assert tally.counts == {"mended, not UTF-8": 2}
    tally = Tally()
    assert list(read(path, encoding_errors="skip", tally=tally).values()) == ["good"]
    assert tally.counts == {"left out, not UTF-8": 2}
    assert tally.examples == {"left out, not UTF-8": "t.tar!bad"}


def test_files_that_are_not_text_are_left_out_and_counted(tmp_path):
    files = {
        "t.txt": b"text",
        "picture.png": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(range(256)),
        "e.txt": b"",
        "w.txt": b" \n\n",
        "x.rar": b"Rar!\x1a\x07\0",
    }
    tally = Tally()
    assert list(read(put(tmp_path / "t.tar", tar(files)), tally=tally)) == ["t.tar!t.txt"]
    assert tally.counts == {"left out, not text": 1, "left out, empty": 2, "left out, RAR": 1}


def test_links_devices_and_folders_are_skipped(tmp_path):
    entries = [
        link("s", "/etc/passwd"),
        link("h", "a.txt", tarfile.LNKTYPE),
        link("d", "", tarfile.CHRTYPE),
        link("p", "", tarfile.FIFOTYPE),
        link("f", "", tarfile.DIRTYPE),
    ]
    tally = Tally()
    assert list(read(put(tmp_path / "t.tar", tar({"a.txt": b"a"}, entries)), tally=tally)) == ["t.tar!a.txt"]
    assert tally.counts == {"left out, a link or device": 4}


@pytest.mark.parametrize(
    "text", ["word " * 2_000_000, "ä" * 6_000_000, "x" * (PART + 1), "\r\n" * 3_000_000 + "end"], ids=itertools.count()
)
def test_a_long_document_comes_in_parts_that_add_up(text, tmp_path):
    path = put(tmp_path / "long.txt", text.encode())
    parts = list(documents(path))
    assert len(parts) > 1
    assert [part.part for part in parts] == list(range(len(parts)))
    assert "".join(part.text for part in parts) == text.replace("\r\n", "\n")
    if " " in text:
        assert all(part.text.startswith(" ") for part in parts[1:])  # where no tokenizer joins anything


def test_the_kind_of_a_file_is_detected_by_its_content():
    assert kind_of(tar({"a": b"b"})[:4096]) == "tar"
    assert kind_of(tar({"a": b"b"}, format=tarfile.USTAR_FORMAT).replace(b"ustar", b"\0\0\0\0\0")[:4096]) == "binary"  # the checksum is off
    for name, packer in PACKERS.items():
        assert kind_of(packer(b"text")) == ("text" if name == "plain" else name)
    assert kind_of(zipped({})) == kind_of(zipped({"a": b"b"})) == "zip"
    assert kind_of(seven_zipped({"a": b"b"})) == "7z"
    assert kind_of(b"BZh is how a sentence about bzip2 may begin") == "text"
    assert kind_of("ä".encode("utf-16")) == "utf-16"
    assert kind_of(b"") == "text"


def test_reader():
    reader = Reader(io.BytesIO(b"0123456789").read)
    assert reader.peek(3) == b"012"
    assert reader.read(4) == b"0123"
    assert reader.position == 4
    reader.unread(1)
    assert reader.read(2) == b"34"
    assert reader.skip(3) == 3
    assert reader.read(100) == b"89"
    assert reader.read(1) == reader.peek(1) == b""
    assert reader.skip(5) == 0
