"""What a network answers to stored samples: nothing of the network changes by being asked."""

from __future__ import annotations

import torch
from toys import Net, blobs

from sparcl.methods.respond import classifier, features_of, logits_of


def test_answers_and_features_come_from_the_network_in_evaluation_mode() -> None:
    task = blobs(per_class=200, flip=True)[0]  # more than one batch of answers, and an augmentation to leave out
    model = Net(dropout=0.5)
    model.norm2.eval()
    buffers = [b.clone() for b in model.buffers()]
    cpu = torch.device("cpu")
    logits, features = logits_of(model, task.train.inputs, task, cpu), features_of(model, task.train.inputs, task, cpu)
    assert model.training
    assert not model.norm2.training
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), buffers, strict=True))
    assert not any(module._forward_pre_hooks for module in model.modules())
    model.eval()
    torch.testing.assert_close(logits, model(task.train.inputs).detach())
    torch.testing.assert_close(features.norm(dim=1), torch.ones(len(features)))
    rest = model.classifier(features) - model.classifier.bias  # the classifier is linear: features up to their length
    ratio = (logits - model.classifier.bias.detach()) / rest.detach()
    torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio), rtol=1e-2, atol=1e-3)
    assert classifier(model) is model.classifier
