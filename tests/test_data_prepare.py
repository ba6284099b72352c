"""Token files: their contents, which are the same for any number of workers, and that no incomplete file is ever left."""

import contextlib
import hashlib
import http.server
import json
import lzma
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

import data.encode
import data.prepare
import data.staging
from data.corpus import Corpus, CorpusError
from data.errors import DataError
from data.pool import Pool
from data.prepare import Settings, main, prepare
from data.sources.download import download
from data.sources.named import book, named_source
from data.splits import Splitter
from data.staging import FILES, TokenWriter, is_incomplete, staging
from data.tokenizer import CharTokenizer, load_tokenizer
from tests.archives import openwebtext, story, tar, zipped
from tests.patience import PATIENCE

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def archive(tmp_path) -> Path:
    path = tmp_path / "openwebtext.tar.xz"
    path.write_bytes(openwebtext(archives=6, documents=20))
    return path


def contents(folder: Path) -> dict[str, bytes]:
    assert sorted(os.listdir(folder)) == sorted(FILES)
    return {name: (folder / name).read_bytes() for name in FILES}


def decoded(folder: Path) -> dict[str, str]:
    meta = json.loads((folder / "meta.json").read_text())
    tokenizer = load_tokenizer(folder / "tokenizer.json")
    return {split: tokenizer.decode(np.fromfile(folder / f"{split}.bin", meta["dtype"])) for split in ("train", "val")}


def names_and_stories() -> dict[str, str]:
    return {
        f"openwebtext.tar.xz!openwebtext/urlsf_subset{a // 2:02d}-{a % 2 + 1}_data.xz!{a * 20 + d:07d}-abc.txt": story(a * 20 + d).decode()
        for a in range(6)
        for d in range(20)
    }


def test_characters(archive, tmp_path):
    meta = prepare(archive, tmp_path / "out")
    splitter = Splitter()
    expected: dict[str, list[str]] = {"train": [], "val": []}
    for name, text in names_and_stories().items():
        expected[splitter(name)].append(text)
    assert decoded(tmp_path / "out") == {split: "\n".join(texts) for split, texts in expected.items()}
    assert meta == json.loads((tmp_path / "out" / "meta.json").read_text())
    assert meta["documents"] == {split: len(texts) for split, texts in expected.items()}
    assert meta["characters"] == {split: sum(map(len, texts)) for split, texts in expected.items()}
    assert meta["tokens"] == {split: len("\n".join(texts)) for split, texts in expected.items()}
    tokenizer = load_tokenizer(tmp_path / "out" / "tokenizer.json")
    assert tokenizer == CharTokenizer.train("".join(map("".join, expected.values())))
    assert (meta["vocab_size"], meta["tokenizer_hash"], meta["dtype"]) == (tokenizer.vocab_size, tokenizer.hash, "uint16")


def test_bpe_with_a_token_between_documents(archive, tmp_path):
    meta = prepare(archive, tmp_path / "out", Settings(tokenizer="bpe", vocab_size=400))
    tokenizer = load_tokenizer(tmp_path / "out" / "tokenizer.json")
    assert meta["vocab_size"] == tokenizer.vocab_size <= 400
    splitter = Splitter()
    for split in ("train", "val"):
        ids = np.fromfile(tmp_path / "out" / f"{split}.bin", np.uint16)
        ends = np.flatnonzero(ids == tokenizer.end_of_text)
        texts = [tokenizer.decode(part[part != tokenizer.end_of_text]) for part in np.split(ids, ends)]
        assert texts == [text for name, text in names_and_stories().items() if splitter(name) == split]


def test_a_tokenizer_file(archive, tmp_path):
    prepare(archive, tmp_path / "bpe", Settings(tokenizer="bpe", vocab_size=300))
    again = prepare(archive, tmp_path / "again", Settings(tokenizer=tmp_path / "bpe" / "tokenizer.json"))
    assert contents(tmp_path / "again") == contents(tmp_path / "bpe")
    assert again["vocab_size"] == 300


