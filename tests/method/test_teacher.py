"""The teacher (Eq. 7) against the closed form of a moving average."""

import pytest
import torch
from torch import nn

from lchp.method.pseudo_boxes import make_teacher, update_teacher


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5))


def test_a_teacher_starts_as_the_student_without_gradients_and_in_eval_mode() -> None:
    student = network().train()
    teacher = make_teacher(student)
    assert not any(m.training for m in teacher.modules())
    assert all(m.training for m in student.modules())
    assert not any(p.requires_grad for p in teacher.parameters())
    assert all(p.requires_grad for p in student.parameters())
    for mine, other in zip(teacher.parameters(), student.parameters(), strict=True):
        assert torch.equal(mine, other)
        assert mine.data_ptr() != other.data_ptr()


@pytest.mark.parametrize("steps", [1, 5, 40])
def test_weights_follow_the_closed_form(steps) -> None:
    """Toward a student that stands still the distance falls as beta^k."""
    student, beta = network(), 0.9
    teacher = make_teacher(student)
    with torch.no_grad():
        for p in student.parameters():
            p.add_(1.0)
    start = [p.clone() for p in teacher.parameters()]
    for _ in range(steps):
        update_teacher(teacher, student, beta)
    for mine, other, first in zip(teacher.parameters(), student.parameters(), start, strict=True):
        torch.testing.assert_close(mine, beta**steps * first + (1 - beta**steps) * other)


def test_a_moving_student_is_averaged_in_order() -> None:
    student, beta = network(), 0.8
    teacher = make_teacher(student)
    bias = student.get_parameter("0.bias")
    expected = teacher.get_parameter("0.bias").clone()
    for value in (1.0, -2.0, 5.0):
        with torch.no_grad():
            bias.fill_(value)
        update_teacher(teacher, student, beta)
        expected = beta * expected + (1 - beta) * value
    torch.testing.assert_close(teacher.get_parameter("0.bias"), expected)


def test_buffers_are_copied_or_averaged() -> None:
    student = network()
    copied, averaged = make_teacher(student), make_teacher(student)
    student.train()(torch.randn(8, 3, 6, 6) * 3 + 2)
    update_teacher(copied, student, 0.9, "copied")
    update_teacher(averaged, student, 0.9, "averaged")
    mean = student.get_buffer("1.running_mean")
    assert mean.abs().max() > 0
    assert torch.equal(copied.get_buffer("1.running_mean"), mean)
    torch.testing.assert_close(averaged.get_buffer("1.running_mean"), 0.1 * mean)
    torch.testing.assert_close(averaged.get_buffer("1.running_var"), 0.9 + 0.1 * student.get_buffer("1.running_var"))
    # a count has no average
    assert averaged.get_buffer("1.num_batches_tracked") == student.get_buffer("1.num_batches_tracked") == 1


def test_all_buffers_are_taken_at_once_and_none_is_no_fault(monkeypatch) -> None:
    """A kernel for each buffer is some 300 of them for a ResNet."""
    monkeypatch.setattr(torch.Tensor, "copy_", None)
    monkeypatch.setattr(torch.Tensor, "lerp_", None)
    for student in (network(), nn.Conv2d(3, 4, 3)):
        for buffers in ("copied", "averaged"):
            update_teacher(make_teacher(student), student, 0.9, buffers)
