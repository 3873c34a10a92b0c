"""Boxes of a data set's images out of any file: which images are meant, which box counts, and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lchp.data.base import Split
from lchp.data.box_file import BoxFile
from lchp.data.box_reader import read_box_file
from lchp.data.images import Images
from lchp.errors import DataError

PATHS = ("/d/train/robin/1.jpg", "/d/train/robin/2.jpg", "/d/train/wren/1.jpg", "/d/test/robin/1.jpg")


def images(paths: tuple[str, ...], size: tuple[int, int] = (100, 50)) -> Images:
    ids = tuple(path.removeprefix("/d/") for path in paths)
    split = Split(ids, np.zeros(len(ids), np.int64), tuple(map(Path, paths)))
    return Images(split, 8, None, np.arange(len(ids)), originals=np.tile(size, (len(ids), 1)))


TRAIN, TEST = images(PATHS[:3]), images(PATHS[3:])


def read(tmp_path: Path, text: str, name: str = "b.csv") -> BoxFile:
    (tmp_path / name).write_text(text)
    return read_box_file(tmp_path / name, [TRAIN, TEST])


def coco(tmp_path: Path, record: Any) -> BoxFile:
    return read(tmp_path, json.dumps(record), "b.json")


def test_the_best_of_several_boxes_counts_and_others_are_counted(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        "image,score,x1,y1,x2,y2\ntrain/robin/1.jpg,0.2,0,0,10,10\ntrain/robin/1.jpg,0.9,20,10,60,40\n"
        "train/robin/1.jpg,0.9,1,1,2,2\ntrain/wren/1.jpg,0.1,0,0,100,50\nelsewhere.jpg,1,0,0,5,5\n",
    )
    assert found.of(TRAIN).tolist()[0] == [0.2, 0.2, 0.6, 0.8]  # of equal ones the first
    assert np.isnan(found.of(TRAIN)[1]).all()
    assert found.of(TRAIN)[2].tolist() == [0, 0, 1, 1]
    assert (found.count(TRAIN), found.count(TEST), found.several) == (2, 0, 1)
    assert [str(p) for p in found.unknown] == [f"{tmp_path}/b.csv:6: image 'elsewhere.jpg' is not in the data set"]
    assert found.problems == ()


def test_a_row_without_corners_is_an_image_without_a_box(tmp_path: Path) -> None:
    """As `lchp predict --least-confidence` writes it; a row that lacks some corners is a fault."""
    found = read(tmp_path, "image,x1,y1,x2,y2\ntrain/robin/1.jpg,,,,\ntrain/wren/1.jpg,0,0,100,50\n")
    assert list(found.boxes) == ["train/wren/1.jpg"]
    assert (found.problems, found.unknown) == ((), ())
    (problem,) = read(tmp_path, "image,x1,y1,x2,y2\ntrain/robin/1.jpg,1,,,\n").problems
    assert "b.csv:2" in str(problem)
    assert not read(tmp_path, "image,x1,y1,x2,y2\ntrain/robin/1.jpg,,,,\n").boxes


def test_what_predict_writes_is_read_with_its_confidence(tmp_path: Path) -> None:
    head = "image,width,height,class_id,class_name,score,x1,y1,x2,y2,confidence\n"
    rows = ("wren/1.jpg,100,50,0,robin,0.9,0,0,10,10,0.1\n", "wren/1.jpg,100,50,0,robin,0.1,0,0,20,10,0.7\n")
    assert read(tmp_path, head + "".join(rows)).boxes["train/wren/1.jpg"].tolist() == [0, 0, 20, 10]


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("train/robin/2.jpg", "train/robin/2.jpg"),
        (" train/robin/2.jpg ", "train/robin/2.jpg"),
        ("./train/robin/2.jpg", "train/robin/2.jpg"),
        ("robin/2.jpg", "train/robin/2.jpg"),
        ("2.jpg", "train/robin/2.jpg"),
        ("/d/train/robin/2.jpg", "train/robin/2.jpg"),
        ("test/robin/1.jpg", "test/robin/1.jpg"),
        ("obin/2.jpg", None),
        ("/other/train/robin/2.jpg", None),
    ],
)
def test_an_image_is_named_by_its_id_or_the_end_of_its_path(tmp_path: Path, written: str, meant: str | None) -> None:
    found = read(tmp_path, f"image_id,x1,y1,x2,y2\n{written},1,2,3,4\n")
    assert list(found.boxes) == ([] if meant is None else [meant])
    assert len(found.unknown) == (meant is None)


def test_faulty_rows_are_listed_by_line(tmp_path: Path) -> None:
    rows = {
        "robin/1.jpg,1,2,3,4,1": "image 'robin/1.jpg' is the end of several images' paths (train/robin/1.jpg, "
        "test/robin/1.jpg); write more of the path",
        "train/robin/1.jpg,nan,2,3,4,1": "image train/robin/1.jpg: box nan 2 3 4 is not finite",
        "train/robin/1.jpg,a,2,3,4,1": "image train/robin/1.jpg: box 'a 2 3 4' is not numeric",
        "train/robin/1.jpg,1_0,2,30,4,1": "image train/robin/1.jpg: box '1_0 2 30 4' is not numeric",
        "train/robin/1.jpg,5,2,5,4,1": "image train/robin/1.jpg: box 5 2 5 4 (x1 y1 x2 y2) has zero or negative size",
        "train/robin/1.jpg,5,2,102,4,1": "image train/robin/1.jpg: box 5 2 102 4 (x1 y1 x2 y2) lies outside of the "
        "image of 100 x 50",
        "train/robin/1.jpg,-1.5,2,10,4,1": "image train/robin/1.jpg: box -1.5 2 10 4 (x1 y1 x2 y2) lies outside of "
        "the image of 100 x 50",
        "train/robin/1.jpg,1,2,3,4,": "score '' is no finite number",
        "train/robin/1.jpg,1,2,3,4,inf": "score 'inf' is no finite number",
        "train/robin/1.jpg,1,2,3,4,1_0": "score '1_0' is no finite number",
    }
    found = read(tmp_path, "image_id,x1,y1,x2,y2,score\ntrain/wren/1.jpg,-0.9,0,100.9,50,1\n" + "\n".join(rows))
    lines = {f"{tmp_path}/b.csv:{n}: {said}" for n, said in enumerate(rows.values(), 3)}
    assert {str(p) for p in found.problems} == lines
    assert {name: box.tolist() for name, box in found.boxes.items()} == {"train/wren/1.jpg": [0, 0, 100, 50]}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("image_id,x1,y1,x2\n", "b.csv: lacks the column y2; it has image_id, x1, y1, x2"),
        ("image;x1;y1;x2;y2\na;1,5;2;3;4\n", "b.csv: its columns are separated by semicolons; expected commas"),
        ("image\tx1\ty1\tx2\ty2\n", "b.csv: its columns are separated by tabs; expected commas"),
        ("image_id,x1,y1,x2,y2\n", "b.csv: no rows"),
        ("image_id,x1,y1,x2,y2\na,1,2,3\n", "b.csv:2: 4 values; the first line names 5 columns"),
        ("image_id,x1,y1,x2,y2\n,1,2,3,4\n", "b.csv:2: one of image_id is empty"),
        (
            "image_id,x1,y1,x2,y2\n2.jpg,0.1,0.1,0.9,1\n",
            "b.csv:2: no coordinate is above 1 in the file; expected px of the original image, not fractions",
        ),
        (
            "image_id,x1,y1,x2,y2\n2.jpg,1,2,3,4\n2.jpg,1,2,3,5\n",
            "b.csv:3: several boxes in 1 image, and the file has no column score to choose by",
        ),
    ],
)
def test_what_is_no_table_of_boxes_is_one_line(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(DataError) as refused:
        read(tmp_path, text)
    assert str(refused.value) == f"{tmp_path}/{said}"


@pytest.mark.parametrize(("encoding", "byte"), [("utf-16", "0xff at 0"), ("latin-1", "0xf6 at 25")])
def test_a_table_in_another_encoding_is_one_line(tmp_path: Path, encoding: str, byte: str) -> None:
    (tmp_path / "b.csv").write_bytes("image,x1,y1,x2,y2\nrobin/m\u00f6we.jpg,1,2,3,4\n".encode(encoding))
    with pytest.raises(DataError, match=rf"b\.csv: not in UTF-8 \(byte {byte}\); save it as a CSV file in"):
        read_box_file(tmp_path / "b.csv", [TRAIN])


def test_an_absolute_path_names_an_image_of_a_relative_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    relative = images(("photos/robin/1.jpg",))
    (tmp_path / "b.csv").write_text(f"image,x1,y1,x2,y2\n{tmp_path}/photos/robin/1.jpg,1,2,30,4\n")
    assert [*read_box_file(tmp_path / "b.csv", [relative]).boxes] == ["photos/robin/1.jpg"]


def test_a_file_of_another_kind_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"b\.txt: expected a file of boxes, \.csv, \.parquet, \.json$"):
        read(tmp_path, "", "b.txt")
    with pytest.raises(DataError, match=r"gone\.csv: cannot be read \(No such file or directory\)$"):
        read_box_file(tmp_path / "gone.csv", [TRAIN])


def test_parquet_holds_the_same(tmp_path: Path) -> None:
    table = pd.DataFrame({"image": ["2.jpg", "wren/1.jpg", "2.jpg"], "x1": [1, 2, np.nan], "y1": 2, "x2": 30, "y2": 40})
    table.assign(score=[0.5, 0.1, 0.9]).to_parquet(tmp_path / "b.parquet")
    found = read_box_file(tmp_path / "b.parquet", [TRAIN, TEST])
    assert found.boxes["train/robin/2.jpg"].tolist() == [1, 2, 30, 40]
    assert [str(p) for p in found.problems] == [
        f"{tmp_path}/b.parquet: row 3: image train/robin/2.jpg: box nan 2 30 40 is not finite"
    ]


IMAGES = [{"id": 7, "file_name": "train/robin/2.jpg"}, {"id": "8", "file_name": "wren/1.jpg"}]


def test_coco_of_images_of_another_size_is_a_problem(tmp_path: Path) -> None:
    """Boxes of resized images would be taken for others, without a word. Some tools state no size, or 0."""
    sized = [
        {"id": 1, "file_name": "robin/2.jpg", "width": 50, "height": 25},
        {"id": 2, "file_name": "wren/1.jpg", "width": 100.0, "height": 50},
        {"id": 3, "file_name": "test/robin/1.jpg", "width": 0, "height": 0},
    ]
    boxes = [{"image_id": n, "bbox": [1, 2, 9, 9]} for n in (1, 2, 3)]
    found = coco(tmp_path, {"images": sized, "annotations": boxes})
    assert [*found.boxes] == ["train/wren/1.jpg", "test/robin/1.jpg"]
    (problem,) = found.problems
    assert str(problem).partition("]: ")[2] == (
        "image train/robin/2.jpg: the file says 50 x 25 px, the image has 100 x 50; boxes are in px of the original"
    )


def test_coco_holds_x_y_width_and_height(tmp_path: Path) -> None:
    annotations = [
        {"image_id": 7, "bbox": [1, 2, 30, 40], "score": 0.5, "category_id": 1},
        {"image_id": "8", "bbox": [0.5, 0, 99.5, 50], "score": 0.1},
        {"image_id": 7, "bbox": [0, 0, 5, 5], "score": 0.4},
    ]
    found = coco(tmp_path, {"images": IMAGES, "annotations": annotations})
    assert found.boxes["train/robin/2.jpg"].tolist() == [1, 2, 31, 42]
    assert found.boxes["train/wren/1.jpg"].tolist() == [0.5, 0, 100, 50]
    assert (found.several, found.problems) == (1, ())
    truth = [{"image_id": 7, "bbox": [1, 2, 30, 40]}]  # annotators' have no scores, and need none
    assert coco(tmp_path, {"images": IMAGES, "annotations": truth}).count(TRAIN) == 1


def test_faults_of_coco_name_the_entry(tmp_path: Path) -> None:
    annotations = [
        {"image_id": 9, "bbox": [1, 2, 3, 4]},
        {"image_id": 7, "bbox": [1, 2, 3]},
        {"image_id": 7, "bbox": [1, 2, 3, None]},
        {"image_id": 7, "bbox": [1, 2, 0, 4]},
        {"image_id": 7},
        3,
        {"image_id": 7, "bbox": [1, 2, 3, 4]},
    ]
    extra = [{"id": 7, "file_name": "x"}, {"id": 1}, "b", {"id": [1], "file_name": "x"}]
    found = coco(tmp_path, {"images": [*IMAGES, *extra], "annotations": annotations})
    assert {str(p).removeprefix(f"{tmp_path}/b.json: ") for p in found.problems} == {
        "images[2]: the id '7' is there twice",
        "images[3]: expected an id and a file_name",
        "images[4]: expected an id and a file_name",
        "images[5]: expected an id and a file_name",
        "annotations[0]: no image has the id '9'",
        "annotations[1]: expected 4 box coordinates, found 3",
        "annotations[2]: box '1 2 3 None' is not numeric",
        "annotations[3]: image train/robin/2.jpg: box 1 2 1 6 (x1 y1 x2 y2) has zero or negative size",
        "annotations[4]: expected an image_id and a bbox of x y width height",
        "annotations[5]: expected an image_id and a bbox of x y width height",
    }
    assert found.boxes["train/robin/2.jpg"].tolist() == [1, 2, 4, 6]


def test_text_that_is_no_utf_8_is_named_by_escapes(tmp_path: Path) -> None:
    """Half a surrogate pair, which JSON can escape; and a file's name of undecodable bytes."""
    annotations = [
        {"image_id": 7, "bbox": [1, 2, 3, 4], "score": "\ud800"},
        {"image_id": "\udfff", "bbox": [1, 2, 3, 4]},
    ]
    found = coco(
        tmp_path, {"images": [*IMAGES, {"id": "\udfff", "file_name": "\ud800.jpg"}], "annotations": annotations}
    )
    assert [str(p).partition("]: ")[2] for p in found.unknown] == [r"image '\\ud800.jpg' is not in the data set"]
    assert [str(p).partition("]: ")[2] for p in found.problems] == [r"score '\\ud800' is no finite number"]
    row = "image,x1,y1,x2,y2\n2.jpg,1,2,3,400\n"
    pd.DataFrame({"image": ["2.jpg"], "x1": 1, "y1": 2, "x2": 3, "y2": 400}).to_parquet(tmp_path / "b.parquet")
    (tmp_path / "b.parquet").rename(tmp_path / "\udcff.parquet")
    bbox = [1, 2, 2, 398]
    for name, text in {
        "\udcff.csv": row,
        "\udcff.json": json.dumps({"images": IMAGES, "annotations": [{"image_id": 7, "bbox": bbox}]}),
        "\udcff.parquet": None,
    }.items():
        found = read(tmp_path, text, name) if text else read_box_file(tmp_path / name, [TRAIN, TEST])
        (problem,) = found.problems
        assert str(problem).startswith(rf"{tmp_path}/\udcff.")
        assert "lies outside of the image" in str(problem)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("\udcff", "not JSON"),
        ("[]", "expected COCO's object with the lists images and annotations; a list of results names no files"),
        ("{}", "expected COCO's object with the lists images and annotations"),
        ('{"images": {}, "annotations": []}', "expected COCO's object with the lists images and annotations"),
        ('{"images": [], "annotations": []}', "no annotations"),
    ],
)
def test_what_is_no_coco_is_one_line(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "b.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(DataError) as refused:
        read_box_file(tmp_path / "b.json", [TRAIN])
    assert str(refused.value).startswith(f"{tmp_path}/b.json: {said}")
    assert len(str(refused.value).splitlines()) == 1


ODD = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 120), st.floats(), st.text(max_size=4),
    st.lists(st.integers(), max_size=2),
    st.sampled_from([7, "8", 1e400, -(10**30), "train/robin/1.jpg", "2.jpg", "\ud800"]),
)  # fmt: skip
NAME = st.sampled_from(["id", "file_name", "image_id", "bbox", "score"])
ENTRY = st.one_of(ODD, st.dictionaries(NAME, st.one_of(ODD, st.lists(ODD, min_size=4, max_size=4)), max_size=5))
CELL = st.one_of(
    st.text(max_size=5), st.sampled_from(["2.jpg", "1", "nan", "1e999", '"', ",", "\n", "-0", "40", "\u0661"])
)


