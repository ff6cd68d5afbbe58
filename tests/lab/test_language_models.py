"""Language models and encoders against slow twins: what they write, how it is scored, and their curvature."""

import pytest
import torch
from torch import nn
from torch.nn import functional

import flatmin as fm
from flatmin_lab.data.corpora import CORPORA, Corpus
from flatmin_lab.data.sentences import CLASSIFICATIONS
from flatmin_lab.errors import WeightsError
from flatmin_lab.models.encoder import small_bert
from flatmin_lab.models.language import IGNORED, pretrained_gpt, small_gpt, token_cross_entropy
from text_archives import bert_folder, gpt_folder

TOY = CORPORA["sums", "toy"]


def seeded(make, scale=8.0):
    """A network with large weights, whose likeliest tokens are not all the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(scale)
    return model.eval()


def written_slowly(model, prompt, most, end):
    """One prompt, without padding or cache."""
    tokens = prompt
    while len(tokens) < len(prompt) + most and (len(tokens) == len(prompt) or tokens[-1] != end):
        tokens = torch.cat([tokens, model(tokens[None])[0, -1].argmax()[None]])
    return tokens[len(prompt) :]


def test_prompts_of_several_lengths_are_continued_as_each_alone():
    model = seeded(lambda: small_gpt(40, 24, width=32, layers=2))
    g = torch.Generator().manual_seed(0)
    prompts = [torch.randint(1, 40, (length,), generator=g) for length in (2, 7, 4, 11)]
    before = torch.random.get_rng_state()
    written = model.written(prompts, most=12, end=0)
    assert torch.equal(before, torch.random.get_rng_state())
    assert written.unique().numel() > 5
    for prompt, row in zip(prompts, written):
        slow = written_slowly(model, prompt, 12, end=0)
        assert torch.equal(row[: len(slow)], slow)
        assert not row[len(slow) :].any()


def test_writing_ends_with_the_end():
    model = seeded(lambda: small_gpt(40, 24, width=32, layers=2))
    prompt = torch.tensor([3, 5])
    first = int(model(prompt[None])[0, -1].argmax())
    assert model.written([prompt], most=12, end=first).tolist() == [[first]]


def test_the_score_is_the_mean_over_tokens_and_the_share_of_right_answers():
    corpus = Corpus("sums", 6, 20, 30, 30, 30, 20, vocabulary=280, width=32, layers=1)
    split, tokenizer = corpus.splits(0).train, corpus.tokenizer()
    model = seeded(corpus.network)
    loss, hits = corpus.score(model, split, 7)
    each = []
    for inputs, targets in zip(split.inputs[:20], split.targets[:20]):
        logs = model(inputs[None])[0].log_softmax(dim=1).detach()
        each += [-float(logs[i, t]) for i, t in enumerate(targets.tolist()) if t != IGNORED]
    assert loss == pytest.approx(sum(each) / len(each), rel=1e-5)
    assert hits == 0.0

    class Knowing(nn.Module):
        """Reasons badly and is done only where there is a 3, but answers every sum rightly that has no 7 in it."""

        def __init__(self):
            super().__init__()
            self.asked = []

        def forward(self, tokens):
            return torch.zeros(*tokens.shape, 280)

        def written(self, prompts, *, most, end):
            self.asked.append((len(prompts), most))
            return nn.utils.rnn.pad_sequence(
                [self.one(tokenizer.decode(p.tolist()))[:most] for p in prompts], batch_first=True, padding_value=end
            )

        def one(self, prompt):
            question, _, rationale = prompt.partition(" ###")
            answer = f" {0 if '7' in question else eval(question)}{tokenizer.eos_token}"
            start = "" if rationale.endswith("-->") else " hm -->"
            text = start + answer if start == "" or "3" in question else " hm hm hm" + tokenizer.eos_token
            return torch.tensor(tokenizer(text)["input_ids"])

    model = Knowing()
    loss, hits = corpus.score(model, split, 20)
    questions = [tokenizer.decode(row.tolist()).partition(" ###")[0] for row in split.inputs[:20]]
    expected = sum("7" not in question for question in questions)
    assert 0 < expected < 20
    assert hits == expected / 20
    assert loss == pytest.approx(torch.tensor(280.0).log().item(), rel=1e-6)
    undecided = sum("3" not in question for question in questions)
    assert [count for count, _ in model.asked] == [20, undecided]


def test_what_fills_a_sequence_up_is_seen_by_nothing_that_is_learnt():
    split = TOY.splits(0).train[:4]
    model = seeded(TOY.network)
    last = int((split.targets != IGNORED).nonzero()[:, 1].max())
    other = split.inputs.clone()
    for row, targets in zip(other, split.targets):
        row[int((targets != IGNORED).nonzero().max()) + 1 :] = 5
    assert not torch.equal(other, split.inputs)
    assert last < split.inputs.shape[1]
    loss = token_cross_entropy(model(split.inputs), split.targets)
    assert torch.equal(token_cross_entropy(model(other), split.targets), loss)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_is_that_of_the_tokens_learnt(smoothing):
    g = torch.Generator().manual_seed(0)
    logits, targets = torch.randn(3, 5, 7, generator=g), torch.randint(0, 7, (3, 5), generator=g)
    learnt = torch.rand(3, 5, generator=g) < 0.6
    loss = token_cross_entropy(logits, targets.where(learnt, IGNORED), label_smoothing=smoothing)
    expected = functional.cross_entropy(logits[learnt], targets[learnt], label_smoothing=smoothing)
    torch.testing.assert_close(loss, expected)


def gradient(model, loss, inputs, targets):
    out = loss(model(*inputs), targets)
    return torch.cat([g.flatten() for g in torch.autograd.grad(out, list(model.parameters()))])


@pytest.mark.parametrize("kind", ["language model", "encoder"])
def test_their_hessian_is_that_of_central_differences(kind):
    if kind == "encoder":
        model = seeded(lambda: small_bert(300, 16, width=16, layers=1), 3.0).double()
        split, loss = CLASSIFICATIONS["turns", "toy"].splits(0).train[:6], functional.cross_entropy
        inputs, given = split.inputs, split.inputs
    else:
        model = seeded(lambda: small_gpt(280, 26, width=32, layers=1), 3.0).double()
        split, loss = TOY.splits(0).train[:6], token_cross_entropy
        inputs, given = (split.inputs,), split.inputs
    parameters = list(model.parameters())
    H = fm.Hessian(model, loss, [(given, split.targets)])
    v = torch.randn(sum(p.numel() for p in parameters), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    v /= v.norm()

    def shifted(by):
        with torch.no_grad():
            for parameter, piece in zip(parameters, v.split([p.numel() for p in parameters])):
                parameter.add_(by * piece.view_as(parameter))
        return gradient(model, loss, inputs, split.targets)

    eps = 1e-4
    product = H @ v
    up = shifted(eps)
    difference = (up - shifted(-2 * eps)) / (2 * eps)
    torch.testing.assert_close(product, difference, rtol=1e-5, atol=1e-6 * float(difference.abs().max()))


def test_a_folder_is_the_model_that_was_saved(tmp_path):
    model = pretrained_gpt(gpt_folder(tmp_path))
    tokens = torch.tensor([[3, 4, 5]])
    import transformers

    saved = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "gpt2").eval()
    torch.testing.assert_close(model.eval()(tokens), saved(tokens).logits)
    with pytest.raises(WeightsError, match=r"minilm lacks .*which AutoModelForCausalLM would draw at random.*another"):
        pretrained_gpt(bert_folder(tmp_path))
    with pytest.raises(WeightsError, match=r"nowhere cannot be loaded by AutoModelForCausalLM"):
        pretrained_gpt(tmp_path / "nowhere")


def test_a_small_model_learns_to_add_in_seconds():
    """Not a claim about training: that data, loss, network and score belong together, to the last question."""
    corpus = Corpus("sums", 6, 20, 8, 8, 8, vocabulary=280, width=32, layers=1)
    split = corpus.splits(0).train
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = corpus.network()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        for _ in range(150):
            optimizer.zero_grad()
            token_cross_entropy(model(split.inputs), split.targets).backward()
            optimizer.step()
    loss, hits = corpus.score(model.eval(), split, 8)
    assert hits == 1.0  # eight sums by heart
    assert loss < 0.05
