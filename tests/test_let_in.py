"""Nothing is let in: files, archives and names from others, and versions of libraries with known holes."""

import configparser
import gzip
import hashlib
import io
import json
import re
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kerasdef import archives
from kerasdef.datasets import load, readers
from kerasdef.defenses import load as load_defense
from kerasdef.evaluation import Outcome
from kerasdef.models.export import facts_of, run_of
from kerasdef.models.loading import read_keras
from kerasdef.reporting import Report, Section
from kerasdef.runs.pieces import read_piece
from kerasdef.runs.store import Store
from kerasdef.texts import cell, shown

# By package: the first version without the holes, and the advisories that say so.
NEEDED = {
    "keras": ((3, 15), "CVE-2025-1550 CVE-2025-8747 CVE-2025-9905 CVE-2025-9906 CVE-2026-1462 CVE-2026-12481"),
    "tensorflow": ((2, 18, 1), "CVE-2024-7264 CVE-2024-9681"),
    "pillow": ((13, 0), "CVE-2026-59199 CVE-2026-112398"),
    "scikit-learn": ((1, 5), "CVE-2024-5206"),
    "jinja2": ((3, 1, 6), "CVE-2024-56201 CVE-2024-56326 CVE-2025-27516"),
}
SETUP = Path(__file__).parent.parent / "setup.cfg"


@pytest.mark.parametrize("package", NEEDED)
def test_no_version_with_a_known_hole_is_declared(package):
    setup = configparser.ConfigParser(interpolation=None)
    setup.read(SETUP)
    found = dict(re.findall(r"^([\w-]+)>=([\d.]+)$", setup["options"]["install_requires"], re.MULTILINE))
    needed, advisories = NEEDED[package]
    assert tuple(map(int, found[package].split("."))) >= needed
    assert all(name in SETUP.read_text() for name in advisories.split())


# Sizes


@pytest.fixture
def bomb(tmp_path):
    """A data set of 2 MiB that unpacks to 3 GiB."""
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in readers.KEYS:
            with archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
                shape = (2**20, 32, 32, 3) if name == "x_train" else (1,)
                np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": shape})
                stream.write(b"\0")
    edited = path.read_bytes()
    start = edited.rindex(b"PK\x01\x02", 0, edited.index(b"x_train.npy", edited.index(b"PK\x01\x02")))
    size = (3 * 2**30 + 128).to_bytes(4, "little")  # what the directory of the archive says of x_train
    path.write_bytes(edited[: start + 24] + size + edited[start + 28 :])
    return path


def test_a_data_set_that_unpacks_to_far_more_is_refused_before(bomb, monkeypatch):
    monkeypatch.setattr(np.lib.format, "read_array", lambda *args, **kwargs: pytest.fail("it was unpacked"))
    with pytest.raises(ValueError, match=r"bomb\.npz unpacks to 3\.0 GiB, more than .* 2\.0 GiB.*MAX_UNPACKED"):
        load(bomb)
    with pytest.raises(ValueError, match=r"unpacks to 3\.0 GiB"):
        read_piece(bomb)


@pytest.fixture
def small_limit(monkeypatch):
    monkeypatch.setenv(archives.LIMIT_VARIABLE, "100000")


def save(path, **changes):
    x, y = np.zeros((40, 60, 60), "uint8"), np.arange(40) % 2
    np.savez_compressed(path, **{"x_train": x, "y_train": y, "x_test": x[:4], "y_test": y[:4]} | changes)
    return path


def test_the_limit_can_be_raised(tmp_path, small_limit, monkeypatch):
    path = save(tmp_path / "a.npz")
    with pytest.raises(ValueError, match="unpacks to"):
        load(path)
    monkeypatch.setenv(archives.LIMIT_VARIABLE, "1000000")
    assert load(path).n_train == 40
    monkeypatch.setenv(archives.LIMIT_VARIABLE, "1 GiB")
    with pytest.raises(ValueError, match=r"`KERASDEF_MAX_UNPACKED` must be a number of bytes. Received: .*1 GiB"):
        load(path)


