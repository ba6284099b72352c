"""Opening a prepared folder: a valid one is opened, and files that do not fit together give one sentence."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from data import prepared as prepared_module
from data.dataset import open_dataset
from data.errors import DataError
from data.inspect import main as inspect_main
from data.prepare import Settings, prepare
from data.prepared import PreparedError, open_prepared, require_same_tokenizer
from data.splits import Splitter
from data.tokenizer import BpeTokenizer, CharTokenizer, IdsTokenizer, MissingExtraError

TEXT = "The quick brown fox jumps over the lazy dog.\n" * 200


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "fox.txt"
    file.write_text(TEXT)
    return file


@pytest.fixture
def folder(tmp_path: Path, text: Path) -> Path:
    prepare(text, tmp_path / "fox", Settings(workers=1))
    return tmp_path / "fox"


@pytest.fixture
def nano(tmp_path: Path) -> Path:
    """As nanoGPT's data/shakespeare_char/prepare.py leaves it."""
    folder = tmp_path / "nano"
    folder.mkdir()
    tokens = CharTokenizer.train(TEXT).encode(TEXT)
    tokens[:8000].tofile(folder / "train.bin")
    tokens[8000:].tofile(folder / "val.bin")
    (folder / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": 30}))
    return folder


def change_meta(folder: Path, **changes) -> None:
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps({**meta, **changes}))


# --- what is right ------------------------------------------------------------------------------------


def test_what_prepare_writes_is_opened(folder: Path) -> None:
    prepared = open_prepared(folder)
    assert prepared.tokenizer == CharTokenizer.train(TEXT)
    assert prepared.vocab_size == prepared.tokenizer.vocab_size
    assert prepared.tokenizer.decode(prepared.train[:]) + prepared.tokenizer.decode(prepared.val[:]) == TEXT
    assert prepared.meta["tokens"] == {"train": len(prepared.train), "val": len(prepared.val)}
    assert prepared.notes == ()


def test_a_bpe_folder(tmp_path: Path, text: Path) -> None:
    prepare(text, tmp_path / "out", Settings(tokenizer="bpe", vocab_size=300, workers=1))
    prepared = open_prepared(tmp_path / "out")
    assert isinstance(prepared.tokenizer, BpeTokenizer)
    whole = prepared.tokenizer.decode(prepared.train[:]) + prepared.tokenizer.decode(prepared.val[:])
    assert whole.replace("<|endoftext|>", "") == TEXT


def test_the_vocabulary_may_be_larger_than_the_tokenizers(folder: Path) -> None:
    assert open_prepared(folder, vocab_size=64).vocab_size == 64


def test_the_tokenizer_that_is_expected(folder: Path) -> None:
    assert open_prepared(folder, CharTokenizer.train(TEXT)).vocab_size == open_prepared(folder).vocab_size


# --- nanoGPT's ----------------------------------------------------------------------------------------


def test_a_folder_of_nanogpts_is_opened_and_its_pickle_is_not(nano: Path) -> None:
    (nano / "meta.pkl").write_bytes(b"cposix\n_exit\n(I42\ntR.")  # ends the process of whoever opens it
    prepared = open_prepared(nano)
    assert prepared.vocab_size == len(set(TEXT))  # one more than the highest id
    assert prepared.tokenizer == IdsTokenizer(prepared.vocab_size)
    assert len(prepared.notes) == 2
    assert "meta.pkl is a pickle, which can run any code when it is opened, so it is not read" in prepared.notes[0]
    assert "--tokenizer" in prepared.notes[1]


def test_a_tokenizer_can_be_given_for_a_folder_without_one(nano: Path) -> None:
    prepared = open_prepared(nano, CharTokenizer.train(TEXT))
    assert prepared.tokenizer.decode(prepared.train[:9]) == "The quick"
    assert len(prepared.notes) == 1


def test_a_vocabulary_size_can_be_given_for_a_folder_without_one(nano: Path) -> None:
    prepared = open_prepared(nano, vocab_size=50304)
    assert prepared.vocab_size == prepared.tokenizer.vocab_size == 50304


def test_ids_that_the_tokenizer_does_not_have(nano: Path) -> None:
    highest = len(set(TEXT)) - 1
    sentence = rf"train.bin has the token {highest} at position \d+, but the highest id is 7: these are not the tokens of this tokenizer"
    with pytest.raises(PreparedError, match=sentence):
        open_prepared(nano, CharTokenizer("abcdefgh"))
    with pytest.raises(PreparedError, match=sentence):
        open_prepared(nano, vocab_size=8)


