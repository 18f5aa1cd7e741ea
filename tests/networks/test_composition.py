"""Composition against plain modules and explicit loops over tasks."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torchvision.models import VisionTransformer

from pyro_smat.networks import build_network
from pyro_smat.networks.composition import TaskNetwork, compose
from pyro_smat.networks.experts import ExpertBank
from pyro_smat.networks.parameters import ParameterSpace
from pyro_smat.sources import SourceLibrary


def torchvision_transformer() -> nn.Module:
    return VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=4, hidden_dim=32, mlp_dim=48, num_classes=6
    )


def tiny_transformer() -> nn.Module:
    return build_network("vit", image_size=16, patch_size=8, num_layers=1, num_heads=2, hidden_dim=16, mlp_dim=24)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int]]] = {
    "conv4": (lambda: build_network("conv4", channels=16, image_size=32), (1, 32, 32)),
    "resnet18": (lambda: build_network("resnet18"), (3, 32, 32)),
    "mobilenet_v2": (lambda: build_network("mobilenet_v2", width_mult=0.35), (3, 64, 64)),
    "torchvision transformer": (torchvision_transformer, (3, 32, 32)),
    "tiny transformer": (tiny_transformer, (3, 16, 16)),
}


def randomised(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    """A network in evaluation mode whose running statistics and zero-initialised weights are not trivial."""
    torch.manual_seed(seed)
    module = make().eval()
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if name.endswith("running_mean"):
                tensor.normal_(0, 0.2)
            elif name.endswith("running_var"):
                tensor.uniform_(0.5, 2.0)
            elif name.endswith("bias") or not tensor.any():
                tensor.normal_(0, 0.1) if tensor.is_floating_point() else None
    return module


@pytest.fixture(scope="module", params=list(NETWORKS))
def world(request: pytest.FixtureRequest) -> tuple[list[nn.Module], SourceLibrary, tuple[int, int, int]]:
    make, shape = NETWORKS[request.param]
    modules = [randomised(make, seed) for seed in range(2)]
    library = SourceLibrary.from_state_dicts(modules[0], {f"s{i}": m.state_dict() for i, m in enumerate(modules)})
    return modules, library, shape


def checksum(module: nn.Module) -> list[Tensor]:
    return [v.clone() for v in module.state_dict().values()]


def test_one_hot_coefficients_reproduce_every_source_bit_for_bit(
    world: tuple[list[nn.Module], SourceLibrary, tuple[int, int, int]],
) -> None:
    modules, library, shape = world
    space = library.space
    bank = ExpertBank(space, 2, granularity="tensor", delta_scale=1.0, generator=torch.Generator().manual_seed(0))
    basis = torch.cat([library.basis, bank.projected_rows().detach()])  # C = 4 > R = 2
    images = torch.randn(1, *shape, generator=torch.Generator().manual_seed(1))
    network = TaskNetwork(modules[0], space)
    batch = torch.stack([library.one_hot(r, experts=2) for r in (1, 0, 1)])
    thetas = compose(batch, basis)
    states = [module.state_dict() for module in modules]
    for theta, row in zip(thetas, (1, 0, 1), strict=True):
        for name, tensor in space.unflatten(theta).items():
            assert torch.equal(tensor, states[row][name]), name
    for row, module in enumerate(modules):
        theta = compose(library.one_hot(row, experts=2), basis)
        assert torch.equal(theta, space.flatten(module.state_dict()))
        with torch.no_grad():
            torch.backends.mha.set_fastpath_enabled(False)  # another kernel, other bits
            try:
                expected = module(images)
            finally:
                torch.backends.mha.set_fastpath_enabled(True)
            single = network(theta, images)
        attention = any(isinstance(part, nn.MultiheadAttention) for part in module.modules())
        assert torch.equal(single, expected) or attention  # attention: another kernel
        assert (single - expected).abs().max() <= 1e-6 * expected.abs().max()


def reference_loop(module: nn.Module, space: ParameterSpace, theta: Tensor, x: Tensor) -> Tensor:
    """One functional_call a task; PyTorch has no gradient in running statistics, so they are constants here."""
    frozen = {e.name for e in space.entries if not e.trainable}
    outputs = []
    for row, images in zip(theta, x, strict=True):
        weights, at = {}, 0
        for entry in space.entries:
            piece = row[at : at + entry.numel].reshape(entry.shape)
            weights[entry.name] = piece.detach() if entry.name in frozen else piece
            at += entry.numel
        outputs.append(functional_call(module, weights, (images,)))
    return torch.stack(outputs)


def test_forward_and_gradient_equal_a_loop_over_tasks(
    world: tuple[list[nn.Module], SourceLibrary, tuple[int, int, int]],
) -> None:
    modules, library, shape = world
    space = library.space
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(2, 2, generator=generator).softmax(-1)
    images = torch.randn(2, 2, *shape, generator=generator)
    theta = compose(weights, library.basis)
    before = checksum(modules[0])

    ours, loop = theta.clone().requires_grad_(), theta.clone().requires_grad_()
    network = TaskNetwork(modules[0], space)
    output = network(ours, images)
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        expected = reference_loop(modules[0], space, loop, images)
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    scale = expected.abs().max()
    assert (output - expected).abs().max() <= 1e-5 * scale
    with torch.no_grad():
        assert (network(ours, images) - expected).abs().max() <= 1e-5 * scale  # the kernels without gradient

    probe = torch.randn(expected.shape, generator=generator)
    (mine,) = torch.autograd.grad((output * probe).sum(), ours)
    (theirs,) = torch.autograd.grad((expected * probe).sum(), loop)
    where = space.trainable()
    for row in range(2):
        error = (mine[row] - theirs[row])[where].norm() / theirs[row][where].norm()
        assert error <= 1e-5
    assert all(torch.equal(a, b) for a, b in zip(before, checksum(modules[0]), strict=True))


def small_network() -> tuple[nn.Module, ParameterSpace]:
    torch.manual_seed(3)
    module = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5), nn.BatchNorm1d(5)
    )
    return module.eval(), ParameterSpace.from_module(module)


def positive_theta(module: nn.Module, space: ParameterSpace, leading: tuple[int, ...]) -> Tensor:
    """Perturbed weights of the module; variances stay positive."""
    theta = space.flatten(module.state_dict()).expand(*leading, -1).clone()
    noise = 0.3 * torch.randn(theta.shape, generator=torch.Generator().manual_seed(4))
    return torch.where(space.trainable(), theta + noise, theta * noise.exp() + 0.1 * noise.abs())


@pytest.mark.parametrize("leading", [(), (3,), (2, 3), (2, 1, 3)])
def test_any_leading_dims(leading: tuple[int, ...]) -> None:
    module, space = small_network()
    theta = positive_theta(module, space, leading)
    x = torch.randn(*leading, 6, 1, 4, 4)
    output = TaskNetwork(module, space)(theta, x)
    assert output.shape == (*leading, 6, 5)
    expected = reference_loop(module, space, theta.reshape(-1, space.dim), x.reshape(-1, 6, 1, 4, 4))
    torch.testing.assert_close(output.reshape(expected.shape), expected, rtol=1e-5, atol=1e-6)


def test_chunks_and_recomputation_change_neither_values_nor_gradients() -> None:
    module, space = small_network()
    theta = positive_theta(module, space, (2, 7)).double()
    x = torch.randn(2, 7, 6, 1, 4, 4, dtype=torch.float64)

    def run(**options: int | bool) -> tuple[Tensor, Tensor, list[int]]:
        network = TaskNetwork(module, space, **options)  # type: ignore[arg-type]
        sizes: list[int] = []
        inner = network._forward
        network._forward = lambda t, i: (sizes.append(len(t)), inner(t, i))[1]  # type: ignore[method-assign]
        leaf = theta.clone().requires_grad_()
        output = network(leaf, x)
        (gradient,) = torch.autograd.grad(output.square().sum(), leaf)
        return output, gradient, sizes

    plain, gradient, sizes = run(memory_limit=2**40)
    assert sizes == [14]
    per_task = TaskNetwork(module, space)._activation_bytes(theta.flatten(0, 1), x.flatten(0, 1)) * 6
    for options, expected_sizes in (
        ({"memory_limit": 1}, [1] * 14 + [1] * 14),  # every chunk again in the backward pass
        ({"memory_limit": 4 * per_task}, [4, 4, 4, 2] * 2),
        ({"memory_limit": 4 * per_task, "recompute": False}, [4, 4, 4, 2]),
        ({"memory_limit": 12 * per_task, "recompute": False}, [7, 7]),  # not 12 and 2
        ({"memory_limit": 2**40, "recompute": True}, [14, 14]),
    ):
        output, other, sizes = run(**options)
        assert sorted(sizes) == sorted(expected_sizes), options
        torch.testing.assert_close(output, plain, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(other, gradient, rtol=1e-12, atol=1e-12)


def test_nothing_is_recomputed_without_a_gradient() -> None:
    module, space = small_network()
    network = TaskNetwork(module, space, memory_limit=1)
    theta = positive_theta(module, space, (3,))
    x = torch.randn(3, 2, 1, 4, 4)
    assert not network._recomputes(theta, x, 2)
    assert network._recomputes(theta.requires_grad_(), x, 2)
    with torch.no_grad():
        assert not network._recomputes(theta, x, 2)
    assert network(theta, x).shape[:2] == (3, 2)


@pytest.mark.parametrize("memory_limit", [1, 2**40], ids=["an image at a time", "all at once"])
def test_networks_on_shared_images(memory_limit: int) -> None:
    module, space = small_network()
    network = TaskNetwork(module, space, memory_limit=memory_limit)
    theta = positive_theta(module, space, (3, 2)).double().requires_grad_()
    x = torch.randn(5, 1, 4, 4, dtype=torch.float64)
    expected = network(theta, x.expand(3, 2, *x.shape))
    found = network.shared(theta, x)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    gradients = [torch.autograd.grad(out.square().sum(), theta)[0] for out in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)


def test_blockwise_mixing_equals_a_loop_over_blocks_and_batch() -> None:
    module, _ = small_network()
    space = ParameterSpace.from_module(module, {"head": "4|5", "stem": ".*"})
    assert space.names[0] == "4.weight"
    basis = torch.randn(3, space.dim)
    coefficients = torch.rand(2, 5, 2, 3)
    theta = compose(coefficients, basis, space)
    assert theta.shape == (2, 5, space.dim)
    for k in range(2):
        for b in range(5):
            for entry in space.entries:
                block = 0 if entry.name[0] in "45" else 1
                columns = slice(entry.offset, entry.offset + entry.numel)
                expected = sum(coefficients[k, b, block, c] * basis[c, columns] for c in range(3))
                torch.testing.assert_close(theta[k, b, columns], expected, rtol=1e-5, atol=1e-6)
    same = coefficients[..., :1, :].expand_as(coefficients)
    torch.testing.assert_close(compose(same, basis, space), compose(coefficients[..., 0, :], basis))


def test_compose_refuses_coefficients_that_do_not_fit() -> None:
    module, _ = small_network()
    space = ParameterSpace.from_module(module, {"head": "4|5", "stem": ".*"})
    basis = torch.randn(3, space.dim)
    with pytest.raises(ValueError, match="4 columns and the basis 3 rows"):
        compose(torch.rand(2, 4), basis)
    with pytest.raises(ValueError, match=r"shape \(5, 3\); blockwise mixing expects"):
        compose(torch.rand(5, 3), basis, space)
    with pytest.raises(ValueError, match=r"shape \(3,\); blockwise mixing expects"):
        compose(torch.rand(3), basis, space)


def test_running_statistics_are_coordinates_with_a_gradient() -> None:
    module, _ = small_network()
    module = module.double()
    space = ParameterSpace.from_module(module)
    theta = positive_theta(module, space, (2,)).double()
    x = torch.randn(2, 3, 1, 4, 4, dtype=torch.float64)
    probe = torch.randn(2, 3, 5, dtype=torch.float64)
    network = TaskNetwork(module, space)

    def value(t: Tensor) -> Tensor:
        return (network(t, x) * probe).sum()

    leaf = theta.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(value(leaf), leaf)
    statistics = (~space.trainable()).nonzero().flatten()
    assert len(statistics) == 2 * 4 + 2 * 5
    for j in [*statistics.tolist(), 0, 40, space.dim - 12]:
        step = torch.zeros_like(theta)
        step[1, j] = 1e-6
        with torch.no_grad():  # PyTorch's own batch normalisation, an independent forward
            slope = (value(theta + step) - value(theta - step)) / 2e-6
        assert gradient[1, j].item() == pytest.approx(slope.item(), rel=1e-5, abs=1e-7)
    assert gradient[:, statistics].abs().min() > 0


def test_mixtures_keep_variances_positive_and_experts_leave_statistics_alone() -> None:
    modules = [randomised(lambda: build_network("mobilenet_v2", width_mult=0.1), s) for s in range(3)]
    library = SourceLibrary.from_state_dicts(modules[0], {str(i): m.state_dict() for i, m in enumerate(modules)})
    bank = ExpertBank(library.space, 2, sparsity=0.0, delta_scale=100.0, generator=torch.Generator().manual_seed(0))
    rows = torch.stack([bank.rows(generator=torch.Generator().manual_seed(1)), bank.projected_rows()]).detach()
    statistics = ~library.space.trainable()
    assert not rows[..., statistics].any()
    assert rows[..., ~statistics].any()
    coefficients = torch.cat([torch.rand(50, 3).softmax(-1), torch.ones(50, 2)], dim=-1)
    theta = compose(coefficients, torch.cat([library.basis, rows[0]]))
    lowest = min(v.min() for m in modules for n, v in m.state_dict().items() if n.endswith("running_var"))
    for name, values in library.space.unflatten(theta).items():
        if name.endswith("running_var"):
            assert values.min() >= lowest * (1 - 1e-6)


class ActivatedNorm(nn.BatchNorm1d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


def test_a_normalisation_that_does_more_keeps_its_forward_and_has_a_gradient_in_its_statistics() -> None:
    module = nn.Sequential(nn.Linear(4, 3), ActivatedNorm(3)).eval()
    plain = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.ReLU()).eval()
    space = ParameterSpace.from_module(module)
    theta = positive_theta(module, space, (2,)).double()
    x = torch.randn(2, 5, 4, dtype=torch.float64)
    results = []
    for network in (TaskNetwork(module, space), TaskNetwork(plain, space)):
        for many in (slice(0, 1), slice(None)):
            leaf = theta[many].clone().requires_grad_()
            output = network(leaf, x[many])
            results.append((output.detach(), *torch.autograd.grad(output.square().sum(), leaf)))
    for ours, theirs in zip(results[:2], results[2:], strict=True):
        torch.testing.assert_close(ours, theirs)
    assert (results[1][1][:, ~space.trainable()].abs().sum(1) > 0).all()
    with pytest.raises(ValueError, match=r"modules \['1'\] have running statistics and a forward of their own"):
        TaskNetwork(module, space, compile=True)(theta.requires_grad_(), x)


@pytest.mark.parametrize(
    "norm", [nn.InstanceNorm2d(4, affine=True, track_running_stats=True), nn.BatchNorm2d(4, affine=False)]
)
def test_other_layers_with_running_statistics(norm: nn.Module) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 4, 3), norm).eval()
    module(torch.zeros(1, 1, 4, 4))
    space = ParameterSpace.from_module(module)
    theta = positive_theta(module, space, (3,))
    x = torch.randn(3, 2, 1, 4, 4)
    output = TaskNetwork(module, space)(theta.clone().requires_grad_(), x)
    torch.testing.assert_close(output, reference_loop(module, space, theta, x), rtol=1e-5, atol=1e-5)


class Broken(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("on purpose")


@pytest.mark.parametrize("enabled", [True, False])
def test_nothing_global_stays_switched(enabled: bool) -> None:
    def state() -> tuple[bool, ...]:
        return (
            torch.backends.mha.get_fastpath_enabled(),
            torch.backends.cuda.flash_sdp_enabled(),
            torch.backends.cuda.mem_efficient_sdp_enabled(),
            torch.backends.cuda.math_sdp_enabled(),
            torch.is_grad_enabled(),
        )

    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(enabled)
    try:
        expected = state()
        module = tiny_transformer()
        space = ParameterSpace.from_module(module)
        theta = space.flatten(module.state_dict()).expand(2, -1).clone().requires_grad_()
        TaskNetwork(module, space, recompute=True)(theta, torch.randn(2, 1, 3, 16, 16)).sum().backward()
        assert state() == expected
        broken = Broken()
        space = ParameterSpace.from_module(broken)
        with pytest.raises(RuntimeError, match="on purpose"):
            TaskNetwork(broken, space)(torch.zeros(2, space.dim), torch.zeros(2, 1, 2))
        assert state() == expected
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def test_the_template_is_a_copy_and_its_mode_and_weights_stay() -> None:
    module, _ = small_network()
    module.train()
    space = ParameterSpace.from_module(module)
    theta = positive_theta(module, space, (2,))
    x = torch.randn(2, 3, 1, 4, 4)
    network = TaskNetwork(module, space)
    before, first = checksum(module), network(theta, x)
    network(theta.clone().requires_grad_(), x).sum().backward()
    assert module.training
    assert all(p.requires_grad and p.grad is None for p in module.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, checksum(module), strict=True))
    with torch.no_grad():
        for tensor in module.parameters():
            tensor.fill_(torch.nan)  # its weights are not used
    assert torch.equal(network(theta, x), first)
    assert copy.deepcopy(network)(theta, x).equal(first)


def test_dropout_is_off_and_constants_follow_the_dtype() -> None:
    class WithConstant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 2)
            self.dropout = nn.Dropout(0.9)
            self.register_buffer("constant", torch.tensor([1.0, -1.0]), persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.dropout(self.linear(x)) + self.constant

    module = WithConstant().train()
    space = ParameterSpace.from_module(module)
    theta = torch.randn(2, space.dim, dtype=torch.float64)
    x = torch.randn(2, 4, 3)
    output = TaskNetwork(module, space)(theta, x)
    assert output.dtype == torch.float64
    weight, bias = theta[:, :6].reshape(2, 2, 3), theta[:, 6:]
    expected = x.double() @ weight.mT + bias.unsqueeze(1) + torch.tensor([1.0, -1.0])
    torch.testing.assert_close(output, expected)


def test_mismatching_leading_dims_are_refused() -> None:
    module, space = small_network()
    network = TaskNetwork(module, space)
    with pytest.raises(ValueError, match="the same leading dims"):
        network(torch.zeros(2, space.dim), torch.zeros(3, 1, 1, 4, 4))
    with pytest.raises(ValueError, match="the same leading dims"):
        network(torch.zeros(2, 3, space.dim), torch.zeros(2, 3, 1))
    with pytest.raises(ValueError, match=f"expected d = {space.dim}"):
        network(torch.zeros(2, space.dim - 1), torch.zeros(2, 1, 1, 4, 4))


def test_a_head_that_the_space_leaves_out_keeps_the_networks_own_weights() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    body = {k: v for k, v in module.state_dict().items() if k.startswith("0.")}
    library = SourceLibrary.from_files(module, {"a": body, "b": {k: -v for k, v in body.items()}}, head=("2.*",))
    assert library.space.names == ("0.weight", "0.bias")
    network, x = TaskNetwork(module, library.space), torch.randn(5, 4)
    torch.testing.assert_close(network(library.basis[0], x), module(x).detach())
    theta = library.basis.requires_grad_()
    both = network(theta, x.expand(2, -1, -1))
    torch.testing.assert_close(both[1], module[2](torch.tanh(-module[0](x))))
    both.sum().backward()  # the head is a constant: gradients reach theta and nothing else
    assert theta.grad is not None
    assert module[2].weight.grad is None