def test_what_is_as_large_on_disk_is_no_bomb(tmp_path, small_limit):
    x, y = np.zeros((40, 60, 60), "uint8"), np.arange(40) % 2
    np.savez(tmp_path / "a.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    assert load(tmp_path / "a.npz").n_train == 40


def test_an_array_that_declares_more_than_it_holds_is_refused_before_memory_is_taken(tmp_path):
    path = save(tmp_path / "a.npz")
    with zipfile.ZipFile(path) as old:
        members = {name: old.read(name) for name in old.namelist()}
    stream = io.BytesIO()
    header = {"descr": "<f8", "fortran_order": False, "shape": (2**36,)}
    np.lib.format.write_array_header_1_0(stream, header)
    members["y_train.npy"] = stream.getvalue() + b"\0" * 8
    with zipfile.ZipFile(path, "w") as new:
        for name, content in members.items():
            new.writestr(name, content)
    with pytest.raises(ValueError, match=r"y_train\.npy declares 549755813888 bytes of data and holds 8"):
        load(path)


def test_an_idx_file_is_read_no_further_than_its_header_says(tmp_path, small_limit):
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(b"\0\0\x08\x01" + (10**6).to_bytes(4, "big") + b"\0" * 10**6))
    with pytest.raises(ValueError, match=r"a\.gz unpacks to"):
        readers.read_idx(path)
    path.write_bytes(gzip.compress(b"\0\0\x08\x01" + (3).to_bytes(4, "big") + b"\1" * 10**6))
    with pytest.raises(ValueError, match="must be a gzipped IDX file"):
        readers.read_idx(path)


def test_a_tar_that_unpacks_to_far_more_is_refused(tmp_path, small_limit):
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        member = tarfile.TarInfo("other")
        member.size = 10**6
        tar.addfile(member, io.BytesIO(b"\0" * 10**6))
    with pytest.raises(ValueError, match="unpacks to"):
        readers.read_cifar10(tmp_path / "a.tar.gz")


@pytest.mark.parametrize("kind", [tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.SYMTYPE])
def test_a_tar_of_other_things_than_files_is_refused_by_name(tmp_path, kind):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in readers.CIFAR_BATCHES:
            member = tarfile.TarInfo(f"{readers.CIFAR_FOLDER}/{name}")
            member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member)
    with pytest.raises(ValueError, match=r"a\.tar must hold the CIFAR-10 batches"):
        readers.read_cifar10(tmp_path / "a.tar")


def test_a_pickle_cannot_ask_for_memory(tmp_path):
    asks = b"\x80\x02cnumpy\nndarray\n\x8a\x05\0\0\0\0\x01\x85\x85R."  # numpy.ndarray((2 ** 32,))
    for name in readers.CIFAR_BATCHES:
        (tmp_path / name).write_bytes(asks)
    with pytest.raises(ValueError, match="'str' object is not callable"):
        readers.read_cifar10(tmp_path)