def test_ids_that_are_too_high_are_found_anywhere(nano: Path, monkeypatch) -> None:
    tokens = np.zeros(10_000, np.uint16)
    tokens[9_999] = 7
    tokens.tofile(nano / "val.bin")
    monkeypatch.setattr(prepared_module, "CHUNK", 64)
    np.zeros(10, np.uint16).tofile(nano / "train.bin")
    with pytest.raises(PreparedError, match=r"val.bin has the token 7 at position 9,999"):
        open_prepared(nano, vocab_size=7)


# --- what does not fit together -----------------------------------------------------------------------


def test_a_missing_folder_or_one_without_tokens_is_refused(tmp_path: Path, text: Path) -> None:
    with pytest.raises(PreparedError, match="there is no folder"):
        open_prepared(tmp_path / "nowhere")
    with pytest.raises(PreparedError, match="is not a folder"):
        open_prepared(text)
    with pytest.raises(PreparedError, match=r"it has no train.bin; prepare it first: python -m data.prepare"):
        open_prepared(tmp_path)


@pytest.mark.parametrize(
    ("missing", "sentence"),
    [
        ("train.bin", "it has a val.bin but no train.bin"),
        ("val.bin", "it has a train.bin but no val.bin"),
        ("meta.json", "is not complete: it has no meta.json"),
        ("tokenizer.json", "it has a meta.json but no tokenizer.json"),
    ],
)
def test_a_missing_file_is_named(folder: Path, missing: str, sentence: str) -> None:
    (folder / missing).unlink()
    with pytest.raises(PreparedError, match=sentence):
        open_prepared(folder)


def test_a_folder_from_an_interrupted_rename_is_refused(folder: Path) -> None:
    (folder / ".preparing").mkdir()
    for name in ("meta.json", "tokenizer.json"):
        (folder / name).rename(folder / ".preparing" / name)
    with pytest.raises(PreparedError, match=r"is not complete: it has no meta\.json"):
        open_prepared(folder)


@pytest.mark.parametrize("name", ["train.bin", "val.bin"])
def test_a_truncated_file_is_refused(folder: Path, name: str) -> None:
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[:-1])
    with pytest.raises(DataError, match=f"{name} is damaged: its .* bytes are not a whole number of uint16 tokens"):
        open_prepared(folder)
    (folder / name).write_bytes(content[:-2])
    count = len(content) // 2
    with pytest.raises(PreparedError, match=f"the file has {count - 1:,} tokens of uint16, but meta.json says {count:,}"):
        open_prepared(folder)


def test_a_type_that_differs_from_meta_is_refused(folder: Path) -> None:
    change_meta(folder, dtype="uint32")
    with pytest.raises(DataError, match=r"do not belong together|is damaged"):
        open_prepared(folder)
    change_meta(folder, dtype="float32")
    with pytest.raises(PreparedError, match="dtype should be uint16 or uint32, got 'float32'"):
        open_prepared(folder)


@pytest.mark.parametrize("tokens", [None, 7, {}, {"train": 3}])
def test_a_meta_without_counts(folder: Path, tokens: object) -> None:
    change_meta(folder, tokens=tokens)
    with pytest.raises(PreparedError, match=r"meta.json do not belong together"):
        open_prepared(folder)


@pytest.mark.parametrize(("content", "sentence"), [("{", "does not hold JSON"), ("[]", "got \\[\\]"), ("", "does not hold JSON")])
def test_an_invalid_meta_is_refused(folder: Path, content: str, sentence: str) -> None:
    (folder / "meta.json").write_text(content)
    with pytest.raises(PreparedError, match=sentence):
        open_prepared(folder)


def test_a_tokenizer_of_another_folder(folder: Path) -> None:
    own, other = CharTokenizer.train(TEXT), CharTokenizer(sorted(set(TEXT), reverse=True))
    other.save(folder / "tokenizer.json")
    with pytest.raises(PreparedError, match=f"its hash is {other.hash}, but meta.json says {own.hash}"):
        open_prepared(folder)


def test_another_tokenizer_than_the_models_is_refused_with_both_hashes(folder: Path) -> None:
    own, other = CharTokenizer.train(TEXT), CharTokenizer.train(TEXT + "!")
    with pytest.raises(PreparedError, match=f"prepared with another tokenizer: its hash is {own.hash}, and that of the .* is {other.hash}"):
        open_prepared(folder, other)
    require_same_tokenizer(own, open_prepared(folder).tokenizer, folder)


def test_a_vocabulary_that_is_too_small_is_refused(folder: Path) -> None:
    with pytest.raises(PreparedError, match=r"vocab_size 5 is too small: the tokenizer of .* has 30 ids"):
        open_prepared(folder, vocab_size=5)


