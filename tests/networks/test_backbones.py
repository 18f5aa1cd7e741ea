"""Feature extractors: shapes, arithmetic of a block, and behaviour under vmap."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from pyro_smat.networks import Conv4, build_network, feature_dim

TINY_VIT = {"image_size": 32, "patch_size": 8, "num_layers": 1, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 24}


def test_glyph_network_has_the_size_that_the_checkpoints_need():
    network = Conv4(1, 32, 32, stem="stride")
    # 5x5 and three 3x3 convolutions with biases, and two numbers a channel for each of four normalisations
    assert sum(p.numel() for p in network.parameters()) == (25 * 32 + 32) + 3 * (9 * 32 * 32 + 32) + 4 * 64
    assert network.feature_dim == 128


@pytest.mark.parametrize("stem", ["pool", "stride"])
@pytest.mark.parametrize("image_size", [16, 28, 32, 33, 47, 64])
def test_conv4_feature_dim_matches_its_output(stem, image_size):
    network = Conv4(3, 8, image_size, stem=stem)
    assert network(torch.rand(2, 3, image_size, image_size)).shape == (2, network.feature_dim)


def test_conv4_equals_its_definition_in_functional_calls():
    torch.manual_seed(0)
    network = Conv4(1, 16, 32, stem="stride")
    images = torch.rand(3, 1, 32, 32)
    hidden = images
    for number in range(4):
        convolution, norm = network.blocks[number][0], network.blocks[number][1]
        hidden = F.conv2d(
            hidden, convolution.weight, convolution.bias, 2 if number == 0 else 1, 2 if number == 0 else 1
        )
        grouped = hidden.reshape(3, 2, -1)  # 16 channels in groups of 8
        centred = grouped - grouped.mean(-1, keepdim=True)
        grouped = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        hidden = grouped.reshape(hidden.shape) * norm.weight[:, None, None] + norm.bias[:, None, None]
        hidden = hidden.clamp(min=0)
        if number > 0:
            hidden = F.max_pool2d(hidden, 2)
    torch.testing.assert_close(network(images), hidden.flatten(1), atol=1e-5, rtol=1e-5)


def test_features_of_an_image_do_not_depend_on_the_other_images():
    network = Conv4().train()
    images = torch.rand(6, 1, 32, 32)
    torch.testing.assert_close(network(images)[2:3], network(images[2:3]), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "options", "shape"),
    [
        ("conv4", {"channels": 8, "stem": "stride"}, (1, 32, 32)),
        ("conv4", {"channels": 8}, (1, 32, 32)),
        ("vit", TINY_VIT, (3, 32, 32)),
        ("resnet18", {}, (3, 32, 32)),
        ("mobilenet_v2", {}, (3, 32, 32)),
    ],
)
def test_networks_run_under_vmap_as_they_do_one_by_one(name, options, shape, monkeypatch):
    monkeypatch.setattr(torch.backends.mha, "_is_fastpath_enabled", False)
    torch.manual_seed(0)
    networks = [build_network(name, **options).eval() for _ in range(2)]
    images = torch.rand(2, 2, *shape)
    parameters, buffers = stack_module_state(networks)
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no batching rule
        together = vmap(lambda p, b, x: functional_call(networks[0], (p, b), (x,)))(parameters, buffers, images)
    alone = torch.stack([network(x) for network, x in zip(networks, images, strict=True)])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)
    assert together.shape[-1] == feature_dim(networks[0], shape)


@pytest.mark.parametrize(("name", "features"), [("mobilenet_v2", 1280), ("resnet18", 512)])
def test_torchvision_networks_give_their_documented_features(name, features):
    network = build_network(name).train()
    buffers = {key: value.clone() for key, value in network.named_buffers()}
    assert feature_dim(network, (3, 32, 32)) == features
    assert network.training
    for key, value in network.named_buffers():
        assert torch.equal(value, buffers[key]), key


def test_vit_b_16_takes_torchvision_weights_by_name():
    with torch.device("meta"):
        from torchvision.models import vit_b_16

        ours, theirs = build_network("vit_b_16"), vit_b_16()
    names = {key for key in theirs.state_dict() if not key.startswith("heads.")}
    assert set(ours.state_dict()) == names


def test_feature_dim_refuses_maps_and_leaves_the_mode_alone():
    network = nn.Conv2d(1, 4, 3)
    with pytest.raises(ValueError, match=r"Conv2d makes \(1, 4, 30, 30\).*expected \(1, f\)"):
        feature_dim(network, (1, 32, 32))
    assert network.training


def test_unknown_names_and_options_are_refused_by_name():
    with pytest.raises(ValueError, match=r"'conv5'; did you mean 'conv4'.* mobilenet_v2, .*resnet18, timm, "):
        build_network("conv5")
    with pytest.raises(ValueError, match=r"'conv4'.*'widht'"):
        build_network("conv4", widht=3)
    with pytest.raises(ValueError, match="stem: Input should be 'pool' or 'stride'"):
        build_network("conv4", stem="slow")
    with pytest.raises(ValueError, match="stem is 'slow'; expected 'pool' or 'stride'"):
        Conv4(stem="slow")
    with pytest.raises(ValueError, match="image_size is 8"):
        Conv4(image_size=8)
    with pytest.raises(ValueError, match="channels is 12"):
        Conv4(channels=12)