def archive(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


def test_images_of_an_archive_are_neither_huge_nor_of_another_format(tmp_path):
    table = "Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId\n00000_0.ppm;9;9;0;0;9;9;0\n"
    stream = io.BytesIO()
    Image.new("RGB", (9, 9)).save(stream, "TIFF")
    place = f"{readers.GTSRB_TRAIN}/00000"
    for content, text in [
        (b"P6 2000 2000 255\n", r"of size \(2000, 2000\)"),
        (b"P6 20000 20000 255\n", "decompression bomb"),
        (stream.getvalue(), "cannot identify image"),
    ]:
        train = archive(tmp_path / "a.zip", {f"{place}/GT.csv": table, f"{place}/00000_0.ppm": content})
        with pytest.raises(ValueError, match=f"must be an official GTSRB archive.*{text}"):
            readers.read_gtsrb(train, train, train)


def test_an_archive_of_images_that_unpacks_to_far_more_is_refused(tmp_path, small_limit):
    train = archive(tmp_path / "a.zip", {"large": b"\0" * 10**6})
    with pytest.raises(ValueError, match=r"a\.zip unpacks to"):
        readers.read_gtsrb(train, train, train)


def test_a_model_that_unpacks_to_far_more_is_refused(tmp_path, small_limit):
    path = archive(tmp_path / "a.keras", {"config.json": "{}", "metadata.json": " " * 10**6})
    for read in (read_keras, facts_of):
        with pytest.raises(ValueError, match=r"a\.keras unpacks to"):
            read(path)


# Damage


def rewritten(path, **members):
    """The archive with other members; None leaves one out."""
    with zipfile.ZipFile(path) as old:
        content = {name: old.read(name) for name in old.namelist()} | members
    return archive(path, {name: value for name, value in content.items() if value is not None})


def marked(path, at, value):
    """The archive with two other bytes at this place of every member's local header, and in the directory."""
    content = bytearray(path.read_bytes())
    for start, shift in ((b"PK\x03\x04", 0), (b"PK\x01\x02", 2)):
        for found in re.finditer(re.escape(start), bytes(content)):
            content[found.start() + at + shift : found.start() + at + shift + 2] = value.to_bytes(2, "little")
    path.write_bytes(content)
    return path


def header(text):
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode("latin1") + b"\0" * 40


MARKS = {"encrypted": (6, 1), "compression of no kind": (8, 99), "no bzip2": (8, 12)}
HEADERS = {
    "open": "{" * 3 + "\n",
    "nested": "(((\n",
    "bits": "{'descr': '|u1', 'fortran_order': Fal\x7fe, 'sha`e': (40,\n",
    "deep": "-" * 9000 + "1\n",
}


def one_line(error, path):
    text = str(error.value)
    assert text.count(str(path)) == 1
    assert "\n" not in text
    assert len(text) < 500
    return text


@pytest.mark.parametrize("kind", [*MARKS, *HEADERS])
def test_a_data_set_that_is_damaged_is_named_whatever_its_reader_says(tmp_path, kind):
    path = save(tmp_path / "a.npz")
    if kind in MARKS:
        marked(path, *MARKS[kind])
    else:
        rewritten(path, **{"y_train.npy": header(HEADERS[kind])})
    with pytest.raises(ValueError, match="is damaged or of another kind: ") as error:
        load(path)
    assert "must be an .npz file with the arrays x_train" in one_line(error, path)


def test_an_archive_that_leads_in_front_of_itself_is_named(tmp_path):
    path = save(tmp_path / "a.npz")
    content = bytearray(path.read_bytes())
    content[content.rindex(b"PK\x05\x06") + 16] += 1  # where the directory begins
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is damaged or of another kind: ") as error:
        load(path)
    one_line(error, path)


def test_an_array_under_a_name_of_no_array_is_looked_at_too(tmp_path):
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f8", "fortran_order": False, "shape": (2**36,)})
    path = rewritten(save(tmp_path / "a.npz"), **{"y_train.npy": None, "y_train": stream.getvalue() + b"\0" * 8})
    with pytest.raises(ValueError, match=r"y_train declares 549755813888 bytes of data and holds 8"):
        load(path)


@pytest.fixture(scope="module")
def keras_file(tmp_path_factory):
    import keras

    path = tmp_path_factory.mktemp("keras") / "whole.keras"
    keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]).save(path)
    return path


OTHERS = {
    "deep": "[" * 100_000,
    "empty": "{}",
    "number": "5",
    "program": json.dumps({"class_name": "system", "module": "os", "registered_name": None, "config": {}}),
    "no module": json.dumps({"module": "kerasdef.nope", "class_name": "X", "registered_name": "kerasdef>X"}),
    "broken": json.dumps({"module": "keras", "class_name": "Sequential", "config": {"layers": 3}}),
    "layer": json.dumps({"module": "keras.layers", "class_name": "Flatten", "config": {}, "registered_name": None}),
}