def test_unknown_characters(tmp_path):
    tokenizer = tmp_path / "t.json"
    CharTokenizer("abc�").save(tokenizer)
    text = tmp_path / "t.txt"
    text.write_text("abcd" * 30)
    with pytest.raises(DataError, match=r"in t.txt: the tokenizer never saw this character: 'd'.*--unknown"):
        prepare(text, tmp_path / "out", Settings(tokenizer=tokenizer))
    assert not (tmp_path / "out").exists()
    for unknown, expected in (("replace", "abc�" * 30), ("skip", "abc" * 30)):
        prepare(text, tmp_path / "out", Settings(tokenizer=tokenizer, unknown=unknown))
        assert "".join(decoded(tmp_path / "out").values()) == expected


@pytest.mark.parametrize("tokenizer", ["char", "bpe"])
def test_the_number_of_workers_does_not_change_the_files(tokenizer, archive, tmp_path, monkeypatch):
    monkeypatch.setattr(data.prepare, "BATCH", 3000)
    found = []
    for workers in (1, 2, 4):
        prepare(archive, tmp_path / "out", Settings(tokenizer=tokenizer, workers=workers, vocab_size=300 if tokenizer == "bpe" else None))
        found.append(contents(tmp_path / "out"))
    assert found[0] == found[1] == found[2]


def test_the_distribution_of_work_does_not_change_the_files(archive, tmp_path, monkeypatch):
    prepare(archive, tmp_path / "a")
    monkeypatch.setattr(data.prepare, "BATCH", 1)
    monkeypatch.setattr(data.prepare, "PACK", 0)
    prepare(archive, tmp_path / "b")
    monkeypatch.setattr(data.prepare, "PACK", 1 << 20)
    monkeypatch.setattr(data.encode, "_UNPACKED", 1000)  # too little for any: all go back to be read in pieces
    prepare(archive, tmp_path / "c")
    assert contents(tmp_path / "a") == contents(tmp_path / "b") == contents(tmp_path / "c")


def test_the_split_depends_only_on_name_and_seed(tmp_path):
    splitter = Splitter(seed=3, val_fraction=0.2, sample=0.5)
    names = [f"openwebtext.tar.xz!{i}.txt" for i in range(20_000)]
    sides = [splitter(name) for name in names]
    assert 0.48 < sum(side is not None for side in sides) / len(names) < 0.52
    assert 0.18 < sides.count("val") / (len(names) - sides.count(None)) < 0.22
    more = Splitter(seed=3, val_fraction=0.2, sample=0.8)
    assert all(side is None or more(name) == side for name, side in zip(names, sides, strict=True))
    assert sides != [Splitter(seed=4, val_fraction=0.2, sample=0.5)(name) for name in names]
    # The split is the same on every platform and in every version.
    letters = {None: "-", "train": "t", "val": "v"}
    assert "".join(letters[side] for side in sides[:40]) == EXPECTED_SIDES


EXPECTED_SIDES = "t--vtt-t----t-----t-t-tt--t--tv-t-vt---t"


def test_the_order_of_documents_does_not_change_the_split(tmp_path):
    files = {f"{i:03d}.txt": story(i) for i in range(100)}
    sets = []
    for i, order in enumerate((files, dict(reversed(files.items())))):
        path = tmp_path / str(i) / "t.tar"
        path.parent.mkdir()
        path.write_bytes(tar(order))
        prepare(path, tmp_path / "out", Settings(tokenizer="char"))
        sets.append({split: set(text.split("\n")) for split, text in decoded(tmp_path / "out").items()})
    assert sets[0] == sets[1]
    assert sets[0]["train"] & sets[0]["val"] <= {""}


