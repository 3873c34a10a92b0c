"""The layouts of the published data sets around a few made-up images."""

from pathlib import Path

from PIL import Image


def picture(path: Path, width: int = 64, height: int = 64) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), (200, 100, 50)).save(path)
    return path


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def make_cub(root: Path) -> Path:
    """Images 2, 4, 6, 8 of the classes 5 (odd halves) and 10, one training and one test image each."""
    rows = [(2, 5, 1), (4, 5, 0), (6, 10, 1), (8, 10, 0)]
    for image_id, class_id, _ in rows:
        picture(root / "images" / f"{class_id:03}.A bird" / f"im {image_id}.jpg")
    write(root / "images.txt", "".join(f"{i} {c:03}.A bird/im {i}.jpg\n" for i, c, _ in rows))
    write(root / "image_class_labels.txt", "".join(f"{i} {c}\n" for i, c, _ in rows))
    write(root / "train_test_split.txt", "".join(f"{i} {t}\n" for i, _, t in rows))
    write(root / "bounding_boxes.txt", "".join(f"{i} 1.5 2 30 {i}\n" for i, _, _ in rows))
    write(root / "classes.txt", "10 010.A bird\n5 005.A bird\n")
    return root


def make_tiny(root: Path) -> Path:
    """Two training and two test images of each of the classes n1 and n2, of one name; n3 has none."""
    write(root / "wnids.txt", "n2\nn1\nn3\n")
    write(root / "words.txt", "n1\tcrane\nn2\tcrane\nn9\tother\n")
    lines = []
    for wnid in ("n1", "n2"):
        for i in range(2):
            picture(root / "train" / wnid / "images" / f"{wnid}_{i}.JPEG")
            picture(root / "val" / "images" / f"val {wnid}{i}.JPEG")
            lines.append(f"val {wnid}{i}.JPEG\t{wnid}\t0\t{i}\t63\t63\n")
        write(root / "train" / wnid / f"{wnid}_boxes.txt", f"{wnid}_0.JPEG\t5\t6\t5\t63\n{wnid}_1.JPEG\t0\t0\t63\t63\n")
    write(root / "val" / "val_annotations.txt", "".join(lines))
    return root


def annotation(objects: list[tuple[str, int, int, int, int]], width: int = 64, height: int = 64) -> str:
    items = "".join(
        f"<object><name>{n}</name><bndbox><xmin>{a}</xmin><ymin>{b}</ymin><xmax>{c}</xmax><ymax>{d}</ymax></bndbox></object>"
        for n, a, b, c, d in objects
    )
    return f"<annotation><size><width>{width}</width><height>{height}</height></size>{items}</annotation>"


def make_imagenet(root: Path) -> Path:
    """As Kaggle packs it: the lists lie beside ILSVRC/."""
    images = root / "ILSVRC" / "Data" / "CLS-LOC"
    boxes = root / "ILSVRC" / "Annotations" / "CLS-LOC" / "val"
    lines = ["ImageId,PredictionString"]
    for wnid in ("n1", "n2"):
        picture(images / "train" / wnid / f"{wnid}_1.JPEG")
        picture(images / "val" / f"val_{wnid}.JPEG")
        write(boxes / f"val_{wnid}.xml", annotation([(wnid, 0, 1, 63, 62), (wnid, 10, 10, 64, 20)]))
        lines.append(f"val_{wnid},{wnid} 0 1 63 62 {wnid} 10 10 64 20 ")
    lines.append("val_other,n999 1 2 3 4 ")  # of a class that this copy lacks
    write(root / "LOC_val_solution.csv", "\n".join(lines) + "\n")
    write(root / "LOC_synset_mapping.txt", "n1 crane\nn2 crane\nn999 other\n")
    return root