@pytest.mark.parametrize("kind", [*MARKS, *OTHERS, "huge", "no weights", "other weights"])
def test_a_keras_file_that_cannot_be_read_is_named_whatever_keras_says(keras_file, tmp_path, kind):
    path = tmp_path / "a.keras"
    path.write_bytes(keras_file.read_bytes())
    if kind in MARKS:
        marked(path, *MARKS[kind])
    elif kind in OTHERS:
        rewritten(path, **{"config.json": OTHERS[kind]})
    elif kind == "huge":
        with zipfile.ZipFile(path) as file:
            config = file.read("config.json").decode()
        assert '"units": 2' in config
        rewritten(path, **{"config.json": config.replace('"units": 2', '"units": 10000000000000')})
    else:
        rewritten(path, **{"model.weights.h5": None if kind == "no weights" else b"others"})
    with pytest.raises(ValueError, match=r"^`model` must be a whole \.keras file\. Received: ") as error:
        read_keras(path)
    assert "which is damaged or cannot be read in safe mode: " in one_line(error, path)


@pytest.mark.parametrize("notes", ["[" * 100_000, "{", "[1]", '{"run": 5}'])
def test_notes_of_a_keras_file_that_cannot_be_read_are_named(keras_file, tmp_path, notes):
    path = tmp_path / "a.keras"
    path.write_bytes(keras_file.read_bytes())
    rewritten(path, **{"kerasdef.json": notes})
    with pytest.raises(ValueError, match="whose notes are damaged: ") as error:
        facts_of(path)
    one_line(error, path)


@pytest.mark.parametrize("trust", [False, True])
def test_a_savedmodel_without_a_graph_is_named(tmp_path, trust):
    (tmp_path / "saved_model.pb").write_bytes(b"")
    with pytest.raises(ValueError, match=r"^`model` must be a SavedModel that is whole\. Received: ") as error:
        load_defense(tmp_path, trust=trust)
    one_line(error, tmp_path)


# Files of a report


def report(name="m", attack="pgd", **values):
    outcomes = [Outcome(name, "adaptive", a, [0, 1], [0, 0]) for a in ("clean", attack)]
    return Report(outcomes, **{"classes": 2} | values)


@pytest.fixture
def saved(tmp_path):
    folder = tmp_path / "run"
    report(sections=[Section("mine", "Mine", rows=[{"a": 1}])]).save(folder)
    return folder


def edit(folder, change):
    record = json.loads((folder / "report.json").read_text())
    change(record)
    (folder / "report.json").write_text(json.dumps(record))


@pytest.mark.parametrize("name", ["/dev/zero", "../outcomes.npz", "figures/../../outcomes.npz", "link.npz", "a\0b"])
def test_outcomes_of_a_report_lie_in_its_folder(saved, name):
    outside = saved.parent / "outcomes.npz"
    outside.write_bytes((saved / "outcomes.npz").read_bytes())
    (saved / "link.npz").symlink_to(outside)
    edit(saved, lambda record: record["outcomes"].update(file=name))
    with pytest.raises(ValueError, match=r"must lie in its folder\. Received: .* leads out of"):
        Report.load(saved)


def test_a_report_that_is_a_link_or_names_a_folder_is_refused(saved):
    edit(saved, lambda record: record["outcomes"].update(file="figures"))
    with pytest.raises(ValueError, match="no file 'figures' in it"):
        Report.load(saved)
    (saved / "report.json").rename(saved.parent / "report.json")
    (saved / "report.json").symlink_to(saved.parent / "report.json")
    with pytest.raises(ValueError, match="must lie in its folder"):
        Report.load(saved)