def test_a_single_text_is_cut_in_order(tmp_path):
    text = "".join(story(i).decode() for i in range(50))
    path = tmp_path / "novel.txt"
    path.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    meta = prepare(path, tmp_path / "out", Settings(val_fraction=0.25))
    cut = int(len(text) * 0.75)
    assert decoded(tmp_path / "out") == {"train": text[:cut], "val": text[cut:]}
    assert meta["split"] == "in order" and meta["documents"] == {"train": 1, "val": 0}
    assert meta["characters"] == {"train": cut, "val": len(text) - cut}
    (tmp_path / "one.zip").write_bytes(zipped({"novel.txt": path.read_bytes(), "empty.txt": b""}))
    prepare(tmp_path / "one.zip", tmp_path / "zip", Settings(val_fraction=0.25))
    assert decoded(tmp_path / "zip") == decoded(tmp_path / "out")
    prepare(path, tmp_path / "half", Settings(val_fraction=0.25, sample=0.5))
    half = text[: len(text) // 2]
    assert decoded(tmp_path / "half") == {"train": half[: int(len(half) * 0.75)], "val": half[int(len(half) * 0.75) :]}


@pytest.mark.parametrize("tokenizer", ["char", "bpe"])
def test_one_long_document_among_others(tokenizer, tmp_path):
    """It comes in parts, which are put together without a seam."""
    long = " ".join(f"word{i * i % 9973}" for i in range(600_000))
    path = tmp_path / "t.tar.xz"
    path.write_bytes(
        lzma.compress(tar({"0.txt": story(0), "long.txt": long.encode(), **{f"{i}.txt": story(i) for i in range(1, 9)}}), preset=0)
    )
    meta = prepare(path, tmp_path / "out", Settings(tokenizer=tokenizer, workers=2, seed=1, vocab_size=270 if tokenizer == "bpe" else None))
    assert any(long in text for text in decoded(tmp_path / "out").values())
    assert sum(meta["documents"].values()) == 10


def test_more_than_65536_characters_take_four_bytes(tmp_path):
    """Then an id takes four."""
    points = [point for point in range(0x20, 0x30000) if not 0xD800 <= point < 0xE000][:70_000]
    path = tmp_path / "t.txt"
    text = "".join(map(chr, reversed(points))) * 2
    path.write_text(text, encoding="utf-8", newline="")
    meta = prepare(path, tmp_path / "out")
    assert (meta["dtype"], meta["vocab_size"]) == ("uint32", len(points))
    assert "".join(decoded(tmp_path / "out").values()) == text


def test_the_tokens_contain_no_tar_headers(archive, tmp_path):
    prepare(archive, tmp_path / "out")
    text = "".join(decoded(tmp_path / "out").values())
    assert "\0" not in text and "ustar" not in text


@pytest.mark.parametrize("fraction, words", [(0.001, "leaves nothing for val.bin"), (0.999, "leaves nothing for train.bin")])
def test_an_empty_split_is_refused(fraction, words, tmp_path):
    sources = {"t.tar": tar({f"{i}.txt": story(i) for i in range(5)})}
    if "train" in words:  # the end of a single text is never empty
        sources["t.txt"] = b"abc"
    for name, raw in sources.items():
        (tmp_path / name).write_bytes(raw)
        with pytest.raises(DataError, match=words):
            prepare(tmp_path / name, tmp_path / "out", Settings(val_fraction=fraction))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "settings",
    [
        {"val_fraction": 0},
        {"val_fraction": 1},
        {"sample": 0},
        {"sample": 1.5},
        {"workers": 0},
        {"vocab_size": 300},
        {"unknown": "x"},
        {"encoding_errors": "x"},
        {"max_expanded_size": 0},
    ],
)
def test_impossible_settings_are_refused(settings):
    (name,) = settings
    with pytest.raises(DataError, match="--" + name.replace("_", "-")):
        Settings(**settings)


def test_the_output_folder_is_created_and_other_files_are_kept(archive, tmp_path):
    """Made if it is not there, its other files left alone, a file in its place refused, a lock of another process respected."""
    out = tmp_path / "new" / "folder"
    prepare(archive, out)
    (out / "notes.md").write_text("mine")
    prepare(archive, out, Settings(seed=1))
    assert sorted(os.listdir(out)) == sorted([*FILES, "notes.md"])
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    for place in (blocked, blocked / "below", Path("/proc/nowhere")):
        with pytest.raises(DataError):
            prepare(archive, place)
    assert blocked.read_text() == "in the way"
    with staging(out) as place:
        with pytest.raises(DataError, match="another process is preparing"):
            prepare(archive, out)
        for name in FILES:  # whoever came first goes on undisturbed
            (place / name).write_text("first")
    assert {(out / name).read_text() for name in FILES} == {"first"}