def one_line(error: DataError) -> None:
    assert len(str(error).splitlines()) == 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("drawn")


def sound(found: BoxFile) -> None:
    for image_id, box in found.boxes.items():
        assert image_id in (*TRAIN.split.image_ids, *TEST.split.image_ids)
        x1, y1, x2, y2 = box.tolist()
        assert 0 <= x1 < x2 <= 100
        assert 0 <= y1 < y2 <= 50
    for problem in (*found.problems, *found.unknown):
        assert str(problem).isprintable()


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(found=st.lists(ENTRY, max_size=3), annotations=st.lists(ENTRY, min_size=1, max_size=4))
def test_any_json_gives_sound_boxes_or_one_line(folder: Path, found: Any, annotations: Any) -> None:
    try:
        sound(coco(folder, {"images": [*IMAGES, *found], "annotations": annotations}))
    except DataError as error:
        one_line(error)


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(rows=st.lists(st.lists(CELL, min_size=6, max_size=6), max_size=4))
def test_any_csv_gives_sound_boxes_or_one_line(folder: Path, rows: list[list[str]]) -> None:
    text = "\n".join(",".join(row) for row in [["image", "x1", "y1", "x2", "y2", "score"], *rows])
    (folder / "b.csv").write_bytes(text.encode(errors="surrogateescape"))
    try:
        sound(read_box_file(folder / "b.csv", [TRAIN, TEST]))
    except DataError as error:
        one_line(error)