@pytest.mark.parametrize("name", ["train.bin", "val.bin"])
def test_an_empty_text(nano: Path, name: str) -> None:
    (nano / name).write_bytes(b"")
    with pytest.raises(PreparedError, match=f"{name} is empty: there is no"):
        open_prepared(nano)


def test_a_folder_whose_tokenizer_needs_what_is_not_installed(tmp_path: Path, text: Path, monkeypatch) -> None:
    prepare(text, tmp_path / "out", Settings(tokenizer="bpe", vocab_size=300, workers=1))
    monkeypatch.setitem(__import__("sys").modules, "tokenizers", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'tensorlite\[data\]'"):
        open_prepared(tmp_path / "out")


# --- a folder, a text, a name -------------------------------------------------------------------------


def test_a_text_and_its_folder_give_the_same_tokens(text: Path, folder: Path) -> None:
    of_text, of_folder = open_dataset(text), open_dataset(folder)
    assert of_text.tokenizer == of_folder.tokenizer
    np.testing.assert_array_equal(of_text.train, of_folder.train[:])
    np.testing.assert_array_equal(of_text.val, of_folder.val[:])
    assert of_text.first_line == of_folder.first_line == TEXT.partition("\n")[0]


def test_named_corpora_and_tokenizers_for_a_text(text: Path, tmp_path: Path) -> None:
    assert "pydoc" in open_dataset("pydoc").summary
    bpe = open_dataset(text, tokenizer="bpe", vocab_size=300)
    assert isinstance(bpe.tokenizer, BpeTokenizer)
    assert bpe.tokenizer.decode(np.concatenate([bpe.train, bpe.val])) == TEXT
    bpe.tokenizer.save(tmp_path / "my.json")
    assert open_dataset(text, tokenizer=str(tmp_path / "my.json")).tokenizer == bpe.tokenizer
    assert open_dataset(text, tokenizer="char", vocab_size=100).vocab_size == 100


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"vocab_size": 5}, "vocab_size 5 is too small: the tokenizer has 30 ids"),
        ({"tokenizer": "/nowhere/tokenizer.json"}, "/nowhere/tokenizer.json cannot be read: No such file"),
    ],
)
def test_options_that_a_text_cannot_have_are_refused(text: Path, options: dict, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        open_dataset(text, **options)


def test_no_tokenizer_is_trained_on_a_folder(folder: Path) -> None:
    with pytest.raises(DataError, match="holds tokens already"):
        open_dataset(folder, tokenizer="bpe")


def test_a_corpus_that_is_downloaded(tmp_path: Path, monkeypatch) -> None:
    book = f"Title: A Fox\n*** START OF THE PROJECT GUTENBERG EBOOK A FOX ***\n{TEXT}*** END OF THE PROJECT GUTENBERG EBOOK A FOX ***\n"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "tensorlite").mkdir()
    (tmp_path / "tensorlite" / "oz.txt").write_text(book)
    dataset = open_dataset("oz")
    assert "A Fox" in dataset.summary
    assert dataset.tokenizer.decode(np.concatenate([dataset.train, dataset.val])) == TEXT


def test_openwebtext_is_never_tokenized_in_memory() -> None:
    with pytest.raises(DataError, match=r"too large for most memories: python -m data.prepare openwebtext --out DIR"):
        open_dataset("openwebtext")


def test_a_text_that_is_too_large_for_memory_is_refused(tmp_path: Path) -> None:
    with open(tmp_path / "large.txt", "wb") as file:
        file.truncate(201 * 10**6)
    with pytest.raises(DataError, match=r"large.txt is too large .* \(201 MB\): prepare it once, python -m data.prepare"):
        open_dataset(tmp_path / "large.txt")


# --- files of other programs --------------------------------------------------------------------------


@pytest.mark.parametrize("highest", [30, 50_000, 200_000])
def test_tokens_of_four_bytes_without_a_meta_are_read_as_such(tmp_path: Path, highest: int) -> None:
    tokens = np.random.default_rng(0).integers(highest, size=5000).astype(np.uint32)
    tokens[:4000].tofile(tmp_path / "train.bin")
    tokens[4000:].tofile(tmp_path / "val.bin")
    prepared = open_prepared(tmp_path)
    np.testing.assert_array_equal(np.concatenate([prepared.train[:], prepared.val[:]]), tokens)
    assert "its tokens are read as uint32" in prepared.notes[0]
    assert prepared.vocab_size == int(tokens.max()) + 1