def test_the_folder_may_lie_in_the_source(tmp_path):
    for i in range(20):
        (tmp_path / f"{i}.txt").write_bytes(story(i))
    for _ in range(2):
        meta = prepare(tmp_path, tmp_path / "out", Settings(val_fraction=0.3))
        assert sum(meta["documents"].values()) == 20
        (tmp_path / "out" / "more.txt").write_bytes(story(99))


@pytest.mark.parametrize("tokenizer", ["char", "bpe"])
def test_a_full_disk(tokenizer, archive, tmp_path, monkeypatch):
    settings = {"tokenizer": tokenizer, "vocab_size": 300 if tokenizer == "bpe" else None}
    prepare(archive, tmp_path / "out", Settings(**settings))
    before = contents(tmp_path / "out")

    def full(self, ids, at):
        if at > 5000:
            raise OSError(28, "No space left on device", str(self.path))
        write(self, ids, at)

    write = TokenWriter.write
    monkeypatch.setattr(TokenWriter, "write", full)
    with pytest.raises(DataError, match="no space left on device; free some space"):
        prepare(archive, tmp_path / "out", Settings(**settings, seed=1))
    assert contents(tmp_path / "out") == before


def test_a_worker_finds_the_disk_full(archive, tmp_path):
    """The text is longer than the file may be, so the worker gets the same error as on a full disk."""
    limited = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000)); "
    program = "import sys; from data.errors import run_main; from data.prepare import main; sys.exit(run_main(lambda: main({!r})))"
    command = [sys.executable, "-c", limited + program.format([str(archive), "--out", str(tmp_path / "out"), "--workers", "2"])]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (process.returncode, process.stdout) == (2, "")
    assert process.stderr.count("\n") == 1
    assert "file too large; choose another folder" in process.stderr
    assert not (tmp_path / "out").exists()


def test_the_system_may_write_less_than_it_was_asked_to(tmp_path, monkeypatch):
    monkeypatch.setattr(data.staging.os, "pwrite", lambda file, raw, at, pwrite=os.pwrite: pwrite(file, raw[:1001], at))
    with contextlib.closing(TokenWriter(tmp_path / "t.bin", np.dtype(np.uint16))) as file:
        file.append(np.arange(3000))
        file.append(np.arange(3000, 5000))
        assert file.tokens == 5000
    assert (np.fromfile(tmp_path / "t.bin", np.uint16) == np.arange(5000)).all()


@pytest.mark.parametrize(
    "text, size",
    [
        ("1000", 1000), ("2 kB", 2000), ("3MB", 3 * 10**6), ("1GB", 10**9), ("20 TB", 20 * 10**12),
        ("1KiB", 1024), ("512 MiB", 512 * 2**20), ("1.5GiB", 3 * 2**29), ("1tib", 2**40),
    ],
)  # fmt: skip
def test_a_size_is_read_with_its_unit(text, size):
    assert data.prepare._size(text) == size


@pytest.mark.parametrize("batch", [None, 1])
def test_the_separator_of_documents_is_in_the_alphabet(tmp_path, monkeypatch, batch):
    if batch is not None:  # each document is read alone
        monkeypatch.setattr(data.encode, "BATCH", batch)
        monkeypatch.setattr(data.prepare, "BATCH", batch)
        monkeypatch.setattr(data.encode, "PACK", batch)
        monkeypatch.setattr(data.prepare, "PACK", batch)
    (tmp_path / "rows.jsonl").write_text('{"text": "ab"}\n' * 60)
    prepare(tmp_path / "rows.jsonl", tmp_path / "out")
    assert load_tokenizer(tmp_path / "out" / "tokenizer.json").characters == ["\n", "a", "b"]
    assert set(decoded(tmp_path / "out")["train"].split("\n")) == {"ab"}