def test_a_figure_of_a_report_lies_in_its_folder(saved):
    (saved.parent / "secret.png").write_bytes(b"secret")
    (saved / "figures" / "section_mine.png").symlink_to(saved.parent / "secret.png")
    with pytest.raises(ValueError, match=r"section_mine\.png', which leads out"):
        Report.load(saved)


def test_nothing_is_written_through_a_link_to_another_folder(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    mine = tmp_path / "elsewhere" / "section_mine.png"
    mine.write_bytes(b"mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "figures").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="'figures', which leads out"):
        report().save(tmp_path / "run")
    assert list((tmp_path / "elsewhere").iterdir()) == [mine]


@pytest.mark.parametrize("name", ["report.html", "report.csv", "report.json", "outcomes.npz", "figures/accuracy.png"])
def test_no_file_of_a_report_is_written_through_a_link_that_leads_out(saved, name):
    again = Report.load(saved)
    precious = saved.parent / "precious.txt"
    precious.write_text("mine")
    (saved / name).unlink(missing_ok=True)
    (saved / name).symlink_to(precious)
    before = {p: p.read_bytes() for p in saved.rglob("*") if p.is_file()}
    with pytest.raises(ValueError, match=rf"must lie in its folder\. Received: '{name}', which leads out"):
        again.save(saved)
    assert {p: p.read_bytes() for p in saved.rglob("*") if p.is_file()} == before


def test_a_link_of_a_run_that_leads_out_is_refused_before_anything_is_written(tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious.txt").write_text("mine")
    names = ["run.lock", "report.html", "model.keras", "pieces", "unfinished", "saved_model", "pieces/a.npz"]
    for i, name in enumerate(names):
        run = tmp_path / f"run{i}"
        Store(run, {}).get("b", lambda: ({}, {}), phase="p")
        if name == "pieces":
            (run / "pieces").rename(run / "mine")
        (run / name).unlink(missing_ok=True)
        (run / name).symlink_to(tmp_path / ("precious.txt" if "." in name else "precious"))
        with pytest.raises(ValueError, match=f"A file of a run must lie in its folder.*'{name}', which leads out"):
            Store(run, {})
    (tmp_path / "run0" / "run.lock").unlink()
    (tmp_path / "run0" / "report.csv").symlink_to("report.csv")
    with pytest.raises(ValueError, match="must lie in its folder"):
        Store(tmp_path / "run0", {})
    (tmp_path / "run0" / "report.csv").unlink()
    (tmp_path / "run0" / "notes").symlink_to(tmp_path / "precious")  # a link of the user's that no file of ours meets
    Store(tmp_path / "run0", {})
    assert (tmp_path / "precious.txt").read_text() == "mine"
    assert not list((tmp_path / "precious").iterdir())


def test_the_files_of_an_attack_are_not_written_through_links_that_lead_out(tmp_path, refused):
    out = tmp_path / "out"
    (out / "state").mkdir(parents=True)
    (out / "state" / "run.json").write_text("{}")
    (tmp_path / "precious.txt").write_text("mine")
    (out / "attack.csv").symlink_to(tmp_path / "precious.txt")
    said = refused("attack", tmp_path / "m.keras", "--attack", "fgsm", "--eps", "0.1", "--out", out)
    assert "'attack.csv', which leads out" in said


def test_records_that_are_nested_too_deep_are_damaged(saved):
    deep = "[" * 200_000
    (saved / "report.json").write_text(deep)
    with pytest.raises(ValueError, match=r"report\.json must be a report as kerasdef writes it.*RecursionError"):
        Report.load(saved)
    with pytest.raises(ValueError, match="must be a new or empty folder, or one with an earlier report"):
        report().save(saved)
    (saved / "run.json").write_text(deep)
    with pytest.raises(ValueError, match=r"whose run\.json is damaged"):
        Store(saved, {})
    with pytest.raises(ValueError, match=r"run\.json', which is damaged"):
        run_of(saved / "m.keras")
    path = archive(saved / "m.keras", {"kerasdef.json": deep, "config.json": deep})
    with pytest.raises(ValueError, match="notes are damaged"):
        facts_of(path)
    with pytest.raises(ValueError, match="which is damaged"):
        read_keras(path)


def test_a_report_that_leaves_arrays_out_is_damaged_and_nothing_is_lost(tmp_path):
    images = np.zeros((1, 2, 2, 1), "float32")
    examples = {"images": images, "labels": [0], "attacks": {"a": images}, "predicted": {"a": [0]}}
    report(examples=examples).save(tmp_path)
    assert Report.load(tmp_path).examples["attacks"].keys() == {"a"}
    edit(tmp_path, lambda record: record.update(examples=None))
    with pytest.raises(ValueError, match=r"nothing in it names the array 'examples/attacks/0' of outcomes\.npz"):
        Report.load(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        lambda record: record.pop("outcomes"),
        lambda record: record.update(outcomes=3),
        lambda record: record["outcomes"]["list"].append({"model": "other"}),
        lambda record: record.update(sections=[{"name": "x"}]),
    ],
)
def test_a_report_that_is_damaged_is_named(saved, change):
    edit(saved, change)
    with pytest.raises(ValueError, match=r"report\.json must be a report as kerasdef writes it"):
        Report.load(saved)


def test_outcomes_that_unpack_to_far_more_are_refused(saved, small_limit):
    stream = io.BytesIO()
    np.savez_compressed(stream, **{"0/y": np.zeros(10**6)})
    (saved / "outcomes.npz").write_bytes(stream.getvalue())
    edit(saved, lambda record: record["outcomes"].update(sha256=hashlib.sha256(stream.getvalue()).hexdigest()))
    with pytest.raises(ValueError, match="unpacks to"):
        Report.load(saved)


# Names


def test_a_name_with_dollars_or_in_other_letters_is_drawn_as_it_is(tmp_path, recwarn):
    report(r"$\nonsense$", "攻击").save(tmp_path)
    assert not [w for w in recwarn if "Glyph" in str(w.message)]


EVIL = "\x1b]0;x\x07\x1b[31mred\u202e\x9b2J"


def test_control_characters_of_names_are_written_out_everywhere(tmp_path):
    values = {"class_names": [EVIL, "b"], "dataset": EVIL, "notes": [EVIL], "flags": [EVIL], "settings": {"k": EVIL}}
    values |= {"costs": {EVIL: {"gradients": 1, "seconds": 1, "peak_bytes": 1}}, "history": {}}
    section = Section("s", EVIL, EVIL, [{EVIL: EVIL}])
    found = report(f"m{EVIL}", f"a{EVIL}", sections=[section], **values)
    found.save(tmp_path)
    for text in (found.table(), *((tmp_path / name).read_text() for name in ("report.csv", "report.html"))):
        assert not set("\x1b\x07\x9b\u202e") & set(text)
        assert "\\x1b" in text
    assert Report.load(tmp_path) == found  # stored as they are


def test_a_name_in_an_error_cannot_speak_to_the_terminal(refused, tmp_path):
    assert "\x1b" not in refused("attack", tmp_path / "gone\x1b[31m.keras", "--dataset", "digits")


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@SUM(A1)", " =1", "\uff1d1", '=HYPERLINK("x")'])
def test_a_cell_that_a_spreadsheet_would_run_is_quoted(tmp_path, name):
    report(name).save(tmp_path)
    text = (tmp_path / "report.csv").read_text()
    assert cell(name) == f"'{name}"
    assert text.count("'" + name.replace('"', '""')) == 3  # clean, pgd, pooled


def test_numbers_and_plain_names_stay_as_they_are():
    assert [cell(v) for v in (-1.5, "fgsm-2", None, "a=b")] == [-1.5, "fgsm-2", None, "a=b"]
    assert shown("Bö\nb\t") == "Bö\nb\\t"
