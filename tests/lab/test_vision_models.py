"""Networks for images, and pairs of towers: their parameters counted, their formulas written out, their curvature."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from curvature_cases import dense_hessian
from flatmin.curvature import Hessian, top_eigenvalues, trace
from flatmin.errors import ArgumentError, DataError
from flatmin.measures import perturbation_gap
from flatmin_lab.data.captions import DIGITS, captioned_digits
from flatmin_lab.data.splits import Split
from flatmin_lab.data.tokens import Vocabulary
from flatmin_lab.errors import WeightsError
from flatmin_lab.models import clip
from flatmin_lab.models.pixels import CIFAR, IMAGENET, Pixels
from flatmin_lab.models.pretrained import FILES, resnet34, vit
from flatmin_lab.models.resnet_gn import ResNetGN
from flatmin_lab.models.retrieval import recall, retrieval


def count(model):
    return sum(p.numel() for p in model.parameters())


def seeded(make, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# Bytes


def test_bytes_are_standardised_and_other_images_are_not():
    images = torch.randint(256, (2, 3, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    found = Pixels(nn.Identity(), *CIFAR)(images)
    for c in range(3):
        expected = (images[:, c].double() / 255 - CIFAR[0][c]) / CIFAR[1][c]
        torch.testing.assert_close(found[:, c].double(), expected, rtol=1e-5, atol=1e-6)
    assert Pixels(nn.Identity(), *CIFAR)(found) is found
    assert Pixels(nn.Identity(), *CIFAR).double()(images).dtype == torch.float64


@pytest.mark.parametrize("pixels", [14, 4])
def test_images_are_scaled_as_pillow_does(pixels):
    from PIL import Image

    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    scaled = np.asarray(Image.fromarray(image).resize((pixels, pixels), Image.Resampling.BILINEAR)).astype(float)
    found = Pixels(nn.Identity(), (0, 0, 0), (1, 1, 1), pixels=pixels)(torch.tensor(image).permute(2, 0, 1)[None])[0]
    assert np.abs(found.permute(1, 2, 0).numpy() * 255 - scaled).max() < 1.5  # it rounds after rows and after columns


def test_its_constants_are_no_weights():
    wrapped = Pixels(nn.Linear(1, 1), *IMAGENET)
    assert set(wrapped.state_dict()) == {"network.weight", "network.bias"}
    image, other = torch.zeros(1, 3, 2, 2), torch.ones(1)
    assert Pixels(_Sum(), *IMAGENET)(image, other).item() == 1


class _Sum(nn.Module):
    def forward(self, images, other):
        return images.sum() + other.sum()


# Networks with logits


def twin_gn(model, x, in_group):
    """The formulas, with group norm written out."""

    def norm(layer, x):
        n, c, h, w = x.shape
        g = x.view(n, c // in_group, -1)
        mean, var = g.mean(2, keepdim=True), g.var(2, keepdim=True, unbiased=False)
        y = ((g - mean) / (var + 1e-5).sqrt()).view(n, c, h, w)
        return y * layer.weight.view(1, -1, 1, 1) + layer.bias.view(1, -1, 1, 1)

    x = norm(model.norm1, functional.conv2d(x, model.conv1.weight, padding=1)).relu()
    for stage, blocks in enumerate((model.layer1, model.layer2, model.layer3, model.layer4)):
        for i, block in enumerate(blocks):
            stride = 2 if stage and not i else 1
            y = norm(block.norm1, functional.conv2d(x, block.conv1.weight, stride=stride, padding=1)).relu()
            y = norm(block.norm2, functional.conv2d(y, block.conv2.weight, padding=1))
            if stage and not i:
                x = norm(block.shortcut[1], functional.conv2d(x, block.shortcut[0].weight, stride=2))
            x = (x + y).relu()
    return x.mean((2, 3)) @ model.linear.weight.T + model.linear.bias


def test_resnet_gn_is_its_literal_twin():
    model = seeded(lambda: ResNetGN(7, width=8, in_group=4)).double()
    for i, parameter in enumerate(model.parameters()):
        parameter.data.add_(0.1 * noise(*parameter.shape, seed=i).double())
    x = noise(2, 3, 16, 16).double()
    torch.testing.assert_close(model(x), twin_gn(model, x, in_group=4))
    assert torch.equal(model(x), model.eval()(x))  # no running statistics


def test_resnet_gn_has_the_parameters_of_resnet18_with_a_small_first_convolution():
    # The count of torchvision's ResNet-18, less what its head of 1000 and its first 7 x 7 convolution have more.
    assert count(ResNetGN()) == 11_689_512 - 990 * 513 - 3 * 64 * (49 - 9)
    norms = [m for m in ResNetGN().modules() if isinstance(m, nn.GroupNorm)]
    assert len(norms) == 20
    assert all(m.num_groups * 32 == m.num_channels for m in norms)


def test_resnet_gn_curvature_is_exact():
    model = seeded(lambda: ResNetGN(3, width=2, in_group=1)).double()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("layer4.1.norm" in name or "linear" in name)
    batches = [(noise(4, 3, 8, 8, seed=i).double(), torch.arange(4) % 3) for i in range(2)]
    exact = float(dense_hessian(model, functional.cross_entropy, batches).trace())
    found = trace(Hessian(model, functional.cross_entropy, batches), num_matvecs=100, seed=0)
    assert abs(found.value - exact) < 4 * found.stderr + 1e-9 * abs(exact)


def test_vit_has_the_parameters_of_its_formula():
    d, layers, tokens = 192, 6, 65
    block = 4 * (d * d + d) + 2 * 4 * d * d + 5 * d + 2 * 2 * d
    assert count(vit()) == (3 * 16 * d + d) + d + tokens * d + layers * block + 2 * d + 10 * (d + 1)
    assert count(vit(1000, pixels=224, patch=16, width=384, layers=12)) == 22_050_664  # ViT-S/16
    assert vit(5, layers=1)(noise(2, 3, 32, 32)).shape == (2, 5)


def small_resnet(root, classes=1000):
    transformers = pytest.importorskip("transformers")
    shape = transformers.ResNetConfig(
        embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic", num_labels=classes
    )
    model = seeded(lambda: transformers.ResNetForImageClassification(shape))
    transformers.utils.logging.disable_progress_bar()
    model.save_pretrained(root / "resnet-34")
    return model


@pytest.mark.parametrize("classes", [1000, 7])  # 7: the same size of head, which is then the folder's
def test_resnet34_keeps_all_but_the_head(tmp_path, classes):
    stored = small_resnet(tmp_path, classes)
    first, second = (seeded(lambda: resnet34(tmp_path, 7), seed) for seed in (0, 1))
    assert first.training
    assert first.pixels == 224
    found = first.network.network.state_dict()
    for name, tensor in stored.state_dict().items():
        if not name.startswith("classifier."):
            assert torch.equal(found[name], tensor)
    head, other = (model.network.network.classifier[1].weight for model in (first, second))
    assert head.shape == (7, 8)
    assert torch.equal(head, other) == (classes == 7)
    images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    assert first(images).shape == (2, 7)


def test_resnet34_of_transformers_has_the_parameters_of_torchvisions():
    transformers = pytest.importorskip("transformers")
    shape = transformers.ResNetConfig(
        embedding_size=64, hidden_sizes=[64, 128, 256, 512], depths=[3, 4, 6, 3], layer_type="basic", num_labels=1000
    )
    with torch.device("meta"):
        assert count(transformers.ResNetForImageClassification(shape)) == 21_797_672


def test_what_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"resnet-34/config\.json is missing.*hf download microsoft/resnet-34"):
        resnet34(tmp_path, 10)
    assert "resnet-34/config.json" in FILES
    small_resnet(tmp_path)
    with pytest.raises(ArgumentError, match="num_classes is 0"):
        resnet34(tmp_path, 0)
    (tmp_path / "resnet-34/model.safetensors").write_bytes(b"garbage")
    with pytest.raises(WeightsError, match=r"resnet-34 cannot be loaded by ResNetForImageClassification"):
        resnet34(tmp_path, 10)
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, tmp_path / "resnet-34/model.safetensors", {"format": "pt"})
    with pytest.raises(WeightsError, match=r"resnet-34 lacks resnet\..*another network"):
        resnet34(tmp_path, 10)
    with pytest.raises(ArgumentError, match="width is 100, and heads are 64 wide"):
        vit(width=100)
    with pytest.raises(ArgumentError, match="width is 48, which groups of 32 channels do not divide"):
        ResNetGN(width=48)


# Pairs of towers

TINY = clip.Shape(pixels=8, patch=8, width=4, image_layers=1, text_layers=1, heads=2, length=12, channels=1)


def pair(shape=TINY):
    return seeded(lambda: clip.ImageTextPair(shape, DIGITS.vocabulary)).double().eval()


def digits(n):
    split = captioned_digits(0).train[:n]
    return Split((split.inputs[0].double(), split.inputs[1]), split.targets)


def test_similarities_are_scaled_cosines():
    model, split = pair().requires_grad_(False), digits(6)
    u, v = model.image_features(split.inputs[0]), model.text_features(split.inputs[1])
    torch.testing.assert_close(u.norm(dim=1), torch.ones(6).double())
    expected = [[functional.cosine_similarity(a, b, dim=0) / 0.07 for b in v] for a in u]
    torch.testing.assert_close(model(*split.inputs), torch.tensor(expected).double())
    assert abs(float(model.scale) - 1 / 0.07) < 1e-5
    reference = model.towers(pixel_values=split.inputs[0], input_ids=split.inputs[1]).logits_per_image
    torch.testing.assert_close(model(*split.inputs), reference)


def test_a_pair_reads_bytes_where_it_is_told_how():
    read = Pixels(nn.Identity(), (0.5,), (0.25,))
    model = seeded(lambda: clip.ImageTextPair(TINY, DIGITS.vocabulary, read=read)).eval()
    images = torch.arange(64, dtype=torch.uint8).view(1, 1, 8, 8)
    assert torch.equal(model.image_features(images), model.image_features(read(images)))


@pytest.mark.parametrize("words", [["zero"], ["zero", "one", "two"]])  # of one word, the end has the number 2
def test_what_follows_the_end_of_a_text_does_not_count(words):
    tokens = Vocabulary(words)
    model = seeded(lambda: clip.ImageTextPair(TINY, tokens)).eval()
    texts = tokens.encode(["zero"], TINY.length)
    changed = texts.clone()
    changed[0, 5:] = 1
    assert torch.equal(model.text_features(texts), model.text_features(changed))
    changed[0, 1] = 0
    assert not torch.equal(model.text_features(texts), model.text_features(changed))


def test_pairs_have_the_parameters_of_their_formula():
    class Words:
        size, end = 49408, 49407

        def encode(self, texts, length):
            raise NotImplementedError

    d, layers = 384, 12
    block = 4 * (d * d + d) + 2 * 4 * d * d + 5 * d + 2 * 2 * d
    image = 3 * 16**2 * d + d + 197 * d + layers * block + 2 * 2 * d  # class token, places, norms before and after
    text = Words.size * d + 77 * d + layers * block + 2 * d
    with torch.device("meta"):
        assert count(clip.ImageTextPair(clip.VIT_S_16, Words())) == image + text + 2 * d * d + 1
    assert count(clip.ImageTextPair(clip.CIFAR, Vocabulary(["a"]))) < 300_000


def test_the_loss_is_its_literal_twin():
    z = 3 * noise(5, 5).double()
    p = z.exp()
    expected = -sum(math.log(p[i, i] / p[i].sum()) + math.log(p[i, i] / p[:, i].sum()) for i in range(5)) / 10
    assert abs(float(clip.contrastive(z, torch.zeros(5))) - expected) < 1e-12
    smooth = sum(
        -math.log(q[i, j] / q[i].sum()) * (0.8 * (i == j) + 0.2 / 5)
        for q in (p, p.T)
        for i in range(5)
        for j in range(5)
    )
    assert abs(float(clip.contrastive(z, torch.zeros(5), label_smoothing=0.2)) - smooth / 10) < 1e-12


class Given(nn.Module):
    """A pair whose features are the given ones, looked up by number."""

    def __init__(self, images, texts):
        super().__init__()
        self.images, self.texts, self.scale = images, texts, torch.tensor(2.0)

    def image_features(self, numbers):
        return self.images[numbers]

    def text_features(self, numbers):
        return self.texts[numbers[:, 0]]


@pytest.mark.parametrize("k", [1, 3, 50])
def test_recall_is_its_literal_twin(k):
    n, g = 40, torch.Generator().manual_seed(0)
    targets = torch.randint(0, 60, (n,), generator=g)
    texts = functional.normalize(noise(60, 6), dim=1)
    images = functional.normalize(texts[targets] + noise(n, 6, seed=1), dim=1)
    split = Split((torch.arange(n), targets.unsqueeze(1)), targets)
    found = recall(Given(images, texts), split, batch_size=7, k=k)
    kinds = sorted(set(targets.tolist()))
    to_text = to_image = 0
    for i in range(n):
        own = int(targets[i])
        to_text += own in sorted(kinds, key=lambda c: -float(images[i] @ texts[c]))[:k]
        best = sorted(range(n), key=lambda j: -float(images[j] @ texts[own]))[:k]
        to_image += any(int(targets[j]) == own for j in best)
    assert (found.image_to_text, found.text_to_image) == pytest.approx((to_text / n, to_image / n))
    assert found.by_chance == min(1, k / len(kinds))
    assert found.mean == pytest.approx((to_text + to_image) / 2 / n)
    with pytest.raises(ArgumentError, match="k is 0"):
        recall(Given(images, texts), split, 7, k=0)


def test_the_score_is_the_loss_over_batches_and_the_recall():
    model, split = pair().requires_grad_(False), digits(30)
    loss, share = retrieval(model, split, 12)
    pieces = [(len(piece), float(clip.contrastive(model(*piece.inputs), piece.targets))) for piece in split.pieces(12)]
    assert loss == pytest.approx(sum(n * value for n, value in pieces) / 30)
    assert share == recall(model, split, 5).mean


def test_curvature_of_a_pair_is_exact():
    """The loss of a batch is no mean over examples: whatever way to the trace is chosen has to know."""
    model = pair()
    batches = [(piece.inputs, piece.targets) for piece in digits(8).pieces(4)]
    for name, parameter in model.named_parameters():  # a network of many parts, a matrix of few rows
        parameter.requires_grad_("projection" in name or "fc1" in name or "logit_scale" in name)
    free = {name: p for name, p in model.named_parameters() if p.requires_grad}

    def mean_loss(flat):
        parts = flat.split([p.numel() for p in free.values()])
        weights = {name: part.view(p.shape) for (name, p), part in zip(free.items(), parts, strict=True)}
        losses = [clip.contrastive(torch.func.functional_call(model, weights, inputs), t) for inputs, t in batches]
        return sum(losses) / len(losses)

    start = torch.cat([p.detach().reshape(-1) for p in free.values()])
    exact = torch.autograd.functional.hessian(mean_loss, start)
    operator = Hessian(model, clip.contrastive, batches)
    estimate = trace(operator, num_matvecs=60, seed=0)
    assert abs(estimate.value - float(exact.trace())) < 4 * estimate.stderr
    largest = torch.linalg.eigvalsh(exact).abs().max()
    assert float(top_eigenvalues(operator, k=1, seed=0).values[0].abs()) == pytest.approx(float(largest), rel=1e-3)
    smoothed = perturbation_gap(model, clip.contrastive, batches, sigma=1e-3, num_samples=60, seed=0).trace
    assert abs(smoothed.value - float(exact.trace())) < 4 * smoothed.stderr