@pytest.mark.parametrize("moment", range(12))
def test_a_crash_during_the_renames_leaves_no_mixed_folder(moment, archive, tmp_path, monkeypatch):
    """Whatever the moment: the old ones, the new ones, or a folder that says that it is half written."""
    out = tmp_path / "out"
    prepare(archive, out)
    old = contents(out)
    prepare(archive, tmp_path / "new", Settings(seed=1))
    new = contents(tmp_path / "new")
    countdown = moment

    def mortal(function):
        def step(*args, **kwargs):
            nonlocal countdown
            countdown -= 1
            if countdown < 0:
                raise KeyboardInterrupt
            return function(*args, **kwargs)

        return step

    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr(data.staging.os, "replace", mortal(os.replace))
        patch.setattr(data.staging, "sync_folder", mortal(data.staging.sync_folder))
        prepare(archive, out, Settings(seed=1))
    there = {name: (out / name).read_bytes() for name in FILES if (out / name).exists()}
    assert there in (old, new) or is_incomplete(out)
    prepare(archive, out, Settings(seed=1))
    assert contents(out) == new
    assert not is_incomplete(out)


def test_the_tokens_are_on_the_disk_before_the_file_that_says_so(archive, tmp_path, monkeypatch):
    """After a crash of the system, the last changes of a folder may be lost if it was not synchronised."""
    done = []
    replace, sync = os.replace, data.staging.sync_folder
    monkeypatch.setattr(data.staging.os, "replace", lambda source, place: (done.append(Path(place).name), replace(source, place)))
    monkeypatch.setattr(data.staging, "sync_folder", lambda folder: (done.append("sync"), sync(folder)))
    prepare(archive, tmp_path / "out")
    assert done[-3:] == ["sync", "meta.json", "sync"]
    assert done.count("sync") == 4  # also when the new files are complete, and when the folder is marked as incomplete