@pytest.mark.parametrize("highest", [2, 30, 50_000, 65_535])
def test_tokens_of_two_bytes_are_not_read_as_four_bytes(tmp_path: Path, highest: int) -> None:
    tokens = np.random.default_rng(0).integers(highest, size=5001).astype(np.uint16)
    tokens[:4000].tofile(tmp_path / "train.bin")
    tokens[4000:].tofile(tmp_path / "val.bin")
    np.testing.assert_array_equal(open_prepared(tmp_path).train[:], tokens[:4000])


@pytest.mark.parametrize("name", ["train.bin", "val.bin"])
@pytest.mark.parametrize(
    ("header", "sentence"),
    [
        (np.array([20240520, 1, 5000], "<i4").tobytes(), "is a file of llm.c's: take off its header of 1,024 bytes"),
        (np.array([20240801, 7, 5000], "<i4").tobytes(), "is a file of llm.c's for Llama 3"),
        (b"\x93NUMPY\1\0", "is a file of numpy.save's, .*write its array with tofile"),
        (b"PK\3\4", "is a zip archive, as numpy.savez and torch.save write them"),
    ],
)
def test_files_that_begin_with_a_header(nano: Path, name: str, header: bytes, sentence: str) -> None:
    (nano / name).write_bytes(header + bytes(2000))
    with pytest.raises(PreparedError, match=f"{name} {sentence}"):
        open_prepared(nano)


@pytest.mark.parametrize("what", ["documents", "characters", "tokens"])
@pytest.mark.parametrize(
    "counts", [7, "many", [1], {"train": "1", "val": "2"}, {"train": -1, "val": 2}, {"train": 1.5, "val": None}, {"train": True, "val": 1}]
)
def test_counts_of_another_type(folder: Path, what: str, counts: object) -> None:
    change_meta(folder, **{what: counts})
    with pytest.raises(PreparedError, match="do not belong together" if what == "tokens" else f"{what} should be a number for each file"):
        open_prepared(folder)


def test_a_meta_without_documents(folder: Path, capsys) -> None:
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps({key: value for key, value in meta.items() if key != "documents"}))
    assert inspect_main([str(folder)]) == 0


# --- a tokenizer learns from what is trained on ---------------------------------------------------------


def test_bpe_is_trained_only_on_the_training_part(tmp_path: Path) -> None:
    text = "one two three four five " * 400 + "zebra quagga okapi " * 60
    (tmp_path / "t.txt").write_text(text)
    expected = BpeTokenizer.train([text[: int(len(text) * 0.9)]], 400)
    assert expected != BpeTokenizer.train([text], 400)
    assert open_dataset(tmp_path / "t.txt", tokenizer="bpe", vocab_size=400).tokenizer == expected
    prepare(tmp_path / "t.txt", tmp_path / "out", Settings(tokenizer="bpe", vocab_size=400))
    assert open_prepared(tmp_path / "out").tokenizer == expected


def test_bpe_is_trained_only_on_the_training_documents(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    texts = {f"{i}.txt": f"word{i} again{i} and{i} " * 20 for i in range(40)}
    for name, content in texts.items():
        (tmp_path / "in" / name).write_text(content)
    splitter = Splitter()
    ordered = sorted(texts)
    expected = BpeTokenizer.train([texts[name] for name in ordered if splitter(name) == "train"], 400)
    assert expected != BpeTokenizer.train([texts[name] for name in ordered], 400)
    prepare(tmp_path / "in", tmp_path / "out", Settings(tokenizer="bpe", vocab_size=400))
    assert open_prepared(tmp_path / "out").tokenizer == expected


# --- what is somebody else's is not replaced ------------------------------------------------------------


@pytest.mark.parametrize("name", ["train.bin", "val.bin", "tokenizer.json", "meta.json"])
@pytest.mark.parametrize("content", [b"mine", b"{}", b'{"version": 1}'])
def test_files_of_the_user_are_not_replaced(tmp_path: Path, text: Path, name: str, content: bytes) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / name).write_bytes(content)
    with pytest.raises(DataError, match=f"mine has a {name} that data.prepare did not write.*choose another --out, or remove it"):
        prepare(text, tmp_path / "mine")
    assert [(path.name, path.read_bytes()) for path in (tmp_path / "mine").iterdir()] == [(name, content)]


def test_an_empty_path_is_refused(tmp_path: Path, text: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for source, out in ((text, ""), ("", tmp_path / "out")):
        with pytest.raises(DataError, match="an empty path names nothing"):
            prepare(source, out)
    with pytest.raises(DataError, match="an empty path names nothing"):
        open_dataset("")
    assert [path.name for path in tmp_path.iterdir()] == [text.name]
