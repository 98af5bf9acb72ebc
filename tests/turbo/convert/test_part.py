"""A part of a published model: what its network shares, and with whom."""

import torch

from tests.support.tiny_models import make_unet
from turbo.convert.unet import modelscope_part


def test_networks_from_one_part_share_nothing():
    published = make_unet().state_dict()
    part = modelscope_part(make_unet(seed=1))
    before = published["conv_in.weight"].clone()

    teacher, student = part.filled(published), part.filled(published)
    student.conv_in.weight.data += 1

    assert teacher is not student
    assert torch.equal(teacher.conv_in.weight, before)
    assert torch.equal(published["conv_in.weight"], before)


def test_tensors_are_shared_on_request():
    published = make_unet().state_dict()

    network = modelscope_part(make_unet(seed=1)).filled(published, share=True)

    assert network.conv_in.weight.data_ptr() == published["conv_in.weight"].data_ptr()