def test_a_preparation_killed_at_any_moment_can_be_repeated(tmp_path):
    """kill -9, then the same command again: the same bytes as if nothing had happened, and no worker is left behind."""
    source = tmp_path / "openwebtext.tar.xz"
    source.write_bytes(openwebtext(archives=40, documents=40, length=400))
    command = [sys.executable, "-m", "data.prepare", str(source), "--workers", "2", "--out"]
    started = time.monotonic()
    subprocess.run([*command, str(tmp_path / "whole")], cwd=ROOT, check=True, capture_output=True)
    duration = time.monotonic() - started
    expected = contents(tmp_path / "whole")
    moments = random.Random(0)
    for last in (False, False, True):
        process = subprocess.Popen([*command, str(tmp_path / "out")], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        if last:  # as soon as meta.json is there, all else is
            while not (tmp_path / "out" / "meta.json").exists() and process.poll() is None:
                time.sleep(0.001)
        else:
            time.sleep(duration * moments.uniform(0.2, 0.8))
        process.kill()
        process.communicate(timeout=PATIENCE)  # only when the last worker has closed its end, too
    # perhaps beside an empty .preparing, which was about to be removed
    assert {name: (tmp_path / "out" / name).read_bytes() for name in FILES} == expected
    subprocess.run([*command, str(tmp_path / "out")], cwd=ROOT, check=True, capture_output=True)
    assert contents(tmp_path / "out") == expected


def _fatal(argument):
    def answer(question):
        if question == argument:
            os.kill(os.getpid(), signal.SIGKILL)
        return question

    return answer


def test_a_killed_worker_is_an_error():
    with Pool(2, _fatal, 5) as pool, pytest.raises(DataError, match="a worker process was killed"):
        list(pool.map(range(20)))


def _slow(argument):
    def answer(question):
        time.sleep(0.001 * (question % 3))
        if question == argument:
            raise ZeroDivisionError
        return -question

    return answer


def test_answers_come_in_the_order_of_the_questions():
    with Pool(3, _slow, None) as pool:
        assert list(pool.map(range(50))) == [(i, -i) for i in range(50)]
    with Pool(2, _slow, 30) as pool, pytest.raises(RuntimeError, match=r"(?s)in a worker process.*ZeroDivisionError"):
        list(pool.map(range(50)))


def test_the_program(archive, tmp_path, capsys):
    assert main([str(archive), "--out", str(tmp_path / "out"), "--workers", "2", "--sample", "0.5", "--seed", "7"]) == 0
    out = capsys.readouterr().out
    assert "split by document" in out and "vocabulary" in out
    for arguments in (["--max-expanded-size", "many"], ["--workers", "x"], ["--unknown", "x"], []):
        with pytest.raises(SystemExit) as exit_:
            main([str(archive), *arguments])
        assert exit_.value.code == 2


@pytest.mark.parametrize("text, size", [("1000", 1000), ("20GB", 20 * 10**9), ("1.5 MiB", 3 << 19), ("7k", 7000)])
def test_sizes(text, size):
    assert data.prepare._size(text) == size


def test_a_corpus_in_memory(tmp_path):
    meta = prepare(Corpus("name", "abc\n" * 100, "a test"), tmp_path / "out")
    assert decoded(tmp_path / "out") == {"train": "abc\n" * 90, "val": "abc\n" * 10}
    assert meta["source"] == "a test"


def test_pydoc(tmp_path):
    assert prepare("pydoc", tmp_path / "out")["split"] == "in order"


# Downloads, from a server on this machine.


class Server(http.server.BaseHTTPRequestHandler):
    """Serves ``files``; breaks off after so many bytes as each entry of ``breaks`` says, once for each."""

    files: ClassVar[dict[str, bytes]] = {}
    breaks: ClassVar[list[int]] = []
    ranges: ClassVar[bool | str] = True  # False: the whole file with status 200; "from 0": with status 206
    requests: ClassVar[list[str | None]] = []

    def do_GET(self):
        wanted = self.headers.get("Range")
        self.requests.append(wanted)
        raw = self.files.get(self.path)
        if raw is None:
            self.send_error(404)
            return
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.ranges is True else 0
        if start >= len(raw):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(raw)}")
            self.end_headers()
            return
        self.send_response(206 if start or self.ranges == "from 0" else 200)
        if start or self.ranges == "from 0":
            self.send_header("Content-Range", f"bytes {start}-{len(raw) - 1}/{len(raw)}")
        self.send_header("Content-Length", str(len(raw) - start))
        self.end_headers()
        self.wfile.write(raw[start:][: self.breaks.pop(0)] if self.breaks else raw[start:])

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    Server.files, Server.breaks, Server.ranges, Server.requests = {}, [], True, []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


RAW = random.Random(0).randbytes(3_000_000)
SHA256 = hashlib.sha256(RAW).hexdigest()


def test_a_broken_download_is_continued(server, tmp_path):
    Server.files["/f"], Server.breaks = RAW, [1_000_000, 500_000]
    path = download(f"{server}/f", tmp_path / "cache" / "f", "by hand", SHA256, pause=0)
    assert path.read_bytes() == RAW
    assert Server.requests == [None, "bytes=1000000-", "bytes=1500000-"]
    assert os.listdir(path.parent) == ["f"]
    assert download(f"{server}/f", path, "by hand", SHA256) == path and len(Server.requests) == 3  # it is there already


@pytest.mark.parametrize("ranges", [False, "from 0"])
def test_a_download_begins_again_if_the_server_sends_the_whole_file(server, tmp_path, ranges):
    Server.files["/f"], Server.ranges = RAW, ranges
    (tmp_path / "f.part").write_bytes(RAW[:2_000_000])
    assert download(f"{server}/f", tmp_path / "f", "by hand", SHA256).read_bytes() == RAW
    assert Server.requests == ["bytes=2000000-"]


