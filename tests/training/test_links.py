"""Links: stage 1 in two trainings is bitwise the joint one, and labels made once are those made on the way."""

from pathlib import Path
from typing import Any

import pytest
import torch
from squares import small_config, write_images

from lchp.config import TrainConfig
from lchp.method.losses import classification_loss
from lchp.method.pseudo_boxes import make_teacher, update_teacher
from lchp.method.steps import pseudo_boxes
from lchp.training.batches import epoch_order, general_batches
from lchp.training.chain import chain_of
from lchp.training.context import open_context
from lchp.training.definition import epoch_seed, make_schedule
from lchp.training.networks import build
from lchp.training.run import train


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"))


def modules(run: Path, stage: str) -> dict[str, Any]:
    return torch.load(run / "checkpoints" / f"{stage}.pt", weights_only=True)["modules"]


def jointly(config: TrainConfig) -> dict[str, dict[str, torch.Tensor]]:
    """Stage 1 as Algorithm 1 has it: one loss, L_init = L_cls + alpha L_reg (Eq. 3), for both networks at once."""
    context, first = open_context(config, show_progress=False), config.initialization
    nets = build(chain_of(config, ""), len(context.dataset.class_names), context.device)
    theta_1, loc = nets.classifier.train(), nets.localizer.train()
    theta_2 = make_teacher(theta_1)
    steps = len(epoch_order(context, torch.Generator()))
    optimizers, schedules = [], []
    for net, lr, kind in ((theta_1, first.lr, first.schedule), (loc, first.localizer_lr, first.localizer_schedule)):
        optimizers.append(torch.optim.SGD(net.parameters(), lr, first.momentum, weight_decay=first.weight_decay))
        options = {"decay": first.lr_decay, "epochs": first.epochs, "steps_per_epoch": steps}
        schedules.append(make_schedule(optimizers[-1], kind, **options))
    for epoch in range(first.epochs):
        torch.manual_seed(epoch_seed(config.seed, "initialization", epoch))
        generator = torch.Generator().manual_seed(epoch_seed(config.seed, "initialization", epoch))
        for batch in general_batches(context, generator):
            pseudo = pseudo_boxes(theta_2, batch.images, first)
            logits = theta_1(torch.cat([batch.images, pseudo.masked])).logits
            raw, masked = logits.chunk(2)
            loss = classification_loss(raw, masked, batch.labels)  # Eq. 2
            if epoch >= first.localizer_start:
                loss = loss + first.alpha * (loc(batch.images) - pseudo.box).square().sum(1).mean()  # Eq. 3
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            update_teacher(theta_2, theta_1, first.beta, first.teacher_buffers)  # Eq. 7
            for schedule in schedules:
                if schedule.per_step:
                    schedule.scheduler.step()
        for schedule in schedules:
            if not schedule.per_step:
                schedule.scheduler.step()
    return {"classifier": theta_1.state_dict(), "teacher": theta_2.state_dict(), "localizer": loc.state_dict()}


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"initialization.schedule": "onecycle", "initialization.localizer_schedule": "onecycle"},
        {"initialization.localizer_schedule": "exponential", "initialization.localizer_start": 1},
        {"initialization.localizer_schedule": "onecycle", "initialization.localizer_start": 2},
        {"initialization.boxes": "single", "initialization.teacher_buffers": "averaged", "initialization.beta": 0.5},
    ],
    ids=lambda v: ",".join(f"{k.split('.')[-1]}={x}" for k, x in v.items()) or "recipe",
)
def test_two_links_give_bitwise_the_weights_of_the_joint_training(root: Path, tmp_path: Path, values) -> None:
    config = small_config(root, {"threads": 1, "initialization.epochs": 3, "initialization.alpha": 3.0} | values)
    expected = jointly(config)
    run = train(config, output=tmp_path / "run", stage="init").run
    found = modules(run, "initialization") | modules(run, "regression")
    for name, state in expected.items():
        assert state.keys() == found[name].keys()
        for key, value in state.items():
            assert torch.equal(value, found[name][key]), f"{name}.{key}"


@pytest.mark.parametrize("values", [{}, {"refinement.scheme": "uda"}, {"refinement.scheme": "anchoring"}], ids=str)
def test_labels_made_once_are_those_made_on_the_way(root: Path, tmp_path: Path, values, monkeypatch) -> None:
    """A frozen labeller that labels as it goes, as another one has to, gives bitwise the same weights."""
    from lchp.training import chain, links

    config = small_config(root, {"threads": 1, "refinement.labeller": "frozen"} | values)
    once = train(config, output=tmp_path / "once").run
    assert (once / "checkpoints" / "labels.pt").is_file()
    kinds = chain.kinds_of(config)
    monkeypatch.setattr(chain, "kinds_of", lambda _: tuple(k for k in kinds if k != "labels"))
    monkeypatch.setattr(chain, "_chain", chain._chain.__wrapped__)  # not the chain that it remembers
    of = links.label_views
    frozen: list[Any] = []

    def label(labeller: Any, *rest: Any) -> Any:
        frozen.append(frozen[0] if frozen else make_teacher(labeller))
        return of(frozen[0], *rest)

    monkeypatch.setattr(links, "label_views", label)
    on_the_way = train(config, output=tmp_path / "way").run
    assert not (on_the_way / "checkpoints" / "labels.pt").exists()
    a, b = (modules(run, "refinement")["localizer"] for run in (once, on_the_way))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert (once / "predictions.parquet").read_bytes() == (on_the_way / "predictions.parquet").read_bytes()