def test_a_download_is_continued_after_the_program_was_killed(server, tmp_path):
    Server.files["/f"] = RAW
    (tmp_path / "f.part").write_bytes(RAW[:2_000_000])
    assert download(f"{server}/f", tmp_path / "f", "by hand", SHA256).read_bytes() == RAW
    assert Server.requests == ["bytes=2000000-"]
    (tmp_path / "g.part").write_bytes(RAW)  # killed behind the last byte
    assert download(f"{server}/f", tmp_path / "g", "by hand", SHA256).read_bytes() == RAW


def test_a_server_without_ranges_sends_the_whole_file_again(server, tmp_path):
    Server.files["/f"], Server.breaks, Server.ranges = RAW, [1_000_000], False
    assert download(f"{server}/f", tmp_path / "f", "by hand", SHA256, pause=0).read_bytes() == RAW


def test_a_wrong_checksum(server, tmp_path):
    Server.files["/f"] = RAW[:-1] + b"x"
    with pytest.raises(DataError, match="is not the right one: its SHA-256 is"):
        download(f"{server}/f", tmp_path / "f", "by hand", SHA256)
    assert not os.listdir(tmp_path)


def test_without_a_network_there_is_one_error(server, tmp_path):
    with pytest.raises(DataError, match=r"cannot be downloaded .*: get it by hand"):
        download(f"{server}/missing", tmp_path / "f", "get it by hand", SHA256)
    with pytest.raises(DataError, match=r"cannot be downloaded .*refused.*: get it by hand"):
        download("http://127.0.0.1:9/f", tmp_path / "f", "get it by hand", SHA256)
    Server.files["/f"], Server.breaks = RAW, [10] * 5
    with pytest.raises(DataError, match="was interrupted after 50 of 3,000,000 bytes"):
        download(f"{server}/f", tmp_path / "f", "get it by hand", SHA256, pause=0)
    assert (tmp_path / "f.part").stat().st_size == 50  # for the next time


BOOK = (
    "\ufeffThe Project Gutenberg eBook of The Wonderful Wizard of Oz\r\n\r\nTitle: The Wonderful Wizard of Oz\r\n\r\n"
    "*** START OF THE PROJECT GUTENBERG EBOOK THE WONDERFUL WIZARD OF OZ ***\r\n\r\n\r\nDorothy lived\r\n\r\nin Kansas.\r\n\r\n"
    "*** END OF THE PROJECT GUTENBERG EBOOK THE WONDERFUL WIZARD OF OZ ***\r\nLicense\r\n"
)


def test_oz_is_read_without_its_license_text(tmp_path):
    (tmp_path / "oz.txt").write_bytes(BOOK.encode())
    corpus = named_source("oz", tmp_path)
    assert corpus.text == "Dorothy lived\n\nin Kansas.\n"
    assert "The Wonderful Wizard of Oz" in corpus.source
    (tmp_path / "half.txt").write_text(BOOK[:200])
    with pytest.raises(DataError, match="is not a whole book"):
        book(tmp_path / "half.txt")


def test_named_sources_that_were_downloaded_by_hand_are_found(tmp_path):
    (tmp_path / "shakespeare.txt").write_text("To be, or not to be")
    assert named_source("shakespeare", tmp_path).text == "To be, or not to be"
    (tmp_path / "openwebtext.tar.xz").write_bytes(openwebtext())
    assert named_source("openwebtext", tmp_path) == tmp_path / "openwebtext.tar.xz"
    (tmp_path / "oz.txt").write_bytes(b"")
    with pytest.raises(CorpusError):
        named_source("oz", tmp_path)


@pytest.mark.parametrize("name", ["oz", "shakespeare", "openwebtext"])
def test_offline_errors_say_what_to_download_and_where_to_put_it(name, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def offline(*args, **kwargs):
        raise urllib.error.URLError(OSError(101, "Network is unreachable"))

    import urllib.error

    monkeypatch.setattr("urllib.request.urlopen", offline)
    with pytest.raises(
        DataError, match=rf"https://.* cannot be downloaded \(network is unreachable\): fetch it by hand .* put it at .*{name}"
    ):
        prepare(name, tmp_path / "out")
    assert not (tmp_path / "out").exists()
